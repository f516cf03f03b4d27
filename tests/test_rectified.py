"""Tests of the rectified-flow methods: closed forms, orders of accuracy, and marginals of the ODEs and SDEs."""

from __future__ import annotations

import itertools
import math
from typing import TypeVar

import pytest
import torch

from methods.backbones.analytic import GaussianMixture
from methods.base import InversionMethod, Latent, Method, Problem, normal
from methods.denoiser import Denoiser
from methods.inversion import options
from methods.inversion.fireflow import FireFlow
from methods.inversion.flowedit import FlowEdit
from methods.inversion.rf_inversion import RFInversion
from methods.inversion.rf_solver import RFSolver
from methods.inversion.uni_inv import UniInv
from methods.paths import Rectified, TimeGrid, VariancePreserving

MethodT = TypeVar("MethodT", bound=Method)
SHAPE = (3, 8, 8)
PATHS = {"vp": VariancePreserving(), "cosine": VariancePreserving("cosine"), "rectified": Rectified()}
MEANS = 0.4 * torch.randn(4, math.prod(SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
VARIANCE = 0.1
every_path = pytest.mark.parametrize("path", list(PATHS))


def build(cls: type[MethodT], path: str = "rectified", steps: int = 10, **chosen: object) -> MethodT:
    denoiser = Denoiser(GaussianMixture(MEANS, VARIANCE, PATHS[path]), PATHS[path], PATHS[path].direction)
    # With level0=first the oracle gets exactly the noise of each level, which orders of accuracy need.
    grid = PATHS[path].grid(steps, level0="first")
    return cls(denoiser, cls.Options(steps=steps, dtype="float64", **chosen), grid)


def images(count: int = 2) -> torch.Tensor:
    draws = [
        torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64) for i in range(count)
    ]
    return torch.stack([MEANS[i % 4].reshape(SHAPE) + VARIANCE**0.5 * z for i, z in enumerate(draws)])


def generators(count: int = 2, start: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(start + i) for i in range(count)]


def close(ours: torch.Tensor, theirs: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


# --- levels between those of a grid ----------------------------------------------------------------------------


@every_path
def test_node_at_inverts_the_rectified_time(path: str) -> None:
    chosen = PATHS[path]
    for node in chosen.grid(25, level0="first").nodes:
        found = chosen.node_at(node.s)
        assert abs(found.time - node.time) < 1e-6 * max(1.0, chosen.t_max)
        assert abs(found.alpha - node.alpha) < 1e-12
        assert abs(found.sigma - node.sigma) < 1e-12
    low, high = (chosen.grid(25, level0="first")[k].s for k in (0, 25))
    nodes = [chosen.node_at(low + (high - low) * i / 400) for i in range(401)]
    assert all(b.time > a.time for a, b in itertools.pairwise(nodes))
    for node in nodes:  # the coefficients that the path gives at that time are those of the level
        alpha, sigma = chosen.coefficients(torch.tensor([node.time], dtype=torch.float64))
        assert abs(alpha.item() - node.alpha) < 1e-9
        assert abs(sigma.item() - node.sigma) < 1e-9
    for outside in (-0.1, 1.1):
        with pytest.raises(ValueError):
            chosen.node_at(outside)


# --- solvers ---------------------------------------------------------------------------------------------------


@every_path
def test_rf_solver_is_the_midpoint_rule(path: str) -> None:
    """The paper's Taylor step X + h p + h^2/2 (m - p)/(h/2) equals our step."""
    method = build(RFSolver, path)
    cond = method.denoiser.condition(["src", "tgt"], 2.0)
    for k, target in ((3, 4), (7, 6)):
        node, other, x = method.grid[k], method.grid[target], images()
        h = other.s - node.s
        p = method.velocity(x, node, cond)
        m = method.velocity(x + h / 2 * p, method.denoiser.path.node_at(node.s + h / 2), cond)
        close(method.step(x, node, other, cond), x + h * p + h**2 / 2 * (m - p) / (h / 2))


@pytest.mark.parametrize("path", ["vp", "rectified"])
@pytest.mark.parametrize(
    ("cls", "chosen", "order"),
    [
        (RFInversion, {"gamma": 0.0, "eta": 0.0}, 1),
        (RFSolver, {}, 2),
        (FireFlow, {}, 2),
        (UniInv, {}, 1),
    ],
)
def test_order_of_accuracy(cls: type[InversionMethod], chosen: dict, order: int, path: str) -> None:
    """The error of the inversion, against a fine solution, falls as 1/N for Euler and as 1/N^2 for midpoint rules."""
    x0 = images()
    cond = build(cls, path).denoiser.condition(["src", "tgt"], 1.0)
    # Trailing and nested grids end at the same level, so all errors are to the same X.
    truth = build(RFSolver, path, 1000).invert(x0, cond).x_T
    errors = [
        (build(cls, path, N, **chosen).invert(x0, cond).x_T - truth).square().mean().sqrt().item() for N in (50, 100)
    ]
    assert 0.8 * 2**order < errors[0] / errors[1] < 1.25 * 2**order, errors


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_uni_inv_round_trips_to_second_order(path: str) -> None:
    """Each direction is of first order, but Euler's sampler undoes the errors of the inversion."""
    errors = {}
    for cls, chosen in ((UniInv, {}), (RFInversion, {"gamma": 0.0, "eta": 0.0})):
        for steps in (50, 100):
            method = build(cls, path, steps, **chosen)
            cond = method.denoiser.condition(["src", "tgt"], 1.0)
            errors[cls, steps] = (method.reconstruct(images(), cond)[0] - images()).square().mean().sqrt().item()
    assert errors[UniInv, 50] / errors[UniInv, 100] > 3.2, errors
    assert errors[UniInv, 50] < 0.3 * errors[RFInversion, 50], errors


def test_evaluations_of_the_solvers() -> None:
    """RF-Solver needs 2N in each direction, FireFlow N + 1, Uni-Inv N + 1 (inversion) and N (decoding)."""
    for cls, expected in ((RFSolver, 40), (FireFlow, 22), (UniInv, 21)):
        method = build(cls)
        cond = method.denoiser.condition(["src"], 1.0)
        method.reconstruct(images(1), cond)
        assert method.denoiser.nfe == expected == method.expected_nfe(cond, cond)


# --- RF-Inversion ----------------------------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("mode", ["ode", "sde"])
def test_gamma_and_eta_one_need_no_network(path: str, mode: str) -> None:
    """gamma = 1 reaches y1 and eta = 1 returns y0, in both modes."""
    chosen = {"gamma": 1.0, "eta": 1.0, "window": (0.0, 1.0), "mode_forward": mode, "mode_reverse": mode}
    method = build(RFInversion, path, **chosen)
    cond = method.denoiser.condition(["src", "tgt"], 3.0)
    x_hat, latent = method.reconstruct(images(), cond, generators())
    bottom, top = method.grid[0], method.grid[10]
    kept = (1 - top.s) / (1 - bottom.s)
    y1 = normal(images(), generators())
    close(latent.x_T, (y1 + kept * (images() / bottom.scale - y1)) * top.scale)
    r = bottom.s / top.s
    close(x_hat, (r * latent.x_T / top.scale + (1 - r) * images()) * bottom.scale)
    assert method.denoiser.nfe == 0 == method.expected_nfe(cond, cond)


@pytest.mark.parametrize("mode", ["ode", "sde"])
def test_eta_one_on_a_prefix_jumps(mode: str) -> None:
    """After k steps X = s_k Y1 + (1 - s_k) y0, and those k evaluations are saved."""
    method = build(RFInversion, window_steps=(0, 4), eta=1.0, mode_reverse=mode)
    cond = method.denoiser.condition(["src", "tgt"], 1.0)
    latent = method.invert(images(), cond, generators())
    seen = []
    method.denoiser.reset_counters()
    method.decode(latent, cond, lambda x, node: seen.append(x) or x)
    s = method.grid[6].s
    close(seen[3], s * latent.x_T + (1 - s) * images())
    assert method.denoiser.nfe == 6
    assert method.expected_nfe(cond, cond) == 16


def test_the_noising_sde_has_a_closed_form() -> None:
    """SDE (10) from the image is (1 - s) y0 + s (gamma y1 + sqrt(1 - gamma) xi), without the network."""
    method = build(RFInversion, mode_forward="sde", strength=0.6)
    cond = method.denoiser.condition(["src", "tgt"], 1.0)
    drawn = generators()
    y1, xi = normal(images(), drawn), normal(images(), drawn)
    expected = 0.4 * images() + 0.6 * (0.5 * y1 + math.sqrt(0.5) * xi)
    close(method.invert(images(), cond, generators()).x_T, expected)
    assert method.denoiser.nfe == 0


def test_the_velocity_form_is_the_same_map() -> None:
    """The map is Y += h (u + gamma (c - u)), with c = (y1 - Y) / (1/lambda + 1 - s), and the same in reverse."""
    for weight, lam in ((None, math.inf), (8.0, 8.0)):
        method = build(RFInversion, terminal_weight=weight, eta=0.8, window=(0.3, 0.95))
        cond = method.denoiser.condition(["src", "tgt"], 1.0)
        y1 = normal(images(), generators())
        y = images()
        for k in range(10):
            node, gap = method.grid[k], method.grid[k + 1].s - method.grid[k].s
            u = method.denoiser.velocity(y, node, cond)
            y = y + gap * (u + 0.5 * ((y1 - y) / (1 / lam + 1 - node.s) - u))
        latent = method.invert(images(), cond, generators())
        close(latent.x_T, y, 1e-10)
        x = latent.x_T
        for k in range(10, 0, -1):
            node, gap, eta = method.grid[k], method.grid[k].s - method.grid[k - 1].s, method.eta(k)
            v = -method.denoiser.velocity(x, node, cond)
            x = x + gap * (v + eta * ((images() - x) / (1 / lam + node.s) - v))
        close(method.decode(latent, cond), x, 1e-10)


def test_a_finite_terminal_weight_lies_between_no_control_and_full_control() -> None:
    ends = []
    for chosen in ({"gamma": 0.0}, {"terminal_weight": 1e-9}, {"terminal_weight": 1e9}, {}):
        method = build(RFInversion, **{"gamma": 1.0, "eta": 0.0, **chosen})
        ends.append(method.invert(images(), method.denoiser.condition(["src", "tgt"], 1.0), generators()).x_T)
    close(ends[1], images(), 1e-7)  # gamma = 1: only the control acts, and here it is almost 0
    close(ends[2], ends[3], 1e-7)
    assert not torch.allclose(ends[0], ends[3])


def test_eta_schedules() -> None:
    def etas(**chosen: object) -> list[float]:
        method = build(RFInversion, steps=8, eta=0.8, **chosen)
        return [method.eta(k) for k in range(method.grid.steps, 0, -1)]

    def is_near(ours: list[float], theirs: list[float]) -> None:
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-12, ours

    four = {"window_steps": (0, 4)}
    is_near(etas(**four), [0.8] * 4 + [0] * 4)
    is_near(etas(window=(0.625, 1.0)), [0.8] * 4 + [0] * 4)
    is_near(etas(**four, eta_schedule="linear"), [0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0])
    is_near(etas(window=(0.5, 1.0), eta_schedule="linear"), [0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0])
    is_near(etas(**four, eta_schedule="power", eta_power=2.0), [0.8 * (1 - i / 8) ** 2 for i in range(4)] + [0] * 4)
    falling = [0.8 * (1 - (math.exp(2 * i / 4) - 1) / (math.exp(2) - 1)) for i in range(4)]
    is_near(etas(**four, eta_schedule="exponential"), falling + [0] * 4)
    is_near(etas(window_steps=(3, 4), eta_schedule="linear"), [0, 0, 0, 0.8, 0, 0, 0, 0])
    is_near(etas(window=(0.75, 0.75), eta_schedule="linear"), [0, 0, 0.8, 0, 0, 0, 0, 0])
    # s = 2/8 can mean two things: start there, or go there without control. Steps count from the noisiest level.
    is_near(etas(**four, start=0.25), [0.8] * 2 + [0] * 4)
    is_near(etas(**four, start=0.25, start_reading="uncontrolled"), [0, 0, 0.8, 0.8, 0, 0, 0, 0])


def test_partial_start_is_strength() -> None:
    early, shorter = build(RFInversion, steps=28, start=3 / 28), build(RFInversion, steps=28, strength=25 / 28)
    assert early.grid == shorter.grid
    assert early.grid.steps == 25
    cond = early.denoiser.condition(["src", "tgt"], 1.0)
    ours, theirs = (method.reconstruct(images(), cond, generators()) for method in (early, shorter))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1].x_T, theirs[1].x_T)


