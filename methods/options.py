"""Options that every method has, and those of the guarantees task. No torch, so that a plan is quick.

Each room of methods has an `options.py` of its own. The class there and the method share their name:
`methods.inversion.edict.EDICT` is configured by `methods.inversion.options.EDICT`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


def walked(steps: int, strength: float) -> int:
    """The steps that are walked: the share `strength` of all, at least one, as `TimeGrid.truncate` counts them."""
    return max(1, int(round(steps * strength, 9)))


class MethodOptions(BaseModel):
    """Common to every method. `steps` and `guidance` are axes of a sweep; a cell sets them."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    calls_per_step: ClassVar[int] = 1
    """Network calls of one step in either direction, for the plan's prediction and the NFE formula."""
    refuses: ClassVar[dict[str, str]] = {"guarantee": "a guarantee is of a flow that a solver walks, as flow_ode does"}
    """task -> why this method has no answer to it; the plan skips such cells and says so."""
    least_steps: ClassVar[int] = 1
    """Fewest steps that this method can walk; the plan skips cells of fewer and says so."""
    runs_on: ClassVar[tuple[str, ...]] = ()
    """Classes of the only models that it can run on; none named: any. The plan skips the others and says so."""

    version: int = Field(1, ge=1, description="raised when the method's numbers change; part of a cell's identity")
    steps: int = Field(20, ge=1, le=1000, description="N, steps of the whole grid")
    guidance: float = Field(1.0, ge=0, le=50, description="w of classifier-free guidance; 1 is the caption alone")
    guidance_invert: float | None = Field(
        None, ge=0, le=50, description="w while inverting, where the task inverts under a caption; None: the same w"
    )
    strength: float = Field(1.0, gt=0, le=1, description="share of the steps, from the clean end, that is walked")
    dtype: Literal["float32", "float64"] = Field("float32", description="of the latents; the network keeps its own")
    decode: Literal["caption", "null"] = Field("caption", description="condition under which a restoration is decoded")
    project: Literal["none", "final", "each_step"] = Field(
        "each_step",
        description="re-impose a mask's known pixels: never, on the result, or after every decoding step too",
    )


Walk = Literal[
    "rk4", "leapfrog", "leapfrog_bits", "reversible_heun", "reversible_heun_bits", "mccallum_foster"
]  # fmt: skip


class Guarantees(BaseModel):
    """How hard task=guarantee looks at a flow (`methods.guarantees`); in float64 where nothing else is said."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    version: int = Field(4, ge=1, description="raised when the numbers change; part of a cell's identity")
    steps: int = Field(
        5,
        ge=1,
        le=1000,
        description="of rk4 under all derivatives, denser at the data end; doubled before a violation is called one",
    )
    iterations: int = Field(
        6, ge=1, description="of Lanczos, for either end of the singular values; exact at the image's dimension"
    )
    pairs: int = Field(4, ge=1, description="pairs of points in random directions")
    updates: int = Field(4, ge=1, description="of Adam, for the nearest and for the widest pair")
    rate: float = Field(0.3, gt=0, description="of Adam, about the change of a coordinate in an update")
    distance: float = Field(0.01, gt=0, description="of the points of a pair, L2")
    probes: int = Field(2, ge=2, description="of Hutchinson's estimator of the log-determinant")
    tolerances: tuple[PositiveFloat, ...] = Field(
        (1e-3, 1e-5, 1e-7), min_length=1, description="rtol = atol of dopri5's round trips"
    )
    solvers: tuple[Walk, ...] = Field(
        ("rk4", "leapfrog", "leapfrog_bits", "reversible_heun", "reversible_heun_bits", "mccallum_foster"),
        description="of the other round trips, on the method's own steps, beside its own; _bits adds in integers",
    )
    noise: float = Field(0.05, gt=0, description="std of noise in the measurement, in model range")
    draws: int = Field(3, ge=1, description="of that noise")

    @property
    def evaluations(self) -> int:
        """About what one image costs in evaluations of the network, for the plan's prediction: a product with the
        Jacobian counts as three, a gradient as two, a round trip of dopri5 as a hundred a tolerance, of another solver
        as two hundred, and rk4's with its local errors as eight hundred."""
        walks = 2 * 2 * 3 * self.iterations + 2 * self.pairs + 2 * 2 * 3 * self.updates + 3 * self.probes
        return 4 * self.steps * walks + 100 * len(self.tolerances) + 200 * len(self.solvers) + 800
