"""Train an embedded model: `python -m bench.train model=scenes_vp [train.steps=5000] [out=DIR] [card=true]`.

Checkpoints go to DIR/NAME/ (default results/train), and the same command goes on from the last one. At the end DIR
holds NAME.safetensors and its card: NAME.md, NAME.json (figures, sha256, command) and a picture. The curves go to
DIR/NAME/history.jsonl, and from there to Weights & Biases (tracker=none turns that off).

With `launcher=slurm launcher.gpus=8` it is a job of eight processes (bench.distributed), which requeues itself; as long
as it waits or runs, no other one is submitted for its folder.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.config import FlowTrainConfig, ModelConfig, TrackerConfig, compose_config, own_arguments
from bench.errors import UserError, run_command, unknown
from bench.launch import backend
from bench.mirror import HISTORY_FILE, RECIPE_FILE
from bench.registry import check_model, check_options, load, resolve
from bench.tracking import Companion
from methods.injective_ode.options import InjectiveODE

HELD_OUT = 512
"""Images of the test split that the loss curve is measured on, from the end that no sweep's `images` reaches first."""


def parse(arguments: list[str]) -> tuple[str, ModelConfig, Path, TrackerConfig]:
    """The model's name, its configuration, the output folder and the tracker."""
    own, overrides = own_arguments(arguments, {"out": "results/train"})
    names = [argument.partition("=")[2] for argument in overrides if argument.startswith("model=")]
    if len(names) != 1:
        raise UserError("name one model to train: model=NAME")
    overrides = [f"model.{names[0]}.{o}" if o.startswith("train.") else o for o in overrides]
    config = compose_config(overrides, sweep_required=False, own=(*own, "card", "train"))
    if names[0] not in config.model:
        raise UserError(f"model={names[0]}: train one model at a time, by its name")
    out = Path(own["out"]).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"out={own['out']!r} is a file; it must be a folder")
    model = config.model[names[0]]
    if model.train is None or model.dataset is None:
        raise UserError(f"model {names[0]} has no training recipe (keys dataset and train in its YAML)")
    check_model(model, f"model.{names[0]}")
    injective = resolve(model.class_path, "model") in InjectiveODE.runs_on
    if injective != (model.train.flow is not None):
        raise UserError(
            f"model.{names[0]}.train.flow: the injective ODE needs it, for example {{}}"
            if injective
            else f"model.{names[0]}.train.flow: {model.class_path} has no use for it; the injective ODE alone has"
        )
    return names[0], model, out, config.tracker


def _render(job: tuple[str, str, int]) -> tuple[Any, str]:
    class_path, split, index = job
    item = load(class_path, "dataset")(split=split).item(index)
    return (item.image * 255).round().astype("uint8"), item.caption


def pool(class_path: str, split: str, indices: range) -> tuple[Any, list[str]]:
    """Images uint8 [N, C, H, W] and captions of a range of a data set, drawn by all cores."""
    import numpy as np

    jobs = [(class_path, split, index) for index in indices]
    with multiprocessing.get_context("spawn").Pool() as workers:
        drawn = workers.map(_render, jobs, chunksize=256)
    return np.stack([image for image, _ in drawn]), [caption for _, caption in drawn]


