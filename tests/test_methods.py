"""The contract of every method. Each invariant is tested for all methods, paths, dtypes and numbers of steps."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch

from methods.backbones.analytic import GaussianMixture
from methods.base import InversionMethod, Latent, LatentMeasurement, Problem, normal, pinned_pixels
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.inversion.bdia import BDIA
from methods.inversion.belm import OBELM
from methods.inversion.ddim import DDIM
from methods.inversion.ddpm_inversion import DDPMInversion
from methods.inversion.direct_inversion import DirectInversion
from methods.inversion.edict import EDICT
from methods.inversion.erddci import ERDDCI
from methods.inversion.fireflow import FireFlow
from methods.inversion.fixed_point import FixedPoint
from methods.inversion.flow_ode import FlowODE
from methods.inversion.latent_optimisation import LatentOptimisation
from methods.inversion.negative_prompt import NegativePrompt, shrink
from methods.inversion.null_text import NullText
from methods.inversion.rf_inversion import RFInversion
from methods.inversion.rf_solver import RFSolver
from methods.inversion.uni_inv import UniInv
from methods.paths import Node, Rectified, TimeGrid, VariancePreserving, make_path

SHAPE = (3, 8, 8)
METHODS = {
    "ddim": (DDIM, {}),
    "ddim-current": (DDIM, {"convention": "current_time"}),
    "edict": (EDICT, {}),
    "edict-no-leapfrog": (EDICT, {"leapfrog": False, "p": 0.97}),
    "rf": (RFInversion, {}),
    "rf-ode": (RFInversion, {"gamma": 0.0, "eta": 0.0}),
    "rf-sde": (RFInversion, {"mode_forward": "sde", "mode_reverse": "sde"}),
    "rf-ode-sde": (RFInversion, {"mode_reverse": "sde", "eta": 0.0}),
    "rf-schedule": (RFInversion, {"window_steps": (1, 6), "eta_schedule": "exponential", "terminal_weight": 20.0}),
    "rf-eta-one": (RFInversion, {"window_steps": (2, 5), "eta": 1.0}),
    "rf-uncontrolled": (RFInversion, {"start": 0.2, "start_reading": "uncontrolled", "eta_schedule": "linear"}),
    "rf-solver": (RFSolver, {}),
    "fireflow": (FireFlow, {}),
    "uni-inv": (UniInv, {}),
    "bdia": (BDIA, {}),
    "bdia-leapfrog": (BDIA, {"gamma": 1.0}),
    "obelm": (OBELM, {}),
    "erddci": (ERDDCI, {}),
    "ddpm": (DDPMInversion, {}),
    "ddpm-eta": (DDPMInversion, {"eta": 0.5}),
    "ddpm-no-last": (DDPMInversion, {"zero_last_noise": True}),
    "direct": (DirectInversion, {}),
    "nti": (NullText, {}),
    "npi": (NegativePrompt, {}),
    "npi-l0": (NegativePrompt, {"prox": "l0"}),
    "npi-l1": (NegativePrompt, {"prox": "l1"}),
    "fixed-point": (FixedPoint, {"iterations": 3}),
    "aidi": (FixedPoint, {"iterations": 3, "acceleration": "anderson"}),
    "aidi-averaged": (FixedPoint, {"iterations": 4, "acceleration": "averaged"}),
    "fixed-point-tolerance": (FixedPoint, {"tolerance": 1e-3}),
    "optimisation": (LatentOptimisation, {"iterations": 3}),
    "optimisation-ddim": (LatentOptimisation, {"iterations": 2, "init": "ddim"}),
    "flow": (FlowODE, {}),
    "flow-heun": (FlowODE, {"solver": "reversible_heun", "spacing": "data_end"}),
    "flow-coupled": (FlowODE, {"solver": "mccallum_foster"}),
    "flow-coupled-rk4": (FlowODE, {"solver": "mccallum_foster", "increment": "rk4", "coupling": 1.0}),
    "flow-x_T": (FlowODE, {"keep": "x_T"}),
    "flow-bits": (FlowODE, {"bit_exact": True}),
    "flow-heun-bits": (FlowODE, {"solver": "reversible_heun", "bit_exact": True}),
    "flow-coupled-bits": (FlowODE, {"solver": "mccallum_foster", "coupling": 1.0, "bit_exact": True}),
    "flow-rk4": (FlowODE, {"solver": "rk4"}),
    "flow-dopri5": (FlowODE, {"solver": "dopri5", "rtol": 1e-4, "atol": 1e-4}),
}
PATHS = {"vp": VariancePreserving(), "cosine": VariancePreserving("cosine"), "rectified": Rectified()}


MEANS = 0.4 * torch.randn(4, math.prod(SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
VARIANCE = 0.1


def oracle(path: str) -> Denoiser:
    chosen = PATHS[path]
    return Denoiser(GaussianMixture(MEANS, VARIANCE, chosen), chosen, chosen.direction)


def build(name: str, path: str, steps: int = 10, **changes: object) -> InversionMethod:
    cls, defaults = METHODS[name]
    chosen = cls.Options(**{"steps": steps, "dtype": "float64", **defaults, **changes})
    denoiser = oracle(path)
    return cls(denoiser, chosen, denoiser.path.grid(steps))


def images(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return samples of the mixture: off its support the flow is stiff, and errors would say nothing about solvers."""
    draws = [
        torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64) for i in range(count)
    ]
    return torch.stack([MEANS[i % 4].reshape(SHAPE) + VARIANCE**0.5 * z for i, z in enumerate(draws)]).to(dtype)


