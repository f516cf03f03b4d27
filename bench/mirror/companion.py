"""The process that mirrors a sweep or a training to Weights & Biases while it runs.

It mirrors each cell after the cell has ended, at a low priority. wandb is never imported by a process that computes or
launches cells, so it is in no timed region, and its errors cannot harm the sweep. `python -m bench.publish sweep=NAME`
mirrors from the store whatever is missing at the end.
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
    """The process that mirrors a running sweep. It watches the store by itself; only the end is announced to it."""

    def __init__(self, store: Path, sweep: str, tracker: TrackerConfig, training: bool = False) -> None:
        """`sweep` is the name of a sweep in `store`; with `training`, of a training in the folder `store`."""
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
            start_new_session=True,  # Ctrl-C must reach the sweep only
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def close(self) -> str:
        """Let it complete the mirror. Returns one line that says how many runs were written, and where."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # the process has ended
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
        """End the process and the service of wandb at once."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGTERM if self.process.poll() is None else signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)


def follow(order: str) -> int:
    """Run the companion: mirror cells as they appear in the store and, when the sweep has ended, all that is missing.

    `order` is JSON with the keys of `Companion`. Returns the exit code.
    """
    given = json.loads(order)
    os.nice(10)  # the timed regions on the same cores must not become slower
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # hides the output of wandb and its service
    tracker = TrackerConfig.model_validate(given["tracker"])
    chosen = mode(tracker)
    if chosen == "disabled":
        print("wandb: disabled", file=output)
        return 0
    if given["training"]:
        training = TrainingMirror(Path(given["store"]), given["name"], tracker, chosen)
        with contextlib.suppress(Exception):  # the last pass tries again
            training.present()
            training.write(training.wanted()[0], ended=lambda: _input_ready(POLL_SECONDS))
        mirror: Mirror = training
    else:
        mirror = Mirror(Store(given["store"]), given["name"], tracker, chosen)
        _follow_cells(mirror)
    if sys.stdin.readline() != COMPLETE_NOW:
        return 1  # the sweep was killed; `bench.publish` can complete the mirror later
    outcome = complete(mirror, lambda text: print(text, file=output))
    print(outcome.line(publish_command(given["name"], given["training"])), file=output)
    return 0


def _input_ready(seconds: float) -> bool:
    """Wait up to `seconds` for a line from the sweep. Returns True if there is one, or if the sweep has closed the
    pipe."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _follow_cells(mirror: Mirror) -> None:
    seen: set[str] = set()
    with contextlib.suppress(Exception):
        seen = {mark.record for mark in mirror.present()}
    in_a_row = 0
    while not _input_ready(POLL_SECONDS):
        ids = {cell["id"] for cell in mirror.store.manifest(mirror.sweep)["cells"]}
        for cell_id in sorted((ids & mirror.store.done()) - seen):
            if in_a_row == GIVE_UP_AFTER or _input_ready(0):
                break
            seen.add(cell_id)
            try:
                mirror.write(mirror.mark(cell_id, done=True))
                in_a_row = 0
            except Exception:  # the last pass tries again
                in_a_row += 1
                restart()


def publish_command(name: str, training: bool = False) -> str:
    """Return the command that completes a mirror."""
    return f"python -m bench.publish {'train' if training else 'sweep'}={name}"


if __name__ == "__main__":
    sys.exit(follow(sys.argv[1]))
