"""The work of one worker: it claims, runs and releases each cell of its list. submitit pickles `Job`. No torch.

All local workers get the same list and share it, so that no worker is idle. A job of an array gets its chunk. A worker
comes back to the cells that other workers have claimed until every cell has ended, because those workers may be killed.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cell.interrupts import Interrupts
from bench.cluster import runs, slurm
from bench.cluster.claims import Claim, Claims, started
from bench.errors import NodeFault, StoreError
from bench.spec.cells import Cell
from bench.spec.config import LauncherConfig
from bench.store import Store

if TYPE_CHECKING:
    from bench.cell.guard import Guard


@dataclass(frozen=True)
class Job:
    """Cells to run, and the store that takes their records."""

    cells: tuple[Cell, ...]
    store: str
    folder: str
    """The folder of the run: its record, its logs, and the file that stops it."""
    batch_size: int
    samples: int
    launcher: LauncherConfig
    threads: int
    total: int
    """The number of cells of the whole run."""
    driver: tuple[int, str | None] | None = None
    """(pid, start time) of the process whose end also ends this one. None if this job needs no driver."""

    def __call__(self) -> dict[str, int]:
        """Run the cells that are left. Returns the number of cells for each outcome."""
        _choose_gpu()
        outcomes = [outcome for _, outcome in self.run()]
        return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}

    def checkpoint(self) -> Any:
        """Return the job that submitit requeues: the same one, since the store knows which cells are done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def run(self) -> Iterator[tuple[str, str]]:
        """Yield (cell id, outcome) when a cell ends. The outcome is `done` or the class of the failure."""
        store, held = Store(self.store), Held(Path(self.folder, runs.STOP))
        with _claims(self.store) as claims, Interrupts(self.launcher.signal_s / 2, held.leave) as interrupts:
            held.claims = claims
            guard = self.guard(store, interrupts)
            for cell, claim in self._queue(store, claims):
                held.claim = claim
                try:
                    outcome = self._run(guard, cell, claim)
                except NodeFault as fault:
                    print(f"this machine is at fault; the job moves to another one: {fault}", flush=True)
                    held.cause, held.message, held.trace = "node", str(fault), traceback.format_exc()
                    try:
                        interrupts.leave()
                    finally:
                        slurm.avoid_node()
                except StoreError:
                    with contextlib.suppress(OSError):
                        claims.release(cell.id)
                    raise
                claims.release(cell.id)
                held.claim = None
                yield cell.id, outcome
                if outcome != "done":
                    self._stop_if_too_many_failed(store)
                interrupts.safe_point()

    def guard(self, store: Store, interrupts: Interrupts) -> Guard:
        """Return the object that runs one cell, on the device of the launcher."""
        import torch

        from bench.cell.guard import Guard

        torch.set_num_threads(self.threads)
        device = self.launcher.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return Guard(store, self.batch_size, self.samples, self.launcher, interrupts, device)

    def _run(self, guard: Guard, cell: Cell, claim: Claim) -> str:
        if claim.deaths < self.launcher.deaths:
            return guard.run(cell)
        reason = "stopped by a signal" if claim.cause == "preempted" else claim.message or "ended without a message"
        message = f"{claim.deaths} processes ended in this cell; the last one: {reason}"
        guard.fail(cell, claim.cause, message, claim.trace)
        return claim.cause

    def _queue(self, store: Store, claims: Claims) -> Iterator[tuple[Cell, Claim]]:
        """Yield (cell, claim) for each cell that this process claims, until every cell has ended or the run must
        stop."""
        left, pause = list(self.cells), 0.1
        while left:
            others = []
            for cell in left:
                if self._stopped():
                    return
                if store.ended(cell.id):
                    continue
                claim = _take(claims, store, cell)
                if claim is None:
                    others.append(cell)
                elif store.ended(cell.id):  # it ended after the first check and before our claim
                    claims.release(cell.id)
                else:
                    pause = 0.1
                    yield cell, claim
            left = [cell for cell in others if not store.ended(cell.id)]
            if left:
                time.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _stopped(self) -> bool:
        if Path(self.folder, runs.STOP).exists():
            return True
        return self.driver is not None and started(self.driver[0]) != self.driver[1]

    def _stop_if_too_many_failed(self, store: Store) -> None:
        limit, run = self.launcher.max_failed, runs.load(Path(self.folder))
        if limit is None or run is None:
            return
        failed = len(store.failed() & set(run.cells))
        if failed >= (limit if limit >= 1 else limit * self.total):
            runs.stop(run.folder, f"{failed} of {self.total} cells failed; launcher.max_failed={limit:g}")

    def of(self, cells: tuple[Cell, ...], threads: int | None = None) -> Job:
        """Return the same job with other cells, and with another number of CPU threads if it is given."""
        return replace(self, cells=cells, threads=threads or self.threads)

    def driven_by(self, pid: int) -> Job:
        """Return the same job, but it stops once the process `pid` has ended."""
        return replace(self, driver=(pid, started(pid)))


class Held:
    """The claim of the open cell, and the reason to note if this process has to leave it now."""

    claims: Claims
    claim: Claim | None = None
    cause, message, trace = "preempted", "", ""

    def __init__(self, stop: Path) -> None:
        """`stop`: the file that exists if the run was stopped on purpose."""
        self.stop = stop

    def leave(self) -> None:
        """Release the claim if the run was stopped on purpose, else note the reason in it."""
        if self.claim is None:
            return
        with contextlib.suppress(OSError):
            if self.stop.exists():  # this end must not count against the cell
                self.claims.release(self.claim.cell)
            else:
                self.claims.leave(self.claim, self.cause, self.message, self.trace)


def _take(claims: Claims, store: Store, cell: Cell) -> Claim | None:
    # Only a cell with an earlier claim can have finished images, so most cells need no look into the store.
    before = claims.look(cell.id)
    if before is not None and before.alive:
        return None
    return claims.take(cell.id, 0 if before is None else store.partial_images(cell.id))


def _claims(store: str) -> Claims:
    from submitit import JobEnvironment

    from bench.provenance import job_id

    about: dict[str, Any] = {"job": job_id()}
    with contextlib.suppress(RuntimeError):  # not in a job of submitit
        about["log"] = str(JobEnvironment().paths.stdout)
    return Claims(store, **about)


def _choose_gpu() -> None:
    """Give this process its share of the GPUs of the job: the processes of one job share them evenly."""
    tasks, rank = int(os.environ.get("SLURM_NTASKS_PER_NODE", "1")), int(os.environ.get("SLURM_LOCALID", "0"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if tasks > 1 and len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank * len(visible) // tasks]
