"""Measurements of a flow, checked on known cases: linear fields, a Gaussian, a Gaussian mixture."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.backbones.analytic import GaussianMixture
from methods.flow_analysis import (
    Flow,
    adversarial_pair_ratios,
    divergence_integral,
    jacobian,
    log_determinant,
    noise_amplification,
    pair_ratios,
    random_pair_ratios,
    reverse_solve,
    round_trip,
    singular_values,
    stretch,
)
from methods.paths import Rectified
from methods.solvers import RK4, Dopri5, FixedPoint, Leapfrog, ReversibleHeun, data_end_times

TIMES = data_end_times(0, 1, 12)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(dim: int, seed: int = 0, scale: float = 0.5) -> tuple[torch.Tensor, Flow]:
    """Return A and the flow of dz/dt = A z over unit time, whose Jacobian is exp(A)."""
    A = scale * draw(dim, dim, seed=seed)
    return A, Flow(lambda t, z: z @ A.T, TIMES)


def close(ours: torch.Tensor, theirs: torch.Tensor | float, rtol: float) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(theirs, dtype=ours.dtype).expand_as(ours), rtol=rtol, atol=rtol)


# --- linear fields: the matrix exponential -----------------------------------------------------------------------


def test_the_jacobian_of_a_linear_flow_is_the_matrix_exponential() -> None:
    A, flow = linear(5)
    exact = torch.matrix_exp(A)
    J = jacobian(flow, draw(3, 5, seed=1))
    close(J, exact, 1e-4)
    values = torch.linalg.svdvals(exact)
    found = singular_values(flow, draw(3, 5, seed=1), iterations=9)
    close(found.largest, values[0], 1e-4)
    close(found.smallest, values[-1], 1e-4)
    assert found.largest_residual.max() < 1e-10
    close(log_determinant(flow, draw(3, 5)), A.trace(), 1e-4)


@given(st.integers(0, 10**6), st.integers(1, 8))
@settings(max_examples=10, deadline=None)
def test_singular_values_are_inner_bounds(seed: int, iterations: int) -> None:
    """They are bounds however early the search stops, in both directions of the flow."""
    A, z = linear(8, seed, 0.2)[0], draw(1, 8)
    flow = Flow(lambda t, z: z @ A.T, [0, 0.5, 1])
    values = torch.linalg.svdvals(jacobian(flow, z))[0]
    found = singular_values(flow, z, iterations, seed)
    back = singular_values(flow.inverse, flow(z), iterations, seed)
    slack = 1e-9
    assert values[-1] - slack < found.smallest < values[0] + slack
    assert values[-1] - slack < found.largest < values[0] + slack
    assert 1 / back.largest > 0.999 * values[-1]
    close(stretch(flow, z, found.stretched), found.largest, 1e-9)
    close(stretch(flow.inverse, flow(z), back.stretched), back.largest, 1e-9)
    if iterations == 8:
        close(found.smallest, values[-1], 1e-9)
        close(1 / back.largest, values[-1], 1e-3)


def test_few_iterations_find_both_ends_of_a_large_flow() -> None:
    A, flow = linear(100, scale=0.07)
    values = torch.linalg.svdvals(torch.matrix_exp(A))
    z = draw(1, 100)
    found, back = singular_values(flow, z, 25), singular_values(flow.inverse, flow(z), 25)
    assert 0.99 * values[0] < found.largest[0] < 1.0001 * values[0]
    assert 0.9999 * values[-1] < 1 / back.largest[0] < 1.01 * values[-1]
    assert found.smallest_residual[0] > found.largest_residual[0] > 0, "the large end converges first"


def test_equal_singular_values_do_not_stop_the_search() -> None:
    """J is exp(sin 1) on one half of the space and 1 on the other, so every Krylov space is small."""
    gain = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    flow = Flow(lambda t, z: math.cos(t) * gain * z, TIMES)
    found = singular_values(flow, draw(2, 6), iterations=6)
    close(found.largest, math.exp(math.sin(1)), 1e-6)
    close(found.smallest, 1.0, 1e-6)


def test_the_divergence_integral_is_the_trace() -> None:
    A, flow = linear(4)
    z = draw(2, 4)
    exact = divergence_integral(flow, z)
    close(exact.mean, A.trace(), 1e-9)
    assert not exact.standard_error.any()
    for solver in (Leapfrog(), Dopri5(1e-3, 1e-3)):
        guess = divergence_integral(Flow(flow.field, TIMES, solver), z, probes=12, seed=3)
        assert (guess.standard_error > 0.01).all()
        assert ((guess.mean - A.trace()).abs() < 4 * guess.standard_error).all()
    with pytest.raises(ValueError, match="probes"):
        divergence_integral(flow, z, probes=1)


# --- a Gaussian and a mixture: flows in closed form ------------------------------------------------------------------


def gaussian_field(mean: torch.Tensor, variance: torch.Tensor) -> Callable[[float, torch.Tensor], torch.Tensor]:
    """Return the rectified velocity of N(mean, diag variance): E[eps - x0 | X] at s."""

    def velocity(s: float, x: torch.Tensor) -> torch.Tensor:
        total = (1 - s) ** 2 * variance + s**2
        return (s - (1 - s) * variance) / total * (x - (1 - s) * mean) - mean

    return velocity


def test_the_flow_of_a_gaussian_whitens_it() -> None:
    mean, variance = draw(2, 3, 2), draw(2, 3, 2, seed=4).exp() / 2
    flow = Flow(gaussian_field(mean[0], variance[0]), TIMES)
    z = draw(2, 3, 2, seed=5)
    close(flow(z), (z - mean[0]) / variance[0].sqrt(), 1e-4)
    found = singular_values(flow, z)
    close(found.largest, variance[0].min() ** -0.5, 1e-4)
    close(found.smallest, variance[0].max() ** -0.5, 1e-4)
    volume = -0.5 * variance[0].log().sum()
    close(log_determinant(flow, z), volume, 1e-4)


def test_the_flow_of_a_mixture_carries_its_density_to_the_normal_one() -> None:
    """This checks log p(x) = log N(Phi(x); 0, 1) + log |det J|, with p in closed form."""
    mu, variance = 0.8 * draw(3, 4), 0.2
    network = GaussianMixture(mu, variance, Rectified())
    z = (mu + variance**0.5 * draw(3, 4, seed=6)).reshape(3, 1, 2, 2)
    null = network.encode([""] * 3)
    flow = Flow(lambda s, x: network(x, torch.full((len(x),), s, dtype=x.dtype), null), data_end_times(0, 1, 20))
    constant = -2 * math.log(2 * math.pi)
    apart = (z.flatten(1)[:, None] - mu).square().sum(2)
    density = torch.logsumexp(-apart / (2 * variance), 1) - math.log(3) - 2 * math.log(variance) + constant
    noise = constant - flow(z).flatten(1).square().sum(1) / 2
    J = jacobian(flow, z)
    close(noise + torch.linalg.slogdet(J)[1], density, 1e-3)
    close(noise + divergence_integral(flow, z).mean, density, 1e-3)
    values, found = torch.linalg.svdvals(J), singular_values(flow, z, iterations=4)
    close(found.largest, values[:, 0], 1e-8)
    close(found.smallest, values[:, -1], 1e-8)


# --- pairs, round trips, stability ---------------------------------------------------------------------------------


def test_pairs_stay_between_the_singular_values_and_adversaries_reach_them() -> None:
    A, flow = linear(6, seed=2)
    values = torch.linalg.svdvals(torch.matrix_exp(A))
    z = draw(2, 6)
    ordinary = random_pair_ratios(flow, z, size=0.5, pairs=20)
    assert ordinary.shape == (2, 20)
    assert values[-1] * 0.999 < ordinary.min() and ordinary.max() < values[0] * 1.001
    found = adversarial_pair_ratios(Flow(flow.field, [0, 0.5, 1]), z, size=0.5, updates=80, rate=0.1)
    close(found.largest, values[0], 0.03)
    close(found.smallest, values[-1], 0.03)
    assert (found.largest < values[0] * 1.01).all() and (found.smallest > values[-1] * 0.99).all()
    coarse = Flow(flow.field, [0, 0.5, 1])
    close(pair_ratios(coarse, *found.nearest), found.smallest, 1e-12)
    close(pair_ratios(coarse, *found.farthest), found.largest, 1e-12)
    close(pair_ratios(flow, z, 3 * z), pair_ratios(flow, z, 0 * z), 1e-9)


def test_round_trips_of_solvers() -> None:
    A = 0.5 * draw(6, 6)

    def field(t: float, z: torch.Tensor) -> torch.Tensor:
        return torch.sin(z @ A.T) * (1 + t)

    z, times = draw(2, 6), data_end_times(0, 1, 16)
    for solver, encoding, decoding in ((Leapfrog(), 17, 16), (ReversibleHeun(), 17, 16)):
        found = round_trip(field, z, times, solver)
        assert found.largest.max() < 1e-13 and (found.rms <= found.largest).all() and found.unequal.max() > 0
        close(found.encoded, Flow(field, times, solver)(z), 1e-12)
        assert found.alone.min() > 1e-6 and found.alone.max() < 1e-1
        assert (found.encoding, found.decoding) == (encoding, decoding)
    bits = round_trip(field, z, times, Leapfrog(numbers=FixedPoint()))
    assert not bits.largest.any() and not bits.unequal.any() and bits.alone.all()
    naive = round_trip(field, z, times, RK4())
    assert naive.rms.min() > 1e-9 and torch.equal(naive.rms, naive.alone)
    returns = [round_trip(field, z, [0, 1], Dopri5(tol, tol)) for tol in (1e-4, 1e-7)]
    assert returns[1].rms.max() < 0.02 * returns[0].rms.max() and returns[1].encoding > returns[0].encoding


def test_local_errors_of_a_linear_field() -> None:
    """For dz/dt = a z and x = a h, a step of rk4 multiplies by 1 + x + x^2/2 + x^3/6 + x^4/24, and the flow by e^x."""
    a, z = -1.5, draw(3, 5)
    times = data_end_times(0, 1, 10)

    def factor(x: float) -> float:
        return 1 + x + x**2 / 2 + x**3 / 6 + x**4 / 24

    there, local = 1.0, 0.0
    for t, u in pairwise(times):
        half = a * (u - t) / 2
        local += abs(there * (factor(half) ** 2 - math.exp(2 * half)))
        there *= factor(half) ** 2
    back = there
    for t, u in pairwise(times[::-1]):
        x = a * (u - t)
        local += abs(back * (factor(x) - math.exp(x)))
        back *= factor(x)
    size = z.norm(dim=1)
    found = reverse_solve(lambda t, x: a * x, z, times)
    close(found.error / size, abs(back - 1), 1e-9)
    close(found.local / (size * local), 1.0, 0.1)
    assert (found.error < math.exp(abs(a)) * found.local).all()
    assert (found.error > 0.1 * found.local).all(), "the bound is not trivial"


def test_local_errors_fall_with_the_fifth_power_of_the_step() -> None:
    A, z = 0.5 * draw(6, 6), draw(2, 6)
    sums = [reverse_solve(lambda t, x: torch.sin(x @ A.T), z, data_end_times(0, 1, n)).local for n in (8, 16)]
    close(sums[0] / sums[1], 16.0, 0.2)  # the error of one step falls by 32, and there are twice as many steps


def test_noise_amplification_of_a_linear_restoration() -> None:
    M = draw(6, 6)
    values = torch.linalg.svdvals(M)
    y = draw(3, 6, seed=8)
    ratios = noise_amplification(lambda x: x @ M.T + 1, y, sigma=0.1, draws=10)
    assert ratios.shape == (3, 10)
    assert values[-1] < ratios.min() < ratios.max() < values[0]
    close(noise_amplification(lambda x: 3 * x, y, sigma=0.01), 3.0, 1e-9)
