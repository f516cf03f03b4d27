"""What the injective ODE is told: measurement, mask, kind and caption -> mean, variance and feature maps.

A free U-Net with attention. It never sees the noisy image or the time, so it runs once an image, and no constraint
on it is needed: for a given condition the flow is certified whatever the conditioner answers.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones.unet import Attention, ResidualBlock

CORRUPTIONS = ("random_mask", "block_mask", "gaussian_blur", "gaussian_noise")
KINDS = ("null", "clean", *CORRUPTIONS, *(f"is_{name}" for name in CORRUPTIONS))
"""null: clean images, nothing measured. clean: y is the image itself. random_mask ...: y is such a measurement of it.
is_random_mask ...: nothing measured, and the data themselves are corrupted so (to encode a measurement as such)."""


class Conditioner(nn.Module):
    """`widths` channels at the image's side, half of it, a quarter, ...; `embedding` channels of kind and caption."""

    def __init__(self, channels: int, widths: tuple[int, ...], symbols: int, slots: int, embedding: int = 128) -> None:
        super().__init__()
        self.kinds = nn.Embedding(len(KINDS), 32)
        self.slots = nn.Embedding(symbols, 32)
        self.mix = nn.Sequential(
            nn.Linear(32 * (slots + 1), embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.inp = nn.Conv2d(channels + 1, widths[0], 3, padding=1)
        self.down = nn.ModuleList(ResidualBlock(w, w, embedding) for w in widths)
        self.pool = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.attention1 = Attention(widths[-1])
        self.middle = ResidualBlock(widths[-1], widths[-1], embedding)
        self.attention2 = Attention(widths[-1])
        self.expand = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(ResidualBlock(2 * w, w, embedding) for w in widths[:-1])
        self.norm = nn.GroupNorm(8, widths[0])
        self.out = nn.Conv2d(widths[0], 2 * channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, y: Tensor, known: Tensor, kind: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """tokens int [B, slots], y [B, C, H, W], known [B, 1, H, W] of zeros and ones, kind int [B] (of `KINDS`) ->
        correction of the mean, logit of the variance, and the map of every level [B, C_i, H_i, W_i], finest first."""
        e = self.mix(torch.cat([self.kinds(kind), self.slots(tokens).flatten(1)], dim=1))
        h = self.inp(torch.cat([y, known], dim=1))
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            h = block(self.pool[i - 1](h) if i else h, e)
            skips.append(h)
        h = self.attention2(self.middle(self.attention1(h), e))
        maps = [h]
        for i in reversed(range(len(self.up))):
            h = F.interpolate(self.expand[i](h), scale_factor=2, mode="nearest")
            h = self.up[i](torch.cat([h, skips[i]], dim=1), e)
            maps.insert(0, h)
        mean, logit = self.out(F.silu(self.norm(h))).chunk(2, dim=1)
        return mean, logit, maps
