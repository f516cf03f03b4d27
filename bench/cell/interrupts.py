"""Handling of a worker's signals: the scheduler's SIGUSR2 and SIGTERM, and the alarm of a timeout. No torch.

submitit handles SIGUSR2 at once, at any point of the process: it stores the job, requeues it and exits. Here this
handling waits for a safe point, between two batches or two cells, so that finished images are kept. If no safe point
comes in time, it runs anyway. submitit ignores SIGTERM. Here SIGTERM also ends the process at a safe point, but it
requeues nothing: it comes from scancel, or from a scheduler that requeues the job itself, and SIGKILL follows. Python
handles signals between two bytecodes of its main thread: a long kernel delays both.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class CellTimeout(Exception):
    """A cell took longer than `launcher.cell_timeout_min`."""


class Interrupts:
    """A context in which the worker's signals wait for safe points. Outside the main thread it does nothing.

    `asked` is True once the scheduler has asked the process to stop.
    """

    def __init__(self, grace_s: float, before_leaving: Callable[[], None] = lambda: None) -> None:
        """`grace_s`: seconds to wait for a safe point. `before_leaving` is called just before the process ends."""
        self.grace_s = grace_s
        self.before_leaving = before_leaving
        self.asked = False
        self.requeues = True
        self._requeue: Any = None
        self._main = False
        self._deadlines: dict[str, float] = {}

    def __enter__(self) -> Interrupts:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._requeue = signal.getsignal(signal.SIGUSR2)
            if callable(self._requeue):
                signal.signal(signal.SIGUSR2, self._ask)
                self._term_before = signal.signal(signal.SIGTERM, self._ask)
            self._alarm_before = signal.signal(signal.SIGALRM, self._alarm)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm_before)
            if callable(self._requeue):
                signal.signal(signal.SIGUSR2, self._requeue)
                signal.signal(signal.SIGTERM, self._term_before)

    def safe_point(self) -> None:
        """End the process if the scheduler has asked for it: raises SystemExit, or submitit's UncompletedJobError."""
        if self.asked:
            self.leave()

    def leave(self) -> None:
        """Let submitit store and requeue this job, then end. Only the first of a job's processes requeues it."""
        self._deadlines.clear()
        self.before_leaving()
        if not self.requeues or not callable(self._requeue):
            raise SystemExit(1)
        # If a node has no scontrol, the job cannot requeue itself: it ends, and the next run computes the rest.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._requeue(signal.SIGUSR2, None)
        raise SystemExit(0)

    @contextlib.contextmanager
    def limit(self, seconds: float | None) -> Iterator[None]:
        """Raise CellTimeout in the block after this number of seconds (None: never)."""
        if seconds is not None:
            self._set("cell", seconds)
        try:
            yield
        finally:
            self._deadlines.pop("cell", None)
            self._arm()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            self.requeues = number != signal.SIGTERM
            self._set("stop", self.grace_s)

    def _set(self, name: str, seconds: float) -> None:
        self._deadlines[name] = time.monotonic() + seconds
        self._arm()

    def _arm(self) -> None:
        if self._main:
            left = min(self._deadlines.values(), default=None)
            signal.setitimer(signal.ITIMER_REAL, 0 if left is None else max(left - time.monotonic(), 0.001))

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        passed = {name for name, deadline in self._deadlines.items() if deadline <= time.monotonic()}
        if "stop" in passed:
            self.leave()
        if "cell" in passed:
            del self._deadlines["cell"]
            self._arm()
            raise CellTimeout("the cell took longer than launcher.cell_timeout_min")
        self._arm()
