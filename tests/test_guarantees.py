"""Flows measured against their certificates: certified fields keep them, others violate them, known cases agree."""

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
from bench.cell.models import build_backbone
from bench.errors import UserError
from bench.plan import look
from bench.spec.compose import compose_config
from bench.store import Store
from methods.backbones.analytic import GaussianMixture
from methods.base import Problem
from methods.denoiser import Denoiser
from methods.guarantees import check, distances, in_float64
from methods.injective_ode.field import Certificate, InjectiveField
from methods.injective_ode.method import InjectiveODE
from methods.inversion.flow_ode import FlowODE
from methods.options import Guarantees
from methods.paths import Rectified, Trigonometric

SHAPE = (1, 4, 4)
QUICK = Guarantees(steps=2, iterations=3, pairs=2, updates=2, tolerances=(1e-3, 1e-6), draws=2)


@dataclass(frozen=True)
class Given:
    y: Tensor
    known: Tensor | None = None
    kind: str = "gaussian_noise"


@dataclass(frozen=True)
class Linear(Given):
    """A measurement whose operator is the identity."""

    sigma: float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x

    adjoint = forward


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(denoiser: Denoiser, caption: str, given: Given | None = None, guidance: float = 1.0) -> Problem:
    images = draw(2, *SHAPE, seed=1).clamp(-1, 1)
    condition = denoiser.condition([caption] * 2, guidance)
    return Problem("guarantee", images, condition, (), measurement=given or Given(0.8 * images))  # type: ignore[arg-type]


def injective(constraint: str, seed: int, scale: float, k_max: float = 2.0) -> InjectiveODE:
    """Build the method on a tiny field in float32, as models are. All weights are random, times `scale`.

    This includes the weights of k(t), so at the largest scales k jumps between 0 and k_max.
    """
    torch.manual_seed(seed)
    network = InjectiveField("digits", SHAPE, constraint, (4,), (8, 8), depth=1, k_max=k_max, time=8)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * (parameter + 0.5 * torch.randn_like(parameter)))
    denoiser = Denoiser(network, Trigonometric(), "v").eval().requires_grad_(False)
    options = InjectiveODE.Options(steps=4)
    return InjectiveODE(denoiser, options, Trigonometric().grid(4))


def searched(method: InjectiveODE, **options: int) -> dict[str, Any]:
    """Measure without the round trips: at huge weights dopri5 would need thousands of steps."""
    exact = in_float64(method)
    assert isinstance(exact, InjectiveODE)
    cond = exact.denoiser.condition(["the digit 3"] * 2)
    return dict(distances(exact, draw(2, *SHAPE, seed=1), cond, QUICK.model_copy(update=options)))


@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.3, 1.0, 30.0, 1e3]))
@settings(max_examples=8, deadline=None)
def test_no_weights_make_a_certified_field_leave_its_constants(seed: int, scale: float) -> None:
    found = searched(injective("strict", seed, scale), steps=6, iterations=2, pairs=1, updates=1)
    assert found["certified"] == [True, True] and found["violated"] == [False, False]
    for i in range(2):
        K = found["K"][i]
        assert 0 <= K <= 2.0 * math.pi / 2 * (1 + 1e-6), "k_max times the flow's time"
        assert found["certified_max"][i] == pytest.approx(math.exp(K))
        assert found["certified_min"][i] == pytest.approx(math.exp(-K))
        assert found["certified_log_det"][i] == pytest.approx(16 * K)
        for kind in ("sv", "pairs", "adversarial"):
            low, high = found[f"{kind}_min"][i], found[f"{kind}_max"][i]
            # At large weights, pairs are differences of values near 1e19.
            assert (low is not None and high is not None) or (scale > 1 and kind != "sv")


