"""Masks: y = M x, where M is a diagonal of 0 and 1, the same for all channels. Hidden pixels are 0 (mid-gray)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from corruptions import options
from corruptions.base import Corruption, Operator, Shape


class Mask(Operator):
    """The operator M x, which keeps the known pixels. It is a projection, so it is its own adjoint."""

    def __init__(self, known: Tensor, details: dict[str, float] | None = None) -> None:
        """Take `known`, bool [1, H, W], True where a pixel is observed, and `details`, numbers for the result rows."""
        self._known = known
        self._details = details or {}

    @property
    def known(self) -> Tensor:
        return self._known

    @property
    def norm(self) -> float:
        return float(self._known.any())

    def forward(self, x: Tensor) -> Tensor:
        # Not a product: -1 * 0 is -0.0, and the bytes of y are hashed.
        return torch.where(self._known.to(x.device), x, torch.zeros((), dtype=x.dtype, device=x.device))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def describe(self) -> dict[str, float]:
        return {"missing": 1 - int(self._known.sum()) / self._known.numel(), **self._details}

    def to(self, device: torch.device | str) -> Mask:
        return Mask(self._known.to(device), self._details)


class RandomMask(Corruption[options.RandomMask]):
    """A mask that hides exactly round(missing * H * W) pixels, drawn uniformly without replacement."""

    kind = "random_mask"

    def draw(self, shape: Shape, rng: np.random.Generator) -> Mask:
        _, height, width = shape
        count = round(self.options.missing * height * width)
        # Ranks of uniform numbers: NumPy is least likely to change its stream of plain floats.
        hidden = np.argsort(rng.random(height * width), kind="stable")[:count]
        known = np.ones(height * width, dtype=bool)
        known[hidden] = False
        return Mask(torch.from_numpy(known.reshape(1, height, width)))


class BlockMask(Corruption[options.BlockMask]):
    """A mask that hides one square, in the centre or at a random position fully inside the image."""

    kind = "block_mask"

    def draw(self, shape: Shape, rng: np.random.Generator) -> Mask:
        _, height, width = shape
        side = max(1, round(self.options.side * min(height, width)))
        if self.options.centred:
            top, left = (height - side) // 2, (width - side) // 2
        else:
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        known = torch.ones(1, height, width, dtype=torch.bool)
        known[:, top : top + side, left : left + side] = False
        return Mask(known, {"side_px": float(side), "top_px": float(top), "left_px": float(left)})
