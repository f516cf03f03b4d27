"""Options of each inversion method: ranges, units and defaults (those of the papers). No torch: a plan stays fast."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from methods.options import MethodOptions


class DDIM(MethodOptions):
    """DDIM inversion (Song et al. 2021)."""

    convention: Literal["target_time", "current_time"] = Field(
        "target_time", description="time at which the network is evaluated when inverting k-1 -> k: that of k or of k-1"
    )


class EDICT(MethodOptions):
    """EDICT (Wallace et al. 2023); p = 0.93 and leapfrog as in the authors' code."""

    calls_per_step: ClassVar[int] = 2
    p: float = Field(0.93, gt=0, le=1, description="mixing weight; 0.9 .. 0.97 work well for 50 steps")
    leapfrog: bool = Field(True, description="swap the order of the two updates at every other step")


class RFInversion(MethodOptions):
    """RF-Inversion (Rout et al. 2024); by default ODEs, gamma 0.5, and eta 0.9 on the noisiest quarter of the path."""

    gamma: float = Field(0.5, ge=0, le=1, description="pull of the inversion towards the noise target y1")
    eta: float = Field(0.9, ge=0, le=1, description="pull of the decoding towards the image y0, inside the window")
    window: tuple[float, float] = Field(
        (0.75, 1.0), description="[low, high] of the rectified time s = sigma / (alpha + sigma) where eta acts"
    )
    window_steps: tuple[int, int] | None = Field(
        None, description="steps [first, end) where eta acts; step 0 is the noisiest of the whole grid; None: `window`"
    )
    eta_schedule: Literal["constant", "linear", "power", "exponential"] = Field(
        "constant", description="how eta decreases: over its window (linear, exponential) or over all steps (power)"
    )
    eta_power: float = Field(1.0, gt=0, le=100, description="p of eta (1 - i / N)^p; only with eta_schedule=power")
    eta_rate: float = Field(
        2.0,
        gt=0,
        le=100,
        description="a in eta (1 - (e^(a q) - 1) / (e^a - 1)), q the passed share; only with exponential",
    )
    terminal_weight: float | None = Field(
        None, gt=0, description="lambda of the controllers' terminal cost; None: infinite, as in the paper"
    )
    mode_forward: Literal["ode", "sde"] = Field("ode", description="inversion by the ODE (8) or the SDE (10)")
    mode_reverse: Literal["ode", "sde"] = Field("ode", description="decoding by the ODE (15) or the SDE (17)")
    start: float = Field(
        0.0, ge=0, lt=1, description="s of the paper as a share of the steps (3 of 28 is 0.107); see start_reading"
    )
    start_reading: Literal["partial", "uncontrolled"] = Field(
        "partial",
        description="partial: only the remaining share of the steps is inverted and decoded (the paper); "
        "uncontrolled: all steps are, and eta is 0 before s (the published ports)",
    )
    grid: Literal["consistent", "diffusers"] = Field(
        "consistent",
        description="diffusers: invert as its community pipeline does, network time i / (N + 1) and the gaps of the "
        "falling sigmas; this does not integrate the flow; rectified paths only",
    )

    @model_validator(mode="after")
    def _meaningful(self) -> RFInversion:
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"window must be [low, high] with 0 <= low <= high <= 1, got [{low}, {high}]")
        if self.window_steps is not None and not 0 <= self.window_steps[0] <= self.window_steps[1]:
            raise ValueError(f"window_steps must be [first, end] with 0 <= first <= end, got {list(self.window_steps)}")
        if self.start and self.start_reading == "partial" and self.strength < 1:
            raise ValueError("start and strength both shorten the path (strength = 1 - start): set only one of them")
        if self.terminal_weight is not None and "sde" in (self.mode_forward, self.mode_reverse):
            raise ValueError("the SDEs (10) and (17) are defined for an infinite terminal_weight: leave it out")
        if self.grid == "diffusers" and self.mode_forward == "sde":
            raise ValueError("grid=diffusers is for the ODE alone: set mode_forward=ode or grid=consistent")
        return self


class RFSolver(MethodOptions):
    """RF-Solver (Wang et al. 2024), the solver alone, without feature sharing."""

    calls_per_step: ClassVar[int] = 2


class FireFlow(MethodOptions):
    """FireFlow (Deng et al. 2024), the solver alone, without feature injection. The paper takes 8 steps."""

    steps: int = Field(8, ge=1, le=1000, description="N, steps of the whole grid")


class UniInv(MethodOptions):
    """Uni-Inv (Jiao et al. 2025): its inversion, with the Euler sampler that it belongs to."""