class FullStretch(torch.nn.Module):
    """A core with N(u) = sign u: the flow multiplies every distance by exactly e^K, or by e^-K."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, u: Tensor, *features: object) -> Tensor:
        return self.sign * u

    def lipschitz(self) -> float:
        return 1.0


@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0]), st.sampled_from([-1.0, 1.0]))
@settings(max_examples=5, deadline=None)
def test_a_flow_that_uses_its_constants_up_does_not_leave_them(seed: int, scale: float, sign: float) -> None:
    """The flow reaches its bounds, so the test would find a K that is a thousandth below the integral of k."""
    method = injective("strict", seed, scale)
    method.network.core = FullStretch(sign)  # type: ignore[assignment]
    found = searched(method, steps=24, iterations=1, pairs=1, updates=1)
    assert found["violated"] == [False, False]
    used, other = ("used_max", "used_min") if sign > 0 else ("used_min", "used_max")
    assert found[used] == pytest.approx([1, 1], abs=1e-3)
    assert found[other] == pytest.approx([math.exp(-2 * K) for K in found["K"]], rel=1e-3)
    assert found["log_det"] == pytest.approx([sign * volume for volume in found["certified_log_det"]], rel=1e-3)


def test_steps_too_few_are_not_taken_for_a_violation() -> None:
    """Here k(t) jumps: the map of two steps violates the constants, and the flow does not."""
    method = injective("strict", seed=1, scale=30.0)
    found = searched(method)
    assert found["flow_steps"] == [4, 4], "the values at two steps were outside"
    assert found["violated"] == [False, False]
    assert max(found["used_min"] + found["used_max"]) < 1
    assert searched(method, steps=4)["flow_steps"] == [4, 4]


def test_a_field_without_constraint_leaves_the_constants_of_the_strict_form() -> None:
    method = injective("free", seed=0, scale=1.0)
    found = searched(method)
    assert found["certified"] == [False, False] and found["violated"] == [True, True]
    assert max(found["used_max"] + found["used_min"]) > 1 and found["flow_steps"] == [4, 4], "at both numbers of steps"


def test_the_search_moves_towards_the_bounds() -> None:
    """A search that finds nothing would hide every violation."""
    method = injective("strict", seed=5, scale=1.0)
    found = searched(method, updates=8)
    for i in range(2):
        assert (
            found["adversarial_max"][i] > found["pairs_max"][i] and found["adversarial_min"][i] < found["pairs_min"][i]
        )
        assert found["sv_max"][i] > found["pairs_max"][i] and found["sv_min"][i] < found["pairs_min"][i]


def test_without_a_core_the_certificate_is_met_exactly() -> None:
    """With N = 0 the flow in the gauge is the identity, and the flow in z is that of the Gaussian N(mu, diag c)."""
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

    def overstated(self: InjectiveField, *arguments: object, **options: object) -> Certificate:
        """Certify that no distance changes at all."""
        return replace(honest(self, *arguments, **options), K=0.0, u_lower=1.0, u_upper=1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(InjectiveField, "certificate", overstated)
    assert searched(method)["violated"] == [True, True]


def gaussian(variance: float, steps: int = 16) -> FlowODE:
    mixture = GaussianMixture(draw(1, 16, seed=4), variance, Rectified())
    denoiser = Denoiser(mixture, Rectified(), mixture.prediction)
    return FlowODE(denoiser, FlowODE.Options(steps=steps), Rectified().grid(steps))


def test_the_flow_of_a_gaussian_has_the_known_constants() -> None:
    """The flow maps x0 ~ N(mu, var I) to (x0 - mu) / sqrt(var): distances grow by var^(-1/2), without a certificate."""
    variance = 0.25
    method = gaussian(variance)
    found = check(method, problem(method.denoiser, "src"), QUICK.model_copy(update={"steps": 16, "updates": 1}))
    for name in ("sv_min", "sv_max", "pairs_min", "pairs_max", "adversarial_min", "adversarial_max"):
        assert found[name] == pytest.approx([variance**-0.5] * 2, rel=1e-3)
    assert found["log_det"] == pytest.approx([-8 * math.log(variance)] * 2, rel=1e-3)
    assert found["violated"] == found["certified"] == found["K"] == found["gronwall_bound"] == [None, None]
    # Inverted and decoded under equal conditions, a measurement comes back together with its noise. The solver
    # starts again from x_T, so it needs enough steps to be exact.
    finer = gaussian(variance, steps=64)
    found = check(finer, problem(finer.denoiser, "src"), QUICK.model_copy(update={"steps": 16, "updates": 1}))
    assert found["amplification"] == pytest.approx([1, 1], rel=1e-6)


def test_round_trips_follow_the_tolerance_or_are_exact() -> None:
    method = gaussian(0.04)
    posed = problem(method.denoiser, "src")
    found = check(method, posed, QUICK)
    for wide, tight in zip(found["trip_dopri5_1e-03"], found["trip_dopri5_1e-06"], strict=True):
        assert 1e-9 < tight < 1e-5 < wide < 1e-1
    assert min(found["trip_dopri5_1e-06_nfe"]) > max(found["trip_dopri5_1e-03_nfe"])
    for name, nfe in (("leapfrog", 33), ("leapfrog_bits", 33), ("reversible_heun", 33), ("mccallum_foster", 128)):
        assert max(found[f"trip_{name}"]) < 1e-12 < 1e-7 < min(found[f"trip_{name}_alone"])
        assert found[f"trip_{name}_nfe"] == [nfe, nfe]
        assert (max(found[f"trip_{name}_unequal"]) == 0) == (name == "leapfrog_bits")
    assert found["trip_leapfrog_bits"] == [0, 0]
    assert 1e-9 < min(found["trip_rk4"]) < max(found["trip_rk4"]) < 1e-1 and found["trip_rk4_nfe"] == [128, 128]
    assert "trip_rk4_alone" not in found and "trip_reversible_heun_float32" not in found
    assert 1e-9 < min(found["trip_leapfrog_float32"]) < max(found["trip_leapfrog_float32"]) < 1e-5
    means = method.denoiser.backbone.mu.reshape(1, *SHAPE)  # type: ignore[operator, union-attr]
    white = ((posed.image - means) / 0.04**0.5).flatten(1)
    assert found["encoded_std"] == pytest.approx(white.std(1).tolist(), rel=0.1)
    assert found["encoded_max"] == pytest.approx(white.abs().amax(1).tolist(), rel=0.1)


def test_the_methods_own_solver_makes_a_round_trip_too() -> None:
    method = gaussian(0.25)
    few = QUICK.model_copy(update={"tolerances": (1e-1,), "solvers": ("rk4",), "updates": 1})
    for own in ({"solver": "reversible_heun"}, {"solver": "leapfrog", "bit_exact": True}, {"solver": "dopri5"}):
        options = method.options.model_copy(update=own)
        found = check(FlowODE(method.denoiser, options, method.grid), problem(method.denoiser, "src"), few)
        name = str(own["solver"]) + "_bits" * ("bit_exact" in own)
        made = {column for column in found if column.startswith(f"trip_{name}") and "dopri5_1e" not in column}
        assert bool(made) == (name != "dopri5") and (f"trip_{name}_float32" in made) == bool(made)
        assert "trip_rk4" in found and min(found["encoded_std"]) > 0


def test_a_reverse_solve_keeps_to_gronwalls_bound() -> None:
    few = QUICK.model_copy(update={"iterations": 1, "updates": 1, "tolerances": (1e-1,), "solvers": ("rk4",)})
    for seed, steps in ((0, 4), (3, 8)):
        method = injective("strict", seed, scale=1.0)
        found = check(method, problem(method.denoiser, "the digit 3"), few.model_copy(update={"steps": steps}))
        for i in range(2):
            assert found["gronwall_bound"][i] == pytest.approx(found["gronwall"][i] * found["rk4_local_errors"][i])
            assert 0 < found["rk4_error"][i] <= found["gronwall_bound"][i]


def test_what_is_looked_at_is_what_a_procedure_decodes_under() -> None:
    """A flow given y depends on it; a flow corrected towards y (consistency) gets only the caption, or nothing."""
    method = injective("strict", seed=0, scale=1.0)
    few = QUICK.model_copy(update={"iterations": 1, "updates": 1, "tolerances": (1e-1,), "solvers": ("rk4",)})

    def seen(y: float, caption: str, **changes: str) -> list[Any]:
        chosen = InjectiveODE(method.denoiser, method.options.model_copy(update=changes), method.grid)
        given = Linear(y * draw(2, *SHAPE, seed=1))
        return list(check(chosen, problem(method.denoiser, caption, given), few)["sv_max"])

    assert seen(0.8, "the digit 3") != seen(0.4, "the digit 3")
    alone = seen(0.8, "the digit 3", procedure="consistency")
    assert (
        alone == seen(0.4, "the digit 3", procedure="consistency") != seen(0.8, "the digit 4", procedure="consistency")
    )
    nothing = seen(0.8, "the digit 3", procedure="consistency", decode="null")
    assert nothing == seen(0.8, "the digit 4", procedure="consistency", decode="null") != alone


def test_noise_is_put_where_something_was_measured() -> None:
    """Known pixels are kept, so all noise on them comes back, and no noise is added elsewhere."""
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
    assert found["violated"] == [None, None] and found["trip_reversible_heun_nfe"] == [2 * (5 + 4)] * 2
    # Guidance moves this field beyond 2^12, the range of the integers; this must not remove any other column.
    assert found["trip_leapfrog_bits"] == found["trip_leapfrog_bits_nfe"] == [None, None]


# --- the sweep ------------------------------------------------------------------------------------------------------

TINY = [
    "backbone.widths=[4]", "backbone.conditioner=[8,8]", "+backbone.depth=1", "+backbone.time=8"
]  # fmt: skip


def test_the_sweep_measures_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "sweep=guarantees", "model=digits_inode,digits_inode_free,digits_rf", "method=injective_ode,flow_ode",
        "corruption=random_mask", "severity=5", "steps=2", "images=1", "guarantee.steps=2", "guarantee.iterations=2",
        "guarantee.pairs=1", "guarantee.updates=1", "guarantee.draws=1", "guarantee.tolerances=[1e-2,1e-3]",
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
    # The free field moves its latent beyond 2^12, the range of the integers: only that solver fails.
    unequal = rows["trip_leapfrog_bits_unequal"]
    assert unequal["digits_inode"] == unequal["digits_rf"] == 0 and math.isnan(unequal["digits_inode_free"])
    record = store.record(rows.loc["digits_inode", "cell_id"])
    assert record["config"]["guarantee"]["iterations"] == 2
    out = tmp_path / "results" / "reports" / "guarantees"
    text = (out / "table.md").read_text()
    for words in ("compared with the certificate", "(", "no certificate", "0 of 1", "1 of 1", "Round trips"):
        assert words in text
    assert text.count("| leapfrog, integers | 0 | 5 | 0 |") == 2
    for row in ("| leapfrog, integers |", "| McCallum-Foster |", "| rk4 |", "| dopri5 1e-03 |"):
        assert text.count(row) == 3, "one row per model"
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
        (["method=ddim"], "needs a flow that a solver integrates"),
        (["corruption=null"], "task=guarantee needs a corruption"),
        (["guarantee.iterations=0"], "guarantee.iterations=0"),
        (["guarantee.iteration=2"], "nearest: iterations"),
    ],
)
def test_mistakes(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        look(["sweep=guarantees", *changes])
