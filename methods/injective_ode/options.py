"""What can be set on the injective ODE: ranges, units and defaults. No torch, so that a plan is quick."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from methods.backbones.options import Arguments, Grouped, known_vocabulary
from methods.inversion.options import FlowODE, SolverName, Spacing

Halved = Annotated[int, Field(ge=2)]
"""Channels of which the modulus bends one half."""


class InjectiveField(Arguments):
    """The arguments of the field, which it checks by them; a plan does so before anything starts."""

    prediction: ClassVar[str] = "v"
    path: ClassVar[str] = "trig"

    vocabulary: str = Field(description="of captions: scenes | digits")
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(description="C, H, W of an image")
    constraint: Literal["strict", "soft", "free"] = Field("strict", description="on N; strict alone is certified")
    widths: tuple[Halved, ...] = Field(
        (48, 96, 96), min_length=1, description="channels of N, from half the image's side down"
    )
    conditioner: tuple[Grouped, ...] = Field(
        (24, 48, 96), min_length=2, description="its channels, from the image's side down"
    )
    depth: int = Field(2, ge=1, description="layers a level and direction")
    k_max: float = Field(4.0, ge=0, description="bound of k(t)")
    variance: tuple[float, float] = Field((1e-3, 1.0), description="(c_lo, c_hi), the range of c")
    time: int = Field(64, ge=1, description="features of the time")

    _known = field_validator("vocabulary")(known_vocabulary)

    @field_validator("variance")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1]:
            raise ValueError("must be (c_lo, c_hi) with 0 < c_lo < c_hi")
        return value

    @model_validator(mode="after")
    def _windows(self) -> InjectiveField:
        channels, height, width = self.shape
        deepest = 2 ** max(len(self.widths) + 1, len(self.conditioner) - 1)
        if height % deepest or width % deepest:
            raise ValueError(
                f"{len(self.widths)} levels of 2x2 windows and {len(self.conditioner)} of the conditioner need sides "
                f"divisible by {deepest}, got {list(self.shape)}"
            )
        if self.widths[0] < 4 * channels:
            raise ValueError(f"the first of widths must hold a 2x2 patch of the image: at least {4 * channels}")
        if any(after > 4 * before for before, after in pairwise(self.widths)):
            raise ValueError(f"one of widths can be at most four times the one before it, got {list(self.widths)}")
        return self


class InjectiveODE(FlowODE):
    """The injective neural ODE on its certified field, walked in the gauge."""

    runs_on: ClassVar[tuple[str, ...]] = ("methods.injective_ode.field.InjectiveField",)

    version: int = Field(
        4,
        ge=1,
        description="2: guidance takes the caption away and keeps the measurement; 3: default solver; 4: x_T alone is "
        "handed on to another guidance",
    )
    solver: SolverName = Field(
        "reversible_heun", description="the first three are reversible and keep more than x_T, the last two keep x_T"
    )
    spacing: Spacing = Field(
        "data_end", description="levels of the model's own grid, or denser where the field is steep: at the image"
    )
    procedure: Literal["zero", "sample", "bridge", "consistency", "mean"] = Field(
        "zero",
        description="of a restoration: decode the zero latent given y; decode noise given y; encode y as data of its "
        "kind and decode given y; decode noise without y, which each step is drawn to; or take the conditioner's mean "
        "without any flow (k = 0)",
    )
    samples: int = Field(1, ge=1, le=256, description="posterior samples that procedure=sample averages")
    edit: Literal["image", "latent"] = Field(
        "image", description="where an edit's mask is applied: on the edited image, or on the change of its latent"
    )

    @model_validator(mode="after")
    def _of_its_procedure(self) -> InjectiveODE:
        if self.samples > 1 and self.procedure != "sample":
            raise ValueError(f"samples={self.samples} has no meaning for procedure={self.procedure}")
        return self
