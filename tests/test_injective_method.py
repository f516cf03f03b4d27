"""The injective ODE as a method: the contract of every method, its restorations on known cases, and its guarantee."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench import posterior
from bench.cell.models import build_backbone, build_denoiser
from bench.data.digits import Digits
from bench.data.scenes import Scenes
from bench.errors import UserError
from bench.spec.cells import expand
from bench.spec.compose import compose_config
from bench.spec.registry import check_options, load
from corruptions.base import Key, measure, stack
from methods.backbones.analytic import GaussianMixture
from methods.base import Latent
from methods.denoiser import Condition, Denoiser
from methods.injective_ode.conditioner import CORRUPTIONS
from methods.injective_ode.field import InjectiveField
from methods.injective_ode.method import InjectiveODE, uncertainty
from methods.injective_ode.options import InjectiveODE as Options
from methods.inversion import options as others
from methods.inversion.edict import EDICT
from methods.inversion.flow_ode import FlowODE, IntegerLatent
from methods.paths import Rectified, Trigonometric

SHAPE = (1, 8, 8)
CAPTIONS = ["the digit 1", "the digit 2"]
SOLVERS: dict[str, dict[str, object]] = {
    "heun": {},
    "leapfrog": {"solver": "leapfrog", "spacing": "model"},
    "coupled": {"solver": "mccallum_foster"},
    "bits": {"bit_exact": True},
    "rk4": {"solver": "rk4"},
    "dopri5": {"solver": "dopri5", "rtol": 1e-3, "atol": 1e-3},
    "x_T": {"keep": "x_T"},
}
PROCEDURES: dict[str, dict[str, object]] = {
    "zero": {},
    "sample": {"procedure": "sample"},
    "mean": {"procedure": "sample", "samples": 3},
    "bridge": {"procedure": "bridge"},
    "consistency": {"procedure": "consistency"},
    "mu": {"procedure": "mean"},
}


def denoiser(dtype: torch.dtype = torch.float64, k_max: float = 4.0, constraint: str = "strict") -> Denoiser:
    """A tiny certified field with random weights."""
    torch.manual_seed(0)
    field = InjectiveField("digits", SHAPE, constraint, (8, 16), (8, 8, 16), variance=(0.05, 1.0), k_max=k_max)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made = Denoiser(field.to(dtype), Trigonometric(), "v")
    return made.eval().requires_grad_(False)


NETWORK = denoiser()


def build(network: Denoiser = NETWORK, steps: int = 6, cls: type[FlowODE] = InjectiveODE, **changes: object) -> FlowODE:
    options = cls.Options(**{"steps": steps, "dtype": "float64", **changes})
    return cls(network, options, network.path.grid(steps))


def images(count: int = 2) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def generators(count: int = 2, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


@dataclass(frozen=True)
class Measured:
    """A mask's measurement that knows its operator, or the image itself."""

    y: Tensor
    known: Tensor | None = None
    kind: str = "random_mask"
    sigma: float = 0.0

    def to(self, device: object) -> Measured:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x if self.known is None else torch.where(self.known, x, 0.0)

    adjoint = forward

    def image(self, i: int) -> Measured:
        return replace(self, y=self.y[i : i + 1], known=self.known[i : i + 1] if self.known is not None else None)


def masked() -> Measured:
    known = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5
    return Measured(torch.where(known, images(), 0.0), known)


