"""Tests of the store: a record is complete or absent, whatever happens to the process that writes it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench.files
from bench.store import Store

ROWS = [{"cell_id": "c", "image_id": f"i{i}", "psnr": float(i), "y_sha256": "x"} for i in range(5)]
SAMPLES = {"ids": np.array(["i0"]), "truth": np.zeros((1, 4, 4, 3), np.uint8)}


def test_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    assert store.done() == set() and store.failed() == set() and store.manifests() == []
    assert store.write("c", ROWS, {"axes": {"method": "m"}}, SAMPLES)
    assert store.done() == {"c"}
    assert store.rows(["c", "absent"])["psnr"].tolist() == [0, 1, 2, 3, 4]
    assert store.record("c")["axes"] == {"method": "m"} and store.record("c")["schema"] == bench.store.SCHEMA
    assert store.samples("c")["truth"].shape == (1, 4, 4, 3) and store.samples("absent") == {}
    assert store.rows([]).empty


def test_rows_come_in_the_order_asked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("b", "a"):
        store.write(name, [{"cell_id": name, "v": 1.0}], {})
    assert store.rows(["b", "a"])["cell_id"].tolist() == ["b", "a"]


def test_columns_may_differ_between_cells(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("a", [{"cell_id": "a", "psnr": 1.0, "snr_db": None}], {})
    store.write("b", [{"cell_id": "b", "snr_db": 3.0}], {})
    rows = store.rows(["a", "b"])
    assert rows["snr_db"].isna().tolist() == [True, False] and rows["psnr"].isna().tolist() == [False, True]


def test_a_second_result_does_not_replace_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.write("c", ROWS, {"n": 1})
    assert not store.write("c", ROWS[:1], {"n": 2})
    assert store.record("c")["n"] == 1 and len(store.rows(["c"])) == 5
    assert not list((tmp_path / "cells").glob(".*"))


def test_many_writers_one_record(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda n: Store(tmp_path).write("c", ROWS, {"n": n}), range(16)))
    assert sum(won) == 1 and Store(tmp_path).record("c")["n"] == won.index(True)


def test_a_result_replaces_a_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_failure("c", {"class": "oom", "message": "m", "traceback": "t"})
    assert store.failed() == {"c"} and store.failure("c")["class"] == "oom" and store.done() == set()
    store.write("c", ROWS, {})
    assert store.failed() == set() and store.done() == {"c"}


def test_images_that_vanish_while_they_are_looked_at_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, load = Store(tmp_path), np.load
    store.write_partial("c", "maker", ROWS, {})
    assert store.partial_images("c") == 5

    def late(path: Path, **more: Any) -> Any:
        store.drop_partial("c")
        return load(path, **more)

    monkeypatch.setattr(np, "load", late)
    assert store.partial_images("c") == 0 and store.partial("c", "maker") == ([], {}, 0)


def test_no_incomplete_record_stays_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError):  # NaN is not JSON
        store.write("c", ROWS, {"bad": float("nan")})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.files, "flush", full)
    with pytest.raises(OSError, match="No space"):
        store.write("c", ROWS, {})
    with pytest.raises(OSError, match="No space"):
        store.write_failure("c", {"class": "bug"})
    assert store.done() == set() and not list((tmp_path / "cells").iterdir())


def test_stale_drafts_are_removed_and_young_ones_are_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, young = (bench.files.draft_of(tmp_path / "cells" / "c") for _ in range(2))
    for folder in (old, young):
        folder.mkdir(parents=True)
    past = time.time() - 2 * bench.files.STALE_SECONDS
    os.utime(old, (past, past))
    store.write("d", ROWS, {})
    store.tidy()
    assert not old.exists() and young.exists() and store.done() == {"d"}


WRITER = textwrap.dedent("""
    import sys
    from bench.store import Store
    import numpy as np, pyarrow.parquet
    store = Store(sys.argv[1])
    rows = [{"image_id": str(i), "psnr": float(i)} for i in range(200)]
    samples = {"truth": np.zeros((4, 32, 32, 3), np.uint8)}
    print("ready", flush=True)
    for n in range(100000):
        store.write(f"cell{n}", rows, {"n": n}, samples)
""")


@pytest.mark.parametrize("attempt", range(4))
def test_kill_9_leaves_whole_records_only(tmp_path: Path, attempt: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    time.sleep(random.Random(attempt).uniform(0.05, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    done = store.done()
    for cell in done:
        assert len(store.rows([cell])) == 200
        assert json.loads((tmp_path / "cells" / cell / "cell.json").read_text())["n"] == int(cell[4:])
        assert store.samples(cell)["truth"].shape == (4, 32, 32, 3)
    assert len(list((tmp_path / "cells").glob(".*"))) <= 1, "at most the cell in hand"