def fit(name: str, config: ModelConfig, out: Path) -> Path:
    """Train, or go on training; returns the weights' file."""
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader

    from bench.distributed import StopTogether, placement
    from bench.history import History
    from bench.interrupts import Interrupts
    from methods.training import Optimisation

    recipe = config.train
    assert recipe is not None and config.dataset is not None
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    pl.seed_everything(recipe.seed, verbose=False)
    module = _module(config, Optimisation(recipe.steps, recipe.learning_rate, recipe.weight_decay, recipe.warmup))
    training, held_out = _tensors(config, recipe.images)
    module.network.to(memory_format=torch.channels_last)
    if recipe.compile:
        # The injective ODE is trained by `describe` and `velocity`: `forward` is never called.
        for part in (module.network.conditioner, module.network.core) if recipe.flow else (module.network,):
            part.compile()
    folder, interrupts = out / name, Interrupts(grace_s=60)
    trainer = pl.Trainer(
        max_steps=recipe.steps,
        **placement(),
        gradient_clip_val=1.0,
        val_check_interval=recipe.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=History(folder / HISTORY_FILE),
        enable_model_summary=False,
        callbacks=[  # a checkpoint follows each held-out loss, so that it holds the whole curve
            EMAWeightAveraging(decay=recipe.ema, use_buffers=False),  # power iterations do not average
            ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=False, enable_version_counter=False),
            LearningRateMonitor("step"),
            TQDMProgressBar(refresh_rate=50),
            StopTogether(folder / "last.ckpt", interrupts),
        ],
    )
    last = folder / "last.ckpt"
    workers: Mapping[str, Any] = {"num_workers": 0}
    with interrupts:
        trainer.fit(
            module,
            DataLoader(training, recipe.batch_size, shuffle=True, drop_last=True, **workers),
            DataLoader(held_out, 128, **workers),
            ckpt_path=str(last) if last.is_file() else None,
        )
    weights = out / f"{name}.safetensors"
    if trainer.is_global_zero:
        save_file({k: v.detach().cpu().contiguous() for k, v in module.network.state_dict().items()}, weights)
        (out / f"{name}.curve.json").write_text(json.dumps({"curve": module.curve, "history": module.history}))
    return weights


def _module(config: ModelConfig, optimisation: Any) -> Any:
    from bench.models import build_backbone
    from methods.denoiser import Denoiser
    from methods.paths import make_path
    from methods.training import DenoiserTraining, JudgeTraining

    assert config.train is not None
    start = config.model_copy(update={"weights": config.train.init})
    if start.weights_file is not None and not start.weights_file.is_file():
        raise UserError(f"train.init={config.train.init!r}: there is no file {start.weights_file}")
    network: Any = build_backbone(start, weights=config.train.init is not None, strict=False)
    if config.kind == "judge":
        return JudgeTraining(network, optimisation, seed=config.train.seed)
    if config.train.flow is not None:
        from methods.injective_ode.training import InjectiveTraining

        flow = config.train.flow
        return InjectiveTraining(
            network,
            optimisation,
            Observer(flow),
            flow.draws,
            config.train.caption_dropout,
            flow.mean_weight,
            flow.likelihood_weight,
            flow.regulariser,
            flow.regulariser_weight,
            config.train.seed,
        )
    denoiser = Denoiser(network, make_path(config.path.kind, config.path.schedule), config.prediction)
    recipe = config.train
    return DenoiserTraining(denoiser, optimisation, recipe.caption_dropout, recipe.seed, recipe.time_mean)


class Observer:
    """Corrupts a batch of images as the corruption sweep does, at a severity of its ladder drawn for each image.

    The kinds are those of `methods.injective_ode.conditioner`. All draws come from the generator that is given.
    """

    def __init__(self, flow: FlowTrainConfig) -> None:
        chosen = compose_config([f"corruption=[{','.join(flow.corruptions)}]"], sweep_required=False).corruption
        self.flow = flow
        self.ladders = {
            name: [
                load(c.class_path, "corruption")(
                    check_options(c.class_path, "corruption", {**c.options, **severity}, "corruption")
                )
                for severity in c.severities.values()
            ]
            for name, c in chosen.items()
        }

    def __call__(self, images: Any, rng: Any) -> Any:
        """Images [B, C, H, W] in [-1, 1] -> methods.injective_ode.training.Observation."""
        import torch

        from methods.injective_ode.conditioner import KINDS
        from methods.injective_ode.training import Observation

        flow, names = self.flow, list(self.ladders)
        y, known = torch.zeros_like(images), torch.zeros_like(images[:, :1])
        data, kinds = images.clone(), torch.full((len(images),), KINDS.index("null"), device=images.device)
        dice = torch.rand(3, len(images), generator=rng, device=images.device).tolist()
        seeds = torch.randint(2**62, (len(images),), generator=rng, device=images.device).tolist()
        for i, (share, which, level) in enumerate(zip(*dice, strict=True)):
            name = names[int(which * len(names))]
            if share < flow.measured:
                y[i], known[i] = self.measure(name, level, images[i], seeds[i])
                kinds[i] = KINDS.index(name)
            elif share < flow.measured + flow.source:
                data[i], _ = self.measure(name, level, images[i], seeds[i])
                kinds[i] = KINDS.index(f"is_{name}")
            elif share < flow.measured + flow.source + flow.clean:
                y[i], known[i], kinds[i] = images[i], 1.0, KINDS.index("clean")
        return Observation(data, y, known, kinds)

    def measure(self, name: str, level: float, image: Any, seed: int) -> tuple[Any, Any]:
        """(y, known) of an image [C, H, W], at the place `level` in [0, 1) of the corruption's ladder."""
        import torch

        from corruptions.base import Key, measure

        ladder = self.ladders[name]
        rung = int(level * len(ladder))
        measured = measure(ladder[rung], image, Key("training", "", name, rung, seed))
        known = measured.operator.known
        return measured.y.to(image), torch.ones_like(image[:1]) if known is None else known.to(image)