# --- the contract ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_round_trips(solver: str, guidance: float) -> None:
    """Exact to rounding where the solver says so; at one evaluation a step, which is less than EDICT's two."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        network = NETWORK if dtype == torch.float64 else denoiser(dtype)
        method = build(network, dtype=str(dtype).removeprefix("torch."), guidance=guidance, **SOLVERS[solver])
        x0, cond = images().to(dtype), network.condition(CAPTIONS, guidance)
        network.reset_counters()
        x_hat, latent = method.reconstruct(x0, cond)
        nfe, expected = network.nfe, method.expected_nfe(cond, cond)
        assert nfe == expected if method.nfe_is_exact else 0 < nfe <= expected
        start = method.chart(method.times[0], cond)
        if isinstance(latent, IntegerLatent):
            assert torch.equal(x_hat, start.leave(latent.numbers.value(latent.numbers.keep(start.enter(x0)))))
            assert torch.allclose(x_hat, x0, atol=1e-5)
        elif method.exact:
            assert (x_hat - x0).abs().max() <= tolerance
        else:
            assert (x_hat - x0).abs().max() > 1e-9
        if solver in ("leapfrog", "heun", "bits"):
            edict = EDICT(network, others.EDICT(steps=6), network.path.grid(6))
            assert nfe <= edict.expected_nfe(cond, cond)


def test_batches_states_and_what_is_passed_in() -> None:
    method = build()
    x0, cond = images(), NETWORK.condition(CAPTIONS)
    before = x0.clone(), cond.embedding.clone()
    together, latent = method.reconstruct(x0, cond)
    kept = {name: part.clone() for name, part in latent.tensors.items()}
    assert torch.equal(build().decode(Latent(kept), cond), together)
    assert all(torch.equal(kept[name], part) for name, part in latent.tensors.items())
    assert torch.equal(before[0], x0) and torch.equal(before[1], cond.embedding)
    assert latent.state_bytes == 3 * 8 * x0[0].numel()
    for i in range(2):
        alone, state = method.reconstruct(x0[i : i + 1], NETWORK.condition(CAPTIONS[i : i + 1]))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-10)
        torch.testing.assert_close(state.x_T, latent.x_T[i : i + 1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_the_gauge_walks_the_flow_of_the_model(guidance: float) -> None:
    """The same latent decoded in X and s, by the method of every model, gives the same image."""
    cond = NETWORK.condition(CAPTIONS, guidance)
    latent = Latent({"x_T": torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)})
    ours, theirs = (build(steps=24, cls=cls, solver="rk4").decode(latent, cond) for cls in (InjectiveODE, FlowODE))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)


def shipped(model: str, dtype: str = "float64") -> tuple[Denoiser, Tensor, list[str]]:
    """A model of the zoo, two held-out images of its data and their captions."""
    config = compose_config([f"model={model}"], sweep_required=False).model[model]
    network = build_denoiser(config).requires_grad_(False)
    network.to(getattr(torch, dtype))
    items = [(Digits if model.startswith("digits") else Scenes)("test").item(i) for i in range(2)]
    x0 = torch.from_numpy(np.stack([item.image for item in items])).to(getattr(torch, dtype)) * 2 - 1
    return network, x0, [item.caption for item in items]


@pytest.mark.parametrize("model", ["digits_inode", "scenes_inode"])
@pytest.mark.parametrize("bit_exact", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_the_default_returns_on_the_shipped_weights(model: str, dtype: str, tolerance: float, bit_exact: bool) -> None:
    network, x0, captions = shipped(model, dtype)
    method = build(network, Options().steps, dtype=dtype, bit_exact=bit_exact)
    network.reset_counters()
    cond = network.condition(captions)
    x_hat, latent = method.reconstruct(x0, cond)
    assert method.grid.steps == 32 and network.nfe == 65
    assert (x_hat - x0).abs().max() <= (1e-5 if bit_exact else tolerance)
    if isinstance(latent, IntegerLatent):
        start = method.chart(method.times[0], cond)
        assert torch.equal(x_hat, start.leave(latent.numbers.value(latent.numbers.keep(start.enter(x0)))))
    assert isinstance(latent, IntegerLatent) == bit_exact


# --- restoration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("procedure", list(PROCEDURES))
@pytest.mark.parametrize("project", ["none", "final", "each_step"])
def test_restorations(procedure: str, project: str) -> None:
    """Known pixels are kept where asked, a batch gives what its images give alone, noise is the generators'."""
    method = build(steps=3, project=project, **PROCEDURES[procedure])
    cond, measured = NETWORK.condition(CAPTIONS), masked()
    assert measured.known is not None
    NETWORK.reset_counters()
    x_hat, _ = method.restore(measured, cond, generators())
    starts = {"zero": 4, "sample": 4, "mean": 12, "bridge": 8, "consistency": 3, "mu": 0}
    assert NETWORK.nfe == starts[procedure]
    difference = (x_hat - measured.y)[measured.known].abs().max()
    if project != "none":
        assert difference == 0
    else:  # x + (y - x) is y to rounding
        assert difference < 1e-14 if procedure == "consistency" else difference > 1e-6
    for i in range(2):
        alone, _ = method.restore(measured.image(i), cond.image(i), generators(1, first=i))
        torch.testing.assert_close(alone, x_hat[i : i + 1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "tolerance"), [({}, 1e-12), ({"solver": "dopri5", "rtol": 1e-6, "atol": 1e-6}, 1e-3)]
)
def test_encoding_and_decoding_under_one_condition_restores_nothing(
    options: dict[str, object], tolerance: float
) -> None:
    """y comes back, holes and all, also where the condition says what it is: a restoration needs two conditions."""
    method, cond, measured = build(project="none", **options), NETWORK.condition(CAPTIONS), masked()
    assert isinstance(method, InjectiveODE)
    told = method.given(measured, cond)
    back = method.decode(method.invert(measured.y, told), told)
    torch.testing.assert_close(back, measured.y, rtol=0, atol=tolerance)
    assert (method.restore(measured, cond)[0] - measured.y).abs().max() > 0.1


