"""The record of a run: which cells went into which jobs, so that another process can ask on another day. No torch.

ROOT/jobs/RUN/run.json    sweep, kind, machine, cells, jobs (id -> the cells it has), code
ROOT/jobs/RUN/logs/       what the jobs printed
ROOT/jobs/RUN/stop        if it exists, the workers end after the cell in hand; why
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cluster import slurm
from bench.cluster.claims import machine, started
from bench.files import write_json

FILE = "run.json"


@dataclass
class Run:
    """One start of `bench.run` that had something to compute."""

    folder: Path
    sweep: str
    kind: str
    cells: list[str]
    code: str
    created: float = field(default_factory=time.time)
    machine: str = field(default_factory=machine)
    jobs: dict[str, list[int]] = field(default_factory=dict)
    """Job id -> positions in `cells`. Of local workers: pid:start -> all."""
    gpus: int = 0
    """A job."""

    def add(self, ids: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        """Note which cells jobs were submitted with."""
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
        """Its jobs that are waiting or running, by squeue's answer or, of local workers, this machine's processes."""
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


def read(results: Path, sweep: str | None = None) -> list[Run]:
    """All runs into a store, or those of one sweep, oldest first."""
    found = []
    for file in sorted((results / "jobs").glob(f"*/{FILE}")):
        try:
            content = json.loads(file.read_text())
        except FileNotFoundError:  # a driver that had nothing to submit has just removed its own
            continue
        if sweep in (None, content["sweep"]):
            found.append(Run(folder=file.parent, **content))
    return found


def queue(found: Sequence[Run]) -> dict[str, tuple[str, str]] | None:
    """One question to squeue if any of the runs is SLURM's."""
    return slurm.queue() if any(run.kind == "slurm" for run in found) else {}
