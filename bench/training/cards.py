"""The card of trained weights: their network and training, and the quality of their samples.

The quality is measured: samples are drawn for captions of held-out scenes, at the default guidance of the model, and
the attribute classifier counts the images with the colours and shapes of their caption.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import provenance
from bench.cell.models import build_backbone, build_denoiser, build_grid, described
from bench.files import sha256
from bench.spec.compose import compose_config
from bench.spec.config import ModelConfig
from bench.spec.registry import load
from methods.backbones.attributes import agreement
from methods.inversion.sampling import sample

SAMPLING_STEPS = 50
JUDGED = 512
ATTRIBUTES = {
    "color": "colours as in the caption",
    "shape": "shapes as in the caption",
    "pair": "colour and shape of every object together",
    "pattern": "background pattern",
    "tone": "background tone",
    "letter": "letter",
}


def _captions(config: ModelConfig, count: int) -> list[str]:
    data = compose_config([f"dataset={config.dataset}"], sweep_required=False).dataset[str(config.dataset)]
    dataset = load(data.class_path, "dataset")(split="test")
    return [dataset.item(index % len(dataset)).caption for index in range(count)]


def draw(
    config: ModelConfig, captions: list[str], guidance: float, seed: int = 0, steps: int = SAMPLING_STEPS
) -> Tensor:
    """Draw one sample per caption: [B, C, H, W] in [-1, 1]."""
    denoiser, grid = build_denoiser(config), build_grid(config, steps)
    noise = torch.randn(len(captions), *config.shape, generator=torch.Generator().manual_seed(seed))
    parts = []
    for start in range(0, len(captions), 64):
        cond = denoiser.condition(captions[start : start + 64], guidance)
        parts.append(sample(denoiser, grid, cond, noise[start : start + 64]))
    return torch.cat(parts).clamp(-1, 1)


def judge(images: Tensor, captions: list[str], out: Path) -> dict[str, float] | None:
    """Return the share of images that agree with their caption, per attribute; None if the classifier has no
    weights."""
    config = compose_config(["model=scenes_judge"], sweep_required=False).model["scenes_judge"]
    fresh = out / "scenes_judge.safetensors"
    config = config.model_copy(update={"weights": str(fresh)} if fresh.is_file() else {})
    if config.weights_file is None or not config.weights_file.is_file():
        return None
    return agreement(build_backbone(config).eval(), images, captions)  # type: ignore[arg-type]


def write_card(name: str, config: ModelConfig, out: Path, command: str) -> Path:
    """Write NAME.md, NAME.json and NAME.png into `out`, beside NAME.safetensors. Returns the path of NAME.md."""
    weights = out / f"{name}.safetensors"
    config = config.model_copy(update={"weights": str(weights)})
    training = json.loads((out / f"{name}.curve.json").read_text())
    curve = training["curve"]
    network = build_backbone(config)
    facts: dict[str, Any] = {
        "name": name,
        "title": config.title,
        "class": config.class_path,
        "network": described(config),
        "parameters": sum(p.numel() for p in network.parameters()),
        "dataset": config.dataset,
        "sha256": sha256(weights),
        "command": command,
        "commit": provenance.static()["git_sha"],
        "packages": provenance.static()["packages"],
        "recipe": config.train.model_dump() if config.train else None,
        "held_out_loss": curve,
        "schedules": training["history"],
    }
    if config.kind == "judge":
        facts["accuracy"] = _accuracy(network, config)
        images = None
    else:
        facts["guidance"], facts["sampling_steps"] = config.guidance, SAMPLING_STEPS
        captions = _captions(config, JUDGED if config.vocabulary == "scenes" else 64)
        print(f"drawing {len(captions)} samples for the card", flush=True)  # takes minutes on a CPU
        images = draw(config, captions, config.guidance)
        if config.vocabulary == "scenes":
            facts["judged_images"] = len(captions)
            facts["agreement"] = judge(images, captions, out)
    _picture(out / f"{name}.png", curve, images)
    (out / f"{name}.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    card = out / f"{name}.md"
    card.write_text(_text(facts))
    return card


def _accuracy(network: Any, config: ModelConfig) -> dict[str, float]:
    """Return the accuracy of the classifier on held-out images, per attribute."""
    from bench.training.pool import HELD_OUT

    dataset = load("bench.data.scenes.Scenes", "dataset")(split="test")
    items = [dataset.item(index) for index in range(len(dataset) - HELD_OUT, len(dataset))]
    images = torch.stack([torch.from_numpy(item.image) for item in items]) * 2 - 1
    return agreement(network.eval(), images, [item.caption for item in items])


def _picture(file: Path, curve: list[list[float]], images: Tensor | None) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        2 if images is not None else 1,
        figsize=(10, 4.2),
        squeeze=False,
        width_ratios=[2, 3][: 1 + (images is not None)],
    )
    axes[0, 0].plot([step for step, _ in curve], [loss for _, loss in curve], marker="o", markersize=3, color="#0072B2")
    axes[0, 0].set(xlabel="update", ylabel="held-out loss", yscale="log")
    axes[0, 0].grid(alpha=0.3)
    if images is not None:
        grid = (images[:60] / 2 + 0.5).numpy().transpose(0, 2, 3, 1)
        rows = [np.concatenate(list(grid[i : i + 10]), axis=1) for i in range(0, len(grid) - len(grid) % 10, 10)]
        picture = np.concatenate(rows)
        axes[0, 1].imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0, 1].set_axis_off()
        axes[0, 1].set_title("one sample per caption, for the first 60 held-out captions", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _schedule(history: list[list[int]]) -> str:
    """Return the schedule as text: `cosine over 5,000 updates`, and the updates at which a resumed run made it
    longer."""
    text = f"cosine over {history[0][1]:,} updates"
    for first, steps in history[1:]:
        text += f"; from update {first:,} on, over {steps:,}"
    return text


def _text(facts: dict[str, Any]) -> str:
    lines = [
        f"# {facts['name']}: {facts['title']}",
        "",
        f"`{facts['class']}`, {facts['parameters']:,} parameters, trained on `{facts['dataset']}`.",
        "",
        f"- made by: `{facts['command']}`",
        f"- commit: `{facts['commit']}`",
        f"- sha256: `{facts['sha256']}`",
        f"- schedule: {_schedule(facts['schedules'])}",
    ]
    for steps, loss in facts["held_out_loss"][-1:]:  # empty if the training was stopped before the first held-out loss
        lines.append(f"- held-out loss after {steps:,} updates: {loss:.4g}")
    if facts.get("agreement"):
        found = facts["agreement"]
        shares = ", ".join(f"{what} {found[head]:.1%}" for head, what in ATTRIBUTES.items())
        how = f"{facts['sampling_steps']} steps, guidance {facts['guidance']:g}"
        lines.append(
            f"- {facts['judged_images']} samples for held-out captions ({how}), judged by `scenes_judge`: {shares}"
        )
    if facts.get("accuracy"):
        shares = ", ".join(f"{head} {share:.1%}" for head, share in facts["accuracy"].items())
        lines.append(f"- images of held-out scenes for which all answers of a head are right: {shares}")
    lines += ["", f"![held-out loss and samples]({facts['name']}.png)", ""]
    return "\n".join(lines)