def test_a_gaussian_posterior_is_restored_at_any_number_of_steps() -> None:
    """k = 0 is the flow of N(mu, diag c): the zero latent decodes to mu, samples spread by sqrt(c), in one step."""
    network = denoiser(k_max=0.0)
    method = build(network, steps=1, project="none")
    assert isinstance(method, InjectiveODE)
    cond, measured = network.condition(CAPTIONS), masked()
    features = method.gauge(method.given(measured, cond))
    torch.testing.assert_close(method.restore(measured, cond)[0], features.mean, rtol=0, atol=1e-12)
    alone = build(network, steps=1, project="none", procedure="mean").restore(measured, cond)[0]
    assert torch.equal(alone, features.mean)
    samples = method.posterior(measured, cond, 200, generators())
    found, expected = uncertainty(samples), features.variance.mean(1, keepdim=True).sqrt()
    assert found.shape == (2, 1, 8, 8)
    assert ((found / expected - 1).abs() < 0.25).all() and 0.96 < float((found / expected).mean()) < 1.04


def test_what_the_decoder_is_told() -> None:
    """y, its kind and the caption each change the answer; decode=null leaves the caption out."""
    cond, measured = NETWORK.condition(CAPTIONS), masked()
    answers = [
        build(project="none", **changes).restore(given, told)[0]  # type: ignore[arg-type]
        for changes, given, told in (
            ({}, measured, cond),
            ({}, replace(measured, kind="block_mask"), cond),
            ({}, replace(measured, y=measured.y * 0.9), cond),
            ({}, measured, NETWORK.condition(CAPTIONS[::-1])),
            ({"decode": "null"}, measured, cond),
        )
    ]
    assert all(not torch.equal(answers[0], other) for other in answers[1:])
    other = build(project="none", decode="null").restore(measured, NETWORK.condition(CAPTIONS[::-1]))[0]
    assert torch.equal(answers[4], other)


def test_guidance_takes_the_caption_away_and_never_the_measurement() -> None:
    measured = masked()
    free, told = (
        build(project="none", **changes).restore(measured, NETWORK.condition(CAPTIONS, guidance))[0]
        for changes, guidance in (({"guidance": 0.0}, 0.0), ({"decode": "null"}, 1.0))
    )
    torch.testing.assert_close(free, told, rtol=0, atol=1e-12)
    twice = build(project="none").restore(measured, NETWORK.condition(CAPTIONS, 2.0))[0]
    changed = build(project="none").restore(replace(measured, y=0.9 * measured.y), NETWORK.condition(CAPTIONS, 2.0))[0]
    assert not torch.equal(twice, changed)


