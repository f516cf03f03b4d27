"""A store restored from its Weights & Biases mirror: from a server (wandb.Api) or from offline run folders.

The runs of a mirror contain the store's own files. From them the store is restored, and all tables, figures and pages
are built from it as from the original. Each finished cell is fetched only once.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.mirror.records import CELL_FILES, FAILURE_FILE, SWEEP_FILE, Mark, offline_runs, server_runs
from bench.store import Store

Fetch = Callable[[str, Path], bool]
"""Function that copies a run's file of the given name into a folder. It returns False if the run has no such file."""
CONNECTIONS = 8


@dataclass(frozen=True)
class Source:
    """One complete run and the function that fetches its files."""

    mark: Mark
    fetch: Fetch


def from_files(folder: Path, sweep: str, root: Path) -> Store:
    """Restore the store of a sweep from the run folders in `folder` into `root`. Raises UserError."""

    def fetch(files: Path) -> Fetch:
        return lambda name, to: (files / name).is_file() and bool(shutil.copyfile(files / name, to / name))

    found = [Source(mark, fetch(files)) for mark, files in offline_runs(folder) if mark.sweep == sweep]
    return _assemble(found, sweep, root, f"no complete run folder of sweep {sweep!r} in {folder}")


def from_server(project: str, entity: str | None, sweep: str, root: Path) -> Store:
    """Restore the store of a sweep from a W&B server into `root`. Raises UserError, also if there is no server."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    def fetch(run: Any) -> Fetch:
        def get(name: str, to: Path) -> bool:
            files = list(run.files(names=[name]))
            for file in files:
                file.download(root=str(to), replace=True).close()
            return bool(files)

        return get

    try:
        api = wandb.Api(timeout=30)
        path = f"{entity or api.default_entity}/{project}"
        found = [Source(mark, fetch(run)) for mark, run in server_runs(api, path, sweep) if mark is not None]
        return _assemble(found, sweep, root, f"no complete run of sweep {sweep!r} in {path}")
    except (wandb.Error, OSError) as error:  # requests' errors are OSErrors
        text = str(error).strip().splitlines()
        raise UserError(f"W&B cannot be read: {text[0] if text else type(error).__name__}") from error


def _assemble(found: Iterable[Source], sweep: str, root: Path, absent: str) -> Store:
    """Fetch the runs into `root`. A later run replaces an earlier one with the same id, and a result its failures."""
    latest = {source.mark.run_id: source for source in found}
    shutil.rmtree(root / "failures", ignore_errors=True)
    overview = [source for source in latest.values() if source.mark.kind == "sweep"]
    if not overview:
        raise UserError(absent)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda source: _place(source, root), latest.values()))
    store = Store(root)
    held = {source.mark.record for source in latest.values() if source.mark.kind == "cell"}
    for cell_id in {cell["id"] for cell in store.manifest(sweep)["cells"]} & store.done() - held:
        shutil.rmtree(root / "cells" / cell_id)  # it was fetched before, from another mirror
    return store


def _place(source: Source, root: Path) -> None:
    """Copy one run's files to their places in the store, completely or not at all."""
    mark = source.mark
    wanted = {"cell": CELL_FILES, "failure": (FAILURE_FILE,), "sweep": (SWEEP_FILE,)}[mark.kind]
    final = {
        "cell": root / "cells" / mark.record,
        "failure": root / "failures" / f"{mark.record}.json",
        "sweep": root / "sweeps" / f"{mark.sweep}.json",
    }[mark.kind]
    stamp = root / "marks" / mark.run_id
    if final.exists() and stamp.is_file() and stamp.read_text() == mark.digest:
        return
    temporary = root / f".{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        there = [name for name in wanted if source.fetch(name, temporary)]
        missing = set(wanted[:2]) - set(there)  # a cell may have kept no images and no features
        if missing:
            raise UserError(f"run {mark.run_id} has no file {', '.join(sorted(missing))}")
        final.parent.mkdir(parents=True, exist_ok=True)
        if mark.kind == "cell":
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
        else:
            os.replace(temporary / wanted[0], final)
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(mark.digest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
