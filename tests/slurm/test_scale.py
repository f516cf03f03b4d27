"""Times of `plan` and `status` for large sweeps. They are printed, not asserted: `make test-slurm` shows them."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cluster import runs
from bench.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent
Verb = Callable[..., str]


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run a command as a user does, in a separate process, and print its time from start to end."""

    def measure(what: str, name: str, *arguments: str) -> str:
        words = [sys.executable, "-m", f"bench.{name}", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        output = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        with capsys.disabled():
            print(f"\n{what}: {seconds:.2f} s, {worked:.2f} s of CPU, process start included")
        return output

    return measure


def test_a_plan_of_ten_thousand_cells(tmp_path: Path, verb: Verb) -> None:
    for what, method, seeds in (("one method", ["method=ddim"], 500), ("all methods", [], 30)):
        seed = ",".join(map(str, range(seeds)))
        overrides = ["sweep=corruptions", *method, f"seed={seed}", f"results={tmp_path}", "launcher=local"]
        output = verb(f"plan of 10,000 cells, {what}", "plan", *overrides)
        found = re.search(r"(\d+) cells: 0 done, \1 missing", output)
        assert found and int(found[1]) >= 10_000


def test_the_status_of_four_thousand_cells(tmp_path: Path, verb: Verb) -> None:
    store, names = Store(tmp_path), [f"cell{i:04d}" for i in range(4000)]
    entry = {"axes": {"model": "m", "method": "x", "corruption": "c", "severity": 1}, "evaluations": 100}
    store.write_manifest("s", {"title": "S", "cells": [{"id": name, **entry} for name in names]})
    for name in names[:3000]:
        folder = tmp_path / "cells" / name
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps({"id": name, "files": {"notes.txt": 0}, **json.loads(RECORD)}))
    for name in names[3000:3100]:
        store.write_failure(name, {"class": "oom", "message": "no room", "traceback": ""})
    runs.Run(runs.new_folder(tmp_path), "s", "local", names, "code").add(["1:1"], [names])
    output = verb("status of 4,000 cells", "status", f"results={tmp_path}")
    assert "4000 cells: 3000 done, 900 lost, 100 failed (oom)" in output


OPTIONS = ", ".join(f'"key{i}": "some option"' for i in range(60))
RECORD = f'{{"config": {{{OPTIONS}}}, "provenance": {{"seconds": 2.5}}}}'