def test_measurements_say_their_kind() -> None:
    """Each family of corruptions that the conditioner was trained on, under the name that it was trained with."""
    chosen = compose_config([f"corruption=[{','.join(CORRUPTIONS)}]"], sweep_required=False).corruption
    for name, made in chosen.items():
        options = check_options(
            made.class_path, "corruption", {**made.options, **made.severities[3]}, f"corruption.{name}"
        )
        corruption = load(made.class_path, "corruption")(options)
        taken = [measure(corruption, images()[i], Key("digits", str(i), name, 3, 0)) for i in range(2)]
        batch = stack(taken)
        assert batch.kind == batch.to("cpu").kind == name
        assert build(steps=1).restore(batch, NETWORK.condition(CAPTIONS))[0].isfinite().all()
    with pytest.raises(ValueError, match="one kind of corruption"):
        stack([taken[0], replace(taken[1], kind="gaussian_blur")])


def test_consistency_meets_an_exact_measurement_of_everything() -> None:
    given = Measured(images(), kind="gaussian_noise")
    x_hat, _ = build(procedure="consistency").restore(given, NETWORK.condition(CAPTIONS), generators())
    torch.testing.assert_close(x_hat, given.y, rtol=0, atol=1e-12)


def test_consistency_weighs_the_measurement_by_its_noise() -> None:
    """One step with k = 0, where the estimates are those of N(mu, c): x0 is drawn to y by sigma^2 / (sigma^2 + s^2)."""
    network, noise = denoiser(k_max=0.0), 0.5
    method, cond = build(network, steps=1, procedure="consistency", project="none"), network.condition(CAPTIONS)
    assert isinstance(method, InjectiveODE)
    given = Measured(images(), kind="gaussian_noise", sigma=noise)
    x_hat, latent = method.restore(given, cond, generators())
    top, end, gauge = method.grid[1], method.grid[0], method.gauge(cond)
    pull = (latent.x_T - top.alpha * gauge.mean) / (gauge.variance * top.alpha**2 + top.sigma**2)
    x0, eps = gauge.mean + gauge.variance * top.alpha * pull, top.sigma * pull
    x0 = x0 + top.sigma**2 / (top.sigma**2 + noise**2) * (given.y - x0)
    torch.testing.assert_close(x_hat, end.alpha * x0 + end.sigma * eps, rtol=0, atol=1e-12)


def test_a_bridge_goes_through_the_latent_of_y_as_data_of_its_kind() -> None:
    method, cond, measured = build(procedure="bridge", project="none"), NETWORK.condition(CAPTIONS), masked()
    assert isinstance(method, InjectiveODE)
    as_data = replace(cond, embedding=method.network.encode(["", ""], kind="is_random_mask"))
    latent = Latent({"x_T": method.invert(measured.y, as_data).x_T})
    expected = method.decode(latent, method.given(measured, cond))
    torch.testing.assert_close(method.restore(measured, cond)[0], expected, rtol=0, atol=1e-12)


def test_the_uncertainty_is_the_rms_over_channels() -> None:
    """Two samples a, -a have variance 2 a^2; of channels 1, 2, 3 the mean is 28 / 3."""
    a = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    assert float(uncertainty(torch.stack([a, -a]))) == pytest.approx((28 / 3) ** 0.5)


def test_only_the_fields_own_flow_is_certified() -> None:
    """A guided flow is another, and may leave the constants; a procedure without a flow has none."""
    for certified in ({}, {"guidance": 0.0}, {"guidance": 1.0, "guidance_invert": 0.0}, {"procedure": "bridge"}):
        assert build(**certified).facts()["certified"] == 1.0
    for other in ({"guidance": 3.0}, {"guidance_invert": 2.0}, {"procedure": "mean"}, {"procedure": "consistency"}):
        assert build(**other).facts() == {}


# --- edits in the latent ---------------------------------------------------------------------------------------


