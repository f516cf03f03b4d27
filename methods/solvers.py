"""Solvers of dz/dt = f(t, z) whose state holds all that is needed to undo them: one interface for every flow.

    state = integrate(field, z, times, solver)          z(times[0]) -> the solver's state at times[-1]
    state = reverse(field, state, times, solver)        the same levels in the opposite order
    z = solver.solution(state)

Three solvers are algebraically reversible. Their state is more than z, and from the whole state `reverse` returns to
z(times[0]) up to rounding. With h = u - t for a step t -> u:

    Leapfrog          asynchronous leapfrog (MALI, Zhuang et al., ICLR 2021; its eta = 1); state (z, v)
                      m = z + h/2 v      v' = 2 f(t + h/2, m) - v      z' = m + h/2 v'            1 evaluation
    ReversibleHeun    Kidger et al., NeurIPS 2021; state (y, yh, fh), fh = f(t, yh)
                      yh' = 2 y - yh + h fh      fh' = f(u, yh')      y' = y + h/2 (fh + fh')     1 evaluation
    McCallumFoster    McCallum & Foster 2024 (arXiv 2410.11648); state (y, z), Psi a Runge-Kutta increment
                      y' = c y + (1 - c) z + Psi(t -> u, z)      z' = z - Psi(u -> t, y')         2 |Psi| evaluations

The first two are their own inverse with -h. `RK4` and `Dopri5` keep z alone. Their way back is another integration,
with an error of the size of the steps or of the tolerance.

With `FixedPoint` numbers, positions are int64 and every increment is rounded before it is added. Each step then
consists of shears and reflections of integers, so a round trip returns the same integers. The condition is that the
field returns the same bits for the same input: the same batch, device and deterministic kernels in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torchdiffeq import odeint

Field = Callable[[float, Tensor], Tensor]
"""f(t, z) with z [B, ...]; returns dz/dt in z's shape and dtype."""

State = tuple[Tensor, ...]
"""The state of a solver; its first tensor is the solution."""


@dataclass(frozen=True)
class Step:
    """A step t -> t + h of an adaptive solver, the number of steps it tried for this one, and their evaluations.

    The sum of `evaluations` over all steps is the total of an integration: the first step includes the start.
    """

    t: float
    h: float
    tried: int
    evaluations: int