class FlowEdit(MethodOptions):
    """FlowEdit (Kulikov et al. 2024) with the defaults for Flux: the 24 least noisy of 28 steps, guidance 1.5 and 5.5.

    It integrates the difference of two velocities and has no inversion. `strength` sets its n_max, `guidance_invert`
    the guidance of the source velocity and `guidance` that of the target velocity.
    """

    refuses: ClassVar[dict[str, str]] = MethodOptions.refuses | {
        "reconstruct": "FlowEdit has no inversion, so it cannot reconstruct"
    }

    steps: int = Field(28, ge=1, le=1000, description="N, steps of the whole grid")
    guidance: float = Field(5.5, ge=0, le=50, description="w of the target's velocity")
    guidance_invert: float | None = Field(1.5, ge=0, le=50, description="w of the source's velocity; None: the same w")
    strength: float = Field(24 / 28, gt=0, le=1, description="n_max as a share of the steps")
    n_max: int | None = Field(None, ge=1, description="number of steps, from the clean end; None: given by `strength`")
    n_min: int = Field(0, ge=0, description="number of last steps that sample under the target alone, for style edits")
    n_avg: int = Field(1, ge=1, le=100, description="noise draws averaged in each step")

    @model_validator(mode="after")
    def _meaningful(self) -> FlowEdit:
        if self.n_max is not None and self.strength != type(self).model_fields["strength"].default:
            raise ValueError("n_max and strength set the same number: set only one of them")
        walked = self.n_max or self.walked
        if not self.n_min <= walked <= self.steps:
            raise ValueError(f"n_min <= n_max <= steps must hold, got {self.n_min}, {walked}, {self.steps}")
        if self.decode == "null":
            raise ValueError(
                "decode=null gives a restoration the same source and target, so nothing changes: use decode=caption"
            )
        return self


class OBELM(MethodOptions):
    """O-BELM (Wang et al. 2024), the optimal 2-step BELM; it has no options of its own."""

    least_steps: ClassVar[int] = 2


class BDIA(MethodOptions):
    """BDIA-DDIM (Zhang et al. 2024); the authors advise gamma 0.92 .. 1 for editing and use 0.94 in their notebook."""

    least_steps: ClassVar[int] = 2
    gamma: float = Field(
        0.94, gt=0, le=1, description="weight of the backward integral; the inversion amplifies by gamma^-N"
    )


class ERDDCI(MethodOptions):
    """ERDDCI (Dai et al. 2024) at a constant w; the authors' code has guidance_invert = 1."""

    calls_per_step: ClassVar[int] = 2
    project: Literal["none", "final"] = Field(
        "final",
        description="write a mask's known pixels into the result, or never; each_step would not change the predictions",
    )


class DirectInversion(MethodOptions):
    """Direct inversion (Ju et al. 2024); the pivots are at w = 1, the offsets at the inversion's w."""

    calls_per_step: ClassVar[int] = 2


