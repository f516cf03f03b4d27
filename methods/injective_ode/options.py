"""Options of the injective ODE and arguments of its field: ranges, units and defaults. No torch: a plan stays fast."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from methods.backbones.options import Arguments, Grouped, known_vocabulary
from methods.inversion.options import FlowODE, SolverName, Spacing

Halved = Annotated[int, Field(ge=2)]
"""A number of channels; the modulus acts on one half of them."""


class InjectiveField(Arguments):
    """Arguments of the field. The plan checks them before anything starts, and the field checks them again."""

    prediction: ClassVar[str] = "v"
    path: ClassVar[str] = "trig"

    vocabulary: str = Field(description="grammar of the captions: scenes | digits")
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(description="C, H, W of an image")
    constraint: Literal["strict", "soft", "free"] = Field(
        "strict", description="constraint on N; only strict is certified"
    )
    widths: tuple[Halved, ...] = Field(
        (48, 96, 96), min_length=1, description="channels of N, from half the image's side down"
    )
    conditioner: tuple[Grouped, ...] = Field(
        (24, 48, 96), min_length=2, description="channels of the conditioner, from the image's side down"
    )
    depth: int = Field(2, ge=1, description="layers per level and direction")
    k_max: float = Field(4.0, ge=0, description="bound of k(t)")
    variance: tuple[float, float] = Field((1e-3, 1.0), description="(c_lo, c_hi), the range of c")
    time: int = Field(64, ge=1, description="number of features of the time")

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
                f"{len(self.widths)} widths and {len(self.conditioner)} of the conditioner need image sides "
                f"divisible by {deepest}, got {list(self.shape)}"
            )
        if self.widths[0] < 4 * channels:
            raise ValueError(
                f"the first width must hold a 2x2 patch of the image: at least {4 * channels}, got {self.widths[0]}"
            )
        if any(after > 4 * before for before, after in pairwise(self.widths)):
            raise ValueError(f"each width can be at most four times the one before it, got {list(self.widths)}")
        return self


class InjectiveODE(FlowODE):
    """The injective neural ODE on its certified field, solved in the gauge."""

    runs_on: ClassVar[tuple[str, ...]] = ("methods.injective_ode.field.InjectiveField",)

    version: int = Field(
        4,
        ge=1,
        description="2: the null condition of guidance keeps the measurement and drops the caption; 3: default "
        "solver; 4: a decode at another guidance starts from x_T alone",
    )
    solver: SolverName = Field(
        "reversible_heun",
        description="the first three are reversible and keep more than x_T; rk4 and dopri5 keep x_T alone",
    )
    spacing: Spacing = Field(
        "data_end", description="levels: those of the model's grid, or denser at the image, where the field is steep"
    )
    procedure: Literal["zero", "sample", "bridge", "consistency", "mean"] = Field(
        "zero",
        description="how a restoration is made. zero: decode the zero latent given y; sample: decode noise given y; "
        "bridge: encode y as data of its kind, then decode given y; consistency: decode noise without y, and correct "
        "each step towards y; mean: return the conditioner's mean, without the flow (k = 0)",
    )
    samples: int = Field(1, ge=1, le=256, description="posterior samples that procedure=sample averages")
    edit: Literal["image", "latent"] = Field(
        "image", description="where the mask of an edit acts: on the edited image or on the change of its latent"
    )

    @model_validator(mode="after")
    def _of_its_procedure(self) -> InjectiveODE:
        if self.samples > 1 and self.procedure != "sample":
            raise ValueError(f"samples={self.samples} has no meaning for procedure={self.procedure}, only for sample")
        return self