def _tensors(config: ModelConfig, images: int) -> tuple[Any, Any]:
    """(training, held-out) data sets of (uint8 images, targets)."""
    import torch
    from torch.utils.data import TensorDataset

    from methods.backbones.attributes import attributes
    from methods.backbones.captions import VOCABULARIES

    data = compose_config([f"dataset={config.dataset}"], sweep_required=False).dataset[str(config.dataset)]
    dataset = load(data.class_path, "dataset")
    sizes = {split: len(dataset(split=split)) for split in ("train", "test")}
    if images > sizes["train"]:
        raise UserError(f"train.images={images}: {config.dataset} has {sizes['train']} training images")
    held_out = range(max(0, sizes["test"] - HELD_OUT), sizes["test"])

    def tensors(split: str, indices: range) -> TensorDataset:
        pictures, captions = pool(data.class_path, split, indices)
        if config.kind == "judge":
            targets = torch.stack([torch.cat(list(attributes(caption).values())) for caption in captions])
        elif config.vocabulary in VOCABULARIES:
            targets = torch.tensor([VOCABULARIES[config.vocabulary].tokens(caption) for caption in captions])
        else:
            raise unknown("vocabulary", str(config.vocabulary), VOCABULARIES)
        return TensorDataset(torch.from_numpy(pictures), targets)

    return tensors("train", range(images)), tensors("test", held_out)


@contextlib.contextmanager
def mirrored(name: str, config: ModelConfig, out: Path, tracker: TrackerConfig) -> Iterator[None]:
    """The curves of a training, mirrored to W&B by a process of its own while they grow."""
    assert config.train is not None
    folder = out / name
    folder.mkdir(exist_ok=True)
    recipe = {"dataset": config.dataset, **config.train.model_dump(mode="json")}
    (folder / RECIPE_FILE).write_text(json.dumps(recipe, indent=1))
    companion = Companion(out, name, tracker, training=True) if tracker.kind == "wandb" and _leads() else None
    try:
        yield
    except BaseException:
        if companion:
            companion.stop()
        raise
    if companion:
        print(companion.close())


def _leads() -> bool:
    """Whether this process is the first of its job."""
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def train(arguments: list[str]) -> None:
    """Train in this process, and write the card unless another process of the job does."""
    card_only = "card=only" in arguments
    arguments = [argument for argument in arguments if not argument.startswith("card=")]
    name, config, out, tracker = parse(arguments)
    out.mkdir(parents=True, exist_ok=True)
    if not card_only:
        with mirrored(name, config, out, tracker):
            weights = fit(name, config, out)
        print(f"weights: {weights}")
    if not _leads():
        return
    from bench.cards import write_card

    recipe = [argument for argument in arguments if not argument.startswith(("out=", "launcher"))]
    command = " ".join(["python -m bench.train", *recipe])
    print(f"card: {write_card(name, config, out, command)}")


def main(arguments: list[str]) -> int:
    name, config, out, _ = parse([argument for argument in arguments if not argument.startswith("card=")])
    own = [argument for argument in arguments if argument.startswith(("launcher", "config_dir="))]
    launcher = compose_config(own, sweep_required=False).launcher
    if launcher.kind != "slurm":
        train(arguments)
        return 0
    backend(launcher)
    from bench.distributed import submit

    job = submit(arguments, name, config, out, launcher)
    print(
        f"submitted job {job}, {max(launcher.gpus, launcher.tasks)} processes; logs in {out.resolve() / name / 'logs'}"
    )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    run_command(main)