def generators(count: int, start: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(start + i) for i in range(count)]


every = pytest.mark.parametrize(("name", "path"), list(product(METHODS, PATHS)))


@every
@pytest.mark.parametrize("steps", [25, 20])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_exact_methods_round_trip(name: str, path: str, steps: int, guidance: float) -> None:
    # The cosine schedule ends at alpha_T = 5e-5: both directions divide by it, and rounding grows accordingly.
    tolerances = {"float64": 1e-6} if path == "cosine" else {"float64": 1e-10, "float32": 1e-4}
    for dtype, tolerance in tolerances.items():
        method = build(name, path, steps, dtype=dtype, guidance=guidance)
        x0 = images(2, method.latent_dtype)
        cond = method.denoiser.condition(["src", "tgt"], guidance)
        x_hat, latent = method.reconstruct(x0, cond, generators(2))
        assert x_hat.dtype == x0.dtype and x_hat.shape == x0.shape and x_hat.isfinite().all()
        error = (x_hat - x0).abs().max().item()
        if method.exact:
            assert error < tolerance, f"{dtype}: {error:.1e}"
        else:
            assert error > 1e-9, "an inexact method that is exact should say so"
        assert latent.std.isfinite().all()


@every
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_nfe_is_the_declared_formula(name: str, path: str, guidance: float, strength: float) -> None:
    method = build(name, path, guidance=guidance, strength=strength)
    cond = method.denoiser.condition(["src"], guidance)
    method.denoiser.reset_counters()
    method.reconstruct(images(1), cond, generators(1))
    nfe, expected = method.denoiser.nfe, method.expected_nfe(cond, cond)
    assert nfe == expected if method.nfe_is_exact else 0 < nfe <= expected
    guided = isinstance(method, (NullText, LatentOptimisation))
    assert method.denoiser.nfe_grad < nfe if guided else method.denoiser.nfe_grad == 0


@every
def test_a_batch_gives_what_its_images_give_alone(name: str, path: str) -> None:
    method = build(name, path)
    captions = ["src", "tgt", "", "src", "tgt"]
    x0 = images(5)
    cond = method.denoiser.condition(captions, 1.0)
    together, latent = method.reconstruct(x0, cond, generators(5))
    for i in range(5):
        one = method.denoiser.condition(captions[i : i + 1], 1.0)
        alone, state = method.reconstruct(x0[i : i + 1], one, generators(1, start=i))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-11)
        torch.testing.assert_close(latent.x_T[i : i + 1], state.x_T, rtol=0, atol=1e-11)


@every
def test_nothing_that_is_passed_in_changes(name: str, path: str) -> None:
    method = build(name, path)
    x0 = images(2)
    cond = method.denoiser.condition(["src", "tgt"], 2.0)
    before = [t.clone() for t in (x0, cond.embedding, cond.null)]
    latent = method.invert(x0, cond, generators(2))
    kept = {key: value.clone() for key, value in latent.tensors.items()}
    method.decode(latent, cond)
    assert all(torch.equal(a, b) for a, b in zip(before, (x0, cond.embedding, cond.null), strict=True))
    assert all(torch.equal(kept[key], latent.tensors[key]) for key in kept)


@every
def test_noise_comes_from_the_generators_alone(name: str, path: str) -> None:
    method = build(name, path)
    cond = method.denoiser.condition(["src"], 1.0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = method.invert(images(1), cond, generators(1)).x_T
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, method.invert(images(1), cond, generators(1)).x_T)


@every
def test_state_bytes_is_what_decoding_needs(name: str, path: str) -> None:
    method = build(name, path)
    cond = method.denoiser.condition(["src", "src"], 1.0)
    latent = method.invert(images(2), cond, generators(2))
    expected = method.decode(latent, cond)
    copy = Latent({key: value.clone() for key, value in latent.tensors.items()})
    other = build(name, path)
    assert torch.equal(other.decode(copy, other.denoiser.condition(["src", "src"], 1.0)), expected)
    small = {"null_embeddings": method.grid.steps, "negative_prompt": 1, "seeds": 1}  # the embedding here is one number
    numbers = sum(small.get(key, images(1)[0].numel()) for key in latent.tensors)
    assert latent.state_bytes == 8 * numbers


@every
@pytest.mark.parametrize("project", ["none", "final", "each_step"])
def test_projection_keeps_known_pixels(name: str, path: str, project: str) -> None:
    class Masked:
        y = images(2)
        known = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5

        def to(self, device: object) -> Masked:
            return self

    if name == "erddci" and project == "each_step":  # its network never gets the projected state
        with pytest.raises(ValueError, match="project"):
            build(name, path, project=project)
        return
    method = build(name, path, project=project)
    cond = method.denoiser.condition(["src", "tgt"], 1.0)
    x_hat, _ = method.restore(Masked(), cond, generators(2))
    same = torch.equal(torch.where(Masked.known, x_hat, 0), torch.where(Masked.known, Masked.y, 0))
    assert same == (project != "none")
    if project == "each_step":
        final = build(name, path, project="final")
        assert not torch.allclose(x_hat, final.restore(Masked(), cond, generators(2))[0])


