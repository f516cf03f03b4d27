"""Damaged cells: what a crash of the machine, a full disk or a bad copy leaves under the name of a finished cell.

A report shows them as damaged and goes on: each is named with the file at fault, and none of its numbers are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bench.store import Store

if TYPE_CHECKING:
    import numpy as np


class Torn(Exception):
    """A file of a cell that turns out to be damaged while it is read."""

    def __init__(self, cell: str, reason: str) -> None:
        super().__init__(f"{cell}: {reason}")
        self.cell, self.reason = cell, reason


def torn_rows(store: Store, cells: Iterable[str]) -> dict[str, str]:
    """Cells whose rows cannot be read, though their footer can."""
    found = {}
    for i in cells:
        try:
            rows = store.rows([i])
        except Exception as error:  # garbage may raise anything
            found[i] = f"rows.parquet cannot be read ({type(error).__name__})"
        else:
            if set(rows["cell_id"]) != {i}:
                found[i] = "rows.parquet holds the rows of another cell"
    return found


NEEDED = {"samples": {"truth", "output"}, "features": set[str]()}


def arrays(store: Store, kind: str, cell: str) -> Mapping[str, np.ndarray]:
    """A cell's samples or features, empty where it has none. Raises Torn if they cannot be read."""
    try:
        found = store.samples(cell) if kind == "samples" else store.features(cell)
    except Exception as error:  # garbage may raise anything
        raise Torn(cell, f"{kind}.npz cannot be read ({type(error).__name__})") from error
    if found and ("ids" not in found or (len(found["ids"]) and not NEEDED[kind] <= found.keys())):
        raise Torn(cell, f"{kind}.npz lacks arrays")
    return found
