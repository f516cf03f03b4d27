"""The arguments of the backbones, as a model's YAML gives them: ranges and defaults, checked by the plan. No torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from methods.backbones.captions import VOCABULARIES

Grouped = Annotated[int, Field(gt=0, multiple_of=8)]
"""Channels in the eight groups of GroupNorm."""


def known_vocabulary(value: str) -> str:
    """The name itself. Raises ValueError for another than those of the embedded data sets."""
    if value not in VOCABULARIES:
        raise ValueError(f"must be one of {', '.join(VOCABULARIES)}")
    return value


class Arguments(BaseModel):
    """Arguments of a backbone; what else than they would be is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UNet(Arguments):
    """The small U-Net. Its path gives it the range of times besides."""

    vocabulary: str = Field(description="of captions: scenes | digits")
    channels: PositiveInt = Field(3, description="of an image")
    widths: tuple[Grouped, Grouped] = Field((64, 96), description="channels of the fine and of the coarse maps")
    patch: PositiveInt = Field(2, description="pixels along one side of what is one place of the finest map")
    embedding: PositiveInt = Field(128, description="features of time and caption together")
    caption_attention: bool = Field(
        False, description="whether places of the coarse maps attend to the caption's words"
    )

    _known = field_validator("vocabulary")(known_vocabulary)


class AttributeClassifier(Arguments):
    """The classifier of scenes."""

    width: Grouped = Field(48, description="channels of its first layers")


class SmallMixture(Arguments):
    """The exact mixture: it has nothing to set, its path is the model's."""


class Pretrained(Arguments):
    """A pretrained pipeline of diffusers."""

    path: ClassVar[str]

    pretrained: str = Field(min_length=1, description="a folder or a hub id")
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "bfloat16"
    revision: str | None = Field(None, description="of a hub id: a branch, tag or commit")
    variant: str | None = Field(None, description="of its files, such as fp16")


class StableDiffusion(Pretrained):
    """Stable Diffusion 1 and 2."""

    path = "vp"

    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"


class Flux(Pretrained):
    """FLUX.1."""

    path = "rectified"

    tokens: PositiveInt = Field(512, description="of a caption")


class StableDiffusion3(Pretrained):
    """Stable Diffusion 3."""

    path = "rectified"

    tokens: PositiveInt = Field(256, description="of a caption")
