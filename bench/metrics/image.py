"""Metrics of one image against another, one number an image.

Images are [B, C, H, W] in [0, 1]; values outside are clipped first, as a viewer would. SSIM is torchmetrics' (Wang et
al. 2004): Gaussian window of 11 pixels, sigma 1.5, data range 1.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from bench.metrics import VERSIONS


def mse(x: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error [B], float64."""
    return (x.clamp(0, 1).double() - truth.clamp(0, 1).double()).square().flatten(1).mean(1)


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB [B] for peak 1; equal images score that of 1e-10, 100 dB."""
    return -10 * mse(x, truth).clamp(min=1e-10).log10()


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity [B]."""
    values = structural_similarity_index_measure(
        x.clamp(0, 1).double(), truth.clamp(0, 1).double(), data_range=1.0, kernel_size=11, sigma=1.5, reduction="none"
    )
    return values.reshape(len(x))  # type: ignore[union-attr]


@cache
def _lpips_network() -> Any:
    import lpips

    return lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)


def lpips(x: Tensor, truth: Tensor) -> Tensor:
    """Learned perceptual distance [B] (Zhang et al. 2018), AlexNet, version 0.1; images below 64 pixels are enlarged
    to 64 by nearest neighbour, since the network halves them four times."""

    def prepared(image: Tensor) -> Tensor:
        image = image.clamp(0, 1).float() * 2 - 1
        factor = -(-64 // image.shape[-1])
        return image.expand(-1, 3, -1, -1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    return _lpips_network()(prepared(x), prepared(truth)).flatten().double()


FUNCTIONS = {"psnr": psnr, "ssim": ssim, "mse": mse, "lpips": lpips}
assert set(FUNCTIONS) == set(VERSIONS)


@torch.no_grad()
def score(names: tuple[str, ...], x: Tensor, truth: Tensor) -> dict[str, list[float | None]]:
    """Every named metric for every image; None where the image is not finite."""
    finite = x.flatten(1).isfinite().all(1)
    safe = torch.where(finite[:, None, None, None], x, torch.zeros_like(x)).cpu()
    return {
        name: [v if ok else None for v, ok in zip(FUNCTIONS[name](safe, truth.cpu()).tolist(), finite, strict=True)]
        for name in names
    }
