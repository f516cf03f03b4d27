"""What can be set on each method: ranges, units and defaults (the papers' own). No torch, so that a plan is quick.

The class here and the method share their name: `methods.edict.EDICT` is configured by `methods.options.EDICT`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class MethodOptions(BaseModel):
    """Common to every method. `steps` and `guidance` are axes of a sweep; a cell sets them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    calls_per_step: ClassVar[int] = 1
    """Network calls of one step in either direction, for the plan's prediction and the NFE formula."""

    version: int = Field(1, description="raised when the method's numbers change; part of a cell's identity")
    steps: int = Field(20, ge=1, le=1000, description="N, steps of the whole grid")
    guidance: float = Field(1.0, ge=0, le=50, description="w of classifier-free guidance; 1 is the caption alone")
    guidance_invert: float | None = Field(
        None, ge=0, le=50, description="w while inverting, where the task inverts under a caption; None: the same w"
    )
    strength: float = Field(1.0, gt=0, le=1, description="share of the steps, from the clean end, that is walked")
    dtype: Literal["float32", "float64"] = Field("float32", description="of the latents; the network keeps its own")
    decode: Literal["caption", "null"] = Field("caption", description="condition under which a restoration is decoded")
    project: Literal["none", "final", "each_step"] = Field(
        "none", description="re-impose a mask's known pixels: never, on the result, or after every decoding step too"
    )


class DDIM(MethodOptions):
    """DDIM inversion (Song et al. 2021)."""

    convention: Literal["target_time", "current_time"] = Field(
        "target_time", description="time told to the network when inverting k-1 -> k: that of k, or that of k-1"
    )


class EDICT(MethodOptions):
    """EDICT (Wallace et al. 2023); p = 0.93 and leapfrog as in its code."""

    calls_per_step: ClassVar[int] = 2
    p: float = Field(0.93, gt=0, le=1, description="mixing weight; 0.9 .. 0.97 generally work for 50 steps")
    leapfrog: bool = Field(True, description="swap the order of the two updates at every other step")


class RFInversion(MethodOptions):
    """RF-Inversion (Rout et al. 2024); gamma 0.5, eta 0.9 on the noisiest quarter of the path."""

    gamma: float = Field(0.5, ge=0, le=1, description="pull of the inversion towards the noise target y1")
    eta: float = Field(0.9, ge=0, le=1, description="pull of the decoding towards the image y0, inside the window")
    window: tuple[float, float] = Field(
        (0.75, 1.0), description="[low, high] of the rectified time s = sigma / (alpha + sigma) where eta acts"
    )

    @model_validator(mode="after")
    def _ordered(self) -> RFInversion:
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"window must be [low, high] with 0 <= low <= high <= 1, got [{low}, {high}]")
        return self
