"""What can be set on the injective ODE: ranges, units and defaults. No torch, so that a plan is quick."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from methods.options import FlowODE


class InjectiveODE(FlowODE):
    """The injective neural ODE on its certified field, walked in the gauge."""

    runs_on: ClassVar[tuple[str, ...]] = ("methods.injective_ode.field.InjectiveField",)

    version: int = Field(
        3, description="2: guidance takes the caption away and keeps the measurement; 3: default solver"
    )
    solver: Literal["leapfrog", "reversible_heun", "mccallum_foster", "rk4", "dopri5"] = Field(
        "reversible_heun", description="the first three are reversible and keep more than x_T, the last two keep x_T"
    )
    spacing: Literal["model", "data_end"] = Field(
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
