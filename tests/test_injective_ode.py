"""Tests of the injective neural ODE: its constants at any weights, its theorems on known cases, its training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench import regularisers
from bench.cell.models import build_backbone, build_denoiser
from bench.errors import UserError
from bench.spec.compose import compose_config
from bench.spec.config import FlowTrainConfig
from bench.training.observer import Observer
from methods.backbones.analytic import GaussianMixture
from methods.flow_analysis import Flow, jacobian
from methods.injective_ode import options
from methods.injective_ode.conditioner import CORRUPTIONS, KINDS
from methods.injective_ode.field import FREQUENCIES, HALF_TURN, Features, InjectiveField
from methods.injective_ode.layers import Layer, Projection, Rotation, cayley, gather_windows, modulus, scatter_windows
from methods.injective_ode.training import InjectiveTraining, Points, negative_likelihood
from methods.paths import Trigonometric
from methods.solvers import RK4, Dopri5, Solver, integrate
from methods.training import Optimisation, keyed_generator

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (1, 8, 8)
CPU = torch.device("cpu")
CLASSIC = RK4()


def field(constraint: str = "strict", scale: float = 1.0, seed: int = 0, **options: object) -> InjectiveField:
    """Build a small float64 field. All its weights are random, times `scale`."""
    torch.manual_seed(seed)
    made = InjectiveField("digits", SHAPE, constraint, (8, 16), (8, 8, 16), **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(scale * (parameter + 0.3 * torch.randn_like(parameter)))
    return made


def witness(*signs: float, **options: object) -> InjectiveField:
    """Build a field with N(u) = `signs` * u + constant, with one sign for each of the four pixels of a 2x2 window.

    Q is I, the projections are identities, and a bias moves the modulus to its linear branch. No flow is steeper.
    """
    network = InjectiveField("digits", SHAPE, "strict", (4,), (8, 8), 1, time=8, **options).double()  # type: ignore[arg-type]
    network.requires_grad_(False)
    for module in network.core.modules():
        if isinstance(module, Layer):
            for parameter in module.parameters():
                parameter.zero_()
    network.core.down[0][0].position.fill_(1e6)  # type: ignore[index]  # far from the kink, also when multiplied by e^-K
    network.core.inp.weight.copy_(torch.eye(4))
    network.core.out.weight.copy_(torch.tensor(signs).diag())
    return network


def shipped(scale: float = 1.0) -> InjectiveField:
    """Load digits_inode in float64, with its weights times `scale`."""
    config = compose_config(["model=digits_inode"], sweep_required=False).model["digits_inode"]
    network = build_backbone(config).double().requires_grad_(False)
    for parameter in network.parameters():
        parameter.mul_(scale)
    assert isinstance(network, InjectiveField)
    return network


def features_of(network: InjectiveField, count: int = 1, seed: int = 1) -> Features:
    rng = torch.Generator().manual_seed(seed)
    y = torch.rand(count, *network.shape, generator=rng, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        return network.unpack(network.encode(["the digit 3"] * count, y, kind="gaussian_noise"))


def noise(count: int = 1, seed: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(*angles: float) -> Tensor:
    return torch.tensor(angles, dtype=torch.float64)


def stretch(network: InjectiveField, u: Tensor, t: Tensor, features: Features, iterations: int = 30) -> Tensor:
    """Return the largest singular value of dN/du at each u, by power iteration on J^T J."""
    network.strength = torch.ones_like  # type: ignore[method-assign, assignment]

    def answer(u: Tensor) -> Tensor:
        return network.gauge_velocity(u, t, features)

    def norm(x: Tensor) -> Tensor:
        return x.flatten(1).norm(dim=1)[:, None, None, None]

    p = torch.randn(u.shape, generator=torch.Generator().manual_seed(3), dtype=u.dtype)
    transposed = torch.func.vjp(answer, u)[1]
    for _ in range(iterations):
        p = p / norm(p)
        p = transposed(torch.func.jvp(answer, (u,), (p,))[1])[0]
    return norm(p).flatten().sqrt()


# --- 1-Lipschitz at any weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
def test_random_and_scaled_weights_stay_1_lipschitz(scale: float) -> None:
    network = field(scale=scale)
    features, u = features_of(network, 4), noise(4) * torch.tensor([0.1, 1.0, 10.0, 1e3])[:, None, None, None]
    t = torch.tensor([0.0, 0.3, 1.0, HALF_TURN], dtype=torch.float64)
    network.requires_grad_(False)
    assert stretch(network, u, t, features).max() <= 1 + 1e-7
    assert network.core.lipschitz() <= 1 + 1e-7


@given(st.integers(0, 2**31), st.lists(st.floats(-3, 3), min_size=11, max_size=11), st.floats(-3, 4), st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_no_scales_of_the_weights_pass_the_constants(seed: int, powers: list[float], size: float, share: float) -> None:
    """Each parameter is multiplied by its own scale, and `rate` by the first one."""
    network = field(seed=seed).requires_grad_(False)
    assert next(iter(network.parameters())) is network.rate
    for i, parameter in enumerate(network.parameters()):
        parameter.mul_(10 ** powers[i % len(powers)])
    t, certificate = at(share * HALF_TURN), network.certificate()
    assert certificate.lipschitz_N <= 1 + 1e-7
    assert float(network.strength(t)) * certificate.lipschitz_N <= certificate.L * (1 + 1e-12)
    found = stretch(network, 10**size * noise(), t, features_of(network), 10)
    assert float(found) <= certificate.lipschitz_N * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_shipped_weights_keep_their_constants(scale: float) -> None:
    """Power iteration checks N, and a directional derivative the flow: rounding removes pairs where u is 1e40."""
    network = shipped(scale)
    features, certificate = features_of(network), network.certificate()
    u, ways = at(1e-3, 1.0, 30.0)[:, None, None, None] * noise(3, 2, network.shape), noise(3, 5, network.shape)

    def flow(u: Tensor) -> Tensor:
        return solve(network.gauge_velocity, u, features, 0.0, HALF_TURN, 12)

    moved = torch.func.jvp(flow, (u,), (ways,))[1]
    ratios = moved.flatten(1).norm(dim=1) / ways.flatten(1).norm(dim=1)
    assert certificate.u_lower < float(ratios.min()) and float(ratios.max()) < certificate.u_upper
    assert certificate.lipschitz_N <= 1 + 1e-7
    assert float(stretch(network, u[1:2], at(0.4), features, 8)) <= certificate.lipschitz_N * (1 + 1e-9)


def test_an_ascent_on_the_flow_nears_its_bound_and_does_not_pass_it() -> None:
    """Adam maximises log(ratio) / K over all parameters (`rate` and the conditioner included), y and both inputs.

    K is here the solver's own quadrature of k, so that coarse steps do not help the ascent.
    """
    torch.manual_seed(0)
    network = InjectiveField("digits", SHAPE, "strict", (4,), (8, 8), 1, 2.0, time=8).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    y, u, step = noise(seed=1).requires_grad_(), noise().requires_grad_(), noise(seed=5).requires_grad_()
    weights = list(network.parameters())
    ascent = torch.optim.Adam([y, u, step, *weights], lr=0.05, maximize=True)
    nodes = torch.linspace(0, HALF_TURN, 9, dtype=torch.float64)
    simpson = HALF_TURN / 24 * at(1, 4, 2, 4, 2, 4, 2, 4, 1)

    def log_ratio(steps: int) -> Tensor:
        features = network.describe(torch.zeros(1, 1, dtype=torch.long), y, torch.ones_like(y), torch.zeros(1).long())
        ends = solve(network.gauge_velocity, torch.cat([u, u + step]), features, 0.0, HALF_TURN, steps)
        return ((ends[1] - ends[0]).norm() / step.norm()).log()

    for _ in range(60):
        used = log_ratio(4) / (simpson * network.strength(nodes)).sum()
        ascent.zero_grad()
        used.backward()
        ascent.step()
    network.requires_grad_(False)
    reached, K = float(log_ratio(40).detach()), network.certificate().K
    assert 0.95 * K < reached <= K


@pytest.mark.parametrize("constraint", ["strict", "soft", "free"])
def test_the_field_has_the_shape_of_its_image(constraint: str) -> None:
    network = field(constraint).eval()
    assert network.gauge_velocity(
        noise(2), torch.full((2,), 0.7, dtype=torch.float64), features_of(network, 2)
    ).shape == (
        2,
        *SHAPE,
    )


def test_an_unconstrained_network_is_caught() -> None:
    """The same measurement can exceed 1: it does for a network without a certificate."""
    for constraint in ("soft", "free"):
        network = field(constraint).eval()
        assert stretch(network, noise(), torch.tensor([0.7], dtype=torch.float64), features_of(network)).max() > 1.01
        certificate = network.certificate()
        assert not certificate.certified and certificate.lipschitz_N == 1, "nominal: the strict form's"


@given(st.integers(1, 6), st.integers(0, 1), st.floats(-3, 3), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_each_layer_is_an_isometry_or_1_lipschitz(width: int, shift: int, power: float, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(2, 2, 4, 4, 2 * width, dtype=torch.float64)
    distance = (x - y).norm()
    layer = Rotation(2 * width, shift).double()
    with torch.no_grad():
        layer.weight.mul_(10**power)
    identity = torch.eye(layer.size, dtype=torch.float64)
    torch.testing.assert_close(layer.matrix @ layer.matrix.T, identity, rtol=0, atol=1e-8)
    assert torch.equal(scatter_windows(gather_windows(x)), x)
    torch.testing.assert_close(gather_windows(x).norm(), x.norm(), rtol=1e-14, atol=0)
    assert (modulus(x) - modulus(y)).norm() <= distance * (1 + 1e-12)
    bias = torch.randn(2 * width, dtype=torch.float64) * 100
    assert (layer(x, bias) - layer(y, bias)).norm() <= distance * (1 + 1e-7)
    projection = Projection(2 * width, 3, bounded=True).double()
    with torch.no_grad():
        projection.weight.mul_(10**power)
    assert (projection(x) - projection(y)).norm() <= distance * (1 + 1e-12)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e20), (torch.float32, 1e38), (torch.float64, 1e200)])
@pytest.mark.parametrize("after", [3, 8])
def test_a_projection_of_huge_weights_is_the_direction_of_its_matrix(
    dtype: torch.dtype, scale: float, after: int
) -> None:
    """Their squares overflow, but W / |W| does not, and its gradient is right. A factor of W has no effect on it."""
    torch.manual_seed(0)
    made, rounding = Projection(8, after, bounded=True).to(dtype), 20 * torch.finfo(dtype).eps
    weight = torch.randn(after, 8, dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(scale / weight.abs().max() * weight)
    matrix = made.matrix
    torch.testing.assert_close(torch.linalg.matrix_norm(matrix, 2), matrix.new_tensor(1.0), rtol=0, atol=rounding)
    torch.testing.assert_close(matrix, weight / torch.linalg.matrix_norm(weight, 2), rtol=0, atol=rounding)
    (matrix * torch.randn_like(matrix)).sum().backward()
    along = (made.weight.grad * made.weight).sum()  # type: ignore[operator]
    assert abs(float(along)) < 100 * rounding


def test_huge_weights_keep_their_certificate() -> None:
    """Only the matrices are huge: with biases as large, rounding would remove u."""
    network = field().requires_grad_(False)
    for module in network.core.modules():
        if isinstance(module, (Rotation, Projection)):
            module.weight.mul_(1e20)
    assert network.core.lipschitz() <= 1 + 1e-7
    assert float(stretch(network, noise(), at(0.7), features_of(network), 8)) <= 1 + 1e-7


def test_frozen_matrices_follow_their_weights() -> None:
    layer = Rotation(4, 0)
    expected = cayley(layer.weight, layer.size)
    layer.requires_grad_(False)
    torch.testing.assert_close(layer.matrix, expected.detach(), rtol=0, atol=1e-5)
    assert layer.matrix is layer.matrix
    before = layer.matrix
    layer.load_state_dict({"weight": layer.weight * 2})
    assert not torch.equal(layer.matrix, before)
    layer.double()
    torch.testing.assert_close(layer.matrix, cayley(layer.weight, layer.size), rtol=0, atol=1e-14)


# --- the theorems ----------------------------------------------------------------------------------------------


def solve(
    velocity: Callable[[Tensor, Tensor, Features], Tensor],
    z: Tensor,
    features: Features,
    t0: float,
    t1: float,
    steps: int = 60,
    solver: Solver = CLASSIC,
) -> Tensor:
    """Solve the flow of the whole field (`network.velocity`) or in the gauge (`network.gauge_velocity`)."""
    times = [t0 + (t1 - t0) * n / steps for n in range(steps + 1)]
    return integrate(lambda t, z: velocity(z, z.new_full((len(z),), t), features), z, times, solver)[0]


def test_the_gauge_removes_the_gaussian() -> None:
    """Along the field, du/dt = k N for u = (z - cos t mu) / S_t; and the two changes of coordinates are inverse."""
    network = field()
    features, z, t = features_of(network, 2), noise(2), torch.tensor([0.2, 1.1], dtype=torch.float64)
    with torch.no_grad():
        u = network.to_gauge(z, t, features)
        torch.testing.assert_close(network.from_gauge(u, t, features), z, rtol=1e-12, atol=1e-12)
        moved = torch.func.jvp(
            lambda z, t: network.to_gauge(z, t, features),
            (z, t),
            (network.velocity(z, t, features), torch.ones_like(t)),
        )[1]
        torch.testing.assert_close(moved, network.gauge_velocity(u, t, features), rtol=1e-9, atol=1e-9)


def test_without_k_the_flow_is_the_gaussians() -> None:
    """With k = 0, z_t = cos t mu + S_t / S_0 (z_0 - mu) exactly, and decoding the zero latent gives mu."""
    network = field(k_max=1e-300, variance=(0.05, 1.0)).requires_grad_(False)
    features, z = features_of(network, 2), noise(2)
    end = solve(network.velocity, z, features, 0.0, HALF_TURN)
    torch.testing.assert_close(end, (z - features.mean) / features.variance.sqrt(), rtol=1e-4, atol=1e-4)
    decoded = solve(network.velocity, torch.zeros_like(z), features, HALF_TURN, 0.0)
    torch.testing.assert_close(decoded, features.mean, rtol=1e-4, atol=1e-4)
    certificate = network.certificate()
    assert pytest.approx(0, abs=1e-290) == certificate.K and certificate.u_upper == certificate.u_lower == 1
    # S grows with t, so errors shrink backward in time
    assert [certificate.gronwall, certificate.gronwall_z] == pytest.approx([1, 1], rel=1e-12)


def test_the_exact_flow_of_a_gaussian() -> None:
    """The field at k = 0 is E[v | z] of x ~ N(mu, c)."""
    network = field(k_max=1e-300).requires_grad_(False)
    f, z, t = features_of(network), noise(), torch.tensor([0.6], dtype=torch.float64)
    cos, sin = math.cos(0.6), math.sin(0.6)
    x = f.mean + f.variance * cos / (f.variance * cos**2 + sin**2) * (z - cos * f.mean)
    torch.testing.assert_close(network.velocity(z, t, f), (cos * z - x) / sin, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_flow_keeps_its_certificate(seed: int) -> None:
    """Ratios of distances in u and z lie within the bounds, over the whole path, for far and near pairs."""
    network = field(seed=seed, variance=(0.05, 1.0)).requires_grad_(False)
    features = features_of(network)
    sure, general = network.certificate(features), network.certificate()
    ends = torch.zeros(1, dtype=torch.float64), torch.full((1,), HALF_TURN, dtype=torch.float64)
    for size in (1e-3, 1.0, 30.0):
        start = noise()
        other = start + size * noise(seed=7)
        a, b = (solve(network.velocity, z, features, 0.0, HALF_TURN, 20) for z in (start, other))
        in_z = float((a - b).norm() / (start - other).norm())
        ua, ub = (network.to_gauge(z, ends[0], features) for z in (start, other))
        va, vb = (network.to_gauge(z, ends[1], features) for z in (a, b))
        in_u = float((va - vb).norm() / (ua - ub).norm())
        assert sure.u_lower * (1 - 1e-6) <= in_u <= sure.u_upper * (1 + 1e-6)
        assert general.z_lower <= sure.z_lower * (1 - 1e-6) <= in_z <= sure.z_upper * (1 + 1e-6)
        assert sure.z_upper <= general.z_upper
    assert general.log_condition == pytest.approx(2 * general.K + math.log(1 / 0.05) / 2)


def test_the_certified_integral_is_that_of_k() -> None:
    network = field()
    t = torch.linspace(0, HALF_TURN, 20_001, dtype=torch.float64)
    certificate = network.certificate()
    expected = float(torch.trapezoid(network.strength(t), t).detach()) * certificate.lipschitz_N
    assert pytest.approx(expected, rel=1e-6) == certificate.K
    halves = network.certificate(t1=0.5).K + network.certificate(t0=0.5).K
    assert halves == pytest.approx(certificate.K, rel=1e-6)  # upper bounds on other intervals


@given(st.lists(st.floats(-5, 5), min_size=FREQUENCIES, max_size=FREQUENCIES))
@settings(max_examples=3, deadline=None)
def test_the_constants_are_attained(rate: list[float]) -> None:
    """For any k(t), N = +-u on alternate pixels stretches by e^K and e^-K. A K below the integral of k would fail."""
    network = witness(1, -1, 1, -1, variance=(1 - 1e-12, 1.0))
    network.rate.copy_(torch.tensor(rate))
    certificate, start = network.certificate(), noise().repeat(3, 1, 1, 1)
    start[1, 0, 2, 4] += 5
    start[2, 0, 2, 5] += 5
    end = solve(network.gauge_velocity, start, features_of(network), 0.0, HALF_TURN, 1, Dopri5(1e-9, 1e-9))
    up, down = (float(((end[i] - end[0]).norm() / 5).log()) for i in (1, 2))
    tight, solver = math.log(0.999), 1e-6  # the error of dopri5, relative to the smaller distance e^-K
    assert tight <= up - certificate.K <= solver and tight <= -down - certificate.K <= solver
    assert certificate.log_condition == pytest.approx(up - down, abs=-2 * tight)


@given(st.floats(0.2, 1.37), st.floats(1, 9.5))
@example(HALF_TURN * 9000.5 / 20_000, 9.5)
@settings(max_examples=6, deadline=None)
def test_no_peak_of_k_hides_between_two_nodes(peak: float, power: float) -> None:
    """The peak is p(t) = 1 - s (cos 2t - cos 2 peak)^2, down to a quarter of an interval wide; it is solved finely."""
    network, s, c = witness(1, 1, 1, 1), 10**power, math.cos(2 * peak)
    network.rate[:3] = torch.tensor([2 - s * (0.5 + c**2), 2 * s * c, -s / 2], dtype=torch.float64)
    width = 1 / (math.sin(2 * peak) * math.sqrt(s))
    inside = [peak + width * n / 10 for n in range(-60, 61) if 0 < peak + width * n / 10 < HALF_TURN]
    u, features, certificate = torch.cat([noise(), noise(seed=5)]), features_of(network), network.certificate()
    distance = (u[0] - u[1]).norm()
    for t, after in pairwise([0.0, *inside, HALF_TURN]):
        u = solve(network.gauge_velocity, u, features, t, after, 1)
    found = float(((u[0] - u[1]).norm() / distance).log())
    assert 0.3 * network.k_max * width < found <= certificate.K + 1e-9
    assert float(network.strength(at(peak))) <= certificate.L
    if power < 2:  # where k is this steep, the bound is tight too
        assert 1.001 * found >= certificate.K


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"t0": 1.0, "t1": 0.2}, "0 <= t0 <= t1"),
        ({"t0": -0.1}, "0 <= t0 <= t1"),
        ({"t1": 1.6}, "0 <= t0 <= t1"),
        ({"t1": math.nan}, "0 <= t0 <= t1"),
        ({"lam": -0.1}, "lam must be 0 or more"),
        ({"lam": math.nan}, "lam must be 0 or more"),
    ],
)
def test_a_certificate_of_nonsense_is_refused(asked: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        field().certificate(**asked)  # type: ignore[arg-type]


def test_a_certificate_reaches_the_ends_of_a_grid() -> None:
    """Rounding at the ends is accepted, a path of length 0 has K = 0, and lambda may be 0."""
    network, path = field(), Trigonometric()
    first, last = path.node_at(0.0).time, path.node_at(1.0).time
    whole = network.certificate(t0=first - 1e-15, t1=last + 1e-15, lam=0.0)
    assert pytest.approx(network.certificate().K, rel=1e-12) == whole.K and whole.h == whole.L
    assert network.certificate(t0=0.7, t1=0.7).K == 0


def test_the_constants_of_n_and_of_the_condition_number() -> None:
    """A projection that shrinks makes N less than 1-Lipschitz, and L and K include this. S matters at both ends."""
    network = witness(0.5, 0.5, 0.5, 0.5, variance=(0.05, 1.0))
    certificate, most = network.certificate(t1=1.0), float(network.strength(at(0.0)))  # k is constant
    assert certificate.lipschitz_N == pytest.approx(0.5)
    assert pytest.approx([0.5 * most] * 2) == [certificate.L, certificate.K]
    spread = -math.log(0.05) / 2 - math.log(0.05 * math.cos(1.0) ** 2 + math.sin(1.0) ** 2) / 2
    assert certificate.log_condition == pytest.approx(2 * certificate.K + spread)
    assert certificate.log_condition == pytest.approx(math.log(certificate.z_upper / certificate.z_lower))


@pytest.mark.parametrize("kind", ["random", "steepest"])
def test_the_strict_form_is_the_flow_in_another_gauge(kind: str) -> None:
    """w = e^{(L + lambda) t} u solves dw/dt = h w + g(w) with h = L + lambda and Lip(g) <= L, so that
    <f(w1) - f(w2), w1 - w2> >= lambda |w1 - w2|^2; with equality where g = -L w, for which h = 0 > -lambda fails."""
    network, lam = field().requires_grad_(False) if kind == "random" else witness(-1, -1, -1, -1), 0.5
    features, certificate = features_of(network), network.certificate(lam=lam)
    h, most = certificate.h, float(network.strength(torch.linspace(0, HALF_TURN, 5001, dtype=torch.float64)).max())
    assert certificate.lam == lam and h == certificate.L + lam
    assert most * (1 - 1e-9) <= certificate.L <= most * (1 + 1e-6)

    def g(w: Tensor, t: Tensor, features: Features) -> Tensor:
        gain = (h * t).exp()[:, None, None, None]
        return gain * network.gauge_velocity(w / gain, t, features)

    w = solve(lambda w, t, features: h * w + g(w, t, features), noise(), features, 0.0, 1.0)
    torch.testing.assert_close(
        w, math.exp(h) * solve(network.gauge_velocity, noise(), features, 0.0, 1.0), rtol=1e-4, atol=1e-4
    )
    w1, w2, t = 3 * noise(), 3 * noise(seed=9), at(0.8)
    step, change = w1 - w2, g(w1, t, features) - g(w2, t, features)
    assert change.norm() <= certificate.L * step.norm() * (1 + 1e-9)
    inner = float(((h * step + change) * step).sum() / step.square().sum())
    assert inner >= lam * (1 - 1e-9)
    if kind == "steepest":
        assert inner == pytest.approx(lam, rel=1e-6)
        assert (change * step).sum() < 0


@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_one_sided_bounds_bound_the_flow_in_any_coordinate(turn: float) -> None:
    """a |d|^2 <= <df, d> <= b |d|^2 gives e^{int a} <= ratio <= e^{int b}. A diagonal field attains this, and a
    rotating one keeps it. x~ = e^{3t} x makes it strictly monotone (a + 3 > 0), with the same condition number."""
    spin = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spin = turn * (spin - spin.T)

    def f(t: float, z: Tensor) -> Tensor:
        a, b = -1 - t, 0.5 + math.cos(t)
        return a * z + (b - a) * z * at(0, 0.3, 0.7, 1) + z @ spin.T

    def moved(t: float, z: Tensor) -> Tensor:
        return 3 * z + math.exp(3 * t) * f(t, math.exp(-3 * t) * z)

    low, high = -1.5, 0.5 + math.sin(1)
    times, axes = [n / 100 for n in range(101)], torch.eye(4, dtype=torch.float64)
    plain, other = (torch.linalg.svdvals(Flow(field, times)(axes)).log() for field in (f, moved))
    assert low - 1e-5 <= float(plain[-1]) and float(plain[0]) <= high + 1e-5
    attained = plain[[0, -1]].tolist() == pytest.approx([high, low], abs=1e-5)
    assert attained == (turn == 0)
    torch.testing.assert_close(other, plain + 3, rtol=0, atol=1e-5)
    assert float(other[0] - other[-1]) == pytest.approx(float(plain[0] - plain[-1]), abs=1e-5)


def test_the_probability_flow_is_not_monotone_between_modes() -> None:
    """Its Jacobian cot t (I - Cov[x|z] / sin^2 t) is at most cot t, and negative where the posterior has two modes."""
    mode = at(1.5, 0.5, 0.0)
    mixture = GaussianMixture(torch.stack([mode, -mode]), 0.05, Trigonometric())
    null = mixture.encode([""])

    def velocity(angle: float) -> Callable[[Tensor], Tensor]:
        cos, sin = math.cos(angle), math.sin(angle)

        def answer(z: Tensor) -> Tensor:
            eps = mixture(z, at(angle), null)
            return cos * eps - sin * (z - sin * eps) / cos

        return answer

    def eigenvalues(angle: float, z: Tensor) -> Tensor:
        """Return the eigenvalues of the code's Jacobian, which must agree with the posterior's covariance."""
        cos, sin, shrunk = math.cos(angle), math.sin(angle), 0.05 * math.sin(angle) ** 2
        v = 0.05 * cos**2 + sin**2
        log_weights = -(z - cos * mixture.mu).square().sum(1) / (2 * v)
        means = mixture.mu + cos * 0.05 * (z - cos * mixture.mu) / v
        one = torch.eye(3, dtype=z.dtype)
        covariance = torch.cov(means.T, correction=0, aweights=log_weights.softmax(0)) + shrunk / v * one
        found = jacobian(velocity(angle), z)[0]
        expected = cos / sin * (one - covariance / sin**2)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        return torch.linalg.eigvalsh(found)

    for angle in (0.2, 0.7, 1.3):
        cot, at_mode, between = (
            1 / math.tan(angle),
            *(eigenvalues(angle, z) for z in (math.cos(angle) * mode[None], 0 * mode[None])),
        )
        assert max(float(at_mode[-1]), float(between[-1])) <= cot
        v = 0.05 * math.cos(angle) ** 2 + math.sin(angle) ** 2
        known = cot * (1 - 0.05 / v - 2.5 * math.sin(angle) ** 2 / v**2)
        assert float(between[0]) == pytest.approx(known, rel=1e-9) and known < 0
    assert float(eigenvalues(0.2, math.cos(0.2) * mode[None])[0]) > 0


def test_a_reverse_solve_keeps_gronwalls_bound() -> None:
    """Euler starts at a wrong end on du/dt = -k(t) u. Its reverse amplifies errors as far as the bound allows."""
    network = field().requires_grad_(False)
    features, u = features_of(network), noise()
    network.core.forward = lambda u, time, maps: -u  # type: ignore[method-assign]
    certificate = network.certificate()
    to_start = [network.certificate(t1=HALF_TURN * n / 40).K / certificate.lipschitz_N for n in range(41)]
    exact = [math.exp(-K) * u for K in to_start]
    wrong = 1e-2 * noise(seed=8)
    now, errors, h = exact[-1] + wrong, wrong.norm(), HALF_TURN / 40

    def back(u: Tensor, n: int) -> Tensor:
        return u - h * network.gauge_velocity(u, torch.tensor([n * h], dtype=u.dtype), features)

    for n in range(40, 0, -1):
        errors += (back(exact[n], n) - exact[n - 1]).norm()
        now = back(now, n)
    found = (now - exact[0]).norm()
    assert found > wrong.norm() * 1.5
    assert found <= math.exp(to_start[-1]) * errors
    assert certificate.gronwall == pytest.approx(math.exp(certificate.K))


@pytest.mark.parametrize("made", [field, lambda: witness(-1, -1, -1, -1, variance=(1 - 1e-12, 1.0))])
def test_an_error_of_z_grows_by_no_more_than_gronwall_z_on_the_way_back(made: Callable[[], InjectiveField]) -> None:
    """This holds from any t to 0, for near and far pairs. From pi / 2 it is attained if N = -u and S = 1."""
    network = made().requires_grad_(False)
    features, grown = features_of(network), 0.0
    certificate, general = network.certificate(features), network.certificate()
    for t in (0.1, 0.8, HALF_TURN):
        for size in (1e-3, 10.0):
            ends = torch.cat([noise(), noise() + size * noise(seed=7)])
            back = solve(network.velocity, ends, features, t, 0.0, 30)
            grown = max(grown, float((back[0] - back[1]).norm() / (ends[0] - ends[1]).norm()))
    assert grown <= certificate.gronwall_z * (1 + 1e-6) <= general.gronwall_z * (1 + 2e-6)
    if made is not field:
        assert grown >= 0.999 * certificate.gronwall_z > 2


# --- objective and training ------------------------------------------------------------------------------------


def test_the_losses_on_eps_and_v_are_one() -> None:
    network = field().requires_grad_(False)
    features, x, eps = features_of(network, 3), noise(3), noise(3, 8)
    t = torch.tensor([0.1, 0.8, 1.4], dtype=torch.float64)
    cos, sin = t.cos()[:, None, None, None], t.sin()[:, None, None, None]
    z = cos * x + sin * eps
    v = network.velocity(z, t, features)
    eps_hat = sin * z + cos * v
    torch.testing.assert_close(
        (eps - eps_hat).square(), cos**2 * (cos * eps - sin * x - v).square(), rtol=1e-10, atol=1e-12
    )


def training(
    regulariser: str = "none", weight: float = 0.0, dropout: float = 0.3, constraint: str = "strict"
) -> InjectiveTraining:
    torch.manual_seed(0)
    network = InjectiveField("digits", SHAPE, constraint, (8, 16), (8, 8, 16))  # type: ignore[arg-type]
    plan = Optimisation(10)
    return InjectiveTraining(network, plan, Observer(FlowTrainConfig()), 2, dropout, 0.1, 0.02, regulariser, weight)  # type: ignore[arg-type]


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(4)
    return torch.rand(count, *SHAPE, generator=rng) * 2 - 1, torch.arange(1, count + 1)[:, None] % 11


@pytest.mark.parametrize(
    ("constraint", "regulariser", "weight"),
    [("strict", "none", 0.0), ("strict", "pairs", 0.1), ("soft", "jacobian", 0.1), ("free", "none", 0.0)],
)
def test_every_parameter_learns(constraint: str, regulariser: str, weight: float) -> None:
    module = training(regulariser, weight, constraint=constraint)
    with torch.no_grad():  # a layer that starts at zero hides all layers before it, but only in the first update
        for parameter in module.network.core.out.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in module.network.conditioner.named_parameters():
            if parameter.abs().max() == 0 and "bias" not in name:
                parameter.add_(0.01 * torch.randn_like(parameter))
    module.loss(*batch(24), keyed_generator(CPU, 0), training=True).backward()
    assert [name for name, p in module.network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_likelihood_is_least_at_the_mean_and_variance() -> None:
    """The data have known mean and variance for each pixel. An easy image counts as much as a hard one."""
    rng = torch.Generator().manual_seed(2)
    mean, deviation = torch.randn(2, 1, 4, 4, generator=rng), torch.tensor([0.1, 1.0])[:, None, None, None]
    deviation = deviation * (1 + torch.rand(2, 1, 4, 4, generator=rng))
    data = mean + deviation * torch.randn(20000, 2, 1, 4, 4, generator=rng)
    fitted = mean.clone().requires_grad_(), deviation.square().log().requires_grad_()

    def gradients(stated_mean: Tensor, log_variance: Tensor) -> tuple[Tensor, ...]:
        features = Features(
            stated_mean.expand_as(data).flatten(0, 1), log_variance.exp().expand_as(data).flatten(0, 1), ()
        )
        return torch.autograd.grad(negative_likelihood(features, data.flatten(0, 1)), fitted)

    for off in gradients(*fitted):
        assert float(off.abs().max()) < 0.01
    shifted = fitted[0] + 0.1 * deviation
    pull = gradients(shifted, fitted[1])[0] / deviation * deviation.square().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(pull, torch.full_like(pull, 0.1 / 16), rtol=0.3, atol=0)
    assert gradients(fitted[0], fitted[1] + 0.3)[1].min() > 0 > gradients(fitted[0], fitted[1] - 0.3)[1].max()


def test_regularisers_estimate_the_jacobian() -> None:
    """On a diagonal field g = a u both are |a p|^2 / |p|^2, with known mean and variance over p ~ N(0, I).

    The field is three times as steep at half of the points, which adds the variance between points.
    """
    module = training("pairs", 1.0)
    a = torch.linspace(0, 2, 64).view(SHAPE)
    u, t, features = noise(8).float(), torch.rand(8), features_of(field(), 8)
    steeper = torch.tensor([1.0, 3.0]).repeat(4)[:, None, None, None]
    module.network.gauge_velocity = lambda u, t, features: steeper * a * u  # type: ignore[method-assign, assignment]
    squares, fourths = float(a.square().sum()), float(a.pow(4).sum())
    mean, variance = squares / 64, 2 * (64 * fourths - squares**2) / (64**2 * 66)
    points = Points(u, features, features, t, u, u)
    for module.regulariser in ("pairs", "jacobian"):
        found = regularisers.spread(regularisers.estimate(module, u, points, 300))
        by_probe = variance * (1 + 81) / 2
        assert found.mean == pytest.approx(5 * mean, rel=0.02)
        assert found.by_probe**2 == pytest.approx(by_probe, rel=0.15)
        assert found.deviation**2 == pytest.approx(by_probe + (4 * mean) ** 2, rel=0.05)


def test_the_table_of_regularisers(capsys: pytest.CaptureFixture[str]) -> None:
    assert regularisers.main(["images=2", "probes=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| pairs", "| jacobian"]
    assert all(float(cell) > 0 for line in lines[2:4] for cell in line.strip("| ").split(" | ")[1:])
    for wrong, complaint in (
        (["probes=1"], "probes=1: must be a whole number, 2 or more"),
        (["model=digits_vp"], "model=digits_vp has no regulariser"),
        (["model=digits_inode,digits_vp"], "name one model"),
    ):
        with pytest.raises(UserError, match=complaint):
            regularisers.parse(wrong)


def test_a_heavier_regulariser_made_a_flatter_field(capsys: pytest.CaptureFixture[str]) -> None:
    """This compares |J|_F^2 / D of the shipped soft fields at the same points. Their weights are 0, 0.01, 1 and 10."""
    found = []
    for name in ("soft_w0", "soft", "soft_w1", "soft_w10"):
        assert regularisers.main([f"model=digits_inode_{name}", "images=6", "probes=2"]) == 0
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| jacobian"))
        found.append(float(row.split(" | ")[1]))
    assert found[0] > found[1] > 3 * found[2] > 9 * found[3] > 0, found


def test_draws_depend_on_the_update_alone() -> None:
    """A resumed run draws the same as an uninterrupted one: measurements, dropped captions, times and noise."""
    first, second = training(), training()
    images, tokens = batch()
    first.loss(images, tokens, keyed_generator(CPU, 0, 5), training=True)  # earlier draws
    torch.randn(10)
    one, other = (m.loss(images, tokens, keyed_generator(CPU, 0, 6), training=True) for m in (first, second))
    assert torch.equal(one, other)
    assert not torch.equal(one, second.loss(images, tokens, keyed_generator(CPU, 0, 7), training=True))


def test_captions_are_dropped_in_training_alone() -> None:
    seen: list[Tensor] = []
    module = training(dropout=0.5)
    described = module.network.describe

    def spy(tokens: Tensor, *rest: Tensor) -> Features:
        seen.append(tokens)
        return described(tokens, *rest)

    module.network.describe = spy  # type: ignore[method-assign]
    images, _ = batch(400)
    tokens = torch.full((400, 1), 4)
    for on in (True, False):
        module.loss(images, tokens, keyed_generator(CPU, 3), training=on)
    assert 0.4 < float((seen[0] == 0).float().mean()) < 0.6
    assert torch.equal(seen[1], tokens)


def test_observations_are_what_their_kinds_say() -> None:
    images = torch.rand(600, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = Observer(FlowTrainConfig())(images, keyed_generator(CPU, 0))
    kinds = [KINDS[int(kind)] for kind in seen.kind]
    assert set(kinds) == set(KINDS)
    assert sum(kind in CORRUPTIONS for kind in kinds) / 600 == pytest.approx(0.7, abs=0.06)
    for i, kind in enumerate(kinds):
        if kind.startswith("is_"):
            assert not torch.equal(seen.data[i], images[i]) and not seen.y[i].any() and not seen.known[i].any()
            continue
        assert torch.equal(seen.data[i], images[i])
        if kind == "null":
            assert not seen.y[i].any() and not seen.known[i].any()
        elif kind.endswith("mask"):
            holes = seen.known[i] == 0
            assert holes.any() and torch.equal(seen.y[i], torch.where(holes, 0, images[i]))
        else:
            assert seen.known[i].all() and torch.equal(seen.y[i], images[i]) == (kind == "clean")
    off = Observer(FlowTrainConfig(measured=0, source=0, clean=0))(images, keyed_generator(CPU, 0))
    assert not off.kind.any() and not off.y.any() and torch.equal(off.data, images)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_training_adds_the_noise_of_measurements(name: str) -> None:
    """The noise is white and only on known pixels, as in `corruptions.base.measure`, without the operator."""
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    observer = Observer(FlowTrainConfig(corruptions=(name,)))
    for corruption in observer.corruptions[name]:
        corruption.options = corruption.options.model_copy(update={"sigma01": 0.2})
    y, known = observer.measure(name, 0.99, image, 5)
    clean = image
    if name == "gaussian_blur":
        clean = observer.corruptions[name][-1].draw((3, 32, 32), np.random.default_rng(0)).forward(image)
    residual = (y - clean)[known.expand(3, -1, -1) > 0]
    assert float(residual.std()) == pytest.approx(0.4, rel=0.07) and not y[known.expand(3, -1, -1) == 0].any()
    assert torch.equal(y, observer.measure(name, 0.99, image, 5)[0])
    assert not torch.equal(y, observer.measure(name, 0.99, image, 6)[0])


# --- as a backbone ---------------------------------------------------------------------------------------------


def test_it_is_a_backbone(tmp_path: Path) -> None:
    """Any method can run on it: the embedding contains the condition, and a batch gives the same as single images."""
    config = compose_config(["model=digits_inode"], sweep_required=False).model["digits_inode"]
    config = config.model_copy(update={"weights": None})
    denoiser = build_denoiser(config)
    denoiser.double()
    network = denoiser.backbone
    with torch.no_grad():
        network.core.out.weight.normal_()  # type: ignore[union-attr, operator]
    y = torch.rand(3, 1, 16, 16, dtype=torch.float64) * 2 - 1
    captions = ["", "the digit 1", "the digit 2"]
    embedding = network.encode(captions, y, y[:, :1] > 0, ["random_mask", "clean", "gaussian_blur"])  # type: ignore[operator]
    x, t = torch.randn(3, 1, 16, 16, dtype=torch.float64), torch.tensor([0.0, 0.7, 1.5], dtype=torch.float64)
    together = network(x, t, embedding)
    torch.testing.assert_close(network(x[1:2], t[1:2], embedding[1:2]), together[1:2], rtol=1e-9, atol=1e-9)
    assert denoiser.condition(captions, 2.0).embedding.shape == embedding.shape
    assert not torch.equal(embedding, network.encode(captions))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((["the digit 1"], None, None, "gaussian_blur"), "need each other"),
        ((["the digit 1"], torch.zeros(1, *SHAPE), None, "null"), "need each other"),
        ((["the digit 1"], None, None, "motion_blur"), "kind must be one of"),
        ((["a cat"],), "unknown word"),
    ],
)
def test_wrong_conditions_are_named(arguments: tuple[object, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        field().encode(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"k_max": -1.0}, "k_max"),
        ({"k_max": math.nan}, "k_max"),
        ({"variance": (1.0, 0.5)}, "c_lo < c_hi"),
        ({"depth": 0}, "depth"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        field(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="constraint"):
        field("hard")


def test_the_field_and_its_declared_arguments_have_the_same_defaults() -> None:
    own, declared = inspect.signature(InjectiveField).parameters, options.InjectiveField.model_fields
    assert own.keys() == declared.keys()
    for name, part in declared.items():
        assert own[name].default == (inspect.Parameter.empty if part.is_required() else part.default)


RECIPES = sorted(file.stem for file in (ROOT / "sweeps" / "model").glob("*_inode*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_recipes_build(name: str) -> None:
    config = compose_config([f"model={name}"], sweep_required=False).model[name]
    network = build_backbone(config.model_copy(update={"weights": None}))
    assert sum(p.numel() for p in network.parameters()) * 4 < 8e6
    assert config.train is not None and config.train.flow is not None
    assert network.certificate().certified == (config.backbone["constraint"] == "strict")  # type: ignore[operator]
