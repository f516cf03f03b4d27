"""Flows measured against their certificates: no violation by certified fields, violations by others, known answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from bench import run
from bench.config import compose_config
from bench.errors import UserError
from bench.models import build_backbone
from bench.plan import look
from bench.store import Store
from methods.backbones.analytic import GaussianMixture
from methods.base import Problem
from methods.denoiser import Denoiser
from methods.flow_ode import FlowODE
from methods.guarantees import check, distances, in_float64
from methods.injective_ode.field import Certificate, InjectiveField
from methods.injective_ode.method import InjectiveODE
from methods.options import Guarantees
from methods.paths import Rectified, Trigonometric

SHAPE = (1, 4, 4)
QUICK = Guarantees(steps=2, iterations=3, pairs=2, updates=2, tolerances=(1e-3, 1e-6), draws=2)


@dataclass(frozen=True)
class Given:
    y: Tensor
    known: Tensor | None = None
    kind: str = "gaussian_noise"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(denoiser: Denoiser, caption: str, given: Given | None = None, guidance: float = 1.0) -> Problem:
    images = draw(2, *SHAPE, seed=1).clamp(-1, 1)
    condition = denoiser.condition([caption] * 2, guidance)
    return Problem("guarantee", images, condition, (), measurement=given or Given(0.8 * images))  # type: ignore[arg-type]


def injective(constraint: str, seed: int, scale: float, k_max: float = 2.0) -> InjectiveODE:
    """On a tiny field in float32, as models are, whose weights are all random times `scale`."""
    torch.manual_seed(seed)
    network = InjectiveField("digits", SHAPE, constraint, (4,), (8, 8), depth=1, k_max=k_max, time=8)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * (parameter + 0.5 * torch.randn_like(parameter)))
        network.rate.mul_(0).add_(1 / (1 + seed % 3))  # k(t) differs between seeds and is never near 0
    denoiser = Denoiser(network, Trigonometric(), "v").eval().requires_grad_(False)
    options = InjectiveODE.Options(steps=4)
    return InjectiveODE(denoiser, options, Trigonometric().grid(4))


def searched(method: InjectiveODE, **options: int) -> dict[str, Any]:
    """Without the round trips: at huge weights dopri5 would need thousands of steps."""
    exact = in_float64(method)
    assert isinstance(exact, InjectiveODE)
    cond = exact.denoiser.condition(["the digit 3"] * 2)
    return dict(distances(exact, draw(2, *SHAPE, seed=1), cond, QUICK.model_copy(update=options)))


@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 30.0, 1e3]))
@settings(max_examples=4, deadline=None)
def test_no_weights_make_a_certified_field_leave_its_constants(seed: int, scale: float) -> None:
    method = injective("strict", seed, scale)
    found = searched(method)
    assert found["certified"] == [True, True] and found["violated"] == [False, False]
    for i in range(2):
        assert found["K"][i] > 0 and found["certified_max"][i] == pytest.approx(math.exp(found["K"][i]))
        for kind in ("sv", "pairs", "adversarial"):
            low, high = found[f"{kind}_min"][i], found[f"{kind}_max"][i]
            if scale > 1 and kind != "sv" and low is None:
                continue  # differences of values of 1e19 in float64
            assert found["certified_min"][i] < low <= high < found["certified_max"][i]
        assert abs(found["log_det"][i]) < found["certified_log_det"][i]
        assert max(found["used_min"][i], found["used_max"][i]) < 1


def test_a_field_without_constraint_leaves_the_constants_of_the_strict_form() -> None:
    method = injective("free", seed=0, scale=1.0)
    found = searched(method)
    assert found["certified"] == [False, False] and found["violated"] == [True, True]
    assert max(found["used_max"] + found["used_min"]) > 1


def test_the_search_moves_towards_the_bounds() -> None:
    """A search that finds nothing would make every certificate look good."""
    method = injective("strict", seed=5, scale=1.0)
    found = searched(method, updates=8)
    for i in range(2):
        assert (
            found["adversarial_max"][i] > found["pairs_max"][i] and found["adversarial_min"][i] < found["pairs_min"][i]
        )
        assert found["sv_max"][i] > found["pairs_max"][i] and found["sv_min"][i] < found["pairs_min"][i]


def test_without_a_core_the_certificate_is_met_exactly() -> None:
    """N = 0: the gauge's flow is the identity, and the flow in z that of the Gaussian N(mu, diag c)."""
    method = injective("strict", seed=1, scale=1.0)
    network = method.network
    with torch.no_grad():
        network.core.out.weight.zero_()
    found = searched(method)
    for name in ("sv_min", "sv_max", "pairs_min", "adversarial_max", "certified_min", "certified_max"):
        assert found[name] == pytest.approx([1, 1], abs=1e-9)
    assert found["log_det"] == pytest.approx([0, 0], abs=1e-9) and found["violated"] == [False, False]


