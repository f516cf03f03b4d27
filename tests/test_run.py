"""Complete runs on the digits: what is computed, what is not computed twice, and what a killed run leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from bench import run
from bench.cell import execute, posing
from bench.cell import rows as cell_rows
from bench.plan import look
from bench.spec.cells import Cell, expand
from bench.spec.compose import compose_config
from bench.store import Store
from corruptions.base import Measurement, content_hash
from methods.base import Cost, Latent, Solution
from methods.inversion.ddim import DDIM
from methods.solvers import Step

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "sweep=corruptions",
    "method=ddim,edict,rf_inversion",
    "profile=digits",
    "steps=4",
    "images=5",
    "samples=1",
    "tracker=none",
]
SCIENCE_EXCEPT = ("seconds", "peak_mib")  # measured, not computed


def arguments(results: Path, *changes: str) -> list[str]:
    keys = {change.split("=")[0] for change in changes}
    return [a for a in SMALL if a.split("=")[0] not in keys] + [f"results={results}", *changes]


def command(results: Path, *changes: str) -> list[str]:
    return [sys.executable, "-m", "bench.run", *arguments(results, *changes)]


def science(results: Path) -> pd.DataFrame:
    store = Store(results)
    rows = store.rows(sorted(store.done())).drop(columns=list(SCIENCE_EXCEPT))
    return rows.sort_values(["cell_id", "image_id"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    assert run.main(arguments(results, "launcher=debug")) == 0
    return results


def test_every_cell_has_its_rows(undisturbed: Path) -> None:
    rows = science(undisturbed)
    assert rows.groupby("cell_id").size().tolist() == [5] * 60
    assert set(rows.method) == {"ddim", "edict", "rf_inversion"} and set(rows.severity) == {1, 2, 3, 4, 5}
    assert (rows.outcome == "ok").all() and rows.psnr.between(0, 100).all() and rows.ssim.between(-1, 1).all()
    assert rows.groupby("method").nfe.unique().map(list).to_dict() == {"ddim": [8], "edict": [16], "rf_inversion": [8]}


def test_every_method_gets_the_same_measurements(undisturbed: Path) -> None:
    rows = science(undisturbed)
    assert (rows.groupby(["image_id", "corruption", "severity"]).y_sha256.nunique() == 1).all()
    assert rows.y_sha256.nunique() == 5 * 20


def test_one_changed_pixel_refuses_the_comparison_and_names_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    results, small = tmp_path / "results", ("corruption=block_mask", "severity=3", "launcher=debug")
    assert run.main(arguments(results, "method=ddim", *small)) == 0
    honest = posing.measure

    def measure(cell: Cell, image_id: str, image: Tensor) -> Measurement:
        found = honest(cell, image_id, image)
        if image_id != image_ids[1]:
            return found
        y = found.y.clone()
        y[0, 0, 0] += 1 / 255
        return dataclasses.replace(found, y=y, sha256=content_hash(y))

    (old,) = Store(results).done()
    image_ids = Store(results).rows([old])["image_id"].tolist()
    monkeypatch.setattr(posing, "measure", measure)
    assert run.main(arguments(results, "method=ddim,edict", *small)) == 1
    (new,) = Store(results).done() - {old}
    printed = capfd.readouterr().err
    assert "1 measurement(s) differ" in printed and f"image {image_ids[1]}, block mask, severity 3, seed 0" in printed
    assert old in printed and new in printed and not any(name in printed for name in image_ids if name != image_ids[1])
    report = results / "reports" / "corruptions"
    assert all("mixed measurements" in (report / name).read_text() for name in ("table.md", "index.html"))
    assert not (report / "table.csv").exists()


def test_provenance_is_complete(undisturbed: Path) -> None:
    store = Store(undisturbed)
    record = store.record(min(store.done()))
    assert {"git_sha", "packages", "host", "weights", "seconds", "started", "torch_threads"} <= set(
        record["provenance"]
    )
    assert all(record["provenance"]["weights"].values())
    assert record["config"]["method"]["options"]["steps"] == 4


def test_rows_of_an_adaptive_solver_have_its_steps(tmp_path: Path) -> None:
    chosen = ["method=flow_ode_dopri5", "images=2", "guidance=1", "steps=10", "launcher=debug", "report=false"]
    given = ["sweep=reconstruction", "profile=digits", "tracker=none", f"results={tmp_path}", *chosen]
    assert run.main(given) == 0
    rows = Store(tmp_path).rows(Store(tmp_path).done())
    spent = [sum(step["evaluations"] for step in steps) for steps in rows["solver_steps"]]
    assert spent == rows["nfe"].tolist() and all(len(steps) > 2 for steps in rows["solver_steps"])


def test_memory_is_the_methods_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a metric is not counted, memory of the method is; also in the next cell of the same process."""
    one = ["method=ddim", "corruption=gaussian_blur", "severity=3"]
    (cell,) = expand(compose_config([*(a for a in SMALL if not a.startswith("method")), *one])).cells
    score, invert = cell_rows.score, DDIM.invert

    def greedy(*arguments: Any) -> Any:
        torch.ones(100 * 2**18).sum()  # 100 MiB
        return score(*arguments)

    def wasteful(self: DDIM, *arguments: Any) -> Any:
        torch.ones(60 * 2**18).sum()
        return invert(self, *arguments)

    monkeypatch.setattr(cell_rows, "score", greedy)
    assert execute.execute(cell, 5, 0)[0][0]["peak_mib"] < 50
    monkeypatch.setattr(DDIM, "invert", wasteful)
    for _ in range(2):
        assert 55 <= execute.execute(cell, 5, 0)[0][0]["peak_mib"] < 95


