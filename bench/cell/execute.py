"""One cell: data -> measurement -> method -> rows, through a Lightning Trainer. `bench.cell.guard` is around it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader

import corruptions.base as corruptions
from bench import provenance
from bench.cell.models import build_denoiser, build_grid
from bench.data.base import EditItem, Item
from bench.errors import UserError
from bench.metrics import extractors
from bench.metrics.edit import Edited, score_edits
from bench.metrics.image import score
from bench.metrics.latent import normal_distance
from bench.spec.cells import Cell, weights_sha256
from bench.spec.config import ModelConfig
from bench.spec.datasets import choose, open_dataset, require_content
from bench.spec.registry import check_options, load
from methods.base import InversionMethod, Problem, Solution, in_latents
from methods.denoiser import Denoiser
from methods.guarantees import check
from methods.inversion.flow_ode import FlowODE
from methods.options import Guarantees


@lru_cache(maxsize=2)
def _denoiser(model: str, sha256: str | None, device: str) -> Denoiser:
    """Weights are loaded once a process and model, not once a cell. Raises UserError if they are not those of the cell:
    a job may have waited for days."""
    config = ModelConfig.model_validate_json(model)
    denoiser = build_denoiser(config, device=device)
    found = weights_sha256(config)  # after loading, so that nothing comes in between
    if found != sha256:
        raise UserError(
            f"the weights {config.pretrained or config.weights} have changed since this cell was planned "
            f"({_short(sha256)} then, {_short(found)} now): bring those back, or run the sweep again with these"
        )
    return denoiser


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:12]


def model_config(cell: Cell) -> ModelConfig:
    return ModelConfig.model_validate(
        {k: v for k, v in cell.spec["model"].items() if k not in ("name", "weights_sha256")}
    )


def build_method(cell: Cell, device: str = "cpu") -> InversionMethod:
    """The cell's method around its denoiser, on its grid."""
    config = model_config(cell)
    options = check_options(cell.spec["method"]["class"], "method", cell.spec["method"]["options"], "method")
    denoiser = _denoiser(config.model_dump_json(by_alias=True), cell.spec["model"]["weights_sha256"], device)
    return load(cell.spec["method"]["class"], "method")(denoiser, options, build_grid(config, options.steps))


def image_generator(cell: Cell, image_id: str) -> torch.Generator:
    """The generator of one image's noise inside a method: the same whatever the batch, the order or the corruption."""
    key = hashlib.blake2b(f"{image_id}|{cell.spec['seed']}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little"))


class _Problems(torch.utils.data.Dataset[int]):
    """Indices; the collate function makes the batch, so that each image is drawn and measured alone."""

    def __init__(self, indices: range) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> int:
        return self.indices[index]


def _corruption(cell: Cell) -> corruptions.Corruption[Any] | None:
    chosen = cell.spec.get("corruption")
    if chosen is None:
        return None
    options = check_options(chosen["class"], "corruption", chosen["options"], "corruption")
    return load(chosen["class"], "corruption")(options)


def measure(cell: Cell, image_id: str, image: Tensor) -> corruptions.Measurement:
    """The measurement of one image [C, H, W] in [-1, 1]: keyed by what is measured, never by who asks."""
    chosen, corruption = cell.spec["corruption"], _corruption(cell)
    assert corruption is not None
    key = corruptions.Key(cell.spec["dataset"]["name"], image_id, chosen["name"], chosen["severity"], cell.spec["seed"])
    return corruptions.measure(corruption, image, key)


Keep = Callable[["Rows"], None]
Partial = tuple[list[dict[str, Any]], dict[str, np.ndarray]]
"""Rows of a cell's first images, and `Rows.unfinished`, as the store keeps them."""


@dataclass(frozen=True)
class Posed:
    """What a batch of problems was made of: items, and their measurements or edits where the task has them."""

    items: list[Item]
    measurements: list[corruptions.Measurement]
    edits: list[EditItem]

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.items]

    @property
    def truth(self) -> Tensor:
        """What a perfect solution would be, [B, C, H, W] in [0, 1]: the image or its counterfactual, else nan."""
        if not self.edits:
            return _stack(item.image for item in self.items)
        known = zip(self.items, self.edits, strict=True)
        return _stack(np.full_like(i.image, np.nan) if e.truth is None else e.truth for i, e in known)

    def edited(self, output: Tensor) -> Edited:
        """Outputs [B, C, H, W] in [0, 1] beside what was asked."""
        return Edited(
            output,
            _stack(item.image for item in self.items),
            self.truth,
            _stack(edit.mask[None] for edit in self.edits),
            [item.caption for item in self.items],
            [edit.caption for edit in self.edits],
        )


def _stack(arrays: Iterable[np.ndarray]) -> Tensor:
    return torch.stack([torch.from_numpy(array) for array in arrays])


