"""The guard around a cell: an exception becomes a failure record with a class, and the next cell can run.

It never swallows KeyboardInterrupt, SystemExit or submitit's UncompletedJobError, because users and schedulers stop a
job with them.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass

import numpy as np
import torch

from bench import provenance
from bench.cell.execute import execute
from bench.cell.interrupts import CellTimeout, Interrupts
from bench.cell.rows import Finished
from bench.errors import NodeFault, StoreError, UserError, writing
from bench.spec.cells import Cell
from bench.spec.config import LauncherConfig
from bench.store import Store

NODE_FAULTS = (
    "cuda error",
    "cublas_status",
    "cudnn_status_internal",
    "nccl",
    "uncorrectable ecc",
    "device-side assert",
)
"""Parts of error messages after which a process cannot use its GPU any more."""


def classify(error: BaseException) -> str:
    """Return the class of a failure: oom | timeout | node | asset-missing | numerical | bug."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "out of memory" in str(error).lower():
        return "oom"
    if isinstance(error, (CellTimeout, TimeoutError)):
        return "timeout"
    if isinstance(error, RuntimeError) and any(fault in str(error).lower() for fault in NODE_FAULTS):
        return "node"
    if isinstance(error, (FileNotFoundError, UserError)):
        return "asset-missing"
    if isinstance(error, (ArithmeticError, np.linalg.LinAlgError)):
        return "numerical"
    return "bug"


@dataclass(frozen=True)
class Guard:
    """Runs cells and writes their records into a store. An exception becomes a failure record with a class."""

    store: Store
    batch_size: int
    samples: int
    launcher: LauncherConfig
    interrupts: Interrupts
    device: str = "cpu"

    def run(self, cell: Cell) -> str:
        """Run one cell, and return `done` or the class of the failure.

        Raises StoreError if the outcome cannot be written, and NodeFault if this process cannot use its GPU any more.
        Interruptions by schedulers and users are raised as they are.
        """
        from submitit.core.utils import UncompletedJobError

        batch_size, left = self.batch_size, dict(self.launcher.retries)
        while True:
            try:
                return self._attempt(cell, batch_size)
            except (KeyboardInterrupt, SystemExit, UncompletedJobError, StoreError):
                raise
            except Exception as error:
                kind = classify(error)
                if kind == "node":
                    raise NodeFault(f"{type(error).__name__}: {error}") from error
                if kind == "oom" and batch_size > 1:
                    batch_size = (min(batch_size, cell.spec["images"]) + 1) // 2
                elif left.get(kind, 0) > 0:  # type: ignore[call-overload]
                    left[kind] -= 1  # type: ignore[index]
                else:
                    message, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
                    self.fail(cell, kind, message, trace)
                    return kind
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def _seconds(self) -> float | None:
        minutes = self.launcher.cell_timeout_min
        return None if minutes is None else minutes * 60

    def _attempt(self, cell: Cell, batch_size: int) -> str:
        kept = start = time.perf_counter()
        # If one of these differs, images of an earlier attempt do not fit together with new ones.
        maker = f"{provenance.static()['code']}, samples={self.samples}, {self.device}"
        rows, arrays, worked = self.store.partial(cell.id, maker)

        def keep(finished: Finished) -> None:
            nonlocal kept
            if len(finished.rows) == cell.spec["images"]:
                return
            if self.interrupts.asked or time.perf_counter() - kept >= self.launcher.partial_s:
                with writing():
                    seconds = worked + time.perf_counter() - start
                    self.store.write_partial(cell.id, maker, finished.rows, finished.unfinished(), seconds)
                kept = time.perf_counter()
            self.interrupts.safe_point()

        with self.interrupts.limit(self._seconds()):
            done = execute(cell, batch_size, self.samples, self.device, (rows, arrays), keep)
        # `seconds` covers all attempts whose images are used; `resumed` is the number of images of earlier attempts.
        done.record["provenance"] |= {"seconds": worked + time.perf_counter() - start, "resumed": len(rows)}
        with writing():
            self.store.write(cell.id, *done)
        return "done"

    def fail(self, cell: Cell, kind: str, message: str, trace: str = "") -> None:
        """Record that a cell failed."""
        about = {"class": kind, "message": message, "traceback": trace, "axes": cell.axes}
        with writing():
            self.store.write_failure(cell.id, {**about, "provenance": provenance.static()})
