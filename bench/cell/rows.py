"""The rows of a cell, one row per image, and the features and sample images that the store keeps with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cell.posing import Case, Posed
from bench.columns import OF_INPUT
from bench.metrics.latent import normal_distance
from bench.metrics.scoring import score
from bench.spec import metrics
from bench.spec.cells import Cell
from methods.base import Latent, Solution

Row = dict[str, Any]
Columns = Mapping[str, Sequence[Any]]
Partial = tuple[list[Row], dict[str, np.ndarray]]
"""The rows of a cell's first images and the arrays of `Finished.unfinished`, as the store keeps them."""


def rows_of(cell: Cell, problem: Posed, solution: Solution, facts: Mapping[str, float], own: Columns) -> list[Row]:
    """Return one row per image of the batch.

    The method adds `facts`, which are the same for all images, and `own`, columns with one value per image.
    """
    output = _unit(solution.image)
    same = dict(cell.axes)
    columns = {
        "image_id": [case.item.id for case in problem.cases],
        **_scores(tuple(cell.spec["metrics"]), problem, output),
        "outcome": ["ok" if bool(image.isfinite().all()) else "numerical" for image in output],
        **(_latent_columns(solution.latent) if solution.latent is not None else {}),
        "nfe": evaluations(solution, len(problem.cases)),
        **own,
        **_optional(solution),
        **_given_columns(problem.cases),
    }
    same |= {"nfe_grad": solution.cost.nfe_grad, "seconds": solution.cost.seconds, **facts}
    if solution.latent is not None:
        same |= {"state_bytes": solution.latent.state_bytes, "walked": solution.walked}
    rows = zip(*columns.values(), strict=True)
    return [{"cell_id": cell.id, **same, **dict(zip(columns, row, strict=True))} for row in rows]


def _scores(names: tuple[str, ...], problem: Posed, output: Tensor) -> dict[str, Sequence[Any]]:
    """Return the metrics of the outputs and, for a measurement or an edit, some metrics of the inputs."""
    given = _given(problem)
    values: dict[str, Sequence[Any]] = dict(score(metrics.scores(names), problem.batch(output, given)))
    if problem.edits or problem.measurement is not None:
        before = score(metrics.scores(names, of_input=True), problem.batch(given, given))
        values |= {f"{OF_INPUT}{name}": column for name, column in before.items()}
    return values


def _latent_columns(latent: Latent) -> dict[str, Sequence[Any]]:
    return {
        "latent_std": _finite(latent.std),
        "latent_kurtosis": _finite(latent.kurtosis),
        "latent_w2": _finite(normal_distance(latent.x_T)),
    }


def _optional(solution: Solution) -> dict[str, Sequence[Any]]:
    """Return the columns that only some solutions have: the latent error of a round trip, and adaptive steps."""
    columns: dict[str, Sequence[Any]] = {}
    if solution.error is not None:
        columns["latent_mse"] = _finite(solution.error)
    if solution.steps is not None:
        columns["solver_steps"] = [[asdict(step) for step in steps] for steps in solution.steps]
    return columns


def _given_columns(cases: Sequence[Case]) -> dict[str, Sequence[Any]]:
    """Return the hash of each input, so that tables compare equal inputs only, and facts about measurements."""
    hashes = [case.sha256 for case in cases]
    columns: dict[str, Sequence[Any]] = {} if None in hashes else {"y_sha256": hashes}
    if measured := [case.measurement for case in cases if case.measurement is not None]:
        columns |= {
            "sigma01": [m.sigma01 for m in measured],
            "snr_db": [m.snr_db for m in measured],
            "details": [json.dumps(m.details) for m in measured],
        }
    return columns


def evaluations(solution: Solution, images: int) -> list[int]:
    """Return the network evaluations of each image.

    The cost of a batch is the cost of its most expensive image. With an adaptive solver, the numbers of the other
    images follow from their steps.
    """
    if solution.steps is None:
        return [solution.cost.nfe] * images
    own = [sum(step.evaluations for step in steps) for steps in solution.steps]
    return [solution.cost.nfe - max(own) + count for count in own]


class Finished:
    """Collects rows, features and sample images of a cell's finished images."""

    def __init__(self, samples: int, earlier: Partial = ([], {})) -> None:
        """`samples`: number of sample images to keep. `earlier`: rows and `unfinished` arrays of an earlier attempt."""
        self.wanted = samples
        rows, arrays = earlier
        self.rows = list(rows)
        self.images: dict[str, list[np.ndarray]] = {"truth": [], "input": [], "output": []}
        self._features: dict[str, list[np.ndarray]] = {}
        for name, array in arrays.items():
            if name.startswith("features_"):
                self._features[name.removeprefix("features_")] = [array]
            else:
                self.images[name] = list(array)

    def add(self, cell: Cell, problem: Posed, solution: Solution, facts: Mapping[str, float], own: Columns) -> None:
        """Add the rows of a batch (see `rows_of`), its features and its sample images."""
        self.rows += rows_of(cell, problem, solution, facts, own)
        shown = {"truth": problem.truth, "input": _given(problem), "output": _unit(solution.image)}
        for name in metrics.extractors(tuple(cell.spec["metrics"])):
            from bench.metrics.features import features  # torch-fidelity is slow to import

            for role in ("output", "truth"):
                self._features.setdefault(f"{name}_{role}", []).append(features(name, shown[role]))
        for role, images in shown.items():
            room = max(0, self.wanted - len(self.images[role]))
            self.images[role] += [_bytes(image) for image in images[:room]]

    def features(self) -> dict[str, np.ndarray]:
        """Return ids and, for every extractor, the features of outputs and of truths: float32 [n, d]."""
        if not self._features:
            return {}
        joined = {name: np.concatenate(parts) for name, parts in self._features.items()}
        return {"ids": self._ids(len(self.rows)), **joined}

    def samples(self) -> dict[str, np.ndarray]:
        """Return ids [k], and truth, input and output as uint8 [k, H, W, C]."""
        return {"ids": self._ids(len(self.images["truth"])), **self._stacked()}

    def unfinished(self) -> dict[str, np.ndarray]:
        """Return the arrays that a later attempt needs, besides the rows, to continue."""
        features = {f"features_{name}": np.concatenate(parts) for name, parts in self._features.items()}
        return {**self._stacked(), **features}

    def _stacked(self) -> dict[str, np.ndarray]:
        return {name: np.stack(images) for name, images in self.images.items() if images}

    def _ids(self, count: int) -> np.ndarray:
        return np.array([row["image_id"] for row in self.rows[:count]])


def _given(problem: Posed) -> Tensor:
    """Return a method's input in [0, 1]: the measurement, or the image if there is no measurement."""
    return _unit(problem.measurement.y if problem.measurement is not None else problem.image)


def _unit(x: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1], without clipping."""
    return x.detach().float().cpu() / 2 + 0.5


def _bytes(image: Tensor) -> np.ndarray:
    return (image.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _finite(column: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in column.tolist()]
