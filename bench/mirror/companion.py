"""The process that mirrors a sweep or a training to Weights & Biases while it runs.

It mirrors each cell after the cell has ended, at a low priority: nothing of wandb is in the process that computes or
launches, so it is in no timed region, and whatever happens to it costs the sweep nothing. What it did not get done,
`python -m bench.publish sweep=NAME` does from the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench.files import child_environment
from bench.mirror.server import mode
from bench.mirror.writing import (
    COMPLETE_NOW,
    GIVE_UP_AFTER,
    POLL_SECONDS,
    STALL_SECONDS,
    Mirror,
    TrainingMirror,
    complete,
    restart,
)
from bench.spec.config import TrackerConfig
from bench.store import Store


class Companion:
    """The process that mirrors a running sweep: it watches the store and needs to be told of the end alone."""

    def __init__(self, store: Path, sweep: str, tracker: TrackerConfig, training: bool = False) -> None:
        """`sweep` in `store`, or the training of that name in the folder `store`."""
        order = {"store": str(store.resolve()), "name": sweep, "tracker": tracker.model_dump(), "training": training}
        self.publish = publish_command(sweep, training)
        self.lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.mirror.companion", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is the sweep's affair
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def close(self) -> str:
        """Have it complete the mirror; returns one line that says what was written where."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died
            self.process.stdin.write(COMPLETE_NOW)
            self.process.stdin.flush()
        last, heard = "", time.monotonic()
        while time.monotonic() - heard < STALL_SECONDS:
            try:
                last, heard = self.lines.get(timeout=0.2), time.monotonic()
            except queue.Empty:
                if self.process.poll() is not None and self.lines.empty():
                    break
            if last.startswith("wandb: "):
                break
        self.stop()
        if last.startswith("wandb: "):
            return last
        return f"wandb: the mirror stopped; {self.publish} completes it"

    def stop(self) -> None:
        """End it and wandb's service, whatever they are at."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGTERM if self.process.poll() is None else signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)


def follow(order: str) -> int:
    """The companion's own life: mirror cells as they appear in the store, and when told so all that is missing."""
    given = json.loads(order)
    os.nice(10)  # a timed region on the same cores shall hardly notice
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever wandb or its service prints
    tracker = TrackerConfig.model_validate(given["tracker"])
    chosen = mode(tracker)
    if chosen == "disabled":
        print("wandb: disabled", file=talk)
        return 0
    if given["training"]:
        training = TrainingMirror(Path(given["store"]), given["name"], tracker, chosen)
        with contextlib.suppress(Exception):  # the last pass tries again
            training.present()
            training.write(training.wanted()[0], ended=lambda: _told(POLL_SECONDS))
        mirror: Mirror = training
    else:
        mirror = Mirror(Store(given["store"]), given["name"], tracker, chosen)
        _follow_cells(mirror)
    if sys.stdin.readline() != COMPLETE_NOW:
        return 1  # the sweep has died; what is missing stays so until somebody publishes
    outcome = complete(mirror, lambda text: print(text, file=talk))
    print(outcome.line(publish_command(given["name"], given["training"])), file=talk)
    return 0


def _told(seconds: float) -> bool:
    """Whether there is a word from the sweep, or none to come; waits for it."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _follow_cells(mirror: Mirror) -> None:
    seen: set[str] = set()
    with contextlib.suppress(Exception):
        seen = {mark.record for mark in mirror.present()}
    in_a_row = 0
    while not _told(POLL_SECONDS):
        ids = {cell["id"] for cell in mirror.store.manifest(mirror.sweep)["cells"]}
        for cell_id in sorted((ids & mirror.store.done()) - seen):
            if in_a_row == GIVE_UP_AFTER or _told(0):
                break
            seen.add(cell_id)
            try:
                mirror.write(mirror.mark(cell_id, done=True))
                in_a_row = 0
            except Exception:  # the last pass tries again
                in_a_row += 1
                restart()


def publish_command(name: str, training: bool = False) -> str:
    """What a user types to complete a mirror."""
    return f"python -m bench.publish {'train' if training else 'sweep'}={name}"


if __name__ == "__main__":
    sys.exit(follow(sys.argv[1]))
