"""The problems of a cell: images with their measurement or edit, and batches of them for a method."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import corruptions.base as corruptions
from bench.data.base import EditItem, Item
from bench.metrics.scoring import Batch
from bench.spec.cells import Cell
from bench.spec.datasets import choose, open_dataset
from bench.spec.registry import check_options, load
from methods.base import Method, Problem
from methods.options import Guarantees


@dataclass(frozen=True)
class Case:
    """One image of a cell, with its measurement or edit if the task has one."""

    item: Item
    measurement: corruptions.Measurement | None = None
    edit: EditItem | None = None

    @property
    def truth(self) -> np.ndarray:
        """The ground truth, [C, H, W] in [0, 1]: the image, or for an edit its counterfactual (nan if not known)."""
        if self.edit is None:
            return self.item.image
        return np.full_like(self.item.image, np.nan) if self.edit.truth is None else self.edit.truth

    @property
    def sha256(self) -> str | None:
        """The hash of a method's input; None if the input is only the image."""
        if self.measurement is not None:
            return self.measurement.sha256
        return None if self.edit is None else edit_sha256(self.item, self.edit)


def edit_sha256(item: Item, edit: EditItem) -> str:
    """Return the hash of an edit's input and ground truth. A single changed pixel changes the hash."""
    digest = hashlib.sha256(f"{item.caption}|{edit.caption}".encode())
    for array in (item.image, edit.mask, *([] if edit.truth is None else [edit.truth])):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Posed(Problem):
    """A batch for a method, with the cases that it was made from."""

    cases: Sequence[Case]

    @property
    def truth(self) -> Tensor:
        """The ground truths, [B, C, H, W] in [0, 1]; nan where they are not known."""
        return _stack(case.truth for case in self.cases)

    @property
    def edits(self) -> list[EditItem]:
        """The edit of each image; empty for other tasks."""
        return [case.edit for case in self.cases if case.edit is not None]

    def batch(self, output: Tensor, given: Tensor) -> Batch:
        """Return outputs [B, C, H, W] in [0, 1] as a batch for metrics, with the inputs `given` and the edits."""
        if not self.edits:
            return Batch(output, self.truth, given)
        return Batch(
            output,
            self.truth,
            _stack(case.item.image for case in self.cases),
            _stack(edit.mask[None] for edit in self.edits),
            tuple(case.item.caption for case in self.cases),
            tuple(edit.caption for edit in self.edits),
        )


class Cases(torch.utils.data.Dataset[Case]):
    """The images of a cell from position `start` on. Each image is read and measured on its own."""

    def __init__(self, cell: Cell, start: int = 0) -> None:
        self.cell = cell
        self.kind: str | None = cell.spec.get("edit")
        self.dataset = open_dataset(cell.spec["dataset"])
        self.chosen = choose(self.dataset, cell.spec["images"], self.kind)
        self.indices = self.chosen[start:]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Case:
        index = self.indices[position]
        item = self.dataset.item(index)
        measured = measure(self.cell, item.id, _model_range(item.image)) if self.cell.axes["corruption"] else None
        return Case(item, measured, self.dataset.edit(index, self.kind) if self.kind else None)


def measure(cell: Cell, image_id: str, image: Tensor) -> corruptions.Measurement:
    """Return the measurement of one image [C, H, W] in [-1, 1]. It does not depend on the method."""
    chosen = cell.spec["corruption"]
    options = check_options(chosen["class"], "corruption", chosen["options"], "corruption")
    corruption: corruptions.Corruption[Any] = load(chosen["class"], "corruption")(options)
    key = corruptions.Key(cell.spec["dataset"]["name"], image_id, chosen["name"], chosen["severity"], cell.spec["seed"])
    return corruptions.measure(corruption, image, key)


def image_generator(cell: Cell, image_id: str) -> torch.Generator:
    """Return the generator of a method's noise for one image.

    It depends only on the image's id and the seed, not on the batch, the order or the corruption.
    """
    key = hashlib.blake2b(f"{image_id}|{cell.spec['seed']}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little"))


def pose(cell: Cell, method: Method, cases: Sequence[Case]) -> Posed:
    """Return the cases as one batch for a method."""
    condition, guidance = method.denoiser.condition, method.options.guidance
    targets = [case.edit.caption for case in cases if case.edit is not None]
    measured = [case.measurement for case in cases if case.measurement is not None]
    guarantee = cell.spec.get("guarantee")
    return Posed(
        task=cell.spec["task"],
        image=_stack(case.item.image for case in cases) * 2 - 1,
        source=condition([case.item.caption for case in cases], guidance),
        generators=[image_generator(cell, case.item.id) for case in cases],
        # Methods do not get the mask of an edit, because metrics judge them by it.
        target=condition(targets, guidance) if targets else None,
        measurement=corruptions.stack(measured) if measured else None,
        guarantee=None if guarantee is None else Guarantees.model_validate(guarantee),
        cases=cases,
    )


def _model_range(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image) * 2 - 1


def _stack(arrays: Iterable[np.ndarray]) -> Tensor:
    return torch.stack([torch.from_numpy(array) for array in arrays])
