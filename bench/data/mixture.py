"""Samples of a small Gaussian mixture with an exact denoiser (`model=gmm`). The theory checks use them.

Images are float32 numpy arrays [3, 8, 8], all but a few values in [0, 1]. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from bench.data.base import EditItem, Item
from methods.backbones.means import COMPONENTS, SHAPE, VARIANCE, mixture_means, tilt


class Mixture:
    """Samples with the caption `src` as a data set (`bench.data.base.Dataset`). Ids are `mixture/SPLIT/INDEX`."""

    shape = SHAPE
    edits: Sequence[str] = ()

    def __init__(self, split: str = "test") -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {split!r}")
        self.split = split
        self.means = mixture_means()

    def __len__(self) -> int:
        return 1_000_000

    def item(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"mixture has {len(self)} images, got index {index}")
        digest = hashlib.blake2b(f"mixture-1|{self.split}|{index}".encode(), digest_size=16).digest()
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        x = self.means[rng.choice(COMPONENTS, p=tilt(1.0))] + VARIANCE**0.5 * rng.standard_normal(self.means.shape[1])
        return Item(f"mixture/{self.split}/{index:06d}", (x / 2 + 0.5).astype(np.float32).reshape(SHAPE), "src")

    def edit(self, index: int, kind: str) -> EditItem | None:
        return None
