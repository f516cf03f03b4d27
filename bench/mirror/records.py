"""What a mirrored run holds, and which runs a mirror has: offline in a folder, or on a server.

    project   the suite          group   the sweep          job type   the task, `sweep` or `train`
    a cell    rows.parquet, cell.json, samples.npz, features.npz as files; axes and options as config; means as
              summary; images; the steps of an adaptive solver as history
    a failed cell               failure.json; its run has failed too, with exit code 1
    the sweep                   sweep.json (the manifest); tables, figures and the page of its report
    a training                  history.jsonl, and its curves as history; the group is `training`

The files are the store's own, so that tables built from a mirror are those of the store. A run is complete when its
mark says of what it is the mirror: beside the log of an offline run (written after it has ended), and in the summary.
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
"""States of a run that has ended by itself; a failed cell's run fails."""


@dataclass(frozen=True)
class Mark:
    """Of what a run is the mirror; `digest` changes with the content."""

    sweep: str
    kind: str
    record: str
    digest: str

    @property
    def run_id(self) -> str:
        """The same for the same record, whoever mirrors it and whenever."""
        text = re.sub(r"[^\w.-]", "_", f"{self.sweep}-{self.record}" if self.kind != "sweep" else self.sweep)
        if len(text) <= 110:
            return text
        return f"{text[:100]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def digest(*contents: bytes) -> str:
    """Of a run's content."""
    total = hashlib.blake2b(digest_size=8)
    for content in contents:
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def curves(file: Path) -> dict[int, dict[str, float]]:
    """Update -> what was logged at it. A training that went back to a checkpoint has logged some twice: the last
    counts."""
    found: dict[int, dict[str, float]] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            content = json.loads(line)
        except ValueError:  # the line that a killed run was at
            continue
        found[content["step"]] = found.get(content["step"], {}) | {k: v for k, v in content.items() if k != "step"}
    return dict(sorted(found.items()))


def offline_runs(folder: Path) -> Iterator[tuple[Mark, Path]]:
    """(mark, folder of its files) of every complete offline run under `folder`, the oldest first."""
    found = []
    for path in folder.glob(f"offline-run-*/{MARK}.json"):
        try:
            content = json.loads(path.read_text())
            found.append((content["time"], str(path), Mark(**content[MARK])))
        except (OSError, ValueError, KeyError, TypeError):  # one that is being written, or is not ours
            continue
    for _, place, mark in sorted(found, key=lambda entry: entry[:2]):
        yield mark, Path(place).parent / "files"


def mark_of(run: Any) -> Mark | None:
    """The mark of a run of wandb.Api: what it is of stands in its config, the digest in its summary."""
    digest, config = run.summary.get(MARK), run.config
    if not isinstance(digest, str) or not all(isinstance(config.get(key), str) for key in ("sweep", "kind", "record")):
        return None
    return Mark(config["sweep"], config["kind"], config["record"], digest)


def server_runs(api: Any, path: str, sweep: str) -> Iterator[tuple[Mark | None, Any]]:
    """(mark if complete, run) of a sweep's runs on a server; none where there is no such project.

    `api` is a wandb.Api, `path` ENTITY/PROJECT.
    """
    try:
        for run in api.runs(path, filters={"group": sweep}, per_page=200, lazy=False):
            yield (mark_of(run) if run.state in COMPLETE else None), run
    except ValueError as error:
        if "could not find project" not in str(error).lower():
            raise
