"""Files of the store that are empty, cut in half, garbage or missing; what killed processes leave; how a run ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kill_drill import drill
from test_cluster import job

from bench import cancel, plan, run, status
from bench.cluster import runs, snapshot
from bench.cluster.claims import Claims, started
from bench.errors import UserError
from bench.files import STALE_SECONDS, draft_of
from bench.mirror.writing import Mirror
from bench.spec.config import TrackerConfig
from bench.store import Damaged, Store

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "sweep=corruptions", "profile=digits", "method=ddim", "corruption=block_mask", "severity=1,2,3", "steps=2",
    "images=2", "samples=1", "launcher=debug", "tracker=none", "report=false",
]  # fmt: skip

# --- damaged files -----------------------------------------------------------------------------------------------


def empty(file: Path) -> None:
    file.write_bytes(b"")


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbage(file: Path) -> None:
    """Replace the content by garbage of the same size, as a crash of the machine may do."""
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def missing(file: Path) -> None:
    file.unlink()


DAMAGE = [empty, halved, garbage, zeros, missing]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compute a sweep of three cells: two are done, one of them with features, and one has failed."""
    results = tmp_path_factory.mktemp("computed") / "results"
    assert run.main([*SMALL, f"results={results}"]) == 0
    store = Store(results)
    first, second, third = [cell["id"] for cell in store.manifest("corruptions")["cells"]]
    shutil.rmtree(results / "cells" / third)
    about = {"axes": store.record(first)["axes"], "provenance": {}}
    store.write_failure(third, {"class": "oom", "message": "no room", "traceback": "", **about})
    record = {key: value for key, value in store.record(second).items() if key not in ("schema", "id", "files")}
    rows, samples = store.rows([second]).to_dict("records"), store.samples(second)
    shutil.rmtree(results / "cells" / second)
    store.write(second, rows, record, samples, {"ids": samples["ids"], "x_output": np.zeros((1, 2), np.float32)})
    return results


@pytest.fixture
def results(computed: Path, tmp_path: Path) -> Path:
    shutil.copytree(computed, tmp_path / "results")
    return tmp_path / "results"


def ids(results: Path) -> list[str]:
    return [cell["id"] for cell in Store(results).manifest("corruptions")["cells"]]


OF_CELLS = ["rows.parquet", "cell.json", "samples.npz", "features.npz", "failure"]