def test_evaluations_are_each_images_own() -> None:
    """Each image has its own count with an adaptive solver. Shared evaluations, such as a first guess, are added."""
    taken = [[Step(0.0, 0.5, 1, 7), Step(0.5, 0.5, 1, 6)], [Step(0.0, 1.0, 1, 7)]]
    solution = Solution(torch.zeros(2), Latent({}), Cost(15, 0, 0.1), steps=taken)
    assert cell_rows.evaluations(solution, 2) == [15, 9]
    assert cell_rows.evaluations(dataclasses.replace(solution, steps=None), 2) == [15, 15]


def test_again_computes_nothing(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in (undisturbed / "cells").rglob("*")}
    assert run.main(arguments(undisturbed, "launcher=debug")) == 0
    assert "0 cells computed" in capsys.readouterr().out
    assert stamps == {p: p.stat().st_mtime_ns for p in (undisturbed / "cells").rglob("*")}


@pytest.mark.parametrize("changes", [("batch_size=1", "launcher=debug"), ("launcher=local", "launcher.workers=4")])
def test_batches_and_workers_change_no_measurement(undisturbed: Path, tmp_path: Path, changes: tuple[str, ...]) -> None:
    """Batch size, order and number of workers change no y, and change results only by rounding."""
    assert run.main(arguments(tmp_path, *changes, "severity=2,5", "report=false")) == 0
    ours, theirs = science(tmp_path), science(undisturbed)
    theirs = theirs[theirs.severity.isin([2, 5])].reset_index(drop=True)
    assert ours.y_sha256.tolist() == theirs.y_sha256.tolist()
    assert (ours.psnr - theirs.psnr).abs().max() < 0.01


def test_a_killed_run_goes_on_and_ends_in_the_same_table(undisturbed: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for seconds_after_first in (0.0, 0.3):
        process = subprocess.Popen(
            command(results, "launcher=local", "launcher.workers=2"), cwd=ROOT, start_new_session=True
        )
        before = len(Store(results).done())
        deadline = time.monotonic() + 120
        while len(Store(results).done()) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(seconds_after_first)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _end_workers(results)
    done = len(Store(results).done())
    assert 2 <= done < 60
    finished = subprocess.run(
        command(results, "launcher=local", "launcher.workers=2"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert f"{60 - done} cells computed" in finished.stdout
    pd.testing.assert_frame_equal(science(results), science(undisturbed))
    for name in ("table.md", "table.csv"):
        ours, theirs = (r / "reports" / "corruptions" / name for r in (results, undisturbed))
        assert ours.read_bytes() == theirs.read_bytes()


def _end_workers(results: Path) -> None:
    for file in results.glob("claims/.owners/*"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(file.read_text())["pid"], signal.SIGKILL)


def test_workers_stop_when_their_driver_is_gone(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path, "launcher=local", "launcher.workers=1", "images=40"), cwd=ROOT)
    deadline = time.monotonic() + 120
    while not Store(tmp_path).done() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = tmp_path / "claims" / ".owners"
    deadline = time.monotonic() + 120
    while list(workers.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(workers.iterdir()), "the worker has left"
    assert len(Store(tmp_path).done()) < 60


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "launcher=local", "launcher.workers=2", "images=40"), cwd=ROOT, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not Store(tmp_path).done() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal reaches the whole group
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip().splitlines() == ["interrupted: what was finished is kept"], errors
    done = Store(tmp_path).done()
    assert done and all(len(Store(tmp_path).rows([cell])) == 40 for cell in done)
    time.sleep(2)
    assert Store(tmp_path).done() == done, "no worker goes on"


def test_a_failing_cell_is_recorded_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "plugins"
    (plugin / "method").mkdir(parents=True)
    (plugin / "method" / "broken.yaml").write_text("# @package method.broken\nclass: brokenplugin.Broken\n")
    (plugin / "brokenplugin.py").write_text(
        "from methods.inversion.ddim import DDIM\n"
        "class Broken(DDIM):\n"
        "    def decode(self, latent, cond, constrain=None):\n"
        "        raise MemoryError('no room\\n' + 'at [all] ' * 99)\n"
    )
    monkeypatch.syspath_prepend(str(plugin))
    results = tmp_path / "results"
    chosen = arguments(results, "launcher=debug", "method=broken,ddim", "corruption=gaussian_blur", "severity=1,3")
    chosen.append(f"config_dir={plugin}")
    assert run.main(chosen) == 1
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("failed (oom): broken-")]
    assert len(lines) == 2 and all("no room at [all] at" in line and len(line) < 300 for line in lines)
    way_on = f"retry=all runs failed cells again; tracebacks: {results / 'failures'}"
    assert way_on in printed
    store = Store(results)
    assert len(store.done()) == 2 and len(store.failed()) == 2
    failure = store.failure(min(store.failed()))
    assert failure["class"] == "oom" and "no room" in failure["traceback"]
    assert run.main(chosen) == 1 and way_on in capsys.readouterr().out
    outlook = look(chosen)
    assert len(outlook.plan.failed) == 2 and not outlook.plan.todo, "failures are retried only on request"
    assert len(look([*chosen, "retry=oom"]).plan.retried) == 2
    assert not look([*chosen, "retry=timeout"]).plan.retried


def test_the_manifest_names_every_cell(undisturbed: Path) -> None:
    manifest = json.loads((undisturbed / "sweeps" / "corruptions.json").read_text())
    assert {cell["id"] for cell in manifest["cells"]} == Store(undisturbed).done()
    assert "lpips" in manifest["unavailable"]
