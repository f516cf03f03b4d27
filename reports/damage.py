"""Damaged cells: files that a crash of the machine, a full disk or a bad copy has left incomplete.

A report shows these cells as damaged and continues. It names each cell with the damaged file, and uses none of its
numbers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.store import Store

if TYPE_CHECKING:
    import numpy as np


class DamagedFile(Exception):
    """Raised when a file of a cell cannot be read."""

    def __init__(self, cell: str, reason: str) -> None:
        super().__init__(f"{cell}: {reason}")
        self.cell, self.reason = cell, reason


def manifest_of(store: Store, sweep: str) -> dict[str, Any]:
    """Return a sweep's manifest. Raises UserError if it is damaged; the next run of the sweep writes it again."""
    try:
        found = store.manifest(sweep)
        whole = all(isinstance(cell["id"], str) and "method" in cell["axes"] for cell in found["cells"])
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        file = store.root / "sweeps" / f"{sweep}.json"
        raise UserError(f"{file} cannot be read: it is damaged; run the sweep again (bench.run) to write it again")
    return found


def damaged(store: Store, cells: Iterable[str]) -> dict[str, str]:
    """Return the cells whose result (or failure, if there is no result) exists but cannot be used: cell -> reason.

    Only the list of contents of archives and the footer of rows are read. An incomplete file has lost them.
    """
    done, failed = store.done(), store.failed()
    found = {}
    for i in cells:
        if i in done and (why := _fault(store, i)):
            found[i] = why
        elif i in failed and not _whole(store.failure, i, "class"):
            found[i] = f"failures/{i}.json cannot be read"
    return found


def _fault(store: Store, cell: str) -> str:
    """Return the fault of the first missing or damaged file of a result, or "" if there is none."""
    folder = store.root / "cells" / cell
    for name in ("rows.parquet", "cell.json"):
        if not (folder / name).is_file():
            return f"{name} is missing"
    if not _whole(store.record, cell, "id"):
        return "cell.json cannot be read"
    if not _parquet(folder / "rows.parquet"):
        return "rows.parquet cannot be read"
    archives = (folder / name for name in ("samples.npz", "features.npz"))
    return "".join(f"{a.name} cannot be read" for a in archives if a.is_file() and not zipfile.is_zipfile(a))


def _whole(read: Callable[[str], dict[str, Any]], cell: str, key: str) -> bool:
    try:
        found = read(cell)
        return key in found and found.get("id", cell) == cell
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _parquet(file: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {"cell_id", "image_id"} <= set(pq.read_schema(file).names)
    except (OSError, pa.ArrowException):
        return False


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