def broken(results: Path, kind: str, damage: Callable[[Path], None]) -> str:
    """Damage one file of a cell, and return the cell."""
    _, second, third = ids(results)
    cell = third if kind == "failure" else second
    damage(results / "failures" / f"{third}.json" if kind == "failure" else results / "cells" / second / kind)
    return cell


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", OF_CELLS)
def test_a_damaged_cell_is_named_and_is_none(
    results: Path, kind: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan, status and mirror name the cell and do not count it as done."""
    cell = broken(results, kind, damage)
    gone = kind == "failure" and damage is missing  # in this case the cell is missing, not damaged
    assert list(Store(results).damaged(ids(results))) == ([] if gone else [cell])
    outlook = plan.look([*SMALL, f"results={results}"])
    assert [one.id for one in outlook.plan.missing] == [cell]
    assert plan.main([*SMALL, f"results={results}"]) == 0
    assert gone or f"damaged: {cell}: " in capsys.readouterr().out
    assert status.look(Store(results))[0].states[cell] == ("missing" if gone else "damaged")
    assert status.main([f"results={results}"]) == 0
    assert gone or f"damaged: {cell}: " in capsys.readouterr().out
    mirror = Mirror(Store(results), "corruptions", TrackerConfig(), "offline")
    assert cell not in [mark.record for mark in mirror.wanted()]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["rows.parquet", "cell.json", "samples.npz"])
def test_a_reader_says_which_file_is_damaged(results: Path, kind: str, damage: Callable[[Path], None]) -> None:
    cell, store = broken(results, kind, damage), Store(results)
    read = {
        "rows.parquet": lambda: store.rows([cell]), "cell.json": lambda: store.record(cell),
        "samples.npz": lambda: store.samples(cell),
    }[kind]  # fmt: skip
    if damage is missing:
        with contextlib.suppress(FileNotFoundError):
            read()
        return
    with pytest.raises(Damaged, match=rf"{cell}/{kind} is damaged"):
        read()


@pytest.mark.parametrize(("kind", "damage"), list(zip(OF_CELLS, [*DAMAGE[:4], halved], strict=True)))
def test_a_damaged_cell_is_computed_again(
    results: Path, kind: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = broken(results, kind, damage)
    others = {one: (results / "cells" / one).stat().st_ino for one in Store(results).done() - {cell}}
    code = run.main([*SMALL, f"results={results}"])
    printed = capsys.readouterr().out
    assert f"damaged: {cell}: " in printed and "1 cells computed" in printed
    assert code == (0 if kind == "failure" else 1), "the other cell that has failed stays so"
    assert cell in Store(results).done() and not Store(results).damaged(ids(results))
    assert others == {one: (results / "cells" / one).stat().st_ino for one in others}
    assert not list((results / "cells").glob(".*"))


def test_a_result_replaces_a_damaged_one(results: Path) -> None:
    """This holds in a worker whose driver planned before the damage."""
    cell, store = broken(results, "rows.parquet", halved), Store(results)
    assert store.write(cell, [{"cell_id": cell, "psnr": 1.0}], {"provenance": {}})
    assert store.rows([cell])["psnr"].tolist() == [1.0] and not store.write(cell, [], {})


def test_a_record_of_an_earlier_version_is_whole(results: Path) -> None:
    """Such a record does not list its files."""
    store, cell = Store(results), ids(results)[0]
    file = results / "cells" / cell / "cell.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "files"}))
    assert not store.damaged([cell])
    missing(results / "cells" / cell / "samples.npz")
    assert not store.damaged([cell]), "it may never have had any"
    missing(results / "cells" / cell / "rows.parquet")
    assert store.damaged([cell]) == {cell: "rows.parquet is missing"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_is_named_and_written_again(
    results: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    file = results / "sweeps" / "corruptions.json"
    Store(results).write_manifest("other", Store(results).manifest("corruptions"))
    damage(file)
    with pytest.raises(UserError, match=r"corruptions\.json is damaged|unknown sweep 'corruptions'"):
        status.main([f"results={results}", "sweep=corruptions"])
    assert status.main([f"results={results}"]) == 0
    printed = capsys.readouterr().out
    assert "other: 3 cells" in printed and (damage is missing or "corruptions.json is damaged" in printed)
    if damage is not missing:
        assert cancel.main([f"results={results}", "sweep=corruptions"]) == 0
    assert run.main([*SMALL, f"results={results}"]) == 1
    assert len(ids(results)) == 3


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["run.json", "stop"])
def test_a_damaged_run_is_named_and_stops_no_command(
    results: Path, kind: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = (results / "jobs").iterdir()
    runs.stop(folder, "enough, it was said")
    damage(folder / kind)
    assert status.main([f"results={results}"]) == 0 and cancel.main([f"results={results}", "sweep=corruptions"]) == 0
    printed = capsys.readouterr()
    named = kind == "run.json" and damage is not missing
    assert ("run.json is damaged" in printed.out) == ("run.json is damaged" in printed.err) == named
    assert (runs.why_stopped(folder) is None) == (kind == "stop" and damage is missing)
    assert run.main([*SMALL, f"results={results}"]) == 1, "one cell has failed"


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_images_of_an_open_cell_are_none(results: Path, damage: Callable[[Path], None]) -> None:
    store, cell = Store(results), ids(results)[2]
    store.write_partial(cell, "maker", [{"image_id": "a"}], {"output": np.zeros(9)})
    assert store.partial_images(cell) == 1
    damage(results / "partial" / f"{cell}.npz")
    assert store.partial_images(cell) == 0 and store.partial(cell, "maker") == ([], {}, 0.0)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_claim_is_void(results: Path, damage: Callable[[Path], None]) -> None:
    cell = ids(results)[2]
    with Claims(results) as other:
        assert other.take(cell) and other.take(".submit")
        damage(results / "claims" / cell)
        damage(results / "claims" / ".submit")
        with Claims(results) as ours:
            assert not [claim for claim in ours.all() if claim.alive]
            with ours.alone("submit", lambda: pytest.fail("no other process holds it")):
                pass
        assert (
            status.main([f"results={results}"]) == 0 and cancel.main([f"results={results}", "sweep=corruptions"]) == 0
        )
        assert run.main([*SMALL, f"results={results}", "retry=all"]) == 0


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_owner_with_a_damaged_card_has_nothing(results: Path, damage: Callable[[Path], None]) -> None:
    cell = ids(results)[2]
    with Claims(results) as other, Claims(results) as ours:
        assert other.take(cell)
        damage(results / "claims" / ".owners" / other.name)
        assert ours.take(cell)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["bench/run.py", "snapshot.json"])
def test_a_damaged_copy_of_the_code_is_made_again(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    copy = snapshot.take(tmp_path, [])
    before = (copy / name).read_bytes()
    stamp = (copy / "bench" / "store.py").stat().st_ino
    assert snapshot.take(tmp_path, []) == copy and (copy / "bench" / "store.py").stat().st_ino == stamp
    damage(copy / name)
    assert snapshot.take(tmp_path, []) == copy and (copy / name).read_bytes() == before
    assert list(copy.parent.iterdir()) == [copy]


# --- what killed processes leave -------------------------------------------------------------------------------------


def age(path: Path) -> None:
    past = time.time() - 2 * STALE_SECONDS
    os.utime(path, (past, past))


def test_what_kills_left_is_removed_when_it_is_old(results: Path) -> None:
    done, _, failed = ids(results)
    store = Store(results)
    names = ["cells/a", "failures/a.json", "partial/a.npz", "sweeps/s.json", "claims/a", "claims/.owners/a", "code/a"]
    places = [*(results / name for name in names), next((results / "jobs").iterdir()) / "run.json"]
    old, young = [draft_of(place) for place in places], [draft_of(place) for place in places]
    for draft in (*old, *young):
        draft.parent.mkdir(parents=True, exist_ok=True)
        if draft.parent.name in ("cells", "code"):
            draft.mkdir()
            (draft / "rows.parquet").write_text("half")
        else:
            draft.write_text("half")
    folder, fresh = runs.new_folder(results), runs.new_folder(results)
    unsubmitted = runs.new_folder(results)
    runs.Run(unsubmitted, "corruptions", "local", [], "code").write()
    for cell in (done, failed):
        store.write_partial(cell, "maker", [{"image_id": "a"}], {})
    with Claims(results) as gone:
        gone.take(done)
        card = (results / "claims" / ".owners" / gone.name).read_text()
    (results / "claims" / ".owners" / "gone").write_text(card.replace(f'"pid": {os.getpid()}', '"pid": 999999999'))
    partial = results / "partial"
    for path in (*old, folder, unsubmitted, partial / f"{done}.npz", partial / f"{failed}.npz"):
        age(path)
    with Claims(results) as alive:
        assert alive.take("mine") and run.main([*SMALL, f"results={results}"]) == 1
        assert alive.look("mine")
    assert [path for path in old if path.exists()] == [] and all(path.exists() for path in young)
    assert not folder.exists() and not unsubmitted.exists() and fresh.exists()
    assert not (partial / f"{done}.npz").exists() and (partial / f"{failed}.npz").exists()
    assert not (results / "claims" / done).exists() and not (results / "claims" / ".owners" / "gone").exists()


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "100"])
    driven = job(tmp_path, "a", "b").driven_by(process.pid)
    running = driven.run()
    assert next(running) == ("a", "done")
    process.kill()
    while started(process.pid) is not None:  # no process has waited for it, so it is a zombie now
        time.sleep(0.01)
    os.kill(process.pid, 0)
    assert list(running) == []
    process.wait()


# --- the end of a run ----------------------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    given = [argument for argument in SMALL if not argument.startswith(("severity", "images", "launcher"))]
    words = [*given, f"results={tmp_path}", "images=40", "launcher=local", "launcher.workers=1", "batch_size=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.run", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()


def test_sigterm_says_what_it_does_and_ends_the_workers(tmp_path: Path, slow: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not (alive := [claim for claim in Claims(tmp_path).all() if claim.alive]) and time.monotonic() < deadline:
        time.sleep(0.05)
    slow.send_signal(signal.SIGTERM)
    _, errors = slow.communicate(timeout=120)
    assert slow.returncode == 143
    assert errors.strip().splitlines() == ["terminated: what was finished is kept; the same command goes on"]
    assert alive and started(int(alive[0].owner["pid"])) is None and not Claims(tmp_path).look(alive[0].cell)


@pytest.mark.parametrize("name", ["100%", "a%jb%t%A%a", "%(message)s %s"])
@pytest.mark.parametrize("launcher", ["local", "debug"])
def test_a_percent_sign_in_the_path_is_only_a_sign(
    tmp_path: Path, name: str, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    results = tmp_path / name / "results"
    given = [argument for argument in SMALL if not argument.startswith(("launcher", "severity", "report"))]
    given += ["severity=1", "launcher.workers=1"]
    assert run.main([*given, f"results={results}", f"launcher={launcher}"]) == 0
    assert len(Store(results).done()) == 1 and (results / "reports" / "corruptions" / "table.csv").is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [name]
    if launcher == "local":
        assert len(list(results.glob("jobs/*/logs/*_log.out"))) == 1


def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    drill(5, tmp_path, seed=1)
