"""Drill: kill -9 ends the driver or a worker at random moments, many times; then one run completes the sweep.

`python tests/kill_drill.py 50` does it 50 times (about half an hour on two cores).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.cluster.claims import Claims, started
from bench.files import STALE_SECONDS
from bench.store import Store

ROOT = Path(__file__).resolve().parent.parent
SWEEP = [
    "sweep=corruptions", "profile=digits", "method=ddim,edict,rf_inversion", "corruption=block_mask,gaussian_blur",
    "severity=1,2,3", "steps=2", "images=3", "samples=1", "launcher=local", "launcher.workers=2", "tracker=none",
    "launcher.deaths=1000", "launcher.partial_s=0",
]  # fmt: skip
CELLS = 18


def start(results: Path) -> subprocess.Popen[bytes]:
    """Start the driver, with its output in a file beside the results."""
    with open(f"{results}.log", "ab") as log:
        words = [sys.executable, "-m", "bench.run", *SWEEP, f"results={results}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)


def workers(results: Path) -> list[int]:
    """Return the pids of the running workers."""
    found = {int(claim.owner["pid"]) for claim in Claims(results).all() if claim.alive}
    return sorted(pid for pid in found if started(pid))


def drill(kills: int, folder: Path, seed: int = 0) -> None:
    """Raise AssertionError if anything is lost, stored twice or left over."""
    chance, whole, killed = random.Random(seed), folder / "whole", folder / "killed"
    assert start(whole).wait() == 0
    for number in range(kills):
        driver = start(killed)
        # Some kills come at a step of the start, some in the first cell, some after a few cells: two thirds of them all
        # are done in the end, on a fast machine and on a slow one.
        wanted = len(Store(killed).done()) + int(chance.uniform(0, 4 / 3 * CELLS / kills) + chance.random())
        if chance.random() < 0.8:
            while driver.poll() is None and (not workers(killed) or len(Store(killed).done()) < wanted):
                time.sleep(0.02)
        time.sleep(chance.uniform(0, 1))
        alive = workers(killed)
        victim = chance.choice(alive) if alive and chance.random() < 0.4 else driver.pid
        if driver.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        if victim != driver.pid:
            time.sleep(chance.uniform(0, 1))
            driver.kill()
        driver.wait()
        done = Store(killed).done()
        assert not Store(killed).damaged(done)
        print(f"{number + 1}: killed {'the driver' if victim == driver.pid else 'a worker'}, {len(done)} cells done")
    assert start(killed).wait() == 0, Path(f"{killed}.log").read_text()[-2000:]
    ours, theirs = Store(killed), Store(whole)
    assert ours.done() == theirs.done() and len(ours.done()) == CELLS and not ours.failed()
    assert not ours.damaged(ours.done())
    rows = ours.rows(sorted(ours.done()))
    assert len(rows) == CELLS * 3 and not rows.duplicated(["cell_id", "image_id"]).any()
    tables = [root / "reports" / "corruptions" / "table.csv" for root in (killed, whole)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    drafts = [path for path in killed.rglob(".*.*") if "wandb" not in path.parts]
    assert all(time.time() - path.stat().st_mtime < STALE_SECONDS for path in drafts), drafts
    while workers(killed):  # one whose driver was killed ends after its cell
        time.sleep(0.05)
    assert not Claims(killed).all()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        drill(int(sys.argv[1]) if len(sys.argv) > 1 else 50, Path(place))
    print("every cell once, the same table")
