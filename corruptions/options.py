"""Options of the corruptions, as a YAML gives them. No torch: a plan checks them without it.

The options of a class `pkg.mod.Name` are `pkg.options.Name`, so both classes have the same name. Lengths are given at a
reference side and scale with the image. Noise is given in [0, 1] image units (`sigma01`).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class CorruptionOptions(BaseModel):
    """Options that every corruption has."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = Field(
        default=1, ge=1, description="1, 2, ...: raised when the same options give different measurements than before"
    )
    sigma01: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="std of the additive white Gaussian noise in [0, 1] image units, at most 1; twice that in [-1, 1]",
    )


class RandomMask(CorruptionOptions):
    """Single pixels hidden at random, all channels together."""

    missing: float = Field(
        ge=0, lt=1, description="share of hidden pixels, in [0, 1); exactly round(missing * H * W) of them"
    )


class BlockMask(CorruptionOptions):
    """One hidden square."""

    side: float = Field(
        gt=0,
        le=1,
        description="side of the square as a share of the image's shorter side, in (0, 1]; at least one pixel",
    )
    centred: bool = Field(
        default=False,
        description="true: in the centre, or half a pixel up and left of it; false: drawn uniformly from all positions "
        "fully inside the image",
    )


class GaussianBlur(CorruptionOptions):
    """Isotropic Gaussian blur with reflect padding (no repeated edge)."""

    sigma: float = Field(
        gt=0, description="std of the kernel in pixels at `reference_side`, > 0; sigma_px = sigma * H / reference_side"
    )
    reference_side: int = Field(
        default=256, ge=1, description="image side in pixels, >= 1, for which sigma and taps are given"
    )
    taps: int = Field(
        default=61,
        ge=3,
        description="width of the kernel at `reference_side`, odd, >= 3; at another side the smallest odd number >= "
        "max(3, taps * H / reference_side), and at most 2 min(H, W) - 1, the limit of reflect padding",
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
        gt=0, le=1, description="std of the noise in [0, 1] image units, in (0, 1]; in [-1, 1] it is twice that"
    )
