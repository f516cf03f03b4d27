"""Training in this process: the data, the module, the Lightning Trainer, the curves, the card."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.arguments import one_of, own_arguments
from bench.errors import UserError
from bench.mirror.companion import Companion
from bench.mirror.records import HISTORY_FILE, RECIPE_FILE
from bench.spec.compose import compose_config
from bench.spec.config import ModelConfig, TrackerConfig
from bench.spec.registry import check_model, resolve
from bench.training.observer import Observer
from bench.training.pool import tensors
from methods.injective_ode.options import InjectiveODE


def parse(arguments: list[str]) -> tuple[str, ModelConfig, Path, TrackerConfig]:
    """Return the name of the model, its configuration, the output folder and the tracker. Raises UserError."""
    own, overrides = own_arguments(arguments, {"out": "results/train", "card": "true"})
    one_of(own, "card", ("true", "only"))
    names = [argument.partition("=")[2] for argument in overrides if argument.startswith("model=")]
    if len(names) != 1:
        raise UserError("name one model to train: model=NAME")
    overrides = [f"model.{names[0]}.{o}" if o.startswith("train.") else o for o in overrides]
    config = compose_config(overrides, sweep_required=False, own=(*own, "train"))
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
            else f"model.{names[0]}.train.flow: {model.class_path} does not use it; only the injective ODE does"
        )
    return names[0], model, out, config.tracker


def fit(name: str, config: ModelConfig, out: Path) -> Path:
    """Train, or continue a training from its last checkpoint. Returns the file of the weights."""
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader

    from bench.cell.interrupts import Interrupts
    from bench.training.distributed import StopTogether, placement
    from bench.training.history import History
    from methods.training import Optimisation

    recipe = config.train
    assert recipe is not None and config.dataset is not None
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    pl.seed_everything(recipe.seed, verbose=False)
    module = _module(config, Optimisation(recipe.steps, recipe.learning_rate, recipe.weight_decay, recipe.warmup))
    training, held_out = tensors(config, recipe.images)
    module.network.to(memory_format=torch.channels_last)
    if recipe.compile:
        # Training calls `describe` and `velocity` of the injective ODE, and never `forward`.
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
        callbacks=[  # a checkpoint is written after each held-out loss, so it has the whole curve
            EMAWeightAveraging(decay=recipe.ema, use_buffers=False),  # power iterations must not be averaged
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
    from bench.cell.models import build_backbone
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


@contextlib.contextmanager
def mirrored(name: str, config: ModelConfig, out: Path, tracker: TrackerConfig) -> Iterator[None]:
    """Mirror the curves of a training to W&B, in a separate process, while the block trains."""
    assert config.train is not None
    folder = out / name
    folder.mkdir(exist_ok=True)
    recipe = {"dataset": config.dataset, **config.train.model_dump(mode="json")}
    (folder / RECIPE_FILE).write_text(json.dumps(recipe, indent=1))
    companion = Companion(out, name, tracker, training=True) if tracker.kind == "wandb" and _is_first() else None
    try:
        yield
    except BaseException:
        if companion:
            companion.stop()
        raise
    if companion:
        print(companion.close())


def _is_first() -> bool:
    """Return True if this process is the first of its job."""
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def train(arguments: list[str]) -> None:
    """Train in this process. The first process of a job also writes the card."""
    card_only = "card=only" in arguments
    name, config, out, tracker = parse(arguments)
    out.mkdir(parents=True, exist_ok=True)
    if not card_only:
        with mirrored(name, config, out, tracker):
            weights = fit(name, config, out)
        print(f"weights: {weights}")
    if not _is_first():
        return
    from bench.training.cards import write_card

    recipe = [argument for argument in arguments if not argument.startswith(("out=", "card=", "launcher"))]
    command = " ".join(["python -m bench.train", *recipe])
    print(f"card: {write_card(name, config, out, command)}")