class DDPMInversion(MethodOptions):
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024); to skip n steps set strength = 1 - n / steps."""

    eta: float = Field(1.0, gt=0, le=1, description="stochasticity of a step: 1 is DDPM; close to 0 it is DDIM")
    zero_last_noise: bool = Field(False, description="drop the noise map of the cleanest step, as in the authors' code")


class NullText(MethodOptions):
    """Null-text inversion (Mokady et al. 2023); its learning rate 1e-2 (1 - i/100) allows at most 100 steps."""

    learning_rate: float = Field(
        1e-2, gt=0, le=1, description="learning rate of Adam at the noisiest step; it decreases by 1 % of this per step"
    )
    inner_steps: int = Field(10, ge=1, le=500, description="maximum number of updates of one step's null embedding")
    early_stop: float = Field(
        1e-5, ge=0, description="updates of step i end when the mean squared error is below this + 2e-5 i"
    )

    @property
    def calls_per_step(self) -> int:  # type: ignore[override]
        """A third of all calls: pivot, inner steps (a backward pass counts as two), caption, step, guided decoding."""
        return 1 if self.guidance == 1.0 else math.ceil((3 * self.inner_steps + 5) / 3)

    @model_validator(mode="after")
    def _meaningful(self) -> NullText:
        _pivot_at_one(self)
        if self.walked > 100:
            raise ValueError(f"NullText takes at most 100 steps, got {self.steps} at strength {self.strength:g}")
        return self


class NegativePrompt(MethodOptions):
    """Negative-prompt inversion (Miyake et al. 2023), with proximal guidance (Han et al. 2023; quantile 0.7)."""

    prox: Literal["none", "l0", "l1"] = Field(
        "none", description="threshold on the difference that guidance multiplies: none, hard (l0) or soft (l1)"
    )
    quantile: float = Field(
        0.7, ge=0, le=1, description="share of an image's entries that lie below the threshold of prox"
    )

    @model_validator(mode="after")
    def _meaningful(self) -> NegativePrompt:
        _pivot_at_one(self)
        return self


def _pivot_at_one(given: MethodOptions) -> None:
    if given.guidance_invert not in (None, 1.0):
        raise ValueError(
            f"{type(given).__name__} always inverts at guidance 1: guidance_invert must be 1 or unset, "
            f"got {given.guidance_invert:g}"
        )


class FixedPoint(MethodOptions):
    """Fixed-point inversion: FPI (Meiri et al. 2023; K = 20) or AIDI (Pan et al. 2023; K = 5, Anderson with m = 3)."""

    iterations: int = Field(20, ge=1, le=1000, description="K, evaluations of the map f at each step")
    acceleration: Literal["none", "averaged", "anderson"] = Field(
        "none", description="next iterate: f (none), the mean of the last two f (AIDI_E) or Anderson's (AIDI_A)"
    )
    window: int = Field(3, ge=1, le=20, description="m, number of earlier iterates in Anderson acceleration")
    tolerance: float = Field(
        0.0,
        ge=0,
        description="the iteration of an image ends when the RMS of f(y) - y, in latent units, is below it; 0: never",
    )

    @property
    def calls_per_step(self) -> int:  # type: ignore[override]
        """The mean over inversion and decoding."""
        return math.ceil((self.iterations + 1) / 2)


class LatentOptimisation(MethodOptions):
    """Adam on x_T through the decoding (after D-Flow, Ben-Hamu et al. 2024)."""

    iterations: int = Field(100, ge=1, le=10_000, description="updates of x_T")
    learning_rate: float = Field(0.1, gt=0, le=10, description="learning rate of Adam, in units of the latent")
    init: Literal["noise", "ddim"] = Field("noise", description="start from the noised image or from DDIM inversion")

    @property
    def calls_per_step(self) -> int:  # type: ignore[override]
        """The mean over inversion and decoding; a backward pass counts as two evaluations."""
        return 2 * self.iterations + 1


SolverName = Literal["leapfrog", "reversible_heun", "mccallum_foster", "rk4", "dopri5"]
Spacing = Literal["model", "data_end"]


class FlowODE(MethodOptions):
    """The probability-flow ODE by a solver of `methods.solvers`; exact if the solver is reversible."""

    refuses: ClassVar[dict[str, str]] = {}

    version: int = Field(2, ge=1, description="2: a decode under another condition starts from x_T alone")
    steps: int = Field(32, ge=1, le=1000, description="N, steps of the whole grid; dopri5 chooses its own steps")
    solver: SolverName = Field(
        "leapfrog", description="the first three are reversible and keep more than x_T; rk4 and dopri5 keep x_T alone"
    )
    increment: Literal["midpoint", "rk4"] = Field("midpoint", description="Runge-Kutta rule inside mccallum_foster")
    coupling: float = Field(0.999, gt=0, le=1, description="lambda of mccallum_foster; bit_exact needs 1")
    rtol: float = Field(1e-5, gt=0, le=1, description="relative tolerance of dopri5")
    atol: float = Field(1e-5, gt=0, le=1, description="absolute tolerance of dopri5, RMS over an image")
    max_steps: int = Field(1000, ge=1, description="maximum number of steps that dopri5 tries in one integration")
    spacing: Spacing = Field(
        "model", description="levels: those of the model's grid, or 0.2 u + 0.8 u^2 of its range of s, u = 0 .. 1"
    )
    bit_exact: bool = Field(
        False, description="add in int64 fixed-point numbers; the round trip then returns equal integers"
    )
    keep: Literal["state", "x_T"] = Field(
        "state", description="what decoding starts from: the solver's whole state, or x_T alone (not exact)"
    )

    @property
    def calls_per_step(self) -> int:  # type: ignore[override]
        """The mean over inversion and decoding; for dopri5 the estimate is a hundred calls in all."""
        stages = 2 if self.increment == "midpoint" else 4
        fixed = {"leapfrog": 1, "reversible_heun": 1, "mccallum_foster": 2 * stages, "rk4": 4}
        return fixed.get(self.solver) or math.ceil(100 / self.steps)

    @model_validator(mode="after")
    def _meaningful(self) -> FlowODE:
        if self.bit_exact and self.solver in ("rk4", "dopri5"):
            raise ValueError(f"bit_exact needs a reversible solver, and {self.solver} is not reversible")
        if self.bit_exact and self.solver == "mccallum_foster" and self.coupling != 1:
            raise ValueError(f"bit_exact needs coupling=1, got {self.coupling:g}")
        if self.bit_exact and self.keep == "x_T":
            raise ValueError("bit_exact needs keep=state: decoding from x_T alone is not exact")
        return self
