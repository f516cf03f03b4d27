"""Solvers on known fields: orders of accuracy, exact round trips, integers, tolerances, evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.solvers import (
    RK4,
    Dopri5,
    FixedPoint,
    Floating,
    Leapfrog,
    McCallumFoster,
    ReversibleHeun,
    Solver,
    Step,
    data_end_times,
    integrate,
    reverse,
)

SOLVERS: dict[str, tuple[Solver, int]] = {
    "leapfrog": (Leapfrog(), 2),
    "heun": (ReversibleHeun(), 2),
    "coupled-midpoint": (McCallumFoster(), 2),
    "coupled-rk4": (McCallumFoster("rk4"), 4),
    "coupled-rk4-undamped": (McCallumFoster("rk4", 1.0), 4),
    "rk4": (RK4(), 4),
}
"""name -> (solver, its order)"""
REVERSIBLE = [name for name, (solver, _) in SOLVERS.items() if solver.reversible]


def bit_exact(name: str, dtype: torch.dtype) -> Solver:
    cls = type(SOLVERS[name][0])
    numbers = FixedPoint(dtype)
    return cls("midpoint", 1.0, numbers=numbers) if cls is McCallumFoster else cls(numbers=numbers)


def rough_field(seed: int = 0, dim: int = 6, dtype: torch.dtype = torch.float64) -> Callable:
    """Return the field sin(A z) (1 + t) + 0.3 cos 3t: nonlinear, not monotone, not autonomous."""
    A = 0.5 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return lambda t, z: torch.sin(z @ A.T) * (1 + t) + 0.3 * math.cos(3 * t)


def start(dtype: torch.dtype = torch.float64, seed: int = 1) -> torch.Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def counted(field: Callable, calls: list[float]) -> Callable:
    def called(t: float, z: torch.Tensor) -> torch.Tensor:
        calls.append(t)
        return field(t, z)

    return called


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return integrate(rough_field(), start(), data_end_times(0, 1.5, 500), RK4())[0]


@pytest.mark.parametrize("name", list(SOLVERS))
def test_order_of_accuracy(name: str, truth: torch.Tensor) -> None:
    """Doubling the number of uneven steps divides the error by 2^order, in both directions of time."""
    solver, order = SOLVERS[name]
    for forth in (True, False):
        errors = []
        for steps in (64, 128):
            times = data_end_times(0, 1.5, steps)
            if forth:
                ended, expected = integrate(rough_field(), start(), times, solver), truth
            else:
                ended = reverse(rough_field(), solver.begin(rough_field(), 1.5, truth), times, solver)
                expected = start()
            errors.append((solver.solution(ended) - expected).abs().max().item())
        assert abs(math.log2(errors[0] / errors[1]) - order) < 0.4, errors


@given(
    st.sampled_from(REVERSIBLE),
    st.integers(0, 10**6),
    st.lists(st.floats(0.001, 0.1), min_size=1, max_size=12),
    st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5)]),
)
@settings(max_examples=30, deadline=None)
def test_reversible_solvers_return(
    name: str, seed: int, gaps: list[float], precision: tuple[torch.dtype, float]
) -> None:
    """They return for any field, steps and direction of time. The end is t = 1.2, as the field magnifies rounding."""
    dtype, tolerance = precision
    times = [sum(gaps[:k]) for k in range(len(gaps) + 1)]
    field, z, solver = rough_field(seed, dtype=dtype), start(dtype, seed), SOLVERS[name][0]
    for walked in (times, times[::-1]):
        ended = integrate(field, z, walked, solver)
        assert len(ended) == len(solver.names) and all(part.dtype == dtype for part in ended)
        assert (solver.solution(reverse(field, ended, walked, solver)) - z).abs().max() < tolerance


@given(st.sampled_from(REVERSIBLE), st.integers(0, 10**6), st.integers(1, 12), st.sampled_from(["float64", "float32"]))
@settings(max_examples=30, deadline=None)
def test_fixed_point_round_trips_are_equal_as_integers(name: str, seed: int, steps: int, precision: str) -> None:
    dtype = getattr(torch, precision)
    solver, field = bit_exact(name, dtype), rough_field(seed, dtype=dtype)
    times, z = data_end_times(0, 1.3, steps), start(dtype, seed)
    first = solver.begin(field, 0.0, z)
    last = integrate(field, z, times, solver)
    assert first[0].dtype == torch.int64
    for before, after in zip(first, reverse(field, last, times, solver), strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(first[0], last[0])
    floating = integrate(field, z, times, replace(solver, numbers=Floating()))[0]
    assert (solver.solution(last) - floating).abs().max() < (1e-9 if dtype == torch.float64 else 1e-2)


def test_fixed_point_numbers_refuse_to_overflow() -> None:
    for dtype, bound in ((torch.float64, 2.0**12), (torch.float32, 2.0**32)):
        numbers = FixedPoint(dtype)
        x = torch.tensor([-0.75 * bound, 0.75 * bound], dtype=torch.float64)
        assert torch.equal(numbers.value(numbers.keep(x)).double(), x)
        for wrong in (bound, math.nan, math.inf):
            with pytest.raises(ArithmeticError, match="fixed-point"):
                numbers.keep(torch.tensor([wrong], dtype=torch.float64))
        for sign in (-1, 1):
            with pytest.raises(ArithmeticError, match="fixed-point"):
                numbers.value(torch.tensor([sign * 2**52]))
    with pytest.raises(ValueError, match="coupling"):
        McCallumFoster(numbers=FixedPoint())
    with pytest.raises(ValueError, match="coupling"):
        McCallumFoster(coupling=1.5)
    with pytest.raises(ValueError, match="increment"):
        McCallumFoster("euler")


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize(("end", "fails"), [(20.0, False), (200.0, True)])
def test_fixed_point_positions_do_not_pass_their_range(name: str, end: float, fails: bool) -> None:
    """The field is the constant 100: each increment is within the range, but their sum 20000 is above 2^12."""
    solver, times, zero = bit_exact(name, torch.float64), [end * n / 20 for n in range(21)], torch.zeros(3, 6)

    def walked() -> torch.Tensor:
        return solver.solution(integrate(lambda t, z: torch.full_like(z, 100), zero, times, solver))

    if fails:
        with pytest.raises(ArithmeticError, match="fixed-point"):
            walked()
    else:
        torch.testing.assert_close(walked(), torch.full_like(start(), 100 * end), rtol=1e-11, atol=0)


@pytest.mark.parametrize("steps", [8, 32])
def test_naive_reverse_steps_do_not_return(steps: int) -> None:
    times = data_end_times(0, 1.5, steps)
    z = reverse(rough_field(), integrate(rough_field(), start(), times, RK4()), times, RK4())[0]
    assert 1e-6 < (z - start()).abs().max() < 0.1


@pytest.mark.parametrize("name", list(SOLVERS))
def test_solvers_cost_what_they_declare(name: str) -> None:
    solver = SOLVERS[name][0]
    times = data_end_times(0, 1, 7)
    calls: list[float] = []
    field = counted(rough_field(), calls)
    first, each = solver.evaluations
    state = integrate(field, start(), times, solver)
    assert len(calls) == first + 7 * each
    reverse(field, state, times, solver)
    assert len(calls) == first + 14 * each
    assert min(calls) >= 0 and max(calls) <= 1


def test_dopri5_follows_its_tolerance(truth: torch.Tensor) -> None:
    errors, returns, costs = [], [], []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        solver, calls = Dopri5(tolerance, tolerance), list[float]()
        field = counted(rough_field(), calls)
        state = integrate(field, start(), [0, 1.5], solver)
        assert min(calls) >= 0 and max(calls) <= 1.5, "the field may not be defined beyond the ends"
        costs.append(len(calls))
        errors.append((state[0] - truth).abs().max().item())
        returns.append((reverse(field, state, [0, 1.5], solver)[0] - start()).abs().max().item())
        assert (len(calls[: costs[-1]]) - 1) % 6 == 0
    for worse, better in (*pairwise(errors), *pairwise(returns)):
        assert better < 0.1 * worse
    assert costs == sorted(costs)
    with pytest.raises(ArithmeticError, match="max_num_steps"):
        integrate(rough_field(), start(), [0, 1.5], Dopri5(1e-9, 1e-9, max_steps=3))


@pytest.mark.parametrize("ends", [(0.0, 1.5), (1.5, 0.0)])
def test_dopri5_reports_its_steps(ends: tuple[float, float]) -> None:
    """They go from one end to the other and include every evaluation: one at the start, six per tried step."""
    steps, calls = list[Step](), list[float]()
    integrate(counted(rough_field(), calls), start(), ends, Dopri5(1e-9, 1e-9, on_step=steps.append))
    assert steps[0].t == ends[0] and all(a.t + a.h == pytest.approx(b.t) for a, b in pairwise(steps))
    assert steps[-1].t + steps[-1].h == pytest.approx(ends[1]) and len({step.h > 0 for step in steps}) == 1
    assert sum(step.evaluations for step in steps) == len(calls)
    assert [step.evaluations for step in steps] == [6 * step.tried + (step is steps[0]) for step in steps]
    assert max(step.tried for step in steps) > 1 and max(abs(step.h) for step in steps) > abs(steps[0].h)


@pytest.mark.parametrize("solver", [Leapfrog(), ReversibleHeun(), Leapfrog(numbers=FixedPoint()), RK4()])
def test_projection_moves_positions_and_nothing_else(solver: Solver) -> None:
    state = integrate(rough_field(), start(), [0, 0.5], solver)
    moved = solver.project(state, torch.zeros_like)
    assert not any(part.any() for part in moved[: solver.positions])
    assert all(a is b for a, b in zip(moved[solver.positions :], state[solver.positions :], strict=True))


def test_times_are_denser_where_the_data_are() -> None:
    times = data_end_times(0.5, 2.5, 10)
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0.5 and times[-1] == 2.5 and gaps == sorted(gaps) and gaps[0] < 0.2 * gaps[-1]
    with pytest.raises(ValueError, match="steps"):
        data_end_times(0, 1, 0)
