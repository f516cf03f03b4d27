"""The conditioner of the injective ODE: measurement, mask, kind and caption -> mean, variance and feature maps.

It is a U-Net with attention and without any constraint on its weights. It sees neither the noisy image nor the time, so
it runs once per image. The certificate of the flow holds for every output of the conditioner.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones.unet import Attention, ResidualBlock

CORRUPTIONS = ("random_mask", "block_mask", "gaussian_blur", "gaussian_noise")
KINDS = ("null", "clean", *CORRUPTIONS, *(f"is_{name}" for name in CORRUPTIONS))
"""The kinds of condition. null: clean images, no measurement. clean: y is the image itself. random_mask ...: y is a
measurement of this kind. is_random_mask ...: no measurement; the data themselves are corrupted in this way (this kind
encodes a measurement as data)."""


class Conditioner(nn.Module):
    """The U-Net: `widths` channels at full resolution, half, a quarter, ...; `embedding` features of kind, caption."""

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
        """Return the correction of the mean [B, C, H, W], the logit of the variance [B, C, H, W] and the feature maps.

        tokens: int [B, slots]. y: [B, C, H, W]. known: [B, 1, H, W], 0 or 1. kind: int [B], indices into `KINDS`. The
        maps are [B, C_i, H_i, W_i], finest first.
        """
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