def test_pinned_pixels_meet_both_ends() -> None:
    y, z = images(2), torch.randn(2, *SHAPE, dtype=torch.float64)
    known = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    top = Node(999, 0.1, 0.99)
    constrain = pinned_pixels(y, known, z, top)
    torch.testing.assert_close(constrain(torch.zeros_like(z), top), z)
    assert torch.equal(constrain(z, Node(0, 1.0, 0.0)), y)


@pytest.mark.parametrize("path", list(PATHS))
def test_gamma_and_eta_one_are_the_closed_forms(path: str) -> None:
    """For any network, gamma = 1 reaches the noise target (8) and eta = 1 the image (15)."""
    x0 = images(2)
    method = build("rf", path, gamma=1.0, eta=1.0, window=(0.0, 1.0))
    cond = method.denoiser.condition(["src", "tgt"], 1.0)
    latent = method.invert(x0, cond, generators(2))
    top = method.grid[method.grid.steps]
    target = normal(x0, generators(2))
    expected = ((1 - top.s) * x0 + top.s * target) * (top.alpha + top.sigma)
    torch.testing.assert_close(latent.x_T, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(method.decode(latent, cond), x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", ["vp", "rectified"])
@pytest.mark.parametrize("name", ["ddim", "rf-ode"])
def test_inexact_round_trips_shrink_with_the_step(name: str, path: str) -> None:
    """The error is of first order: four times the steps give about a quarter of the error."""
    x0 = images(2)
    errors = []
    for steps in (50, 200):
        method = build(name, path, steps)
        cond = method.denoiser.condition(["src", "tgt"], 1.0)
        errors.append((method.reconstruct(x0, cond)[0] - x0).square().mean().sqrt().item())
    assert errors[1] < 0.45 * errors[0], errors


def test_edict_grows_the_difference_by_its_mixing() -> None:
    """The parasitic factor of inversion is p^(-2N). It appears in x - y, and never in the round trip."""
    steps, gaps = 40, []
    for p in (0.97, 0.85):
        method = build("edict", "vp", steps, p=p)
        latent = method.invert(images(1), method.denoiser.condition(["src"], 1.0))
        gaps.append((latent.tensors["x_T"] - latent.tensors["y_T"]).abs().max().item())
    ratio = math.log(gaps[1] / gaps[0]) / (2 * steps * math.log(0.97 / 0.85))
    assert 0.5 < ratio < 1.5, (gaps, ratio)


# --- two-step methods: parasitic growth, order, what they cannot do -----------------------------------------------


def growth(cls: type[InversionMethod], grid: TimeGrid, **changes: object) -> float:
    """Return |d_N - d_{N-1}| / |d_1|: the growth of a small change d_1 of z_1 during inversion.

    Only the first step calls the network at level 0, so another time at that level changes only z_1.
    """
    denoiser = oracle("rectified")
    cond, x0 = denoiser.condition(["src"]), images(1)
    pairs, seen = [], []
    for time in (0.0, 1e-3):
        clean = Node(time, 1.0, 0.0)
        nudged = TimeGrid((clean, *grid.nodes[1:]))
        latent = cls(denoiser, cls.Options(steps=grid.steps, dtype="float64", **changes), nudged).invert(x0, cond)
        pairs.append(latent.x_T - latent.tensors["x_T_minus_1"])
        seen.append(denoiser.direction(x0, clean, cond) * grid[1].s)
    return ((pairs[1] - pairs[0]).norm() / (seen[1] - seen[0]).norm()).item()


def power_grid(steps: int, power: float) -> TimeGrid:
    return Rectified().from_sigmas([(k / steps) ** power for k in range(steps + 1)])


@pytest.mark.parametrize("gamma", [0.94, 0.8])
def test_bdia_grows_by_gamma_to_the_minus_n(gamma: float) -> None:
    """The growth is relative to the leapfrog (gamma = 1), where the network's slope has the same effect."""
    grid = power_grid(40, 1)
    measured = growth(BDIA, grid, gamma=gamma) / growth(BDIA, grid, gamma=1.0)
    assert 0.8 < measured / gamma ** -(grid.steps - 1) < 1.25, measured


@pytest.mark.parametrize("steps", [20, 40])
@pytest.mark.parametrize("power", [1.5, 2, 3])
def test_obelm_grows_by_the_squared_ratio_of_the_outer_gaps(power: float, steps: int) -> None:
    grid = power_grid(steps, power)
    ratio = (grid[steps].s - grid[steps - 1].s) / grid[1].s
    measured = growth(OBELM, grid) / growth(OBELM, power_grid(steps, 1))
    assert 0.8 < measured / ratio**2 < 1.4, (measured, ratio**2)


def test_an_exact_round_trip_hides_an_exploded_latent() -> None:
    """BDIA can generate with gamma = 0.5, but inverting 50 steps with it grows the latent by 1e15."""
    x0, stds = images(1), []
    for gamma in (0.94, 0.5):
        method = build("bdia", "vp", 50, gamma=gamma)
        x_hat, latent = method.reconstruct(x0, method.denoiser.condition(["src"]))
        assert (x_hat - x0).abs().max() < 1e-2
        stds.append(latent.std.item())
    assert 0.5 < stds[0] < 2, stds
    assert stds[1] > 1e9, stds


def runge_kutta(denoiser: Denoiser, x: torch.Tensor, source: Node, target: Node, substeps: int) -> torch.Tensor:
    """Solve the probability flow by classic RK4, in sigma / alpha and x / alpha, or in s on the rectified path."""
    path, cond = denoiser.path, denoiser.condition(["src"] * len(x))
    straight = path.direction == "velocity"

    def slope(y: torch.Tensor, t: float) -> torch.Tensor:
        node = path.node_at(t if straight else t / (1 + t))
        return denoiser.direction(y if straight else y * node.alpha, node, cond)

    t, end = (n.s if straight else n.sigma / n.alpha for n in (source, target))
    y, h = x if straight else x / source.alpha, (end - t) / substeps
    for _ in range(substeps):
        k1 = slope(y, t)
        k2 = slope(y + h / 2 * k1, t + h / 2)
        k3 = slope(y + h / 2 * k2, t + h / 2)
        k4 = slope(y + h * k3, t + h)
        y, t = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), t + h
    return y if straight else y * target.alpha


@pytest.mark.parametrize("path", ["cosine", "rectified"])
@pytest.mark.parametrize(("name", "changes", "order"), [("obelm", {}, 2), ("bdia", {"gamma": 0.5}, 1), ("ddim", {}, 1)])
def test_order_of_accuracy(path: str, name: str, changes: dict, order: int) -> None:
    """Decoding an exact pair over uneven steps has local error O(h^3) for O-BELM, and O(h^2) for BDIA and DDIM."""
    denoiser, errors = oracle(path), []
    for steps in (20, 40):
        levels = [denoiser.path.node_at(0.02 + 0.93 * (k / steps) ** 1.5) for k in range(steps + 1)]
        grid = TimeGrid(tuple(levels))
        noise = normal(images(1), generators(1))
        top = (grid[steps].alpha ** 2 * VARIANCE + grid[steps].sigma ** 2) ** 0.5 * noise
        below = runge_kutta(denoiser, top, grid[steps], grid[steps - 1], 8)
        truth = runge_kutta(denoiser, below, grid[steps - 1], grid[0], 200)
        cls = METHODS[name][0]
        method = cls(denoiser, cls.Options(steps=steps, dtype="float64", **changes), grid)
        x_hat = method.decode(Latent({"x_T": top, "x_T_minus_1": below}), denoiser.condition(["src"]))
        errors.append((x_hat - truth).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.25, errors


def test_both_two_step_methods_are_the_leapfrog_on_even_straight_steps() -> None:
    x0 = images(2)
    latents = []
    for name in ("obelm", "bdia-leapfrog"):
        method = build(name, "rectified", 20)
        latents.append(method.invert(x0, method.denoiser.condition(["src", "tgt"], 2.0)).x_T)
    torch.testing.assert_close(*latents, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["bdia", "obelm"])
def test_two_step_methods_refuse_what_they_cannot_do(name: str) -> None:
    with pytest.raises(ValueError, match="two steps"):
        build(name, "vp", 1)
    cls, denoiser = METHODS[name][0], oracle("vp")
    denoiser.prediction = "x0"
    with pytest.raises(ValueError, match="x0"):
        cls(denoiser, cls.Options(steps=10), denoiser.path.grid(10))
    if name == "obelm":
        with pytest.raises(ValueError, match="same"):
            cls(oracle("vp"), cls.Options(steps=10), VariancePreserving().grid(10, "leading", "first"))


# --- methods that store a chain ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["erddci", "direct", "ddpm"])
def test_stored_chains_are_exact_only_under_the_guidance_that_inverted(name: str) -> None:
    method = build(name, "vp", guidance_invert=1.0)
    x0 = images(1)
    for guidance, exact in ((1.0, True), (3.0, False)):
        x_hat, _ = method.reconstruct(x0, method.denoiser.condition(["src"], guidance), generators(1))
        assert ((x_hat - x0).abs().max().item() < 1e-10) == exact


@pytest.mark.parametrize("path", list(PATHS))
def test_direct_inversion_edits_from_the_unguided_pivot(path: str) -> None:
    """Its offsets belong to the source branch. The target branch is DDIM, inverted at w = 1."""
    x0, results = images(1), []
    for name in ("direct", "ddim"):
        method = build(name, path, guidance_invert=1.0 if name == "ddim" else None)
        cond = method.denoiser.condition(["src"], 3.0), method.denoiser.condition(["tgt"], 3.0)
        method.denoiser.reset_counters()
        results.append((*method.edit(x0, *cond), method.denoiser.nfe))
    (ours, latent, nfe), (theirs, other, same) = results
    assert torch.equal(ours, theirs)
    assert (latent.state_bytes, nfe) == (other.state_bytes, same)


def test_ddpm_noise_does_not_depend_on_strength() -> None:
    whole, part = build("ddpm", "vp"), build("ddpm", "vp", strength=0.5)
    xs, ys = (m.noised(images(1), generators(1)) for m in (whole, part))
    assert (len(xs), len(ys)) == (11, 6)
    assert all(torch.equal(x, y) for x, y in zip(xs, ys, strict=False))


def test_ddpm_steps_are_the_forward_process_reversed() -> None:
    """For known x0, mu and s at eta = 1 are those of q(x_{k-1} | x_k, x_0) of Ho et al. (2020, eqs. 6-7)."""
    method = build("ddpm", "vp")
    for k in range(2, 11):
        node, clean = method.grid[k], method.grid[k - 1]
        alpha, beta = (node.alpha / clean.alpha) ** 2, 1 - (node.alpha / clean.alpha) ** 2
        assert math.isclose(method.noise_std(k) ** 2, clean.sigma**2 / node.sigma**2 * beta, rel_tol=1e-9)
        on_x0, on_xk = clean.alpha * beta / node.sigma**2, math.sqrt(alpha) * clean.sigma**2 / node.sigma**2
        ours = math.sqrt(clean.sigma**2 - method.noise_std(k) ** 2) / node.sigma
        assert math.isclose(ours, on_xk, rel_tol=1e-9)
        assert math.isclose(clean.alpha - ours * node.alpha, on_x0, rel_tol=1e-9)


# --- fitted and iterated inversions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_fitted_null_embeddings_follow_the_pivot(path: str) -> None:
    """At w > 1 decoding leaves the pivot. The fit moves it back, and stops for each image separately."""
    x0, captions = images(3), ["src", "tgt", "src"]
    method = build("nti", path, inner_steps=30, learning_rate=0.1, early_stop=3e-3)
    cond = method.denoiser.condition(captions, 2.0)
    together, latent = method.reconstruct(x0, cond, generators(3))
    unfitted = Latent({"x_T": latent.x_T, "null_embeddings": torch.zeros_like(latent.tensors["null_embeddings"])})
    errors = [(x - x0).square().mean().sqrt() for x in (together, method.decode(unfitted, cond))]
    assert errors[0] < 0.7 * errors[1], errors
    ends = set()
    for i in range(3):
        method.denoiser.reset_counters()
        alone, state = method.reconstruct(x0[i : i + 1], method.denoiser.condition(captions[i : i + 1], 2.0))
        ends.add(method.denoiser.nfe)
        torch.testing.assert_close(alone[0], together[i], atol=1e-8, rtol=0)
        for key, value in state.tensors.items():
            torch.testing.assert_close(value[0], latent.tensors[key][i], atol=1e-8, rtol=0)
    assert len(ends) > 1, "this test needs images that stop at different inner steps"


def test_null_text_restores_from_the_empty_caption_at_the_same_guidance() -> None:
    """Under the null condition, decoding with the fitted embeddings gives y back better than without the fit."""
    method = build("nti", "vp", inner_steps=30, learning_rate=0.1, decode="null")
    y, cond = images(2), method.denoiser.condition(["src", "tgt"], 2.0)

    class Blurred:
        known = None

        def __init__(self) -> None:
            self.y = y

        def to(self, device: object) -> Blurred:
            return self

    x_hat, latent = method.restore(Blurred(), cond)
    plain = build("ddim", "vp").reconstruct(y, cond.unconditional)
    torch.testing.assert_close(latent.x_T, plain[1].x_T, rtol=0, atol=1e-12)
    assert latent.tensors["null_embeddings"].abs().max() > 0
    assert (x_hat - y).square().mean() < (plain[0] - y).square().mean()


@pytest.mark.parametrize("prox", ["npi", "npi-l0", "npi-l1"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_negative_prompts_reconstruct_as_ddim_does_without_guidance(prox: str, guidance: float) -> None:
    x0, method, ddim = images(2), build(prox, "vp"), build("ddim", "vp")
    cond = method.denoiser.condition(["src", "tgt"], guidance)
    expected = ddim.reconstruct(x0, cond.at(1.0))[0]
    torch.testing.assert_close(method.reconstruct(x0, cond)[0], expected, rtol=0, atol=1e-12)


def test_proximal_operators() -> None:
    """l0 keeps values above the threshold, and l1 shrinks them by it. Each image has its own threshold."""
    delta = torch.tensor([[-4.0, 1.0, 2.0, 0.5, 3.0], [40.0, 10.0, -20.0, 5.0, 30.0]])
    hard = torch.tensor([-4.0, 0.0, 0.0, 0.0, 3.0])
    soft = torch.tensor([-2.0, 0.0, 0.0, 0.0, 1.0])
    flip = torch.tensor([-10, 10, -10, 10, 10])
    assert torch.equal(shrink(delta, "l0", 0.5), torch.stack([hard, hard * flip]))
    assert torch.equal(shrink(delta, "l1", 0.5), torch.stack([soft, soft * flip]))
    assert torch.equal(shrink(delta, "l1", 1.0), torch.zeros(2, 5))


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_fixed_points_converge_to_the_exact_inversion(path: str) -> None:
    x0 = images(2)

    def error(iterations: int, acceleration: str, guidance: float = 1.0) -> float:
        method = build("fixed-point", path, 20, iterations=iterations, acceleration=acceleration)
        return (method.reconstruct(x0, method.denoiser.condition(["src", "tgt"], guidance))[0] - x0).abs().max().item()

    ddim, once = build("ddim", path, 20), build("fixed-point", path, 20, iterations=1)
    cond = ddim.denoiser.condition(["src", "tgt"])
    torch.testing.assert_close(once.invert(x0, cond).x_T, ddim.invert(x0, cond).x_T, rtol=0, atol=1e-13)
    for acceleration in ("none", "averaged", "anderson"):
        errors = [error(k, acceleration) for k in (1, 3, 10, 50)]
        assert all(after <= before + 1e-14 for before, after in pairwise(errors))  # up to rounding
        assert errors[-1] < 1e-10, (acceleration, errors)
    assert error(5, "anderson") < 0.1 * error(5, "none")
    assert error(10, "anderson", 3.0) < 1e-10, "where plain iteration is slow"


def test_a_tolerance_ends_each_image_by_itself() -> None:
    method, x0 = build("fixed-point", "vp", 20, iterations=50, tolerance=1e-6), images(2)
    cond = method.denoiser.condition(["src", "tgt"])
    method.denoiser.reset_counters()
    x_hat, _ = method.reconstruct(x0, cond)
    assert method.denoiser.nfe < 0.5 * method.expected_nfe(cond, cond)
    assert (x_hat - x0).abs().max() < 1e-3


@pytest.mark.parametrize("path", list(PATHS))
def test_the_adjoint_is_the_gradient_of_the_whole_decoding(path: str) -> None:
    method, x0 = build("optimisation", path), images(2)
    cond = method.denoiser.condition(["src", "tgt"], 2.0)
    x_T = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    loss = (method.decode(Latent({"x_T": x_T}), cond) - x0).square().sum()
    (expected,) = torch.autograd.grad(loss, x_T)
    torch.testing.assert_close(method.gradient(x_T.detach(), x0, cond), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_optimising_the_latent_matches_the_image(path: str) -> None:
    x0, errors = images(2), []
    for iterations in (5, 40):
        method = build("optimisation-ddim", path, iterations=iterations)
        x_hat, _ = method.reconstruct(x0, method.denoiser.condition(["src", "tgt"]), generators(2))
        errors.append((x_hat - x0).square().mean().sqrt().item())
    assert errors[1] < 0.02, errors
    assert errors[1] < errors[0]


def test_methods_of_the_null_embedding_refuse_what_they_cannot_use() -> None:
    for cls in (options.NullText, options.NegativePrompt):
        assert cls(guidance_invert=1.0).guidance_invert == 1.0
        with pytest.raises(ValueError, match="guidance 1"):
            cls(guidance_invert=3.0)
    with pytest.raises(ValueError, match="100 steps"):
        options.NullText(steps=200)
    assert options.NullText(steps=200, strength=0.5).steps == 200
    denoiser = oracle("rectified")
    denoiser.distilled = True
    for method in (NullText, NegativePrompt):
        with pytest.raises(ValueError, match="distilled"):
            method(denoiser, method.Options(), denoiser.path.grid(20))


# --- paths, grids, views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
@pytest.mark.parametrize("path", list(PATHS))
def test_views_agree_whatever_is_predicted(prediction: str, path: str) -> None:
    analytic = oracle(path)
    node = analytic.path.grid(10)[6]
    x, cond = images(2) + 0.3, analytic.condition(["src", "tgt"], 2.0)
    x0, eps = analytic.views(x, node, cond)

    class Other(torch.nn.Module):
        def forward(self, z: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
            null = Condition(embedding, embedding, 1.0)
            c, e = analytic.views(z, node, null)
            v = node.alpha * e - node.sigma * c
            return {"eps": e, "x0": c, "v": v, "velocity": e - c}[prediction]

    other = Denoiser(Other(), analytic.path, prediction)
    for ours, theirs in zip(other.views(x, node, cond), (x0, eps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(other.velocity(x, node, cond), eps - x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(x, node.alpha * x0 + node.sigma * eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", list(PATHS))
def test_a_step_is_the_same_map_in_every_view(path: str) -> None:
    """The step a x + b direction equals alpha' x0 + sigma' eps."""
    denoiser = oracle(path)
    grid, cond = denoiser.path.grid(10), denoiser.condition(["src"], 1.0)
    x = images(1)
    for k in range(1, 11):
        node, clean = grid[k], grid[k - 1]
        if node.alpha == 0:  # at the end of the rectified path eps = x, and this does not determine x0
            continue
        a, b = denoiser.path.step(node, clean)
        x0, eps = denoiser.views(x, node, cond)
        ours = a * x + b * denoiser.direction(x, node, cond)
        torch.testing.assert_close(ours, clean.alpha * x0 + clean.sigma * eps, rtol=1e-10, atol=1e-10)


def test_grids() -> None:
    sd = VariancePreserving()
    assert [n.time for n in sd.grid(50, "leading", "first").nodes[1:]] == list(range(0, 1000, 20))
    assert [n.time for n in sd.grid(50, "leading1", "first").nodes[1:4]] == [1, 21, 41]
    assert sd.grid(20, "trailing")[20].time == 999 and sd.grid(20, "linspace")[20].time == 999
    assert sd.grid(10)[0].sigma == 0 and abs(sd.grid(10, level0="first")[0].alpha ** 2 - 0.99915) < 1e-5
    shifted = Rectified().grid(28, "flux_shift", mu=1.15)
    assert abs(shifted[28 - 7].s - 0.905) < 5e-4 and shifted[28].s == 1 and shifted[0].s == 0
    assert Rectified().grid(8, "flux_shift", mu=0.0) == Rectified().grid(8)
    assert sd.grid(50).truncate(0.7).steps == 35 and sd.grid(20).truncate(0.01).steps == 1
    for bad in (lambda: sd.grid(0), lambda: sd.grid(1001), lambda: sd.grid(5, "flux_shift"), lambda: make_path("ve")):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(ValueError):
        TimeGrid((Node(1, 0.5, 0.8), Node(0, 1.0, 0.0)))
    with pytest.raises(ValueError):
        sd.grid(10).truncate(0.0)


def test_coefficients_interpolate_the_table() -> None:
    sd = VariancePreserving()
    alpha, sigma = sd.coefficients(torch.tensor([0.0, 10.0, 10.5, 999.0]))
    assert alpha.dtype == torch.float64
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(4, dtype=torch.float64))
    assert alpha[1] > alpha[2] > sd.coefficients(torch.tensor([11.0]))[0]
    assert abs(alpha[3].item() - 0.0683) < 1e-3


@pytest.mark.parametrize("path", list(PATHS))
def test_the_oracle_is_the_posterior_mean(path: str) -> None:
    """The oracle equals E[eps | x], computed as an average over samples of the mixture."""
    torch.manual_seed(0)
    chosen = PATHS[path]
    mu = torch.tensor([[0.8, -0.2, 0.1], [-0.5, 0.4, 0.3]], dtype=torch.float64)
    denoiser = Denoiser(GaussianMixture(mu, 0.1, chosen), chosen, chosen.direction)
    node = chosen.grid(10)[6]
    x = torch.tensor([0.2, 0.1, -0.1], dtype=torch.float64)
    draws = mu[torch.randint(2, (400_000,))] + 0.1**0.5 * torch.randn(400_000, 3, dtype=torch.float64)
    residual = (x - node.alpha * draws) / node.sigma
    weight = torch.softmax(-residual.square().sum(1) / 2, 0)
    brute = (weight[:, None] * residual).sum(0)
    exact = denoiser.eps(x.reshape(1, 3, 1, 1), node, denoiser.condition([""], 1.0)).flatten()
    torch.testing.assert_close(exact, brute, rtol=0, atol=0.02)


def test_solve_refuses_what_it_cannot_do() -> None:
    method = build("ddim", "vp")
    cond = method.denoiser.condition(["src"])
    for task in ("restore", "edit", "dream"):
        with pytest.raises(ValueError):
            method.solve(Problem(task, images(1), cond, generators(1)))
    with pytest.raises(ValueError, match="generators"):
        normal(images(2), generators(1))


def test_edit_keeps_what_lies_outside_the_mask() -> None:
    method = build("edict", "vp")
    x0, mask = images(1), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    source, target = method.denoiser.condition(["src"]), method.denoiser.condition(["tgt"], 3.0)
    edited, _ = method.edit(x0, source, target, mask)
    assert torch.equal(edited[..., 4:], x0[..., 4:]) and not torch.allclose(edited[..., :4], x0[..., :4])


def test_options_are_frozen_and_strict() -> None:
    with pytest.raises(ValueError):
        options.EDICT(p=2)
    with pytest.raises(ValueError):
        options.RFInversion(window=(0.9, 0.1))
    with pytest.raises(ValueError):
        options.DDIM(p=0.9)


# --- the flow by reversible solvers -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flow-bits", "flow-heun-bits", "flow-coupled-bits"])
@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bit_exact_round_trips_return_the_same_numbers(name: str, path: str, dtype: str) -> None:
    """The numbers are multiples of 2^-bits, which fixed-point numbers represent exactly."""
    method = build(name, path, dtype=dtype, guidance=3.0)
    numbers, scale = method.solver.numbers, method.grid[0].scale
    x0 = numbers.value(numbers.keep(images(2, method.latent_dtype)))
    x_hat, latent = method.reconstruct(x0 * scale, method.denoiser.condition(["src", "tgt"], 3.0))
    assert torch.equal(x_hat, x0 * scale)
    assert latent.tensors["x_T"].dtype == torch.int64
    assert 0.5 < latent.std.min() < latent.std.max() < 3


@pytest.mark.parametrize("solver", ["leapfrog", "reversible_heun", "mccallum_foster"])
@pytest.mark.parametrize("path", ["cosine", "rectified"])
def test_another_flow_is_begun_from_x_T(path: str, solver: str) -> None:
    """What a solver keeps beside x_T belongs to its own flow: edits, restorations and other guidance do not use it."""
    whole, alone = (build("flow", path, solver=solver, keep=keep, guidance_invert=1.0) for keep in ("state", "x_T"))
    x0, source, target = images(2), *(whole.denoiser.condition([c, c], 1.0) for c in ("src", "tgt"))
    measurement = LatentMeasurement(x0, None)
    for one, other in (
        (whole.edit(x0, source, target), alone.edit(x0, source, target)),
        (whole.restore(measurement, target), alone.restore(measurement, target)),
        (whole.reconstruct(x0, source.at(3.0)), alone.reconstruct(x0, source.at(3.0))),
    ):
        torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-12)
        assert one[1].tensors.keys() == {"x_T"}
    back, latent = whole.reconstruct(x0, source)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-9)
    assert len(latent.tensors) > 1


@pytest.mark.parametrize("solver", ["leapfrog", "reversible_heun"])
def test_numbers_of_another_kind_are_begun_from_x_T(solver: str) -> None:
    exact, plain = (build("flow", "rectified", solver=solver, bit_exact=bits) for bits in (True, False))
    x0, cond = images(2), exact.denoiser.condition(["src", "tgt"])
    for one, other in ((exact, plain), (plain, exact)):
        latent = one.invert(x0, cond)
        found, expected = other.decode(latent, cond), plain.decode(Latent({"x_T": latent.x_T}), cond)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def flow(path: str, steps: int, **chosen: object) -> FlowODE:
    """Build it on a grid where the oracle gets exactly the noise of each level, which orders of accuracy need."""
    denoiser = oracle(path)
    given = FlowODE.Options(steps=steps, dtype="float64", **chosen)
    return FlowODE(denoiser, given, denoiser.path.grid(steps, level0="first"))


@pytest.mark.parametrize("path", ["cosine", "rectified"])
def test_a_flow_decodes_from_x_T_alone_to_the_order_of_its_solver(path: str) -> None:
    """Without the rest of the state the error is of second order. The x_T of a sampler has no such rest."""
    errors = []
    for steps in (20, 40):
        method = flow(path, steps)
        cond, x0 = method.denoiser.condition(["src", "tgt"]), images(2)
        alone = method.decode(Latent({"x_T": method.invert(x0, cond).x_T}), cond)
        kept = flow(path, steps, keep="x_T")
        latent = kept.invert(x0, cond)
        assert list(latent.tensors) == ["x_T"]
        assert torch.equal(kept.decode(latent, cond), alone)
        errors.append((alone - x0).square().mean().sqrt().item())
    assert errors[1] < 0.4 * errors[0] < 0.1, errors


@pytest.mark.parametrize("path", ["vp", "rectified"])
@pytest.mark.parametrize(
    ("chosen", "bound"),
    [
        ({}, 5e-3),
        ({"spacing": "data_end"}, 5e-3),
        ({"solver": "reversible_heun"}, 5e-3),
        ({"solver": "mccallum_foster"}, 5e-3),
        ({"solver": "mccallum_foster", "increment": "rk4"}, 1e-4),
        ({"solver": "rk4"}, 1e-4),
        ({"bit_exact": True}, 5e-3),
    ],
)
def test_flow_solvers_agree_on_where_the_flow_leads(path: str, chosen: dict, bound: float) -> None:
    x0 = images(2)
    both = flow(path, 64, **chosen), flow(path, 64, solver="dopri5", rtol=1e-8, atol=1e-8)
    ends = [method.invert(x0, method.denoiser.condition(["src", "tgt"])).x_T for method in both]
    assert 1e-13 < (ends[0] - ends[1]).abs().max() < bound


def test_a_batch_of_adaptive_solves_counts_its_costliest_image() -> None:
    method = build("flow-dopri5", "rectified")
    x0 = torch.cat([images(1), 8 * images(1)])
    cond, alone = method.denoiser.condition(["src", "src"]), []
    for i in range(2):
        method.denoiser.reset_counters()
        method.invert(x0[i : i + 1], cond.image(i))
        alone.append(method.denoiser.nfe)
    method.denoiser.reset_counters()
    method.invert(x0, cond)
    assert alone[0] != alone[1] and method.denoiser.nfe == max(alone)
    with pytest.raises(ArithmeticError, match="dopri5"):
        build("flow-dopri5", "rectified", max_steps=2).invert(x0, cond)


def test_an_adaptive_solution_has_the_steps_of_each_image() -> None:
    x0 = torch.cat([images(1), 8 * images(1)])
    method = build("flow-dopri5", "rectified")
    cond = method.denoiser.condition(["src", "src"], 3.0)
    solution = method.solve(Problem("reconstruct", x0, cond, ()))
    alone = [method.solve(Problem("reconstruct", x0[i : i + 1], cond.image(i), ())) for i in range(2)]
    assert solution.steps == [one.steps[0] for one in alone] and solution.steps[0] != solution.steps[1]
    for one in alone:
        (steps,) = one.steps
        assert sum(step.evaluations for step in steps) == one.cost.nfe and steps[0].evaluations >= 14  # twice 7
        there = [step.h > 0 for step in steps]
        assert there == sorted(there, reverse=True) and 0 < sum(there) < len(there)
    assert build("flow-rk4", "rectified").solve(Problem("reconstruct", x0, cond, ())).steps is None


def test_flows_refuse_what_they_cannot_do() -> None:
    for wrong, why in (
        ({"solver": "rk4", "bit_exact": True}, "reversible"),
        ({"solver": "mccallum_foster", "bit_exact": True}, "coupling"),
        ({"keep": "x_T", "bit_exact": True}, "keep"),
    ):
        with pytest.raises(ValueError, match=why):
            FlowODE.Options(**wrong)
    for path, prediction in (("vp", "x0"), ("rectified", "eps")):
        denoiser = oracle(path)
        denoiser.prediction = prediction
        with pytest.raises(ValueError, match="velocity"):
            FlowODE(denoiser, FlowODE.Options(), denoiser.path.grid(10))