def test_the_diffusers_grid_is_reproduced() -> None:
    """Network time and controller are at i/(N + 1), i = 0 .. N - 1; steps are gaps of the falling shifted sigmas."""
    N, path = 8, Rectified()
    denoiser = Denoiser(GaussianMixture(MEANS, VARIANCE, path), path, "velocity")
    grid = path.grid(N, "flux_shift", mu=1.15)
    cond, y1, y = denoiser.condition(["src", "tgt"], 1.0), normal(images(), generators()), images()
    sigmas = [node.s for node in reversed(grid.nodes)]
    for i in range(N):
        t = i / (N + 1)
        u = denoiser.velocity(y, path.node_at(t), cond)
        y = y + (sigmas[i] - sigmas[i + 1]) * (u + 0.5 * ((y1 - y) / (1 - t) - u))
    method = RFInversion(denoiser, options.RFInversion(steps=N, dtype="float64", grid="diffusers"), grid)
    close(method.forward_ode(images(), y1, cond), y)
    close(method.invert(images(), cond, generators()).x_T, y)
    with pytest.raises(ValueError, match="rectified"):
        build(RFInversion, "vp", grid="diffusers")


def test_decoding_by_the_sde_repeats() -> None:
    method = build(RFInversion, mode_reverse="sde")
    cond = method.denoiser.condition(["src", "tgt"], 1.0)
    latent = method.invert(images(), cond, generators())
    assert latent.tensors["seeds"].dtype == torch.int64
    assert latent.tensors["seeds"].shape == (2,)
    assert torch.equal(method.decode(latent, cond), method.decode(latent, cond))
    other = method.invert(images(), cond, generators(start=9))
    assert not torch.equal(latent.tensors["seeds"], other.tensors["seeds"])
    with pytest.raises(ValueError, match="generators"):
        build(RFInversion, mode_reverse="sde", gamma=0.0).invert(images(), cond)


