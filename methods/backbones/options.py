"""Arguments of the backbones in a model's YAML: ranges and defaults. The plan checks them. No torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from methods.backbones.captions import VOCABULARIES

Grouped = Annotated[int, Field(gt=0, multiple_of=8)]
"""A number of channels; GroupNorm divides them into eight groups."""


def known_vocabulary(value: str) -> str:
    """Return the name. Raises ValueError if it is not a grammar of the embedded data sets."""
    if value not in VOCABULARIES:
        raise ValueError(f"must be one of {', '.join(VOCABULARIES)}, got {value!r}")
    return value


class Arguments(BaseModel):
    """Arguments of a backbone. An unknown argument is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UNet(Arguments):
    """The small U-Net. The range of its times comes from the model's path."""

    vocabulary: str = Field(description="grammar of the captions: scenes | digits")
    channels: PositiveInt = Field(3, description="channels of an image")
    widths: tuple[Grouped, Grouped] = Field((64, 96), description="channels of the fine and the coarse maps")
    patch: PositiveInt = Field(2, description="side of a patch in pixels; one patch is one position of the finest map")
    embedding: PositiveInt = Field(128, description="number of features for time and caption together")
    caption_attention: bool = Field(
        False, description="true: positions of the coarse maps attend to the caption's words"
    )

    _known = field_validator("vocabulary")(known_vocabulary)


class AttributeClassifier(Arguments):
    """The classifier of scenes."""

    width: Grouped = Field(48, description="channels of the first layers")


class SmallMixture(Arguments):
    """The exact mixture. It has no arguments; its path is the model's path."""


class Pretrained(Arguments):
    """A pretrained pipeline of diffusers."""

    path: ClassVar[str]

    pretrained: str = Field(min_length=1, description="a folder or a hub id")
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "bfloat16"
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    variant: str | None = Field(None, description="variant of the files, such as fp16")


class StableDiffusion(Pretrained):
    """Stable Diffusion 1 and 2."""

    path = "vp"

    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"


class Flux(Pretrained):
    """FLUX.1."""

    path = "rectified"

    tokens: PositiveInt = Field(512, description="tokens to which a caption is padded")


class StableDiffusion3(Pretrained):
    """Stable Diffusion 3."""

    path = "rectified"

    tokens: PositiveInt = Field(256, description="tokens to which a caption is padded")
