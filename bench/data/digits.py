"""The UCI handwritten digits in scikit-learn (Alpaydin & Kaynak 1998): real images of 8x8, padded to 16x16.

Every fifth image of the fixed order is held out. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from bench.data.base import EditItem, Item

SIZE = 16


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return all 1,797 images [N, 1, 16, 16] and their labels [N]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.pad(data.images.astype(np.float32) / 16, ((0, 0), (4, 4), (4, 4)))[:, None], data.target


class Digits:
    """The digits of a split (`bench.data.base.Dataset`). Ids are `digits/POSITION` in the original order."""

    shape = (1, SIZE, SIZE)
    edits: Sequence[str] = ()

    def __init__(self, split: str = "test") -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {split!r}")
        position = np.arange(1797)
        self.positions = position[(position % 5 == 4) == (split == "test")]

    def __len__(self) -> int:
        return len(self.positions)

    def item(self, index: int) -> Item:
        images, labels = _load()
        position = int(self.positions[index])
        return Item(f"digits/{position:04d}", images[position], f"the digit {labels[position]}")

    def edit(self, index: int, kind: str) -> EditItem | None:
        return None