def test_options_that_contradict_each_other_are_refused() -> None:
    for bad in (
        {"start": 0.2, "strength": 0.5},
        {"terminal_weight": 5.0, "mode_reverse": "sde"},
        {"grid": "diffusers", "mode_forward": "sde"},
        {"window_steps": (4, 2)},
        {"terminal_weight": 0.0},
    ):
        with pytest.raises(ValueError):
            options.RFInversion(**bad)


# --- marginals on a Gaussian -----------------------------------------------------------------------------------

MEAN, DATA, END = 10.0, 1.0, 0.9
"""The data are p0 = N(10, 1), observed after 0.9 of the path."""


def gaussian(nodes: list[float], pixels: int = 1, **chosen: object) -> InversionMethod:
    path = Rectified()
    denoiser = Denoiser(GaussianMixture(torch.full((1, pixels), MEAN), DATA, path), path, "velocity")
    return RFInversion(
        denoiser, options.RFInversion(steps=len(nodes) - 1, dtype="float64", **chosen), path.from_sigmas(nodes)
    )


@pytest.mark.parametrize(("gamma", "ode", "agree"), [(0.0, 0.82, True), (0.5, 0.091, False), (1.0, 0.01, True)])
def test_forward_marginals(gamma: float, ode: float, agree: bool) -> None:
    """Given y1, ODE (8) and SDE (10) have equal variance only at gamma 0 and 1, so Theorem 3.4 holds only there."""
    method = gaussian([END * i / 1000 for i in range(1001)], gamma=gamma)
    cond = method.denoiser.condition(["", ""], 1.0)
    x0 = torch.tensor([MEAN, MEAN + 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    y = method.forward_ode(x0, torch.full_like(x0, 0.3), cond)
    slope = (y[1] - y[0]).item()  # the flow of a Gaussian is affine, so its slope is its standard deviation
    assert abs(slope**2 * DATA - ode) < 0.01 * ode + 1e-4

    pixels = 40_000
    sde = gaussian([0.0, END], pixels, gamma=gamma, mode_forward="sde")
    draws = MEAN + DATA**0.5 * torch.randn(
        1, 1, 200, 200, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    target = torch.full_like(draws, 0.3)
    noisy = sde.forward_sde(draws, target, generators(1))
    expected = (1 - END) ** 2 * DATA + (1 - gamma) * END**2  # 0.415 at gamma = 1/2
    assert abs(noisy.var().item() / expected - 1) < 0.03
    assert abs(noisy.mean().item() - ((1 - END) * MEAN + END * gamma * 0.3)) < 0.02
    assert (abs(expected / slope**2 - 1) < 0.02) == agree


@pytest.mark.parametrize(("eta", "agree"), [(0.0, True), (0.5, False), (1.0, True)])
def test_reverse_marginals(eta: float, agree: bool) -> None:
    """From N(0, 1), given y0, ODE (15) and SDE (17) have equal variance only at eta 0 and 1 (Theorem 3.5)."""
    nodes = [1 - END + END * i / 400 for i in range(401)]
    y0, shape = 11.0, (1, 1, 200, 200)
    found = {}
    for mode in ("ode", "sde"):
        method = gaussian(nodes, 40_000, eta=eta, window=(0.0, 1.0), mode_reverse=mode, gamma=1.0)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        cond = method.denoiser.condition([""])
        kept = method.invert(torch.full(shape, y0, dtype=torch.float64), cond, generators(1)).tensors
        found[mode] = method.decode(Latent({**kept, "x_T": noise}), cond).var().item()
    assert abs(found["sde"] / variance_of_17(eta) - 1) < 0.03, (found, variance_of_17(eta))
    assert (abs(found["ode"] / found["sde"] - 1) < 0.04) == agree, found


def variance_of_17(eta: float, delta: float = 1e-3, dt: float = 1e-5) -> float:
    """Return Var X_t at t = 0.9: the integral of the moment equation of (17), as in the paper, from t = delta."""
    t, variance = delta, 1.0
    while t < END:
        score = -1 / (t**2 * DATA + (1 - t) ** 2)
        slope = (1 - t - eta) / (t * (1 - t)) + 2 * (1 - t) * (1 - eta) / t * score
        variance += dt * (2 * slope * variance + 2 * (1 - t) * (1 - eta) / t)
        t += dt
    return variance


# --- FlowEdit --------------------------------------------------------------------------------------------------


@every_path
def test_flowedit_with_one_condition_returns_the_image(path: str) -> None:
    method = build(FlowEdit, path)
    cond = method.denoiser.condition(["src", "tgt"], 1.5)
    edited, _ = method.edit(images(), cond, cond, generators=generators())
    close(edited, images())


@every_path
@pytest.mark.parametrize(("n_min", "n_avg"), [(0, 1), (3, 2), (8, 1)])
def test_flowedit_costs_its_formula_and_batches(path: str, n_min: int, n_avg: int) -> None:
    method = build(FlowEdit, path, n_max=8, n_min=n_min, n_avg=n_avg)
    source, target = method.denoiser.condition(["src", "src"], 1.5), method.denoiser.condition(["tgt", "tgt"], 5.5)
    edited, latent = method.edit(images(), source, target, generators=generators())
    nfe = method.denoiser.nfe
    assert nfe == method.expected_nfe(source, target) == 4 * n_avg * (8 - n_min) + 2 * n_min
    assert edited.isfinite().all()
    assert latent.state_bytes == images()[0].numel() * 8
    for i in range(2):
        one, other = method.denoiser.condition(["src"], 1.5), method.denoiser.condition(["tgt"], 5.5)
        alone, _ = method.edit(images()[i : i + 1], one, other, generators=generators(1, start=i))
        close(alone, edited[i : i + 1], 1e-11)


def test_flowedit_is_algorithm_1() -> None:
    """The algorithm is written here a second time, with names for the noisy images of source and target."""
    method = build(FlowEdit, n_max=7, n_min=2)
    source, target = method.denoiser.condition(["src", "src"], 1.0), method.denoiser.condition(["tgt", "tgt"], 2.0)
    x0, drawn, levels = images(), generators(), [i / 10 for i in range(11)]
    z = x0
    for k in range(7, 2, -1):
        zs = (1 - levels[k]) * x0 + levels[k] * normal(x0, drawn)
        zt = z + zs - x0
        node = method.denoiser.path.node_at(levels[k])
        z = z - 0.1 * (method.denoiser.velocity(zt, node, target) - method.denoiser.velocity(zs, node, source))
    zt = z + (1 - levels[2]) * x0 + levels[2] * normal(x0, drawn) - x0
    for k in (2, 1):
        zt = zt - 0.1 * method.denoiser.velocity(zt, method.denoiser.path.node_at(levels[k]), target)
    edited, _ = method.edit(x0, source.at(1.0), target, generators=generators())
    assert method.options.guidance_invert == 1.5
    plain = build(FlowEdit, n_max=7, n_min=2, guidance_invert=None)
    close(plain.edit(x0, source, target, generators=generators())[0], zt)
    assert not torch.allclose(edited, zt)  # the guidance of the source is a separate option


@pytest.mark.parametrize("project", ["none", "final", "each_step"])
@pytest.mark.parametrize("n_min", [0, 4])
@every_path
def test_flowedit_restores_by_caption_minus_null(path: str, project: str, n_min: int) -> None:
    class Masked:
        y = images()
        known = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5

    results = {}
    for chosen in ("final", project):
        method = build(FlowEdit, path, project=chosen, n_min=n_min)
        cond = method.denoiser.condition(["src", "tgt"], 2.0)
        results[chosen], _ = method.restore(Masked(), cond, generators())
        assert method.denoiser.nfe == method.expected_nfe(cond.unconditional, cond)
    same = torch.equal(torch.where(Masked.known, results[project], 0), torch.where(Masked.known, Masked.y, 0))
    assert same == (project != "none")
    assert not torch.allclose(results[project], Masked.y)
    assert torch.allclose(results[project], results["final"]) == (project == "final")


def test_flowedit_refuses_what_has_no_meaning() -> None:
    method = build(FlowEdit)
    cond = method.denoiser.condition(["src", "src"], 1.0)
    with pytest.raises(ValueError, match="reconstruct"):
        method.solve(Problem("reconstruct", images(), cond, generators()))
    assert not isinstance(method, InversionMethod) and not hasattr(method, "invert")
    for bad in ({"n_max": 9, "strength": 0.5}, {"n_max": 40}, {"n_min": 25}, {"decode": "null"}):
        with pytest.raises(ValueError):
            options.FlowEdit(**bad)


def test_flowedit_defaults_are_those_of_the_paper_on_flux() -> None:
    chosen = options.FlowEdit()
    method = FlowEdit(build(FlowEdit).denoiser, chosen, TimeGrid(Rectified().grid(28).nodes))
    assert method.grid.steps == 24
    assert chosen.n_avg == 1
    assert (chosen.guidance_invert, chosen.guidance) == (1.5, 5.5)
