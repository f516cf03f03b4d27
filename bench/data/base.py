"""The interface of data sets: numbered items with stable ids. No torch.

Images are float32 numpy arrays [C, H, W] in [0, 1]. A data set is made by `Class(split=..., **options)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class EditItem:
    """An edit of an item: the target caption, the exact answer (None if not known) and the mask.

    The mask, bool [H, W], marks the pixels that may change.
    """

    caption: str
    truth: np.ndarray | None
    mask: np.ndarray


@dataclass(frozen=True)
class Item:
    """One image. Its `id` does not depend on the rest of the data set. The caption may be empty."""

    id: str
    image: np.ndarray
    caption: str


class Dataset(Protocol):
    """A data set. `shape` is (C, H, W) of every image; `edits` are the kinds of edit that `edit` accepts.

    A data set of files that may change also has `content(index) -> str`: a hash of everything that an item and its
    edits are made of, with id and captions. It is part of a cell's id, and a job refuses files that have changed since
    the plan. Then options that only give the place of the files need not be part of the id: the class names them in
    `where`. Optional `notes` are lines that the plan shows, such as the files that are left out.
    """

    shape: tuple[int, int, int]
    edits: Sequence[str]

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Return item number `index`. Raises IndexError beyond the end."""
        ...

    def edit(self, index: int, kind: str) -> EditItem | None:
        """Return the edit of an item, or None if this kind of edit is not possible for it."""
        ...
