"""Cells that compute almost nothing and load no torch, so that drills test the launching and not the network.

    PYTHONPATH=.:tests/slurm python -m trivial_cells results=DIR [cells=24] [images=1] [gate=FILE] [each=4] [bad=FILE]

runs such cells as `bench.run` does, with the same claims, store, signals and jobs. The number of a row depends only on
its cell's name and image, so that repeated, mixed or changed rows are found. Nothing depends on time: until the gate's
FILE exists, only the first image of every `each`-th cell is computed, so that a disturbance always comes in the middle,
however slow the machine is. With `bad=FILE`, the first node that computes is bad from then on, and FILE contains its
name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import provenance
from bench.cell.interrupts import Interrupts
from bench.cluster import launch
from bench.cluster.jobs import Job
from bench.errors import NodeFault, run_command, writing
from bench.spec.cells import Cell
from bench.spec.chunks import chunk
from bench.spec.compose import compose_config
from bench.spec.config import RunConfig
from bench.store import Store


def number(cell_id: str, image: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{cell_id}|{image}".encode()).digest()[:4], "little") / 2**32


@dataclass(frozen=True)
class TrivialGuard:
    """A guard like `bench.cell.guard.Guard`, for cells that compute almost nothing."""

    store: Store
    interrupts: Interrupts

    def run(self, cell: Cell) -> str:
        start = time.perf_counter()
        if cell.spec["bad"]:
            self._spoil(Path(cell.spec["bad"]))
        rows, *_ = self.store.partial(cell.id, "trivial")
        resumed = len(rows)
        for image in range(resumed, cell.spec["images"]):
            while cell.spec["gate"] and (image or cell.axes["seed"] % cell.spec["each"]):
                if Path(cell.spec["gate"]).exists():
                    break
                self._safe_point(cell, rows)
                time.sleep(0.05)
            rows.append({"cell_id": cell.id, "image_id": str(image), "value": number(cell.id, image)})
            if len(rows) < cell.spec["images"]:
                self._safe_point(cell, rows)
        seconds = time.perf_counter() - start
        about = {"seconds": seconds, "resumed": resumed, "job_id": provenance.job_id(), "pid": os.getpid()}
        with writing():
            self.store.write(cell.id, rows, {"config": cell.spec, "axes": cell.axes, "provenance": about})
        return "done"

    def _spoil(self, file: Path) -> None:
        node = os.environ["SLURMD_NODENAME"]
        with contextlib.suppress(FileExistsError), open(file, "x") as new:
            new.write(node)
        if file.read_text() == node:
            raise NodeFault("CUDA error: a drill")

    def _safe_point(self, cell: Cell, rows: list[dict[str, Any]]) -> None:
        if rows and self.interrupts.asked:
            with writing():
                self.store.write_partial(cell.id, "trivial", rows, {})
        self.interrupts.safe_point()

    def fail(self, cell: Cell, kind: str, message: str, trace: str = "") -> None:
        self.store.write_failure(
            cell.id, {"class": kind, "message": message, "traceback": trace, "axes": cell.axes, "provenance": {}}
        )


@dataclass(frozen=True)
class TrivialJob(Job):
    def guard(self, store: Store, interrupts: Interrupts) -> Any:
        return TrivialGuard(store, interrupts)


def cells(count: int, images: int, gate: str, each: int, bad: str) -> tuple[Cell, ...]:
    axes = {"model": "m", "dataset": "d", "method": "trivial", "corruption": None, "task": "reconstruct"}
    spec = {
        "images": images,
        "gate": gate,
        "each": each,
        "bad": bad,
        "model": {"name": "m", "class": "trivial_cells.Model", "shape": [1, 1, 1]},
    }
    return tuple(Cell(f"trivial-{i:05d}", {**axes, "seed": i}, spec, images) for i in range(count))


def config(results: Path, overrides: Sequence[str]) -> RunConfig:
    return compose_config([f"results={results}", "name=trivial", *overrides], sweep_required=False)


def main(arguments: list[str]) -> int:
    own = {"results": "results", "cells": "24", "images": "1", "gate": "", "each": "4", "bad": ""}
    given = dict(argument.split("=", 1) for argument in arguments)
    own |= {key: given.pop(key) for key in list(given) if key in own}
    chosen = config(Path(own["results"]), [f"{key}={value}" for key, value in given.items()])
    every = cells(int(own["cells"]), int(own["images"]), own["gate"], int(own["each"]), own["bad"])
    store = Store(chosen.results)
    title = {"title": "trivial", "cells": [{"id": c.id, "axes": c.axes, "evaluations": c.evaluations} for c in every]}
    store.write_manifest("trivial", title)
    todo = [cell for cell in every if not store.ended(cell.id)]
    chunks = chunk(todo, lambda cell: 1.0, chosen.launcher.chunk_minutes)  # cells per job
    launch.Job = TrivialJob  # type: ignore[misc]
    launch.launch(chunks, chosen, lambda cell_id, outcome: print(outcome, cell_id, flush=True))
    lost = [cell for cell in every if not store.ended(cell.id)]
    print(f"{len(every) - len(lost)} of {len(every)} ended")
    return 1 if lost and launch.waits(chosen.launcher) else 0


if __name__ == "__main__":
    import trivial_cells  # jobs are pickled by reference, and __main__ is another module in a job

    run_command(trivial_cells.main)
