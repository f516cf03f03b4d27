"""What a worker does: a list of cells, each claimed, run and released; the callable that submitit pickles. No torch.

Local workers get the same list and share it, so that none idles; a job of an array gets its chunk. Both come back to
cells that somebody else has, until each has ended: who has them may die.
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
    """Cells to run into a store."""

    cells: tuple[Cell, ...]
    store: str
    folder: str
    """Of the run: logs, workers, stop."""
    batch_size: int
    samples: int
    launcher: LauncherConfig
    threads: int
    total: int
    """Cells of the whole run."""
    driver: tuple[int, str | None] | None = None
    """The process whose end ends this one, and when it began; None: none."""

    def __call__(self) -> dict[str, int]:
        """Run what is left; returns how many cells ended how."""
        _choose_gpu()
        outcomes = [outcome for _, outcome in self.run()]
        return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}

    def checkpoint(self) -> Any:
        """What submitit requeues: the same job, for what is done is in the store."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def run(self) -> Iterator[tuple[str, str]]:
        """Yields (cell id, `done` or its failure's class) as cells end."""
        store, held = Store(self.store), Held(Path(self.folder, runs.STOP))
        with _claims(self.store) as claims, Interrupts(self.launcher.signal_s / 2, held.leave) as interrupts:
            held.claims = claims
            guard = self.guard(store, interrupts)
            for cell, claim in self._queue(store, claims):
                held.claim = claim
                try:
                    outcome = self._run(guard, cell, claim)
                except NodeFault as fault:
                    print(f"this machine is at fault, the job goes elsewhere: {fault}", flush=True)
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
                    self._stop_if_hopeless(store)
                interrupts.safe_point()

    def guard(self, store: Store, interrupts: Interrupts) -> Guard:
        """What runs a cell."""
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
        told = "asked to stop" if claim.cause == "preempted" else claim.message or "gone without a word"
        message = f"{claim.deaths} processes ended in this cell, the last one: {told}"
        guard.fail(cell, claim.cause, message, claim.trace)
        return claim.cause

    def _queue(self, store: Store, claims: Claims) -> Iterator[tuple[Cell, Claim]]:
        """Cells that are ours now, until every cell has ended or the run is to stop."""
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
                elif store.ended(cell.id):  # between our look and our claim
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

    def _stop_if_hopeless(self, store: Store) -> None:
        limit, run = self.launcher.max_failed, runs.load(Path(self.folder))
        if limit is None or run is None:
            return
        failed = len(store.failed() & set(run.cells))
        if failed >= (limit if limit >= 1 else limit * self.total):
            runs.stop(run.folder, f"{failed} of {self.total} cells failed; launcher.max_failed={limit:g}")

    def of(self, cells: tuple[Cell, ...], threads: int | None = None) -> Job:
        """The same job for other cells, and CPU threads."""
        return replace(self, cells=cells, threads=threads or self.threads)

    def driven_by(self, pid: int) -> Job:
        """The same job, which ends when that process has ended."""
        return replace(self, driver=(pid, started(pid)))


class Held:
    """The claim in hand, and why it would be left now."""

    claims: Claims
    claim: Claim | None = None
    cause, message, trace = "preempted", "", ""

    def __init__(self, stop: Path) -> None:
        """`stop`: the file that says that the run was ended on purpose."""
        self.stop = stop

    def leave(self) -> None:
        if self.claim is None:
            return
        with contextlib.suppress(OSError):
            if self.stop.exists():  # no death to count
                self.claims.release(self.claim.cell)
            else:
                self.claims.leave(self.claim, self.cause, self.message, self.trace)


def _take(claims: Claims, store: Store, cell: Cell) -> Claim | None:
    # Only a cell that somebody has had can have finished images: most cost no look.
    known = claims.look(cell.id)
    if known is not None and known.alive:
        return None
    return claims.take(cell.id, 0 if known is None else store.partial_images(cell.id))


def _claims(store: str) -> Claims:
    from submitit import JobEnvironment

    from bench.provenance import job_id

    about: dict[str, Any] = {"job": job_id()}
    with contextlib.suppress(RuntimeError):  # not in a job of submitit
        about["log"] = str(JobEnvironment().paths.stdout)
    return Claims(store, **about)


def _choose_gpu() -> None:
    """Processes of one job share its GPUs evenly."""
    tasks, rank = int(os.environ.get("SLURM_NTASKS_PER_NODE", "1")), int(os.environ.get("SLURM_LOCALID", "0"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if tasks > 1 and len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank * len(visible) // tasks]