def data_end_times(start: float, end: float, steps: int) -> list[float]:
    """Return steps + 1 times start + (end - start) (0.2 s + 0.8 s^2), s = 0 .. 1: denser at the start, the data end."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    fractions = [k / steps for k in range(steps + 1)]
    return [start + (end - start) * (0.2 * s + 0.8 * s * s) for s in fractions]


# --- number formats of a solver ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floating:
    """Floating-point numbers: additions are rounded."""

    def keep(self, x: Tensor) -> Tensor:
        return x

    def value(self, kept: Tensor) -> Tensor:
        return kept


FLOATING = Floating()


@dataclass(frozen=True)
class FixedPoint:
    """Fixed-point numbers, int64 multiples of 2^-bits: additions are exact. The field takes and returns `dtype`.

    40 bits for a float64 field and 20 for a float32 field are finer than the precision of the field itself. Every
    number must lie within +-2^(52 - bits), else ArithmeticError is raised. Sums of such numbers do not overflow int64,
    and they are exact as float64.
    """

    dtype: torch.dtype = torch.float64

    @property
    def bits(self) -> int:
        return 40 if self.dtype == torch.float64 else 20

    def keep(self, x: Tensor) -> Tensor:
        scaled = (x.double() * 2.0**self.bits).round()
        self._check(scaled)
        return scaled.to(torch.int64)

    def value(self, kept: Tensor) -> Tensor:
        self._check(kept)  # a sum of increments can leave the range
        return (kept.double() * 2.0**-self.bits).to(self.dtype)

    def _check(self, scaled: Tensor) -> None:
        if not bool((scaled.abs() < 2**52).all()):
            raise ArithmeticError(
                f"a fixed-point number must lie within +-2^{52 - self.bits}, and the solution left this range"
            )


# --- Runge-Kutta increments ---------------------------------------------------------------------------------------


def midpoint_increment(field: Field, t: float, u: float, z: Tensor) -> Tensor:
    """Return z(u) - z(t) by the explicit midpoint rule: second order, 2 evaluations."""
    h = u - t
    return h * field((t + u) / 2, z + h / 2 * field(t, z))


def rk4_increment(field: Field, t: float, u: float, z: Tensor) -> Tensor:
    """Return z(u) - z(t) by the classic Runge-Kutta rule: fourth order, 4 evaluations."""
    h, m = u - t, (t + u) / 2
    k1 = field(t, z)
    k2 = field(m, z + h / 2 * k1)
    k3 = field(m, z + h / 2 * k2)
    k4 = field(u, z + h * k3)
    return h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


INCREMENTS: dict[str, tuple[Callable[[Field, float, float, Tensor], Tensor], int]] = {
    "midpoint": (midpoint_increment, 2),
    "rk4": (rk4_increment, 4),
}
"""The Runge-Kutta increments: name -> (increment, number of evaluations)."""


# --- solvers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solver:
    """A one-step method on a state. `step` goes t -> u, and `back` undoes it; for many solvers it is step(u, t)."""

    names: ClassVar[tuple[str, ...]] = ("z",)
    """The names of the tensors of a state."""
    positions: ClassVar[int] = 1
    """The number of tensors, from the first, that are points in the space of z; a projection acts on these."""
    reversible: ClassVar[bool] = False
    """True if `back` undoes `step` up to rounding, given the whole state."""
    adaptive: ClassVar[bool] = False
    """True if the steps depend on the whole batch, so images must be solved one by one."""

    _: KW_ONLY
    numbers: Floating | FixedPoint = FLOATING

    @property
    def evaluations(self) -> tuple[int, int] | None:
        """Evaluations (of `begin`, of one step); None if they depend on the field."""
        raise NotImplementedError

    def begin(self, field: Field, t: float, z: Tensor) -> State:
        return (self.numbers.keep(z),)

    def step(self, field: Field, t: float, u: float, state: State) -> State:
        raise NotImplementedError

    def back(self, field: Field, t: float, u: float, state: State) -> State:
        return self.step(field, u, t, state)

    def solution(self, state: State) -> Tensor:
        return self.numbers.value(state[0])

    def project(self, state: State, onto: Callable[[Tensor], Tensor]) -> State:
        """Return the state with `onto` applied to each position."""
        moved = [self.numbers.keep(onto(self.numbers.value(q))) for q in state[: self.positions]]
        return (*moved, *state[self.positions :])


@dataclass(frozen=True)
class Leapfrog(Solver):
    names = ("z", "v")
    reversible = True

    @property
    def evaluations(self) -> tuple[int, int]:
        return 1, 1

    def begin(self, field: Field, t: float, z: Tensor) -> State:
        q = self.numbers.keep(z)
        return q, self.numbers.keep(field(t, self.numbers.value(q)))

    def step(self, field: Field, t: float, u: float, state: State) -> State:
        (z, v), n, h = state, self.numbers, u - t
        m = z + n.keep(h / 2 * n.value(v))
        v = n.keep(2 * field((t + u) / 2, n.value(m))) - v
        return m + n.keep(h / 2 * n.value(v)), v


@dataclass(frozen=True)
class ReversibleHeun(Solver):
    names = ("y", "yh", "fh")
    positions = 2
    reversible = True

    @property
    def evaluations(self) -> tuple[int, int]:
        return 1, 1

    def begin(self, field: Field, t: float, z: Tensor) -> State:
        q = self.numbers.keep(z)
        return q, q, field(t, self.numbers.value(q))

    def step(self, field: Field, t: float, u: float, state: State) -> State:
        (y, yh, fh), n, h = state, self.numbers, u - t
        half = n.keep(h / 2 * fh)
        yh = 2 * y - yh + 2 * half
        fh = field(u, n.value(yh))
        return y + half + n.keep(h / 2 * fh), yh, fh


@dataclass(frozen=True)
class McCallumFoster(Solver):
    """The solver of McCallum & Foster. `coupling` in (0, 1] is the paper's lambda.

    Below 1, it multiplies y - z by `coupling` per step forward and by 1/coupling per step back. Fixed-point numbers
    need coupling = 1.
    """

    names = ("y", "z")
    positions = 2
    reversible = True

    increment: str = "midpoint"
    coupling: float = 0.999

    def __post_init__(self) -> None:
        if self.increment not in INCREMENTS:
            raise ValueError(f"increment must be one of {', '.join(INCREMENTS)}, got {self.increment!r}")
        if not 0 < self.coupling <= 1:
            raise ValueError(f"coupling must lie in (0, 1], got {self.coupling}")
        if isinstance(self.numbers, FixedPoint) and self.coupling != 1:
            raise ValueError(f"fixed-point numbers need coupling = 1, got {self.coupling}")

    @property
    def evaluations(self) -> tuple[int, int]:
        return 0, 2 * INCREMENTS[self.increment][1]

    def psi(self, field: Field, t: float, u: float, z: Tensor) -> Tensor:
        return self.numbers.keep(INCREMENTS[self.increment][0](field, t, u, self.numbers.value(z)))

    def begin(self, field: Field, t: float, z: Tensor) -> State:
        q = self.numbers.keep(z)
        return q, q

    def step(self, field: Field, t: float, u: float, state: State) -> State:
        y, z = state
        y = y if self.coupling == 1 else self.coupling * y + (1 - self.coupling) * z
        y = y + self.psi(field, t, u, z)
        return y, z - self.psi(field, u, t, y)

    def back(self, field: Field, t: float, u: float, state: State) -> State:
        y, z = state
        z = z + self.psi(field, u, t, y)
        y = y - self.psi(field, t, u, z)
        return y if self.coupling == 1 else (y - (1 - self.coupling) * z) / self.coupling, z


@dataclass(frozen=True)
class RK4(Solver):
    """The classic Runge-Kutta method. `back` is the method with -h, which is not an exact inverse."""

    @property
    def evaluations(self) -> tuple[int, int]:
        return 0, 4

    def step(self, field: Field, t: float, u: float, state: State) -> State:
        (z,) = state
        return (z + self.numbers.keep(rk4_increment(field, t, u, self.numbers.value(z))),)


@dataclass(frozen=True)
class Dopri5(Solver):
    """Dormand & Prince's 5(4) by torchdiffeq: one adaptive integration from t to u, with no evaluation beyond u.

    `rtol` and `atol` bound the root mean square of the local error over the batch, so pass one image at a time.
    `on_step` is called with every accepted step. A step takes 6 evaluations, after a first one at the start. Raises
    ArithmeticError if `max_steps` tried steps are not enough.
    """

    adaptive = True

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 1000
    on_step: Callable[[Step], None] = lambda step: None

    @property
    def evaluations(self) -> None:
        return None

    def step(self, field: Field, t: float, u: float, state: State) -> State:
        times = torch.tensor([t, u], dtype=torch.float64, device=state[0].device)
        # Without step_t, torchdiffeq goes beyond u, where the field may be undefined, and interpolates.
        how = {"step_t": times[1:], "first_step": abs(u - t) / 20, "max_num_steps": self.max_steps}
        try:
            watched = _Watched(field, self.on_step, falling=u < t)
            ends = odeint(watched, state[0], times, rtol=self.rtol, atol=self.atol, method="dopri5", options=how)
        except AssertionError as error:
            raise ArithmeticError(f"dopri5 from {t:g} to {u:g}: {error}") from error
        return (ends[1],)


class _Watched:
    """A field in torchdiffeq's interface that records the steps; torchdiffeq reports their size without a sign."""

    def __init__(self, field: Field, on_step: Callable[[Step], None], falling: bool) -> None:
        self.field, self.on_step, self.falling = field, on_step, falling
        self.tried = self.evaluations = 0

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.field(float(t), z)

    def callback_step(self, t: Tensor, z: Tensor, h: Tensor) -> None:
        self.tried += 1

    def callback_accept_step(self, t: Tensor, z: Tensor, h: Tensor) -> None:
        self.on_step(Step(float(t), float(-h if self.falling else h), self.tried, self.evaluations))
        self.tried = self.evaluations = 0


# --- the call -----------------------------------------------------------------------------------------------------


def integrate(field: Field, z: Tensor, times: Sequence[float], solver: Solver) -> State:
    """Return the state at times[-1] from z [B, ...] at times[0], one step per pair of times (rising or falling)."""
    state = solver.begin(field, times[0], z)
    for t, u in pairwise(times):
        state = solver.step(field, t, u, state)
    return state


def reverse(field: Field, state: State, times: Sequence[float], solver: Solver) -> State:
    """Return the state at times[0] from a state at times[-1], by undoing the steps of `integrate` over these times.

    To start from z alone, make its state with `solver.begin(field, times[-1], z)`.
    """
    for t, u in reversed(list(pairwise(times))):
        state = solver.back(field, t, u, state)
    return state