def test_a_local_edit_stays_within_its_bound() -> None:
    method, cond = build(steps=32), NETWORK.condition(CAPTIONS)
    assert isinstance(method, InjectiveODE)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[..., :4, :4] = True
    x0 = images()
    delta = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    edit = method.edit_latent(x0, cond, mask, delta)
    assert edit.certified and (edit.outside <= edit.bound).all() and (edit.outside > 0).all()
    assert (edit.image - x0)[..., :4, :4].abs().mean() > 2 * (edit.image - x0)[..., 4:, 4:].abs().mean()
    assert torch.equal(method.edit_latent(x0, cond, mask, 0 * delta).image, x0)
    # A mask of everything with the way to a reference gives the reference.
    whole = method.edit_latent(x0, cond, torch.ones_like(mask), method.latent_change(x0.flip(0), x0, cond))
    torch.testing.assert_close(whole.image, x0.flip(0), rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match="one condition"):
        method.edit_latent(x0, cond.at(2.0), mask, delta)


def test_the_bound_is_of_the_widest_scale_outside_the_mask() -> None:
    """max S_0 outside, times (e^K - 1), times the norm of what was moved inside."""
    method, cond = build(), NETWORK.condition(CAPTIONS)
    assert isinstance(method, InjectiveODE)
    scale = method.chart(method.times[0], cond).scale
    assert isinstance(scale, Tensor)
    mask = scale > scale.flatten(1).median(1).values[:, None, None, None]
    delta = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    widest = torch.where(mask, 0.0, scale).flatten(1).amax(1)
    assert (widest < 0.99 * scale.flatten(1).amax(1)).all()
    growth = np.expm1(method.network.certificate(t0=method.times[0], t1=method.times[-1]).K)
    expected = widest * growth * (delta * mask).flatten(1).norm(dim=1)
    torch.testing.assert_close(method.edit_latent(images(), cond, mask, delta).bound, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("model", ["digits_inode", "scenes_inode"])
def test_a_local_edit_of_shipped_weights(model: str) -> None:
    """No edit gives the image itself, whatever the solver's error, and the report is of the image that is given out."""
    network, x0, captions = shipped(model)
    method, cond = build(network, steps=10), network.condition(captions)
    assert isinstance(method, InjectiveODE)
    mask = torch.zeros(2, 1, *x0.shape[2:], dtype=torch.bool)
    mask[..., :8, :8] = True
    delta = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(method.edit_latent(x0, cond, mask, 0 * delta).image, x0)
    edit = method.edit_latent(x0, cond, mask, delta)
    outside = torch.where(mask, 0.0, edit.image - x0).flatten(1).norm(dim=1)
    torch.testing.assert_close(edit.outside, outside, rtol=1e-9, atol=1e-12)
    assert (edit.outside <= edit.bound).all() and (edit.outside > 0).all()


def test_an_edit_of_a_gaussian_flow_moves_nothing_outside() -> None:
    """k = 0: pixels are independent, the bound is 0 and is met."""
    network = denoiser(k_max=0.0)
    method, cond = build(network), network.condition(CAPTIONS)
    assert isinstance(method, InjectiveODE)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    edit = method.edit_latent(images(), cond, mask, torch.ones(2, *SHAPE, dtype=torch.float64))
    assert edit.bound.abs().max() == 0 and edit.outside.max() < 1e-12
    assert (edit.image - images())[..., :4].abs().min() > 0.1


def test_edits_keep_or_bound_what_is_outside() -> None:
    source, target = NETWORK.condition(CAPTIONS), NETWORK.condition(CAPTIONS[::-1])
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    image, latent = (build(edit=where).edit(images(), source, target, mask)[0] for where in ("image", "latent"))
    whole = build().edit(images(), source, target)[0]
    assert torch.equal(image, torch.where(mask, whole, images()))
    change = (latent - images()).abs().mean(1, keepdim=True)
    assert change[mask].mean() > change[~mask].mean()


# --- what it runs on -------------------------------------------------------------------------------------------


def test_wrong_models_and_measurements_are_named() -> None:
    mixture = GaussianMixture(torch.zeros(2, 64, dtype=torch.float64), 0.1, Rectified())
    with pytest.raises(ValueError, match=r"runs on an InjectiveField .* got GaussianMixture"):
        build(Denoiser(mixture, Rectified(), "velocity"))
    cond, measured = NETWORK.condition(CAPTIONS), masked()
    with pytest.raises(ValueError, match=r"motion_blur.*use procedure=consistency, which takes any kind"):
        build().restore(replace(measured, kind="motion_blur"), cond)
    with pytest.raises(ValueError, match="one caption per image"):
        build().restore(measured, Condition(cond.embedding, cond.null))
    with pytest.raises(ValueError, match="samples=3 has no meaning"):
        Options(samples=3)
    with pytest.raises(ValueError, match="two samples"):
        uncertainty(images()[None])


def test_a_sweep_runs_it_on_its_own_model(tmp_path: Path) -> None:
    """Beside the other methods on theirs; on the run's model where that is of its class; never on another."""
    axes = ["severity=3", "corruption=gaussian_blur", "sweep=corruptions"]
    weights = tmp_path / "made.safetensors"
    own = [f"method.injective_ode.models.{data}_inode.weights={weights}" for data in ("scenes", "digits")]
    with pytest.raises(UserError, match="weights of scenes_inode, which injective_ode runs on, are not on disk"):
        expand(compose_config([*axes, "method=injective_ode", *own]))
    save_file({}, weights)

    def pairs(*overrides: str) -> set[tuple[str, str]]:
        expanded = expand(compose_config([*axes, *own, *overrides]))
        return {(cell.axes["method"], cell.axes["model"]) for cell in expanded.cells}

    assert pairs("method=ddim,injective_ode") == {("ddim", "scenes_vp"), ("injective_ode", "scenes_inode")}
    assert pairs("method=ddim,injective_ode", "model=scenes_vp,scenes_rf") == {
        ("ddim", "scenes_vp"), ("ddim", "scenes_rf"), ("injective_ode", "scenes_inode"),
    }  # fmt: skip
    assert pairs("method=injective_ode", "profile=digits") == {("injective_ode", "digits_inode")}
    assert pairs("method=ddim,injective_ode", "model=scenes_inode_free") == {
        ("ddim", "scenes_inode_free"), ("injective_ode", "scenes_inode_free"),
    }  # fmt: skip
    with pytest.raises(UserError, match="runs only on models of class InjectiveField; gmm is of another class"):
        expand(compose_config(["sweep=theory", "method=injective_ode"]))


# --- the picture of a posterior --------------------------------------------------------------------------------


def test_the_picture_of_a_posterior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is known has no spread, what is hidden has some; and the file is there."""
    config = compose_config(["model=digits_inode"], sweep_required=False).model["digits_inode"]
    weights = tmp_path / "made.safetensors"
    made = build_backbone(config, weights=False).state_dict()
    save_file({name: part.contiguous() for name, part in made.items()}, weights)
    arguments = ["profile=digits", "corruption=block_mask", "steps=1", "draws=2", f"out={tmp_path / 'a' / 'b'}"]
    arguments.append(f"method.injective_ode.models.digits_inode.weights={weights}")
    cells, image, draws, out, names = posterior.parse(arguments)
    (row,) = (posterior.solve(cell, image, draws) for cell in cells)
    assert names[row.corruption] == "block mask" and len(row.samples) == 2
    known = (row.y == row.truth).all(-1)
    assert (row.spread[known] == 0).mean() > 0.9 and (row.spread[~known] > 0).all()
    assert posterior.main(arguments) == 0 and out.read_bytes().startswith(b"\x89PNG")
    assert out == tmp_path / "a" / "b.png" and capsys.readouterr().out == f"{out}\n"
    (tmp_path / "folder.png").mkdir()
    for wrong, complaint in (
        (["draws=1"], "draws=1: must be a whole number, 2 or more"),
        (["image=x"], "image=x: must be"),
        ([f"out={tmp_path}"], "is a folder; it must be a file"),
        ([f"out={tmp_path / 'folder'}"], "is a folder; it must be a file"),
    ):
        with pytest.raises(UserError, match=complaint):
            posterior.parse(wrong)
    with pytest.raises(UserError, match="image=100000: dataset digits has"):
        posterior.solve(cells[0], 100_000, draws)
    (other,) = expand(compose_config(["sweep=corruptions", "method=ddim", "severity=3", *arguments[:2]])).cells
    with pytest.raises(UserError, match="method=ddim draws no posterior samples"):
        posterior.solve(other, 0, draws)