def test_a_certificate_that_promises_too_much_is_disproved(monkeypatch: pytest.MonkeyPatch) -> None:
    method = injective("strict", seed=5, scale=1.0)
    honest = InjectiveField.certificate

    def boast(self: InjectiveField, *arguments: object, **options: object) -> Certificate:
        """That no distance changes at all."""
        return replace(honest(self, *arguments, **options), K=0.0, u_lower=1.0, u_upper=1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(InjectiveField, "certificate", boast)
    assert searched(method)["violated"] == [True, True]


def gaussian(variance: float) -> FlowODE:
    mixture = GaussianMixture(draw(1, 16, seed=4), variance, Rectified())
    denoiser = Denoiser(mixture, Rectified(), mixture.prediction)
    return FlowODE(denoiser, FlowODE.Options(steps=16), Rectified().grid(16))


def test_the_flow_of_a_gaussian_has_the_known_constants() -> None:
    """x0 ~ N(mu, var I) -> (x0 - mu) / sqrt(var): every distance grows by var^(-1/2); and nothing is certified."""
    variance = 0.25
    method = gaussian(variance)
    found = check(method, problem(method.denoiser, "src"), QUICK.model_copy(update={"steps": 16, "updates": 1}))
    for name in ("sv_min", "sv_max", "pairs_min", "pairs_max", "adversarial_min", "adversarial_max"):
        assert found[name] == pytest.approx([variance**-0.5] * 2, rel=1e-3)
    assert found["log_det"] == pytest.approx([-8 * math.log(variance)] * 2, rel=1e-3)
    assert found["violated"] == found["certified"] == found["K"] == [None, None]
    # Inverted and decoded under conditions that say the same, a measurement comes back, and its noise with it.
    assert found["amplification"] == pytest.approx([1, 1], rel=1e-6)


def test_round_trips_follow_the_tolerance_or_are_exact() -> None:
    method = gaussian(0.04)
    found = check(method, problem(method.denoiser, "src"), QUICK)
    for wide, tight in zip(found["trip_dopri5_1e-03"], found["trip_dopri5_1e-06"], strict=True):
        assert 1e-9 < tight < 1e-5 < wide < 1e-1
    assert max(found["trip_leapfrog"]) < 1e-12 < 1e-6 < min(found["trip_leapfrog_alone"])
    assert found["trip_leapfrog_nfe"] == [33, 33]
    assert min(found["trip_dopri5_1e-06_nfe"]) > max(found["trip_dopri5_1e-03_nfe"])


def test_noise_is_put_where_something_was_measured() -> None:
    """Known pixels are kept, so all of the noise on them comes back, and none is put elsewhere."""
    method = gaussian(0.25)
    known = torch.zeros(2, 1, *SHAPE[1:], dtype=torch.bool)
    known[..., :2, :] = True
    y = torch.where(known, draw(2, *SHAPE), 0.0)
    found = check(method, problem(method.denoiser, "src", Given(y, known, "random_mask")), QUICK)
    assert found["amplification"] == pytest.approx([1, 1], rel=1e-6)


def test_a_guided_flow_has_no_certificate() -> None:
    method = injective("strict", seed=0, scale=1.0)
    few = QUICK.model_copy(update={"iterations": 1, "updates": 1, "tolerances": (1e-1,)})
    found = check(method, problem(method.denoiser, "the digit 3", guidance=3.0), few)
    assert found["violated"] == [None, None] and found["trip_leapfrog_nfe"] == [2 * (5 + 4)] * 2


# --- the sweep ------------------------------------------------------------------------------------------------------

TINY = [
    "backbone.widths=[4]", "backbone.conditioner=[8,8]", "+backbone.depth=1", "+backbone.time=8"
]  # fmt: skip


def test_the_sweep_measures_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "sweep=guarantees", "model=digits_inode,digits_inode_free,digits_rf", "corruption=random_mask", "severity=5",
        "steps=2", "images=1", "guarantee.steps=2", "guarantee.iterations=2", "guarantee.pairs=1",
        "guarantee.updates=1", "guarantee.draws=1", "guarantee.tolerances=[1e-2,1e-3]",
        f"results={tmp_path / 'results'}", "launcher=debug", "tracker=none",
    ]  # fmt: skip
    for name in ("digits_inode", "digits_inode_free"):
        arguments += [f"model.{name}.{change.removeprefix('+')}" for change in TINY]
        arguments += [f"model.{name}.weights={tmp_path / name}.safetensors"]
    config = compose_config(arguments)
    for name in ("digits_inode", "digits_inode_free"):
        torch.manual_seed(0)
        network = build_backbone(config.model[name], weights=False)
        with torch.no_grad():
            network.core.out.weight.copy_(3 * torch.randn_like(network.core.out.weight))  # type: ignore[union-attr, operator, arg-type]
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / f"{name}.safetensors")
    assert run.main(arguments) == 0
    store = Store(tmp_path / "results")
    rows = store.rows(sorted(store.done())).set_index("model")
    assert len(rows) == 3 and rows["y_sha256"].nunique() == 1
    assert rows.loc["digits_inode", "violated"] is False and rows.loc["digits_inode_free", "violated"] is True
    assert rows["violated"].isna().to_dict() == {"digits_inode": False, "digits_inode_free": False, "digits_rf": True}
    assert rows["trip_leapfrog"].max() < 1e-12 and rows["psnr"].notna().all()
    record = store.record(rows.loc["digits_inode", "cell_id"])
    assert record["config"]["guarantee"]["iterations"] == 2
    out = tmp_path / "results" / "reports" / "guarantees"
    text = (out / "table.md").read_text()
    for words in ("measured against the certificate", "(", "no certificate", "0 of 1", "1 of 1", "Round trips"):
        assert words in text
    assert {p.name for p in (out / "figures").glob("*.png")} >= {"singular_values.png", "round_trips.png"}


def test_how_hard_to_look_is_part_of_a_cell() -> None:
    ids = [
        {cell.id for cell in look(["sweep=guarantees", *more]).expansion.cells}
        for more in ([], ["guarantee.updates=7"])
    ]  # fmt: skip
    assert len(ids[0]) == len(ids[1]) > 1 and not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["method=ddim"], "guarantee is of a flow"),
        (["corruption=null"], "task=guarantee needs a corruption"),
        (["guarantee.iterations=0"], "guarantee.iterations=0"),
        (["guarantee.iteration=2"], "nearest: iterations"),
    ],
)
def test_mistakes(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        look(["sweep=guarantees", *changes])
