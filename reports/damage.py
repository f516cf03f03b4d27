"""Damaged cells: files that a crash of the machine, a full disk or a bad copy has left incomplete.

A report shows these cells as damaged and continues. It names each cell with the damaged file, and uses none of its
numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bench.store import Store

if TYPE_CHECKING:
    import numpy as np


class DamagedFile(Exception):
    """Raised when a file of a cell cannot be read."""

    def __init__(self, cell: str, reason: str) -> None:
        super().__init__(f"{cell}: {reason}")
        self.cell, self.reason = cell, reason


def unreadable_rows(store: Store, cells: Iterable[str]) -> dict[str, str]:
    """Return the cells whose rows cannot be read, although their footer can: cell -> reason."""
    found = {}
    for i in cells:
        try:
            rows = store.rows([i])
        except Exception as error:  # reading garbage may raise anything
            found[i] = f"rows.parquet cannot be read ({type(error).__name__})"
        else:
            if set(rows["cell_id"]) != {i}:
                found[i] = "rows.parquet holds the rows of another cell"
    return found


NEEDED = {"samples": {"truth", "output"}, "features": set[str]()}


def arrays(store: Store, kind: str, cell: str) -> Mapping[str, np.ndarray]:
    """Return a cell's samples or features; empty if it has none. Raises DamagedFile if they cannot be read."""
    try:
        found = store.samples(cell) if kind == "samples" else store.features(cell)
    except Exception as error:  # reading garbage may raise anything
        raise DamagedFile(cell, f"{kind}.npz cannot be read ({type(error).__name__})") from error
    if found and ("ids" not in found or (len(found["ids"]) and not NEEDED[kind] <= found.keys())):
        raise DamagedFile(cell, f"{kind}.npz lacks arrays")
    return found
