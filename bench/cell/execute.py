"""Computation of one cell: cases -> method -> rows, with a Lightning Trainer. `bench.cell.guard` calls it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from bench import provenance
from bench.cell.memory import PeakMemory
from bench.cell.models import build_denoiser, build_grid
from bench.cell.posing import Cases, Posed, pose
from bench.cell.rows import Finished, Partial, Row
from bench.errors import UserError
from bench.spec.cells import Cell, weights_sha256
from bench.spec.config import ModelConfig
from bench.spec.datasets import require_content
from bench.spec.registry import check_options, load
from methods.base import Method, Problem, Solution, in_latents
from methods.denoiser import Denoiser

Keep = Callable[[Finished], None]
"""A function that is called after each batch. It may end the process."""


class Executed(NamedTuple):
    """The results of a cell, as the store keeps them."""

    rows: list[Row]
    record: dict[str, Any]
    samples: dict[str, np.ndarray]
    features: dict[str, np.ndarray]


@lru_cache(maxsize=2)
def _denoiser(model: str, sha256: str | None, device: str) -> Denoiser:
    """Return the denoiser of a model, loaded once per process.

    Raises UserError if its weights are not those of the cell: a job may have waited for days.
    """
    config = ModelConfig.model_validate_json(model)
    denoiser = build_denoiser(config, device=device)
    found = weights_sha256(config)  # after loading: a change before or during the load is found
    if found != sha256:
        raise UserError(
            f"the weights {config.pretrained or config.weights} have changed since this cell was planned "
            f"({_short(sha256)} then, {_short(found)} now): restore the old weights, or run the sweep again"
        )
    return denoiser


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:12]


def model_config(cell: Cell) -> ModelConfig:
    return ModelConfig.model_validate(
        {k: v for k, v in cell.spec["model"].items() if k not in ("name", "weights_sha256")}
    )


def build_method(cell: Cell, device: str = "cpu") -> Method:
    """Return the cell's method with its denoiser and its grid."""
    config = model_config(cell)
    options = check_options(cell.spec["method"]["class"], "method", cell.spec["method"]["options"], "method")
    denoiser = _denoiser(config.model_dump_json(by_alias=True), cell.spec["model"]["weights_sha256"], device)
    return load(cell.spec["method"]["class"], "method")(denoiser, options, build_grid(config, options.steps))


class _Watch(pl.Callback):
    """Makes the rows of each batch, and measures the peak memory of the method only."""

    def __init__(self, cell: Cell, finished: Finished, memory: PeakMemory, keep: Keep | None) -> None:
        self.cell, self.finished, self.memory, self.keep = cell, finished, memory, keep
        self.facts: dict[str, float] = {}

    def on_predict_start(self, trainer: pl.Trainer, method: Method) -> None:  # type: ignore[override]
        self.facts = method.facts()

    def on_predict_batch_start(  # type: ignore[override]
        self, trainer: pl.Trainer, method: Method, problem: Posed, index: int, loader: int = 0
    ) -> None:
        _warm_up(method, problem)
        self.memory.start()

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, method: Method, solution: Solution, problem: Posed, index: int, loader: int = 0
    ) -> None:
        self.memory.stop()  # before the metrics run: their memory is not the method's
        columns = method.columns(problem, solution)
        self.finished.add(self.cell, problem, solution, self.facts, columns)
        if self.keep is not None:
            self.keep(self.finished)


_WARM: set[tuple[object, ...]] = set()


@torch.no_grad()
def _warm_up(method: Method, problem: Problem) -> None:
    """Run one untimed evaluation per process for each model and batch shape, so that torch selects its kernels."""
    denoiser, cond = method.denoiser, problem.target or problem.source
    size = (id(denoiser.backbone), tuple(problem.image.shape), cond.evaluations)
    if size not in _WARM:
        image = in_latents(problem, denoiser).image if denoiser.latent else problem.image
        denoiser.output(image.to(method.latent_dtype), method.grid[method.grid.steps].time, cond)
        _WARM.add(size)


def execute(
    cell: Cell, batch_size: int, samples: int, device: str = "cpu", earlier: Partial = ([], {}),
    keep: Keep | None = None,
) -> Executed:  # fmt: skip
    """Run one cell, without the first images that an `earlier` attempt has finished."""
    started = provenance.now()
    finished, memory = Finished(samples, earlier), PeakMemory(device)
    cases = Cases(cell, start=len(finished.rows))
    require_content(cell.spec, cases.dataset, cases.chosen)
    method = build_method(cell, device)
    loader = DataLoader(cases, batch_size=batch_size, collate_fn=partial(pose, cell, method))
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            logger=False,
            callbacks=[_Watch(cell, finished, memory, keep)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            inference_mode=False,  # a tensor made in inference mode can never be part of a backward pass
            plugins=[LightningEnvironment()],  # submitit owns the scheduler's signals, not Lightning
        )
        trainer.predict(method, loader, return_predictions=False)
    require_content(cell.spec, cases.dataset, cases.chosen)  # again: the files may have changed in the meantime
    for row in finished.rows:
        row["peak_mib"] = memory.mib
    record = {
        "config": cell.spec,
        "axes": cell.axes,
        "provenance": {
            **provenance.static(),
            "device": device,
            "batch_size": batch_size,
            "started": started,
            "finished": provenance.now(),
            "weights": {_weights(cell.spec["model"]): cell.spec["model"]["weights_sha256"]},
        },
    }
    return Executed(finished.rows, record, finished.samples(), finished.features())


def _weights(model: dict[str, Any]) -> str:
    return str(model["backbone"].get("pretrained") or model["weights"])


class quiet_lightning:
    """A context in which a Trainer does not print its banner and its advice."""

    def __enter__(self) -> None:
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")

    def __exit__(self, *exception: object) -> None:
        self._warnings.__exit__(None, None, None)
