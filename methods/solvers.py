"""Solvers of dz/dt = f(t, z) that keep all that undoing them needs: one call for every flow.

    state = integrate(field, z, times, solver)          z(times[0]) -> the solver's state at times[-1]
    state = reverse(field, state, times, solver)        the same levels, walked back
    z = solver.solution(state)

Three solvers are algebraically reversible: their state is more than z, and from the whole state `reverse` returns to
z(times[0]) up to rounding. With h = u - t for a step t -> u:

    Leapfrog          asynchronous leapfrog (MALI, Zhuang et al., ICLR 2021; its eta = 1); state (z, v)
                      m = z + h/2 v      v' = 2 f(t + h/2, m) - v      z' = m + h/2 v'            1 evaluation
    ReversibleHeun    Kidger et al., NeurIPS 2021; state (y, yh, fh), fh = f(t, yh)
                      yh' = 2 y - yh + h fh      fh' = f(u, yh')      y' = y + h/2 (fh + fh')     1 evaluation
    McCallumFoster    McCallum & Foster 2024 (arXiv 2410.11648); state (y, z), Psi a Runge-Kutta increment
                      y' = c y + (1 - c) z + Psi(t -> u, z)      z' = z - Psi(u -> t, y')         2 |Psi| evaluations

The first two are their own inverse with -h. `RK4` and `Dopri5` keep z alone and their way back is another integration:
its error is that of the steps or of the tolerance.

With `FixedPoint` numbers positions are int64 and every increment is rounded before it is added, so each step is made of
shears and reflections of integers, and a round trip returns the same integers: bit for bit, as long as the field
answers the same question with the same bits (same batch, device and deterministic kernels both ways).
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
"""What a solver carries, the solution first."""


@dataclass(frozen=True)
class Step:
    """A step t -> t + h that an adaptive solver chose, how many it tried for it, and the field's evaluations.

    The evaluations of an integration's steps are all that it took: the first one's count what it started with.
    """

    t: float
    h: float
    tried: int
    evaluations: int


def data_end_times(start: float, end: float, steps: int) -> list[float]:
    """steps + 1 times start + (end - start) (0.2 s + 0.8 s^2), s = 0 .. 1: denser at the start, where the data are."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    fractions = [k / steps for k in range(steps + 1)]
    return [start + (end - start) * (0.2 * s + 0.8 * s * s) for s in fractions]


# --- the numbers that a solver adds in ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Floating:
    """Floating-point numbers: additions round."""

    def keep(self, x: Tensor) -> Tensor:
        return x

    def value(self, kept: Tensor) -> Tensor:
        return kept


FLOATING = Floating()


@dataclass(frozen=True)
class FixedPoint:
    """int64 multiples of 2^-bits: additions are exact. The field sees, and answers in, `dtype`.

    40 bits for a float64 field, 20 for a float32 one leave its own precision to decide. Every number that is kept or
    read must lie below 2^(52 - bits), or ArithmeticError is raised: a sum of such numbers is far from int64's end, and
    what a field or a caller sees of it has not been rounded.
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
        self._check(kept)  # a sum of increments may have left the range that each of them keeps
        return (kept.double() * 2.0**-self.bits).to(self.dtype)

    def _check(self, scaled: Tensor) -> None:
        if not bool((scaled.abs() < 2**52).all()):
            raise ArithmeticError(f"a fixed-point number must lie within +-2^{52 - self.bits}; the solution left it")


# --- Runge-Kutta increments ---------------------------------------------------------------------------------------


def midpoint_increment(field: Field, t: float, u: float, z: Tensor) -> Tensor:
    """The explicit midpoint rule's z(u) - z(t): second order, 2 evaluations."""
    h = u - t
    return h * field((t + u) / 2, z + h / 2 * field(t, z))


def rk4_increment(field: Field, t: float, u: float, z: Tensor) -> Tensor:
    """The classic rule's z(u) - z(t): fourth order, 4 evaluations."""
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
"""name -> (increment, its evaluations)"""


# --- solvers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solver:
    """A one-step method on a state. `step` goes t -> u; `back` undoes `step(t, u)`, for many of them step(u, t)."""

    names: ClassVar[tuple[str, ...]] = ("z",)
    """Of the tensors of a state."""
    positions: ClassVar[int] = 1
    """How many of them, from the first, stand in the space of z: a projection acts on these."""
    reversible: ClassVar[bool] = False
    """Whether `back` undoes `step` up to rounding, given the whole state."""
    adaptive: ClassVar[bool] = False
    """Whether steps are chosen by the batch, so that images have to be solved one by one."""

    _: KW_ONLY
    numbers: Floating | FixedPoint = FLOATING

    @property
    def evaluations(self) -> tuple[int, int] | None:
        """(of `begin`, of one step); None where they depend on the field."""
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
        """Each position moved by `onto`."""
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
    """`coupling` in (0, 1], the paper's lambda: below 1 it damps y - z going forth and grows it by 1/coupling a step
    going back. Fixed-point numbers need 1."""

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
    """The classic Runge-Kutta method; its way back is the method with -h, which is not its inverse."""

    @property
    def evaluations(self) -> tuple[int, int]:
        return 0, 4

    def step(self, field: Field, t: float, u: float, state: State) -> State:
        (z,) = state
        return (z + self.numbers.keep(rk4_increment(field, t, u, self.numbers.value(z))),)


@dataclass(frozen=True)
class Dopri5(Solver):
    """Dormand & Prince's 5(4) by torchdiffeq, from t to u as one adaptive integration that never looks beyond u.

    `rtol` and `atol` bound the local error's root mean square over the batch, so give it one image at a time.
    `on_step` is told of every step that is taken. Raises ArithmeticError where `max_steps` tried steps, of 6
    evaluations each after a first one, do not suffice.
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
        # A stop at u: torchdiffeq would pass it, where the field may not be defined, and interpolate.
        how = {"step_t": times[1:], "first_step": abs(u - t) / 20, "max_num_steps": self.max_steps}
        try:
            watched = _Watched(field, self.on_step, falling=u < t)
            ends = odeint(watched, state[0], times, rtol=self.rtol, atol=self.atol, method="dopri5", options=how)
        except AssertionError as error:
            raise ArithmeticError(f"dopri5 from {t:g} to {u:g}: {error}") from error
        return (ends[1],)


class _Watched:
    """A field as torchdiffeq calls it, and what torchdiffeq says of its steps, whose size it gives without a sign."""

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
    """The state at times[-1] from z [B, ...] at times[0], one step between neighbouring times (rising or falling)."""
    state = solver.begin(field, times[0], z)
    for t, u in pairwise(times):
        state = solver.step(field, t, u, state)
    return state


def reverse(field: Field, state: State, times: Sequence[float], solver: Solver) -> State:
    """The state at times[0] from one at times[-1], by undoing the steps of `integrate` over the same times.

    A state that does not come from `integrate` is made by `solver.begin(field, times[-1], z)`.
    """
    for t, u in reversed(list(pairwise(times))):
        state = solver.back(field, t, u, state)
    return state
