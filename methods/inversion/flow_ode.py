"""The probability-flow ODE of any model, inverted and decoded by a solver of `methods.solvers`.

In X = x / (alpha + sigma) and s = sigma / (alpha + sigma) every path is rectified, and its flow is dX/ds = v(X, s): the
velocity view of the denoiser (`methods.inversion.rectified`). The latent of a reversible solver is its whole state.
Decoding under the same condition then returns the image up to rounding, or bit for bit with `bit_exact`, with one
evaluation per step. If only x_T is there (`keep=x_T`, another condition, or a latent with nothing else), the solver
starts again from x_T, and the result has the error of the solver.

dopri5 adapts its steps to each image, so images are solved one by one. The NFE of a batch are those of its costliest
image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Self

from torch import Tensor

from methods.base import Column, Constrain, Generators, Latent, Measurement, Problem, Solution
from methods.denoiser import Condition, Denoiser
from methods.guarantees import LocalEdit, check
from methods.inversion import options
from methods.inversion.rectified import RectifiedMethod
from methods.paths import Node, TimeGrid
from methods.solvers import (
    FLOATING,
    RK4,
    Dopri5,
    Field,
    FixedPoint,
    Leapfrog,
    McCallumFoster,
    ReversibleHeun,
    Solver,
    State,
    Step,
    data_end_times,
    integrate,
    reverse,
)


@dataclass(frozen=True)
class Chart:
    """The coordinate q of a solver at one level: x = centre + scale * q, with x in the scale of the path."""

    centre: Tensor | float
    scale: Tensor | float

    def enter(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.scale

    def leave(self, q: Tensor) -> Tensor:
        return self.centre + self.scale * q


@dataclass(frozen=True)
class IntegerLatent(Latent):
    """A latent of integers. `x_T` is their value as floating-point numbers, in the scale of the path."""

    numbers: FixedPoint
    chart: Chart

    @property
    def x_T(self) -> Tensor:
        return self.chart.leave(self.numbers.value(self.tensors["x_T"]))


class FlowODE(RectifiedMethod):
    Options = options.FlowODE

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        clean, top = self.grid[0], self.grid[self.grid.steps]
        if (denoiser.prediction == "x0" and clean.sigma == 0) or (denoiser.prediction == "eps" and top.alpha == 0):
            end = "level 0, where sigma = 0" if denoiser.prediction == "x0" else "level N, where alpha = 0"
            raise ValueError(
                f"the flow needs a velocity at {end}: a prediction of {denoiser.prediction} has none there"
            )
        self.solver = self._solver()
        self.exact = self.solver.reversible and self.options.keep == "state"
        self.nfe_is_exact = not self.solver.adaptive
        levels = [self.time(node) for node in self.grid.nodes]
        quadratic = self.options.spacing == "data_end"
        self.times = data_end_times(levels[0], levels[-1], self.grid.steps) if quadratic else levels
        self._solver_steps: dict[int, list[Step]] = {}

    def _solver(self) -> Solver:
        chosen = self.options
        numbers = FixedPoint(self.latent_dtype) if chosen.bit_exact else FLOATING
        solvers: dict[str, Callable[[], Solver]] = {
            "leapfrog": lambda: Leapfrog(numbers=numbers),
            "reversible_heun": lambda: ReversibleHeun(numbers=numbers),
            "mccallum_foster": lambda: McCallumFoster(chosen.increment, chosen.coupling, numbers=numbers),
            "rk4": RK4,
            "dopri5": lambda: Dopri5(chosen.rtol, chosen.atol, chosen.max_steps),
        }
        return solvers[chosen.solver]()

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """Return the evaluations per image: the start and N steps, in each direction.

        Decoding from a whole state needs no start. For dopri5 it is the maximum: 6 evaluations per tried step and one
        first evaluation, in each direction.
        """
        if self.solver.evaluations is None:
            return (1 + 6 * self.options.max_steps) * (inverting.evaluations + decoding.evaluations)
        start, step = self.solver.evaluations
        steps, restart = step * self.grid.steps, start if self.options.keep == "x_T" else 0
        return (start + steps) * inverting.evaluations + (restart + steps) * decoding.evaluations

    # --- the coordinate ----------------------------------------------------------------------------------------------

    def time(self, node: Node) -> float:
        """Return the time of the solver at a level."""
        return node.s

    def node(self, time: float) -> Node:
        """Return the level at a time of the solver."""
        return self.denoiser.path.node_at(time)

    def chart(self, time: float, cond: Condition) -> Chart:
        """Return the coordinate of the solver at a time: X = x / (alpha + sigma)."""
        return Chart(0.0, self.node(time).scale)

    def field(self, cond: Condition) -> Field:
        """Return the function that the solver integrates: v(X, s) as field(s, X)."""
        return lambda s, x: self.velocity(x, self.node(s), cond)

    # --- the steps of an adaptive solver -----------------------------------------------------------------------------

    def solve(self, problem: Problem) -> Solution:
        self._solver_steps = {}
        solution = super().solve(problem)
        if not self.solver.adaptive:
            return solution
        return replace(solution, steps=[self._solver_steps.get(i, []) for i in range(len(problem.image))])

    def _recording(self, image: int, cond: Condition) -> Solver:
        """Return the solver. dopri5 also records the steps that it takes for one image."""
        steps = self._solver_steps.setdefault(image, [])

        def record(step: Step) -> None:
            steps.append(replace(step, evaluations=step.evaluations * cond.evaluations))

        return replace(self.solver, on_step=record) if isinstance(self.solver, Dopri5) else self.solver

    # --- guarantees --------------------------------------------------------------------------------------------------

    def columns(self, problem: Problem, solution: Solution) -> dict[str, Column]:
        """Return the columns of `methods.guarantees` for the task guarantee, else none."""
        return {} if problem.guarantee is None else check(self, problem, problem.guarantee)

    def changed(self, denoiser: Denoiser, **options: Any) -> Self:
        """Return the same method on another denoiser, with some options changed."""
        return type(self)(denoiser, self.options.model_copy(update=options), self.grid)

    def decoding(self, measurement: Measurement, cond: Condition) -> Condition:
        """Return the condition that a restoration decodes under: the caption, or the null condition with
        `decode=null`."""
        return cond if self.options.decode == "caption" else cond.unconditional

    def certificates(self, cond: Condition) -> list[dict[str, float | bool]] | None:
        """Return None: a plain network gives no guarantee about its flow."""
        return None

    def local_edit(self, image: Tensor, cond: Condition, mask: Tensor, delta: Tensor) -> LocalEdit | None:
        """Return None: without a certificate there is no bound."""
        return None

    # --- both directions ---------------------------------------------------------------------------------------------

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        x = self.chart(self.times[0], cond).enter(x0)
        if self.solver.adaptive:
            ends = [self.times[0], self.times[-1]]
            x = self.denoiser.one_by_one(
                lambda i: integrate(self.field(cond.image(i)), x[i : i + 1], ends, self._recording(i, cond))[0], len(x)
            )
            return self._latent((x,), cond)
        return self._latent(integrate(self.field(cond), x, self.times, self.solver), cond)

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        if self.solver.adaptive:
            return self._decode_adaptively(latent.x_T, cond, constrain)
        field = self.field(cond)
        state = self._state(latent, field, cond)
        for span in reversed(list(pairwise(self.times))):
            state = reverse(field, state, span, self.solver)
            if constrain:
                onto = partial(self._constrained, time=span[0], cond=cond, constrain=constrain)
                state = self.solver.project(state, onto)
        return self.chart(self.times[0], cond).leave(self.solver.solution(state))

    def _constrained(self, q: Tensor, time: float, cond: Condition, constrain: Constrain) -> Tensor:
        """Apply a constraint to the coordinate q. The constraint itself expects a latent in the scale of the path."""
        chart = self.chart(time, cond)
        return chart.enter(constrain(chart.leave(q), self.node(time)))

    def _decode_adaptively(self, x_T: Tensor, cond: Condition, constrain: Constrain | None) -> Tensor:
        """Decode in one integration, or with a constraint in one per step: it applies at every level."""
        x = self.chart(self.times[-1], cond).enter(x_T)
        levels = self.times if constrain else [self.times[0], self.times[-1]]
        for t, u in reversed(list(pairwise(levels))):

            def solve(i: int, x: Tensor = x, ends: tuple[float, float] = (t, u)) -> Tensor:
                return reverse(self.field(cond.image(i)), (x[i : i + 1],), ends, self._recording(i, cond))[0]

            x = self.denoiser.one_by_one(solve, len(x))
            if constrain:
                x = self._constrained(x, t, cond, constrain)
        return self.chart(self.times[0], cond).leave(x)

    # --- the state as a latent ---------------------------------------------------------------------------------------

    def _latent(self, state: State, cond: Condition) -> Latent:
        """Return the state of a solver as a latent. x_T is in the scale of the path, the other tensors in that of the
        solver. Integers stay integers."""
        names, chart = ("x_T", *self.solver.names[1:]), self.chart(self.times[-1], cond)
        if isinstance(self.solver.numbers, FixedPoint):
            tensors = dict(zip(names, state, strict=True))
            return IntegerLatent(tensors, self.solver.numbers, chart)
        kept = state if self.options.keep == "state" else state[:1]
        return Latent({"x_T": chart.leave(kept[0]), **dict(zip(names[1:], kept[1:], strict=False))})

    def _handed_on(self, latent: Latent) -> Latent:
        """Return x_T alone: the other tensors of a state belong to one flow and have no meaning for another."""
        return Latent({"x_T": latent.x_T})

    def _state(self, latent: Latent, field: Field, cond: Condition) -> State:
        """Return the state in a latent. If the latent has no state of this solver and number type, start one from
        x_T."""
        chart = self.chart(self.times[-1], cond)
        integers = isinstance(self.solver.numbers, FixedPoint)
        x_T, *rest = latent.tensors.values()
        if latent.tensors.keys() != {"x_T", *self.solver.names[1:]} or x_T.is_floating_point() == integers:
            return self.solver.begin(field, self.times[-1], chart.enter(latent.x_T))
        return (x_T if integers else chart.enter(x_T), *rest)
