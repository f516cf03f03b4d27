"""The record of a run: which cells went into which jobs. Other processes read it, also days later. No torch.

ROOT/jobs/RUN/run.json    sweep, kind, machine, cells, jobs (id -> the cells that it has), code
ROOT/jobs/RUN/logs/       the output of the jobs
ROOT/jobs/RUN/stop        if it exists, the workers end after their open cell; it holds the reason
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cluster import slurm
from bench.cluster.claims import machine, started
from bench.files import remove_drafts, stale, write_json

FILE = "run.json"
STOP = "stop"


@dataclass
class Run:
    """One call of `bench.run` that had cells to compute."""

    folder: Path
    sweep: str
    kind: str
    cells: list[str]
    code: str
    created: float = field(default_factory=time.time)
    machine: str = field(default_factory=machine)
    jobs: dict[str, list[int]] = field(default_factory=dict)
    """Job id -> positions in `cells`. The id of a local worker is pid:start time, and it has all positions."""
    gpus: int = 0
    """The number of GPUs per job."""

    def add(self, ids: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        """Note the ids of submitted jobs and the cells of each."""
        place = {cell: position for position, cell in enumerate(self.cells)}
        self.jobs |= {job: [place[cell] for cell in group] for job, group in zip(ids, cells, strict=True)}
        self.write()

    def write(self) -> None:
        content = {name: value for name, value in vars(self).items() if name != "folder"}
        write_json(self.folder / FILE, content)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def live(self, queue: Mapping[str, Any] | None) -> list[str]:
        """Return the ids of jobs that wait or run. `queue` is the answer of squeue; for local workers the processes of
        this machine count instead."""
        if self.kind == "slurm":
            return [job for job in self.jobs if queue is not None and job in queue]
        if self.machine != machine():
            return []
        pairs = ((job, *job.split(":")) for job in self.jobs)
        return [job for job, pid, start in pairs if started(int(pid)) == start]

    def cells_of(self, job: str) -> list[str]:
        return [self.cells[position] for position in self.jobs[job]]


def new_folder(results: Path) -> Path:
    folder = results / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    (folder / "logs").mkdir(parents=True)
    return folder


def load(folder: Path) -> Run | None:
    """Return the run of a folder; None if its file is damaged or missing. A driver with nothing to submit removes its
    folder."""
    try:
        return Run(folder=folder, **json.loads((folder / FILE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read(results: Path, sweep: str | None = None) -> list[Run]:
    """Return the runs of a store, or those of one sweep, the oldest first. Runs with a damaged file are left out."""
    found = [load(file.parent) for file in sorted((results / "jobs").glob(f"*/{FILE}"))]
    return [run for run in found if run is not None and sweep in (None, run.sweep)]


def damaged(results: Path) -> list[str]:
    """Return one line for each run whose file cannot be read."""
    torn = [file for file in sorted((results / "jobs").glob(f"*/{FILE}")) if load(file.parent) is None]
    return [f"{file} is damaged: the jobs of that run are not known" for file in torn if file.exists()]


def stop(folder: Path, why: str) -> None:
    """Make the workers of a run end after their open cell."""
    (folder / STOP).write_text(why + "\n")


def why_stopped(folder: Path) -> str | None:
    """Return the reason why a run was stopped; None if it was not."""
    try:
        return (folder / STOP).read_text(errors="replace").strip() or "no reason given"
    except FileNotFoundError:
        return None


def tidy(results: Path) -> None:
    """Remove the stale folders of runs that were killed before they had submitted a job."""
    for folder in (results / "jobs").glob("*/"):
        remove_drafts(folder)
        run = load(folder)
        # A driver of SLURM may wait a long time until it can submit; a run of kind `debug` has no jobs.
        unused = not run.jobs and run.kind == "local" if run else not (folder / FILE).exists()
        if unused and stale(folder) and not any(folder.glob("logs/*")):
            shutil.rmtree(folder, ignore_errors=True)


def queue(found: Sequence[Run]) -> dict[str, tuple[str, str]] | None:
    """Ask squeue once, if any of the runs has SLURM jobs. Returns id -> (state, reason), or None without an answer."""
    return slurm.queue() if any(run.kind == "slurm" for run in found) else {}
