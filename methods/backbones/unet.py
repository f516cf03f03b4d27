"""A small conditional U-Net with attention (after Ho et al. 2020 and Dhariwal & Nichol 2021), fast on one CPU thread.

It works on 2x2 patches, so its largest maps have half the side of the image. Time and caption modulate every residual
block (scale and shift). The caption is a short list of slots, each a symbol of a fixed vocabulary. With
`caption_attention` the coarse maps also attend to the slots (as in Rombach et al. 2022). Each position can then decide
which of two objects it belongs to, so colours stay with their shapes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones.captions import VOCABULARIES


def time_features(t: Tensor, width: int) -> Tensor:
    """Return sinusoidal features [B, width] of times t [B] in [0, 1]."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), width // 2, device=t.device, dtype=t.dtype))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """A residual block: norm, SiLU, conv, modulated norm, SiLU, conv, plus the input."""

    def __init__(self, width_in: int, width_out: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width_out)
        self.norm2 = nn.GroupNorm(8, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the pixels of a map."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w)
        return x + self.out(mixed)


class CaptionAttention(nn.Module):
    """Cross-attention from the positions of a map to the caption's slots. Coordinates tell left from right objects."""

    def __init__(self, width: int, slot: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.q = nn.Conv2d(width + 2, width, 1)
        self.kv = nn.Linear(slot, 2 * width)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        b, c, h, w = x.shape
        down = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)[:, None].expand(b, 1, h, w)
        right = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype).expand(b, 1, h, w)
        q = self.q(torch.cat([self.norm(x), down, right], dim=1)).reshape(b, self.heads, c // self.heads, h * w)
        k, v = self.kv(slots).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q.transpose(2, 3), k, v).transpose(2, 3).reshape(b, c, h, w)
        return x + self.out(mixed)


class UNet(nn.Module):
    """The U-Net: two resolutions with `widths` channels; `vocabulary` names the caption grammar (scenes | digits).

    `channels` are those of the image, `patch` is 1 or 2, and `t_max` is the noisiest time of the path, which scales
    times to [0, 1]. `caption_attention` is for captions of several objects, whose attributes modulation alone mixes up.
    """

    def __init__(
        self,
        vocabulary: str,
        channels: int = 3,
        widths: tuple[int, int] = (64, 96),
        patch: int = 2,
        t_max: float = 1.0,
        embedding: int = 128,
        caption_attention: bool = False,
    ) -> None:
        super().__init__()
        self.vocabulary = VOCABULARIES[vocabulary]
        self.patch, self.t_max, self.caption_attention = patch, t_max, caption_attention
        w1, w2 = widths
        self.slots = nn.Embedding(self.vocabulary.size, 32)
        self.caption = nn.Sequential(nn.Linear(32 * self.vocabulary.slots, embedding), nn.SiLU())
        self.time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU())
        self.mix = nn.Sequential(nn.Linear(2 * embedding, embedding), nn.SiLU())
        self.inp = nn.Conv2d(channels * patch**2, w1, 3, padding=1)
        self.down1 = nn.ModuleList([ResidualBlock(w1, w1, embedding)])
        self.pool = nn.Conv2d(w1, w2, 3, stride=2, padding=1)
        self.down2 = nn.ModuleList([ResidualBlock(w2, w2, embedding)])
        self.attention1 = Attention(w2)
        self.middle = nn.ModuleList([ResidualBlock(w2, w2, embedding)])
        self.attention2 = Attention(w2)
        if caption_attention:
            self.caption1, self.caption2 = CaptionAttention(w2, 32), CaptionAttention(w2, 32)
        self.up2 = nn.ModuleList([ResidualBlock(2 * w2, w2, embedding)])
        self.expand = nn.Conv2d(w2, w1, 3, padding=1)
        self.up1 = nn.ModuleList([ResidualBlock(2 * w1, w1, embedding)])
        self.norm = nn.GroupNorm(8, w1)
        self.out = nn.Conv2d(w1, channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def encode(self, captions: list[str]) -> Tensor:
        """Return slot embeddings [B, slots, 32] of captions. Raises ValueError for a caption outside the grammar."""
        tokens = torch.tensor([self.vocabulary.tokens(caption) for caption in captions])
        return self.slots(tokens.to(self.slots.weight.device))

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        features = time_features(t / self.t_max, 64)
        e = self.mix(torch.cat([self.time(features), self.caption(embedding.flatten(1))], dim=1))
        h = self.inp(F.pixel_unshuffle(x, self.patch))
        for block in self.down1:
            h = block(h, e)
        skip1 = h
        h = self.pool(h)
        for block in self.down2:
            h = block(h, e)
        h = self.attention1(h)
        if self.caption_attention:
            h = self.caption1(h, embedding)
        skip2 = h
        for block in self.middle:
            h = block(h, e)
        h = self.attention2(h)
        if self.caption_attention:
            h = self.caption2(h, embedding)
        h = torch.cat([h, skip2], dim=1)
        for block in self.up2:
            h = block(h, e)
        h = F.interpolate(self.expand(h), scale_factor=2, mode="nearest")
        h = torch.cat([h, skip1], dim=1)
        for block in self.up1:
            h = block(h, e)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.patch)
