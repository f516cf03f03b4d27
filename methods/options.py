"""Options that every method has, and those of the guarantees task. No torch: a plan stays fast.

Each room of methods has an `options.py` of its own. The class there and the method have the same name:
`methods.inversion.edict.EDICT` is configured by `methods.inversion.options.EDICT`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class CommonOptions(BaseModel):
    """Options of every method. `steps` and `guidance` are axes of a sweep, so the cell sets them."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    calls_per_step: ClassVar[int] = 1
    """Network calls of one step, in either direction, for the plan's prediction and the NFE formula."""
    refuses: ClassVar[dict[str, str]] = {}
    """task -> why this method cannot do it; the plan skips such cells and gives the reason."""
    least_steps: ClassVar[int] = 1
    """The fewest steps that this method can take; the plan skips cells with fewer and gives the reason."""
    runs_on: ClassVar[tuple[str, ...]] = ()
    """Model classes that the method can run on; empty: all. The plan skips other models and gives the reason."""

    version: int = Field(1, ge=1, description="raised when the method's numbers change; part of a cell's identity")
    steps: int = Field(20, ge=1, le=1000, description="N, steps of the whole grid")
    guidance: float = Field(1.0, ge=0, le=50, description="w of classifier-free guidance; 1 is the caption alone")
    strength: float = Field(
        1.0, gt=0, le=1, description="share of the steps, from the clean end, that the method takes"
    )
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="dtype of the latents; the network keeps its own"
    )
    decode: Literal["caption", "null"] = Field("caption", description="condition of a restoration's decoding")

    @property
    def walked(self) -> int:
        """The number of steps taken: the share `strength` of all, at least one, as `TimeGrid.truncate` counts them."""
        return max(1, int(round(self.steps * self.strength, 9)))

    @property
    def evaluations(self) -> int:
        """Network evaluations per image, by the declared calls per step, for the plan's prediction."""
        return self.walked * self.calls_per_step * self._guided

    @property
    def _guided(self) -> int:
        """Evaluations per call."""
        return 1 if self.guidance in (0.0, 1.0) else 2


class MethodOptions(CommonOptions):
    """Options of methods that invert, and of editors."""

    refuses: ClassVar[dict[str, str]] = {
        "guarantee": "task=guarantee needs a flow that a solver integrates, such as flow_ode"
    }

    guidance_invert: float | None = Field(
        None, ge=0, le=50, description="w of the inversion, if the task inverts under a caption; None: the same w"
    )
    project: Literal["none", "final", "each_step"] = Field(
        "each_step",
        description="write a mask's known pixels: never, into the result, or also after every decoding step",
    )

    @property
    def evaluations(self) -> int:
        """Network evaluations per image, inverted without guidance and decoded with it."""
        return self.walked * self.calls_per_step * (1 + self._guided)


class RestorerOptions(CommonOptions):
    """Options of methods that only restore measurements."""

    refuses: ClassVar[dict[str, str]] = dict.fromkeys(
        ("reconstruct", "edit", "guarantee"), "the method only restores measurements, and has no latent"
    )

    project: Literal["none", "final"] = Field(
        "none", description="write a mask's known pixels: never, or into the result"
    )


Walk = Literal[
    "rk4", "leapfrog", "leapfrog_bits", "reversible_heun", "reversible_heun_bits", "mccallum_foster"
]  # fmt: skip


class Guarantees(BaseModel):
    """Settings of task=guarantee (`methods.guarantees`): how thoroughly it measures a flow, in float64 by default."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    version: int = Field(4, ge=1, description="raised when the numbers change; part of a cell's identity")
    steps: int = Field(
        5,
        ge=1,
        le=1000,
        description="steps of rk4 for all derivatives, denser at the data end; doubled before a violation is reported",
    )
    iterations: int = Field(
        6,
        ge=1,
        description="iterations of Lanczos for the largest and smallest singular value; exact at the image's dimension",
    )
    pairs: int = Field(4, ge=1, description="pairs of points in random directions")
    updates: int = Field(4, ge=1, description="updates of Adam, for the smallest and for the largest ratio")
    rate: float = Field(0.3, gt=0, description="learning rate of Adam: about the change of a coordinate per update")
    distance: float = Field(0.01, gt=0, description="L2 distance of the points of a pair")
    probes: int = Field(2, ge=2, description="probes of Hutchinson's estimator of the log-determinant")
    tolerances: tuple[PositiveFloat, ...] = Field(
        (1e-3, 1e-5, 1e-7), min_length=1, description="rtol = atol of dopri5's round trips"
    )
    solvers: tuple[Walk, ...] = Field(
        ("rk4", "leapfrog", "leapfrog_bits", "reversible_heun", "reversible_heun_bits", "mccallum_foster"),
        description="further solvers for round trips, on the method's own steps; _bits adds in integers",
    )
    noise: float = Field(0.05, gt=0, description="std of noise in the measurement, in model range")
    draws: int = Field(3, ge=1, description="number of draws of that noise")

    @property
    def evaluations(self) -> int:
        """The estimated cost of one image in network evaluations, for the plan's prediction.

        A product with the Jacobian counts as 3 and a gradient as 2. A round trip counts as 100 for each tolerance of
        dopri5, as 200 for each other solver, and as 800 for rk4 with its local errors.
        """
        walks = 2 * 2 * 3 * self.iterations + 2 * self.pairs + 2 * 2 * 3 * self.updates + 3 * self.probes
        return 4 * self.steps * walks + 100 * len(self.tolerances) + 200 * len(self.solvers) + 800
