"""What a YAML may say about a corruption. Free of torch: planning validates options without loading it.

A class path `pkg.mod.Name` has its options in `pkg.options.Name`, so each model carries its corruption's name.
Lengths are given at a reference side and scale with the image; noise is given in [0, 1] image units (`sigma01`).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class CorruptionOptions(BaseModel):
    """Options of every corruption."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = Field(
        default=1, ge=1, description="1, 2, ...: raised when the same options come to give other measurements"
    )
    sigma01: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="[0, 1], in [0, 1] image units: std of the additive white Gaussian noise (twice that in [-1, 1])",
    )


class RandomMask(CorruptionOptions):
    """Pixels hidden one by one, all channels together."""

    missing: float = Field(
        ge=0, lt=1, description="[0, 1): share of pixels hidden; exactly round(missing * H * W) of them"
    )


class BlockMask(CorruptionOptions):
    """One hidden square."""

    side: float = Field(
        gt=0,
        le=1,
        description="(0, 1]: the square's side as a share of the image's shorter side, rounded to pixels, at least one",
    )
    centred: bool = Field(
        default=False,
        description="in the middle (half a pixel up and left where the parities differ); else uniform over all "
        "positions that lie fully inside the image",
    )


class GaussianBlur(CorruptionOptions):
    """Isotropic Gaussian blur with reflect padding (no repeated edge)."""

    sigma: float = Field(
        gt=0, description="> 0, pixels at `reference_side`: std of the kernel; sigma_px = sigma * H / reference_side"
    )
    reference_side: int = Field(
        default=256, ge=1, description="pixels, >= 1: the image side at which sigma and taps are meant"
    )
    taps: int = Field(
        default=61,
        ge=3,
        description="odd, >= 3, at `reference_side`: the kernel's width; at another side the smallest odd number of "
        "taps >= max(3, taps * H / reference_side), cut to what reflect padding allows, 2 min(H, W) - 1",
    )

    @field_validator("taps")
    @classmethod
    def _odd(cls, taps: int) -> int:
        if taps % 2 == 0:
            raise ValueError(f"taps must be odd, got {taps}")
        return taps


class GaussianNoise(CorruptionOptions):
    """White Gaussian noise, not clipped."""

    sigma01: float = Field(
        gt=0, le=1, description="(0, 1], in [0, 1] image units: std of the noise (twice that in [-1, 1])"
    )
