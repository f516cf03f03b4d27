"""The probability-flow ODE of any model, inverted and decoded by a solver of `methods.solvers`.

In X = x / (alpha + sigma) and s = sigma / (alpha + sigma) every path is rectified and its flow is dX/ds = v(X, s), the
denoiser's velocity view (`methods.inversion.rectified`). A reversible solver keeps its whole state as the latent, so
decoding under the same condition returns the image to rounding, or bit for bit with `bit_exact`, after one evaluation
per step.
From x_T alone (`keep=x_T`, a latent that holds nothing else, another condition) the solver starts anew: that error is
the solver's own.

dopri5 chooses its steps by what it solves, so images are solved one by one; a batch counts its costliest image's NFE.
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
    """The coordinate that a solver walks in, at one level: x = centre + scale * q, x in the path's own scale."""

    centre: Tensor | float
    scale: Tensor | float

    def enter(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.scale

    def leave(self, q: Tensor) -> Tensor:
        return self.centre + self.scale * q


@dataclass(frozen=True)
class IntegerLatent(Latent):
    """A latent whose positions are integers; x_T is what they mean, in the path's own scale."""

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
            raise ValueError(f"the flow needs a velocity at {end}: a prediction of {denoiser.prediction} gives none")
        self.solver = self._solver()
        self.exact = self.solver.reversible and self.options.keep == "state"
        self.nfe_is_exact = not self.solver.adaptive
        levels = [self.time(node) for node in self.grid.nodes]
        quadratic = self.options.spacing == "data_end"
        self.times = data_end_times(levels[0], levels[-1], self.grid.steps) if quadratic else levels
        self._taken: dict[int, list[Step]] = {}

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
        """Starting and N steps, both ways; decoding from a whole state does not start. For dopri5 the most it may take:
        6 a step tried and a first one, in each direction."""
        if self.solver.evaluations is None:
            return (1 + 6 * self.options.max_steps) * (inverting.evaluations + decoding.evaluations)
        start, step = self.solver.evaluations
        walk, again = step * self.grid.steps, start if self.options.keep == "x_T" else 0
        return (start + walk) * inverting.evaluations + (again + walk) * decoding.evaluations

    # --- the coordinate ----------------------------------------------------------------------------------------------

    def time(self, node: Node) -> float:
        """The solver's time of a level."""
        return node.s

    def node(self, time: float) -> Node:
        """The level at a solver's time."""
        return self.denoiser.path.node_at(time)

    def chart(self, time: float, cond: Condition) -> Chart:
        """The solver's coordinate: X = x / (alpha + sigma)."""
        return Chart(0.0, self.node(time).scale)

    def field(self, cond: Condition) -> Field:
        """What the solver integrates: v(X, s) as field(s, X)."""
        return lambda s, x: self.velocity(x, self.node(s), cond)

    # --- the steps of an adaptive solver -----------------------------------------------------------------------------

    def solve(self, problem: Problem) -> Solution:
        self._taken = {}
        solution = super().solve(problem)
        if not self.solver.adaptive:
            return solution
        return replace(solution, steps=[self._taken.get(i, []) for i in range(len(problem.image))])

    def _noting(self, image: int, cond: Condition) -> Solver:
        """The solver, which notes what steps it takes for one image."""
        steps = self._taken.setdefault(image, [])

        def note(step: Step) -> None:
            steps.append(replace(step, evaluations=step.evaluations * cond.evaluations))

        return replace(self.solver, on_step=note) if isinstance(self.solver, Dopri5) else self.solver

    # --- guarantees --------------------------------------------------------------------------------------------------

    def columns(self, problem: Problem, solution: Solution) -> dict[str, Column]:
        """For the task guarantee, what `methods.guarantees` finds."""
        return {} if problem.guarantee is None else check(self, problem, problem.guarantee)

    def changed(self, denoiser: Denoiser, **options: Any) -> Self:
        """The same method on another denoiser, with some options changed."""
        return type(self)(denoiser, self.options.model_copy(update=options), self.grid)

    def decoding(self, measurement: Measurement, cond: Condition) -> Condition:
        """The condition that a restoration decodes under: the caption, or none with `decode=null`."""
        return cond if self.options.decode == "caption" else cond.unconditional

    def certificates(self, cond: Condition) -> list[dict[str, float | bool]] | None:
        """None: nothing is known of a plain network's flow."""
        return None

    def local_edit(self, image: Tensor, cond: Condition, mask: Tensor, delta: Tensor) -> LocalEdit | None:
        """None: without a certificate there is no bound."""
        return None

    # --- both directions ---------------------------------------------------------------------------------------------

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        x = self.chart(self.times[0], cond).enter(x0)
        if self.solver.adaptive:
            ends = [self.times[0], self.times[-1]]
            x = self.denoiser.one_by_one(
                lambda i: integrate(self.field(cond.image(i)), x[i : i + 1], ends, self._noting(i, cond))[0], len(x)
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
        """A constraint speaks of the path's own latents: apply it to the coordinate there."""
        chart = self.chart(time, cond)
        return chart.enter(constrain(chart.leave(q), self.node(time)))

    def _decode_adaptively(self, x_T: Tensor, cond: Condition, constrain: Constrain | None) -> Tensor:
        """One integration; a constraint has to be met at every level, so that each gap is one then."""
        x = self.chart(self.times[-1], cond).enter(x_T)
        levels = self.times if constrain else [self.times[0], self.times[-1]]
        for t, u in reversed(list(pairwise(levels))):

            def solve(i: int, x: Tensor = x, ends: tuple[float, float] = (t, u)) -> Tensor:
                return reverse(self.field(cond.image(i)), (x[i : i + 1],), ends, self._noting(i, cond))[0]

            x = self.denoiser.one_by_one(solve, len(x))
            if constrain:
                x = self._constrained(x, t, cond, constrain)
        return self.chart(self.times[0], cond).leave(x)

    # --- the state as a latent ---------------------------------------------------------------------------------------

    def _latent(self, state: State, cond: Condition) -> Latent:
        """x_T is in the path's own scale, what else the solver keeps in its own; integers stay as they are."""
        names, chart = ("x_T", *self.solver.names[1:]), self.chart(self.times[-1], cond)
        if isinstance(self.solver.numbers, FixedPoint):
            tensors = dict(zip(names, state, strict=True))
            return IntegerLatent(tensors, self.solver.numbers, chart)
        kept = state if self.options.keep == "state" else state[:1]
        return Latent({"x_T": chart.leave(kept[0]), **dict(zip(names[1:], kept[1:], strict=False))})

    def _handed_on(self, latent: Latent) -> Latent:
        """x_T alone: a velocity or a second copy of one flow means nothing to another's solver."""
        return Latent({"x_T": latent.x_T})

    def _state(self, latent: Latent, field: Field, cond: Condition) -> State:
        """The state that a latent holds, or one begun from x_T where it holds none of this solver's and its numbers."""
        chart = self.chart(self.times[-1], cond)
        integers = isinstance(self.solver.numbers, FixedPoint)
        x_T, *rest = latent.tensors.values()
        if latent.tensors.keys() != {"x_T", *self.solver.names[1:]} or x_T.is_floating_point() == integers:
            return self.solver.begin(field, self.times[-1], chart.enter(latent.x_T))
        return (x_T if integers else chart.enter(x_T), *rest)
