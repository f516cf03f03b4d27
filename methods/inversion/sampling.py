"""Sampling from noise by the deterministic DDIM map, which on the rectified path is Euler's method."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.inversion.ddim import DDIM
from methods.paths import TimeGrid


@torch.no_grad()
def sample(denoiser: Denoiser, grid: TimeGrid, cond: Condition, noise: Tensor) -> Tensor:
    """Return images [B, C, H, W], about in [-1, 1], from noise [B, C, H, W] of unit variance."""
    solver = DDIM(denoiser, options.DDIM(steps=grid.steps), grid)
    return solver.decode(Latent({"x_T": noise}), cond)
