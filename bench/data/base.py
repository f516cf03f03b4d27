"""What every data set gives: numbered items with stable ids. No torch.

Images are float32 numpy arrays [C, H, W] in [0, 1]. A class is built as `Class(split=..., **options)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class EditItem:
    """An edit of an item: what is asked, the exact answer where one is known, and where it may change (bool [H, W])."""

    caption: str
    truth: np.ndarray | None
    mask: np.ndarray


@dataclass(frozen=True)
class Item:
    """One image. `id` never changes, whatever else is in the data set; the caption may be empty."""

    id: str
    image: np.ndarray
    caption: str


class Dataset(Protocol):
    """`shape` is (C, H, W) of every image; `edits` are the kinds that `edit` knows.

    A data set of files that may change also has `content(index) -> str`: a hash of all that an item and its edits are
    made of, id and captions included. It is part of a cell's id, and a job refuses files that have changed since. With
    it, options that only say where the files are can stay out of the id: the class names them in `where`. Optional
    `notes` are lines that the plan shows, such as what is left out.
    """

    shape: tuple[int, int, int]
    edits: Sequence[str]

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Item number index. Raises IndexError beyond the end."""
        ...

    def edit(self, index: int, kind: str) -> EditItem | None:
        """The edit of an item, or None where it does not admit one."""
        ...
