"""The content of a mirrored run, and the runs that a mirror has: offline in a folder, or on a server.

    project   the suite          group   the sweep          job type   the task, `sweep` or `train`
    a cell         files rows.parquet, cell.json, samples.npz, features.npz; axes and options as config; means as
                   summary; images; the steps of an adaptive solver as history
    a failed cell  failure.json; its run has failed too, with exit code 1
    the sweep      sweep.json (the manifest); tables, figures and the page of its report
    a training     history.jsonl, and its curves as history; the group is `training`

The files are the same as in the store, so tables from a mirror equal the tables from the store. A run is complete when
it has a mark. The mark stands beside the log of an offline run (written after the run has ended), and in the summary.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MARK = "mirror"
CELL_FILES = ("rows.parquet", "cell.json", "samples.npz", "features.npz")
FAILURE_FILE = "failure.json"
SWEEP_FILE = "sweep.json"
TRAINING = "training"
HISTORY_FILE = "history.jsonl"
RECIPE_FILE = "recipe.json"
COMPLETE = ("finished", "failed")
"""States of a run that has ended by itself. The run of a failed cell has the state `failed`."""


@dataclass(frozen=True)
class Mark:
    """The identity of a mirrored run: sweep, kind, record, and a digest that changes with the content."""

    sweep: str
    kind: str
    record: str
    digest: str

    @property
    def run_id(self) -> str:
        """The id of the run in W&B. One record always has the same id."""
        text = re.sub(r"[^\w.-]", "_", f"{self.sweep}-{self.record}" if self.kind != "sweep" else self.sweep)
        if len(text) <= 110:
            return text
        return f"{text[:100]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def digest(*contents: bytes) -> str:
    """Return the digest of the content of a run."""
    total = hashlib.blake2b(digest_size=8)
    for content in contents:
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def curves(file: Path) -> dict[int, dict[str, float]]:
    """Return update -> logged values. A training that went back to a checkpoint has logged some updates twice: the last
    value counts."""
    found: dict[int, dict[str, float]] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            content = json.loads(line)
        except ValueError:  # a line that a killed run did not finish
            continue
        found[content["step"]] = found.get(content["step"], {}) | {k: v for k, v in content.items() if k != "step"}
    return dict(sorted(found.items()))


def offline_runs(folder: Path) -> Iterator[tuple[Mark, Path]]:
    """Yield (mark, folder of the files) of each complete offline run under `folder`, the oldest first."""
    found = []
    for path in folder.glob(f"offline-run-*/{MARK}.json"):
        try:
            content = json.loads(path.read_text())
            found.append((content["time"], str(path), Mark(**content[MARK])))
        except (OSError, ValueError, KeyError, TypeError):  # still being written, or the file of another program
            continue
    for _, place, mark in sorted(found, key=lambda entry: entry[:2]):
        yield mark, Path(place).parent / "files"


def mark_of(run: Any) -> Mark | None:
    """Return the mark of a run of wandb.Api, or None. The config holds sweep, kind and record; the summary the
    digest."""
    digest, config = run.summary.get(MARK), run.config
    if not isinstance(digest, str) or not all(isinstance(config.get(key), str) for key in ("sweep", "kind", "record")):
        return None
    return Mark(config["sweep"], config["kind"], config["record"], digest)


def server_runs(api: Any, path: str, sweep: str) -> Iterator[tuple[Mark | None, Any]]:
    """Yield (mark, run) of the runs of a sweep on a server; the mark is None if the run is incomplete.

    Yields nothing if there is no such project. `api` is a wandb.Api, `path` ENTITY/PROJECT.
    """
    try:
        for run in api.runs(path, filters={"group": sweep}, per_page=200, lazy=False):
            yield (mark_of(run) if run.state in COMPLETE else None), run
    except ValueError as error:
        if "could not find project" not in str(error).lower():
            raise
