"""The injective neural ODE: its constants hold at any weights, its theorems on known cases, and its training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.config import FlowTrainConfig, compose_config
from bench.models import build_backbone, build_denoiser
from bench.train import Observer
from methods.injective_ode.conditioner import CORRUPTIONS, KINDS
from methods.injective_ode.field import HALF_TURN, Features, InjectiveField
from methods.injective_ode.layers import Projection, Rotation, cayley, gather_windows, modulus, scatter_windows
from methods.injective_ode.training import InjectiveTraining
from methods.training import Optimisation, keyed_generator

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")


def field(constraint: str = "strict", scale: float = 1.0, seed: int = 0, **options: object) -> InjectiveField:
    """A small float64 field whose weights are all random, times `scale`."""
    torch.manual_seed(seed)
    made = InjectiveField("digits", SHAPE, constraint, (8, 16), (8, 8, 16), **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(scale * (parameter + 0.3 * torch.randn_like(parameter)))
    return made


def told(network: InjectiveField, count: int = 1, seed: int = 1) -> Features:
    rng = torch.Generator().manual_seed(seed)
    y = torch.rand(count, *SHAPE, generator=rng, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        return network.unpack(network.encode(["the digit 3"] * count, y, kind="gaussian_noise"))


def noise(count: int = 1, seed: int = 2) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stretch(network: InjectiveField, u: Tensor, t: Tensor, features: Features, iterations: int = 30) -> Tensor:
    """The largest singular value of dN/du at each u, by power iteration on J^T J."""
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
    features, u = told(network, 4), noise(4) * torch.tensor([0.1, 1.0, 10.0, 1e3])[:, None, None, None]
    t = torch.tensor([0.0, 0.3, 1.0, HALF_TURN], dtype=torch.float64)
    network.requires_grad_(False)
    assert stretch(network, u, t, features).max() <= 1 + 1e-7
    assert network.core.lipschitz() <= 1 + 1e-7


def test_adversarial_inputs_and_weights_stay_1_lipschitz() -> None:
    """Gradient ascent on |N(u1) - N(u2)| / |u1 - u2| over both inputs, the time, and all weights of N."""
    network = field()
    features = told(network)
    u, step, t = noise(), noise(seed=5).requires_grad_(), torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    u.requires_grad_()
    weights = [*network.core.parameters(), *network.clock.parameters()]
    ascent = torch.optim.Adam([u, step, t, *weights], lr=0.05, maximize=True)
    found = []
    for _ in range(60):
        k = network.strength(t)
        change = network.gauge_velocity(u + step, t, features) - network.gauge_velocity(u, t, features)
        ratio = (change / k).norm() / step.norm()
        found.append(float(ratio.detach()))
        ascent.zero_grad()
        ratio.backward()
        ascent.step()
    assert max(found) <= 1 + 1e-9
    assert max(found) > found[0] + 0.05, "the attack found nothing: it is no attack"


def test_an_unconstrained_network_is_caught() -> None:
    """The same measurement exceeds one where nothing is certified, so that it can."""
    for constraint in ("soft", "free"):
        network = field(constraint).eval()
        assert stretch(network, noise(), torch.tensor([0.7], dtype=torch.float64), told(network)).max() > 1.01
        assert not network.certificate().certified


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


def solve(network: InjectiveField, z: Tensor, features: Features, t0: float, t1: float, steps: int = 60) -> Tensor:
    """Runge-Kutta of order 4 on the whole field."""
    h = (t1 - t0) / steps

    def f(t: float, z: Tensor) -> Tensor:
        return network.velocity(z, torch.full((len(z),), t, dtype=z.dtype), features)

    for n in range(steps):
        t = t0 + n * h
        a = f(t, z)
        b = f(t + h / 2, z + h / 2 * a)
        c = f(t + h / 2, z + h / 2 * b)
        z = z + h / 6 * (a + 2 * b + 2 * c + f(t + h, z + h * c))
    return z


def test_the_gauge_removes_the_gaussian() -> None:
    """d/dt of u = (z - cos t mu) / S_t along the field is k N, and the two coordinates are inverse to each other."""
    network = field()
    features, z, t = told(network, 2), noise(2), torch.tensor([0.2, 1.1], dtype=torch.float64)
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
    """k = 0: z_t = cos t mu + S_t / S_0 (z_0 - mu), exactly; decoding the zero latent gives mu."""
    network = field(k_max=1e-300, variance=(0.05, 1.0)).requires_grad_(False)
    features, z = told(network, 2), noise(2)
    end = solve(network, z, features, 0.0, HALF_TURN)
    torch.testing.assert_close(end, (z - features.mean) / features.variance.sqrt(), rtol=1e-4, atol=1e-4)
    decoded = solve(network, torch.zeros_like(z), features, HALF_TURN, 0.0)
    torch.testing.assert_close(decoded, features.mean, rtol=1e-4, atol=1e-4)
    certificate = network.certificate()
    assert pytest.approx(0, abs=1e-290) == certificate.K and certificate.u_upper == certificate.u_lower == 1


def test_the_exact_flow_of_a_gaussian() -> None:
    """E[v | z] of x ~ N(mu, c) is the field at k = 0."""
    network = field(k_max=1e-300).requires_grad_(False)
    f, z, t = told(network), noise(), torch.tensor([0.6], dtype=torch.float64)
    cos, sin = math.cos(0.6), math.sin(0.6)
    x = f.mean + f.variance * cos / (f.variance * cos**2 + sin**2) * (z - cos * f.mean)
    torch.testing.assert_close(network.velocity(z, t, f), (cos * z - x) / sin, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_flow_keeps_its_certificate(seed: int) -> None:
    """Ratios of distances in u and in z over the whole path, far and near pairs, lie within the bounds."""
    network = field(seed=seed, variance=(0.05, 1.0)).requires_grad_(False)
    features = told(network)
    sure, general = network.certificate(features), network.certificate()
    ends = torch.zeros(1, dtype=torch.float64), torch.full((1,), HALF_TURN, dtype=torch.float64)
    for size in (1e-3, 1.0, 30.0):
        start = noise()
        other = start + size * noise(seed=7)
        a, b = (solve(network, z, features, 0.0, HALF_TURN, 20) for z in (start, other))
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
    assert halves == pytest.approx(certificate.K, rel=1e-12)


def test_the_strict_form_is_the_flow_in_another_gauge() -> None:
    """w = e^{int (k + lambda)} u solves dw/dt = (k + lambda) w + g(w) with Lip(g) <= k: h = L + lambda, and
    <f(w1) - f(w2), w1 - w2> >= lambda |w1 - w2|^2. With h > -lambda alone it fails."""
    network, lam, at = field().requires_grad_(False), 0.5, 0.8
    features = told(network)
    t = torch.tensor([at], dtype=torch.float64)
    k = network.strength(t)
    gain = math.exp(network.certificate(t1=at).K / network.core.lipschitz() + lam * at)

    def g(w: Tensor) -> Tensor:
        return gain * network.gauge_velocity(w / gain, t, features)

    w1, w2 = gain * noise(), gain * noise(seed=9)
    step = w1 - w2
    assert (g(w1) - g(w2)).norm() <= k * step.norm() * (1 + 1e-9)
    f = (k + lam) * step + g(w1) - g(w2)
    assert (f * step).sum() >= lam * step.square().sum() * (1 - 1e-9)
    # dw/dt by the product rule, with du/dt from the field and d(int k)/dt from the certificate's own integral
    h = 1e-5
    rate = (network.certificate(t1=at + h).K - network.certificate(t1=at - h).K) / (2 * h * network.core.lipschitz())
    moved = (rate + lam) * w1 + gain * network.gauge_velocity(w1 / gain, t, features)
    torch.testing.assert_close(moved, (k + lam) * w1 + g(w1), rtol=1e-7, atol=1e-7)
    assert ((-k * step) * step).sum() < 0  # g = -L w, h = 0 > -lambda


def test_a_reverse_solve_keeps_gronwalls_bound() -> None:
    """On du/dt = -k(t) u, whose reverse amplifies errors as much as the certificate admits: Euler from a wrong end."""
    network = field().requires_grad_(False)
    features, u = told(network), noise()
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


# --- objective and training ------------------------------------------------------------------------------------


def test_the_losses_on_eps_and_v_are_one() -> None:
    network = field().requires_grad_(False)
    features, x, eps = told(network, 3), noise(3), noise(3, 8)
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
    return InjectiveTraining(network, plan, Observer(FlowTrainConfig()), 2, dropout, 0.1, regulariser, weight)  # type: ignore[arg-type]


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(4)
    return torch.rand(count, *SHAPE, generator=rng) * 2 - 1, torch.arange(1, count + 1)[:, None] % 11


@pytest.mark.parametrize(
    ("constraint", "regulariser", "weight"),
    [("strict", "none", 0.0), ("strict", "pairs", 0.1), ("soft", "jacobian", 0.1), ("free", "none", 0.0)],
)
def test_every_parameter_learns(constraint: str, regulariser: str, weight: float) -> None:
    module = training(regulariser, weight, constraint=constraint)
    with torch.no_grad():  # a zero start hides everything before it, for the first update alone
        for parameter in module.network.core.out.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in module.network.conditioner.named_parameters():
            if parameter.abs().max() == 0 and "bias" not in name:
                parameter.add_(0.01 * torch.randn_like(parameter))
    module.loss(*batch(24), keyed_generator(CPU, 0), training=True).backward()
    assert [name for name, p in module.network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_regularisers_estimate_the_jacobian() -> None:
    """On a linear field both are |J p|^2 / |p|^2."""
    module = training("pairs", 1.0)
    module.network.gauge_velocity = lambda u, t, features: 3 * u  # type: ignore[method-assign, assignment]
    u, t, features = noise(4).float(), torch.rand(4), told(field(), 4)
    for module.regulariser in ("pairs", "jacobian"):
        assert float(module.penalty(u, t, features, keyed_generator(CPU, 1))) == pytest.approx(9, rel=1e-4)


def test_draws_depend_on_the_update_alone() -> None:
    """A resumed run draws what an undisturbed one would: measurements, captions dropped, times and noise."""
    first, second = training(), training()
    images, tokens = batch()
    first.loss(images, tokens, keyed_generator(CPU, 0, 5), training=True)  # a past
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


# --- as a backbone ---------------------------------------------------------------------------------------------


def test_it_is_a_backbone(tmp_path: Path) -> None:
    """Any method can run on it: the embedding holds the condition, and a batch gives what its images give alone."""
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


NAMES = [f"digits_inode{v}" for v in ("", "_soft", "_free", "_unconditional")]
NAMES += [f"scenes_inode{v}" for v in ("", "_soft", "_free")]


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_recipes_build(name: str) -> None:
    config = compose_config([f"model={name}"], sweep_required=False).model[name]
    network = build_backbone(config.model_copy(update={"weights": None}))
    assert sum(p.numel() for p in network.parameters()) * 4 < 8e6
    assert config.train is not None and config.train.flow is not None
    assert network.certificate().certified == (config.backbone["constraint"] == "strict")  # type: ignore[operator]
