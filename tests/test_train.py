"""Tests of training: a few updates from the start, resuming from the checkpoint, and the card."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench import train
from bench.cell.models import build_backbone, build_denoiser, build_grid
from bench.errors import UserError
from bench.mirror.records import curves
from bench.spec.compose import compose_config
from bench.training import cards, fit, pool
from methods.backbones.attributes import HEADS, attributes
from methods.backbones.captions import VOCABULARIES
from methods.injective_ode.training import InjectiveTraining
from methods.inversion.sampling import sample
from methods.training import Optimisation, keyed_generator

ZOO = Path(__file__).resolve().parent.parent / "methods" / "zoo"
TINY = ["model=digits_vp", "train.images=128", "train.validate_every=3", "train.threads=1", "tracker=none"]


def test_train_resume_and_card(tmp_path: Path) -> None:
    assert train.main([*TINY, "train.steps=3", f"out={tmp_path}"]) == 0
    first = load_file(tmp_path / "digits_vp.safetensors")
    assert train.main([*TINY, "train.steps=6", f"out={tmp_path}"]) == 0
    second = load_file(tmp_path / "digits_vp.safetensors")
    assert first.keys() == second.keys() and any(not torch.equal(first[k], second[k]) for k in first)
    record = json.loads((tmp_path / "digits_vp.curve.json").read_text())
    assert [step for step, _ in record["curve"]] == [3, 6] and record["history"] == [[0, 3], [3, 6]]
    assert [
        step for step, logged in curves(tmp_path / "digits_vp" / "history.jsonl").items() if "held_out_loss" in logged
    ]
    facts = json.loads((tmp_path / "digits_vp.json").read_text())
    assert facts["sha256"] and facts["command"].startswith("python -m bench.train model=digits_vp")
    card = (tmp_path / "digits_vp.md").read_text()
    assert "from update 3 on, over 6" in card and str(tmp_path) not in card
    assert (tmp_path / "digits_vp.png").stat().st_size > 10_000


INODE = [
    "model=digits_inode", "model.digits_inode.backbone.widths=[8,8]", "model.digits_inode.backbone.conditioner=[8,8,8]",
    "train.images=32", "train.batch_size=8", "train.flow.draws=1", "train.ema=0.9", "train.warmup=1",
    "train.validate_every=3", "train.threads=1", "tracker=none",
]  # fmt: skip
"""A small injective ODE whose average differs visibly from its weights after a few updates."""


def few(class_path: str, split: str, indices: range) -> tuple[Any, list[str]]:
    """Replace `pool.pool`: no workers, and 16 images of the test split."""
    drawn = [pool._render((class_path, split, i)) for i in (indices if split == "train" else indices[:16])]
    return np.stack([image for image, _ in drawn]), [caption for _, caption in drawn]


def weights_of(module: InjectiveTraining) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.network.named_parameters()}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "pool", few)
    monkeypatch.setattr(cards, "write_card", lambda *arguments: "none")


@pytest.mark.usefixtures("in_this_process")
def test_the_injective_ode_resumes_with_its_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights and their average e both continue from the checkpoint: e' = 0.9 e + 0.1 w at every update."""
    before: list[dict[str, torch.Tensor]] = []
    after: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(InjectiveTraining, "on_train_batch_start", lambda self, *_: before.append(weights_of(self)))
    monkeypatch.setattr(InjectiveTraining, "on_train_batch_end", lambda self, *_: after.append(weights_of(self)))
    averages = []
    for steps in (3, 6):
        assert train.main([*INODE, f"train.steps={steps}", f"out={tmp_path}"]) == 0
        averages.append(load_file(tmp_path / "digits_inode.safetensors"))
    assert len(after) == 6
    for name, expected in averages[0].items():
        assert torch.equal(before[3][name], after[2][name])
        for update in after[3:]:
            expected = 0.9 * expected + 0.1 * update[name]
        torch.testing.assert_close(averages[1][name], expected, rtol=1e-6, atol=1e-7)
    assert max(float((averages[1][name] - after[5][name]).abs().max()) for name in after[5]) > 1e-3
    record = json.loads((tmp_path / "digits_inode.curve.json").read_text())
    assert [step for step, _ in record["curve"]] == [3, 6] and record["history"] == [[0, 3], [3, 6]]