def posed_sha256(item: Item, edit: EditItem) -> str:
    """Of everything that an edit is given and judged by: one changed pixel makes another edit."""
    digest = hashlib.sha256(f"{item.caption}|{edit.caption}".encode())
    for array in (item.image, edit.mask, *([] if edit.truth is None else [edit.truth])):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Rows(pl.Callback):
    """Collects a row an image, its features and the first few images, from what `test_step` returns."""

    def __init__(self, cell: Cell, samples: int, keep: Keep | None = None, device: str = "cpu") -> None:
        """`keep` is called after every batch, and may end the process there."""
        self.cell = cell
        self.keep = keep
        self.wanted = samples
        self.rows: list[dict[str, Any]] = []
        self.images: dict[str, list[np.ndarray]] = {"truth": [], "input": [], "output": []}
        self.posed: list[Posed] = []
        self.facts: dict[str, float] = {}
        self.features: dict[str, list[np.ndarray]] = {}
        self.memory = PeakMemory(device)
        self.walked = 1.0

    def on_test_batch_start(  # type: ignore[override]
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Problem, index: int, loader: int = 0
    ) -> None:
        _warm_up(cast(InversionMethod, module), batch)
        self.memory.start()

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: dict[str, Any], batch: Any, index: int
    ) -> None:
        self.memory.stop()  # before anything is scored: the metrics' memory is not the method's
        problem, solution = outputs["problem"], outputs["solution"]
        self.walked = cast(InversionMethod, module).grid.steps / self.cell.axes["steps"]
        self.facts = self.facts or cast(InversionMethod, module).facts()
        self._score(problem, solution, self.posed[index])
        if (chosen := self.cell.spec.get("guarantee")) is not None:
            checks = check(cast(FlowODE, module), problem, Guarantees.model_validate(chosen))
            for place, row in enumerate(self.rows[-len(problem.image) :]):
                row |= {name: column[place] for name, column in checks.items()}
        if self.keep is not None:
            self.keep(self)

    def _score(self, problem: Problem, solution: Solution, posed: Posed) -> None:
        names = tuple(self.cell.spec["metrics"])
        truth, output = posed.truth, _unit(solution.image)
        values = score(names, output, truth)
        if posed.edits:
            values |= score_edits(names, posed.edited(output))
        given = _unit(problem.measurement.y if problem.measurement is not None else problem.image)
        told = posed.measurements or posed.edits
        before = score(tuple(n for n in names if n in ("psnr", "ssim")), given, truth) if told else {}
        self._keep_features(names, output, truth)
        std, kurtosis = solution.latent.std.tolist(), solution.latent.kurtosis.tolist()
        distance = normal_distance(solution.latent.x_T).tolist()
        axes = {k: v for k, v in self.cell.axes.items() if not k.endswith("_title")}
        error = solution.error.tolist() if solution.error is not None else None
        nfe = _evaluations(solution, len(posed.items))
        for i, item in enumerate(posed.items):
            row = {"cell_id": self.cell.id, "image_id": item.id, **axes}
            row |= {name: column[i] for name, column in values.items()}
            row |= {f"input_{name}": column[i] for name, column in before.items()}
            row |= {
                "outcome": "ok" if bool(output[i].isfinite().all()) else "numerical",
                "latent_std": _finite(std[i]),
                "latent_kurtosis": _finite(kurtosis[i]),
                "latent_w2": _finite(distance[i]),
                "state_bytes": solution.latent.state_bytes,
                "walked": self.walked,
                "nfe": nfe[i],
                "nfe_grad": solution.cost.nfe_grad,
                "seconds": solution.cost.seconds,
                **self.facts,
            }
            if error is not None:
                row["latent_mse"] = _finite(error[i])
            if solution.steps is not None:
                row["solver_steps"] = [asdict(step) for step in solution.steps[i]]
            if posed.measurements:
                m = posed.measurements[i]
                row |= {
                    "y_sha256": m.sha256,
                    "sigma01": m.sigma01,
                    "snr_db": m.snr_db,
                    "details": json.dumps(m.details),
                }
            if posed.edits:
                row["y_sha256"] = posed_sha256(item, posed.edits[i])
            self.rows.append(row)
        for name, images in zip(self.images, (truth, given, output), strict=True):
            room = max(0, self.wanted - len(self.images[name]))
            self.images[name] += [_bytes(image) for image in images[:room]]

    def _keep_features(self, names: tuple[str, ...], output: Tensor, truth: Tensor) -> None:
        for name in extractors(names):
            from bench.metrics.features import features  # torch-fidelity takes its time to import

            for what, images in (("output", output), ("truth", truth)):
                self.features.setdefault(f"{name}_{what}", []).append(features(name, images))

    def _ids(self, count: int) -> np.ndarray:
        return np.array([row["image_id"] for row in self.rows[:count]])

    def set_features(self) -> dict[str, np.ndarray]:
        """ids and, for every extractor, the features of outputs and of truths: float32 [n, d]."""
        if not self.features:
            return {}
        joined = {name: np.concatenate(parts) for name, parts in self.features.items()}
        return {"ids": self._ids(len(self.rows)), **joined}

    def samples(self) -> dict[str, np.ndarray]:
        """ids, truth, input, output: uint8 [k, H, W, C]."""
        stacked = {name: np.stack(images) for name, images in self.images.items() if images}
        return {"ids": self._ids(len(self.images["truth"])), **stacked}

    def unfinished(self) -> dict[str, np.ndarray]:
        """What `restore` needs beside the rows."""
        features = {f"features_{name}": np.concatenate(parts) for name, parts in self.features.items()}
        return {**{name: np.stack(images) for name, images in self.images.items() if images}, **features}

    def restore(self, rows: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        """Go on from what an earlier attempt kept: its rows and its `unfinished` arrays."""
        self.rows = list(rows)
        for name, array in arrays.items():
            if name.startswith("features_"):
                self.features[name.removeprefix("features_")] = [array]
            else:
                self.images[name] = list(array)


_WARM: set[tuple[object, ...]] = set()


@torch.no_grad()
def _warm_up(method: InversionMethod, problem: Problem) -> None:
    """One evaluation outside the clock for each model and size of batch in a process: it picks kernels."""
    denoiser, cond = method.denoiser, problem.target or problem.source
    size = (id(denoiser.backbone), tuple(problem.image.shape), cond.evaluations)
    if size not in _WARM:
        image = in_latents(problem, denoiser).image if denoiser.latent else problem.image
        denoiser.output(image.to(method.latent_dtype), method.grid[method.grid.steps].time, cond)
        _WARM.add(size)


def _evaluations(solution: Solution, images: int) -> list[int]:
    """Of each image. A batch's cost is its costliest image's; the steps of an adaptive solver tell them apart."""
    if solution.steps is None:
        return [solution.cost.nfe] * images
    own = [sum(step.evaluations for step in steps) for steps in solution.steps]
    return [solution.cost.nfe - max(own) + count for count in own]


def _unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], not clipped."""
    return x.detach().float().cpu() / 2 + 0.5


def _bytes(image: Tensor) -> np.ndarray:
    return (image.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def execute(
    cell: Cell, batch_size: int, samples: int, device: str = "cpu", earlier: Partial = ([], {}),
    keep: Keep | None = None,
) -> tuple[list[dict[str, Any]], dict, dict, dict]:  # fmt: skip
    """Run one cell, but for its first images if an `earlier` attempt has finished them. Returns (rows, record, samples,
    features) for the store."""
    started = provenance.now()
    data, kind = cell.spec["dataset"], cell.spec.get("edit")
    dataset = open_dataset(data)
    chosen = choose(dataset, cell.spec["images"], kind)
    require_content(cell.spec, dataset, chosen)
    method = build_method(cell, device)
    collector = Rows(cell, samples, keep, device)
    collector.restore(*earlier)
    images = range(len(collector.rows), cell.spec["images"])

    def batch(places: list[int]) -> Problem:
        items = [dataset.item(chosen[place]) for place in places]
        edits = [dataset.edit(chosen[place], kind) for place in places] if kind else []
        image = _stack(item.image for item in items) * 2 - 1
        measured = (
            [measure(cell, item.id, x) for item, x in zip(items, image, strict=True)] if cell.axes["corruption"] else []
        )
        collector.posed.append(Posed(items, measured, edits))
        condition, guidance = method.denoiser.condition, method.options.guidance
        return Problem(
            task=cell.spec["task"],
            image=image,
            source=condition([item.caption for item in items], guidance),
            generators=[image_generator(cell, item.id) for item in items],
            # A mask tells where an edit may act, so it judges methods and is not told to them.
            target=condition([edit.caption for edit in edits], guidance) if edits else None,
            measurement=corruptions.stack(measured) if measured else None,
        ).to(device)

    loader = DataLoader(_Problems(images), batch_size=batch_size, collate_fn=batch)
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            logger=False,
            callbacks=[collector],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            inference_mode=not (method.needs_grad or cell.spec["task"] == "guarantee"),
            plugins=[LightningEnvironment()],  # submitit owns the scheduler's signals, not Lightning
        )
        trainer.test(method, loader, verbose=False)
    require_content(cell.spec, dataset, chosen)  # again: nothing has come in between
    for row in collector.rows:
        row["peak_mib"] = collector.memory.mib
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
    return collector.rows, record, collector.samples(), collector.set_features()


def _weights(model: dict[str, Any]) -> str:
    return str(model["backbone"].get("pretrained") or model["weights"])


class quiet_lightning:
    """A Trainer a cell would print its banner and its advice sixty times."""

    def __enter__(self) -> None:
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")

    def __exit__(self, *exception: object) -> None:
        self._warnings.__exit__(None, None, None)


class PeakMemory:
    """Peak memory of the dearest of several regions in MiB: allocated on the GPU; on a CPU the growth of the resident
    set (Linux), once the allocator has given back what earlier regions had left it."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.mib: float | None = None
        self._before: int | None = None

    def start(self) -> None:
        """Begin a region."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: a C library without malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak resident set
        self._before = _status_kib("VmRSS")

    def stop(self) -> None:
        """End it."""
        if self.cuda:
            peak: float | None = torch.cuda.max_memory_allocated() / 2**20
        else:
            most = _status_kib("VmHWM")
            peak = (most - self._before) / 1024 if most is not None and self._before is not None else None
        if peak is not None:
            self.mib = max(peak, self.mib or 0.0)


def _status_kib(field: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return None
