"""Figures that are printed, not asserted: planning and looking at large sweeps. `make test-slurm` shows them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import plan, runs, status
from bench.store import Store

Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return tell


def test_a_plan_of_ten_thousand_cells(tmp_path: Path, say: Say) -> None:
    seeds = ",".join(map(str, range(500)))
    overrides = ["sweep=corruptions", "method=ddim", f"seed={seeds}", f"results={tmp_path}", "launcher=local"]
    started, worked = time.perf_counter(), time.process_time()
    cells = len(plan.look(overrides).expansion.cells)
    assert cells == 10_000
    say(f"plan of {cells:,} cells: {time.perf_counter() - started:.2f} s, {time.process_time() - worked:.2f} s of CPU")


def test_the_status_of_four_thousand_cells(tmp_path: Path, say: Say) -> None:
    store, names = Store(tmp_path), [f"cell{i:04d}" for i in range(4000)]
    entry = {"axes": {"model": "m", "method": "x", "corruption": "c", "severity": 1}, "evaluations": 100}
    store.write_manifest("s", {"title": "S", "cells": [{"id": name, **entry} for name in names]})
    for name in names[:3000]:
        folder = tmp_path / "cells" / name
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(RECORD)
    runs.Run(runs.new_folder(tmp_path), "s", "local", names, "code").write()
    started, worked = time.perf_counter(), time.process_time()
    seen = status.look(store)[0]
    assert sum(state == "done" for state in seen.states.values()) == 3000
    say(f"status of 4,000 cells: {time.perf_counter() - started:.2f} s, {time.process_time() - worked:.2f} s of CPU")


OPTIONS = ", ".join(f'"key{i}": "some option"' for i in range(60))
RECORD = f'{{"config": {{{OPTIONS}}}, "provenance": {{"seconds": 2.5}}}}'