@pytest.mark.usefixtures("in_this_process")
def test_the_curve_ends_with_the_last_update(tmp_path: Path) -> None:
    """The run has fewer updates than the interval between held-out losses, at the start and after a resumption."""
    for steps in (2, 4, 6):
        assert train.main([*INODE, f"train.steps={steps}", f"out={tmp_path}"]) == 0
    record = json.loads((tmp_path / "digits_inode.curve.json").read_text())
    assert [step for step, _ in record["curve"]] == [2, 3, 4, 6]


def test_a_card_without_a_held_out_loss(tmp_path: Path) -> None:
    facts = json.loads((ZOO / "digits_vp.json").read_text())
    assert "held-out loss after" in cards._text(facts)
    assert "held-out loss after" not in cards._text({**facts, "held_out_loss": []})
    cards._picture(tmp_path / "card.png", [], None)
    assert (tmp_path / "card.png").is_file()


@pytest.mark.usefixtures("in_this_process")
def test_term_keeps_the_update_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM before the first checkpoint: nothing is lost, and the same command ends as if nothing had happened."""

    def record(self: InjectiveTraining, *_: object) -> None:
        updates.append(self.global_step)
        if updates == [1, 2]:
            os.kill(os.getpid(), signal.SIGTERM)

    updates: list[int] = []
    monkeypatch.setattr(InjectiveTraining, "on_train_batch_end", record)
    command = [*INODE, "train.steps=3", f"out={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        train.main(command)
    assert ended.value.code == 128 + signal.SIGTERM and updates == [1, 2]
    assert torch.load(tmp_path / "digits_inode" / "last.ckpt", weights_only=False)["global_step"] == 2
    assert train.main(command) == 0
    assert updates == [1, 2, 3]


@pytest.mark.usefixtures("in_this_process")
def test_compiling_reaches_what_training_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()

    def compiled(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            called.add(type(function.__self__).__name__)  # type: ignore[attr-defined]
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    train.main([*INODE, "train.steps=3", "train.compile=true", f"out={tmp_path}"])
    assert called == {"Conditioner", "Core"}


def trained_as(rank: int, port: int, folder: Path) -> None:
    """Train as one of two processes of a job; write its losses and final weights to RANK.pt."""
    job = {"JOB_ID": 1, "NTASKS": 2, "NTASKS_PER_NODE": 2, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
    os.environ |= {f"SLURM_{name}": str(value) for name, value in job.items()}
    os.environ |= {"SUBMITIT_EXECUTOR": "slurm", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    losses, modules, make = [], [], fit._module

    def made(*arguments: Any) -> Any:
        modules.append(make(*arguments))
        loss = modules[0].loss

        def recorded_loss(*arguments: Any, training: bool) -> torch.Tensor:
            found = loss(*arguments, training=training)
            losses.append(float(found.detach()))
            return found

        modules[0].loss = recorded_loss
        return modules[0]

    fit._module, pool.pool = made, few
    name, config, out, _ = fit.parse([*INODE, "train.steps=3", f"out={folder}"])
    fit.fit(name, config, out)
    torch.save({"losses": losses, "weights": weights_of(modules[0])}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_injective_ode(tmp_path: Path) -> None:
    """Each process has its own draws, over gloo as in a job. Both end with the weights that the first writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=trained_as, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(first["losses"]) == len(second["losses"]) and set(first["losses"]).isdisjoint(second["losses"])
    written = load_file(tmp_path / "digits_inode.safetensors")
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]) and torch.equal(weight, written[name])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model=digits_vp", "model=digits_rf"],
        ["model=nothing"],
        [*TINY, "train.images=5000"],
        [*TINY, "train.lr=1"],
    ],
)
def test_mistakes_are_named(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train.main([*arguments, f"out={tmp_path}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([*TINY, "train.flow.draws=1"], "UNet does not use it; only the injective ODE does"),
        (["model=digits_inode", "train.flow=null"], "the injective ODE needs it"),
        (["model=digits_inode", "model.digits_inode.backbone.k_max=-1"], "backbone.k_max=-1"),
    ],
)
def test_a_recipe_that_does_not_fit_its_network_ends_before_images_are_drawn(
    arguments: list[str], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        fit.parse(arguments)


def test_the_schedule_rises_and_falls() -> None:
    plan = Optimisation(steps=1000, warmup=100)
    factors = [plan.factor(step) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01) and max(factors) <= 1 and factors[1000] == pytest.approx(0, abs=1e-12)
    assert all(b >= a for a, b in itertools.pairwise(factors[:91]))


def test_keyed_draws_do_not_depend_on_history() -> None:
    device = torch.device("cpu")
    a = torch.randn(4, generator=keyed_generator(device, 0, 7, 0))
    torch.randn(10)
    assert torch.equal(a, torch.randn(4, generator=keyed_generator(device, 0, 7, 0)))
    assert not torch.equal(a, torch.randn(4, generator=keyed_generator(device, 0, 8, 0)))


def test_captions_are_lossless_slots() -> None:
    vocabulary = VOCABULARIES["scenes"]
    one = vocabulary.tokens("a red circle on a plain gray background")
    two = vocabulary.tokens("a red circle and a blue square on a plain gray background with the letter A")
    null = vocabulary.tokens("")
    assert one[:2] == two[:2] and one[2:4] == null[2:4] and two[2] != null[2] and two[-1] != null[-1]
    with pytest.raises(ValueError, match="nearest: red"):
        vocabulary.tokens("a rd circle on a plain gray background")
    with pytest.raises(ValueError, match="pattern"):
        vocabulary.tokens("a red circle")
    stated = attributes("a red circle and a blue square on a plain gray background")
    assert {head: int(stated[head].sum()) for head in HEADS} == {
        "color": 2, "shape": 2, "pair": 2, "pattern": 1, "tone": 1, "letter": 0
    }  # fmt: skip


CARDS = sorted({file.stem for file in ZOO.iterdir()} - {"README"})


@pytest.mark.parametrize("name", CARDS)
def test_the_zoo_is_what_its_cards_say(name: str) -> None:
    facts = json.loads((ZOO / f"{name}.json").read_text())
    weights = ZOO / f"{name}.safetensors"
    from bench.cell.models import described
    from bench.files import sha256

    assert facts["network"] == described(compose_config([f"model={name}"], sweep_required=False).model[name])
    assert facts["sha256"] == sha256(weights) and weights.stat().st_size < 8e6
    assert f"`{facts['sha256']}`" in (ZOO / f"{name}.md").read_text() and (ZOO / f"{name}.png").is_file()


@pytest.mark.parametrize("name", ["scenes_vp", "scenes_rf"])
def test_samples_carry_what_their_captions_ask(name: str) -> None:
    """The figures of the card hold again on fewer samples, within the sampling error."""
    facts = json.loads((ZOO / f"{name}.json").read_text())["agreement"]
    assert facts["color"] >= 0.95 and facts["shape"] >= 0.90
    config = compose_config([f"model={name}"], sweep_required=False).model[name]
    captions = cards._captions(config, 64)
    found = cards.judge(cards.draw(config, captions, config.guidance, seed=5, steps=25), captions, ZOO)
    assert found is not None
    for head in ("color", "shape"):
        spread = math.sqrt(facts[head] * (1 - facts[head]) / 64)
        assert found[head] > facts[head] - 4 * spread - 0.02, (
            f"{head}: the card says {facts[head]}, found {found[head]}"
        )


@pytest.mark.parametrize("name", ["digits_vp", "digits_rf"])
def test_digits_look_like_digits(name: str) -> None:
    """A nearest-neighbour classifier, trained on the real digits, recognises the samples."""
    from sklearn.neighbors import KNeighborsClassifier

    from bench.data.digits import Digits

    real = [Digits("train").item(i) for i in range(1200)]
    reader = KNeighborsClassifier(3).fit([i.image.ravel() for i in real], [i.caption for i in real])
    config = compose_config([f"model={name}"], sweep_required=False).model[name]
    captions = [f"the digit {d}" for d in range(10)] * 4
    denoiser = build_denoiser(config)
    noise = torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn = sample(denoiser, build_grid(config, 25), denoiser.condition(captions, config.guidance), noise)
    read = reader.predict((drawn.clamp(-1, 1) / 2 + 0.5).reshape(40, -1).numpy())
    assert sum(a == b for a, b in zip(read, captions, strict=True)) >= 34


def test_the_network_does_not_mix_images() -> None:
    config = compose_config(["model=scenes_vp"], sweep_required=False).model["scenes_vp"]
    network = build_backbone(config).eval()
    x, t = torch.randn(3, 3, 32, 32), torch.tensor([0.0, 500.0, 999.0])
    embedding = network.encode(["", "a red circle on a plain gray background", ""])  # type: ignore[operator]
    with torch.no_grad():
        together = network(x, t, embedding)
        torch.testing.assert_close(network(x[1:2], t[1:2], embedding[1:2]), together[1:2], rtol=1e-4, atol=1e-5)
