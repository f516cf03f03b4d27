"""Gaussian blur: y = A_h x A_w^T, where the matrix A is the 1-D convolution with its reflect padding.

A dense [side, side] matrix is cheap up to 1024 px. Its transpose is the exact adjoint, padding included, and its norm
is exact. At the borders A is not symmetric, so its norm is a little above the DC gain of 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from corruptions import options
from corruptions.base import Corruption, Operator, Shape


def gaussian_kernel(sigma: float, taps: int) -> list[float]:
    """Return exp(-j^2 / 2 sigma^2) for j = -(taps // 2) .. taps // 2, scaled to sum 1; sigma in pixels."""
    offsets = [j / sigma for j in range(-(taps // 2), taps // 2 + 1)]
    weights = [math.exp(-0.5 * (u * u)) for u in offsets]
    total = math.fsum(weights)
    return [w / total for w in weights]


def reflect_index(side: int, radius: int) -> Tensor:
    """Return int64 [side + 2 radius]: the pixel of each padded position. The edge is not repeated; radius < side."""
    position = torch.arange(-radius, side + radius).abs()
    return (side - 1) - (side - 1 - position).abs()


# Methods call the operator at every step, so the matrix is built once and moved to a device once.
@lru_cache(maxsize=16)
def blur_matrix(side: int, sigma: float, taps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return A [side, side], whose rows sum to 1, computed in float64 on the CPU. It is shared: do not write to it."""
    windows = reflect_index(side, taps // 2).unfold(0, taps, 1)
    kernel = torch.tensor(gaussian_kernel(sigma, taps), dtype=torch.float64)
    matrix = torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, windows, kernel.expand(side, taps))
    return matrix.to(device, dtype)


@lru_cache(maxsize=64)
def blur_norm(side: int, sigma: float, taps: int) -> float:
    """Return the largest singular value of A."""
    matrix = blur_matrix(side, sigma, taps, torch.float64, torch.device("cpu"))
    return float(torch.linalg.matrix_norm(matrix, 2))


@dataclass(frozen=True)
class Blur(Operator):
    """The operator A_h x A_w^T for images of one size. Equal fields mean the same operator."""

    height: int
    width: int
    sigma_px: float
    taps: int

    @property
    def norm(self) -> float:
        # The singular values of a Kronecker product are the products of singular values.
        return blur_norm(self.height, self.sigma_px, self.taps) * blur_norm(self.width, self.sigma_px, self.taps)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(x, transposed=False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(y, transposed=True)

    def observe(self, x: Tensor) -> Tensor:
        """Compute the convolution as a plain sum over taps, in float64.

        Products and sums in a fixed order round in the same way on every machine; a matrix product does not.
        """
        kernel = gaussian_kernel(self.sigma_px, self.taps)
        for axis in (-2, -1):
            side = x.shape[axis]
            padded = x.index_select(axis, reflect_index(side, self.taps // 2))
            x, term = torch.zeros_like(x), torch.empty_like(x)
            for j, weight in enumerate(kernel):
                torch.mul(padded.narrow(axis, j, side), weight, out=term)
                x += term
        return x

    def describe(self) -> dict[str, float]:
        return {"sigma_px": self.sigma_px, "taps_px": float(self.taps)}

    def _apply(self, x: Tensor, transposed: bool) -> Tensor:
        work = torch.promote_types(x.dtype, torch.float32)
        rows, columns = (
            blur_matrix(side, self.sigma_px, self.taps, work, x.device) for side in (self.height, self.width)
        )
        if transposed:
            rows, columns = rows.T, columns.T
        # Autocast would silently turn the operator into half precision.
        with torch.autocast(x.device.type, enabled=False):
            return (rows @ x.to(work) @ columns.T).to(x.dtype)


class GaussianBlur(Corruption[options.GaussianBlur]):
    """Gaussian blur with a kernel scaled from the reference side to the image's height. Nothing is random."""

    kind = "gaussian_blur"

    def draw(self, shape: Shape, rng: np.random.Generator) -> Blur:
        _, height, width = shape
        reference = self.options.reference_side
        wanted = max(3, -(-self.options.taps * height // reference))  # rounded up, in integers
        radius = min(wanted // 2, min(height, width) - 1)
        return Blur(height, width, self.options.sigma * height / reference, 2 * radius + 1)
