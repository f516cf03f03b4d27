"""Tests of the W&B mirror with the real client: offline folders, a local server, and what a crash leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wandb_server import KEY, Server, serve

from bench import publish
from bench.errors import UserError
from bench.mirror.companion import Companion
from bench.mirror.records import Mark, offline_runs
from bench.mirror.writing import Mirror
from bench.spec.config import TrackerConfig
from bench.store import Store
from reports import build

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("ddim", "edict")
SEVERITIES = (1, 3)
ADAPTIVE = ("ddim", 1)
"""The cell with an adaptive solver: image i has 2 steps to the noise, and i + 1 steps of 1 / (i + 1) to the image."""


def axes(method: str, severity: int) -> dict[str, Any]:
    return {
        "method": method,
        "model": "toy",
        "dataset": "digits",
        "task": "restore",
        "corruption": "blur",
        "severity": severity,
        "steps": 4,
        "guidance": 1.0,
        "seed": 0,
    }


def cell_id(method: str, severity: int) -> str:
    return f"{method}-blur-s{severity}-toy"


def write_cell(store: Store, method: str, severity: int) -> None:
    rng = np.random.default_rng([severity, len(method)])
    place = axes(method, severity)
    rows = [
        {
            "cell_id": cell_id(method, severity),
            "image_id": f"digit-{i}",
            **place,
            "outcome": "ok",
            "psnr": None if i == 2 and method == "edict" else 20 + float(rng.normal()) / 3,
            "ssim": float(rng.uniform()),
            "input_psnr": 15.1 + i,
            "nfe": 8,
            "seconds": float(rng.uniform()),
            "latent_std": 1.0,
            "y_sha256": f"{severity}-{i}",
        }
        for i in range(4)
    ]
    for i, row in enumerate(rows if (method, severity) == ADAPTIVE else ()):
        there = [{"t": 0.5 * k, "h": 0.5, "tried": 1 + i, "evaluations": 6} for k in range(2)]
        row["solver_steps"] = there + [{"t": 1.0, "h": -1.0 / (i + 1), "tried": 1, "evaluations": 7}] * (i + 1)
    config = {**place, "method": {"name": method, "options": {"p": 0.93}}}
    record = {"config": config, "axes": place, "provenance": {"git_sha": "0123abc", "host": "here", "seconds": 1.5}}
    images = rng.integers(0, 255, (2, 16, 16, 1), dtype=np.uint8)
    samples = {"ids": np.array(["digit-0", "digit-1"]), "truth": images, "input": images // 2, "output": images}
    store.write(cell_id(method, severity), rows, record, samples)


def make_store(root: Path) -> Store:
    """Make a store with three cells that are done and one that has failed."""
    store = Store(root)
    places = [(method, severity) for method in METHODS for severity in SEVERITIES]
    cells = [{"id": cell_id(*place), "axes": axes(*place)} for place in places]
    manifest = {"title": "Toy", "description": "", "task": "restore", "profile": "toy", "images": 4, "cells": cells}
    manifest["titles"] = {"method": {method: method.upper() for method in METHODS}}
    store.write_manifest("toy", manifest | {"unavailable": {}, "skipped": []})
    for place in places[:-1]:
        write_cell(store, *place)
    failure = {"class": "oom", "message": "MemoryError: too large", "traceback": "…", "provenance": {"host": "here"}}
    store.write_failure(cell_id(*places[-1]), failure | {"axes": axes(*places[-1])})
    return store


def environment(server: Server | None, home: Path) -> dict[str, str]:
    """Return the environment of a user who is logged in to the server, or not logged in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k.lower() != "https_proxy"}
    kept |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return kept if server is None else kept | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}


def python(arguments: Sequence[str], variables: dict[str, str], code: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def published(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store with a report, whose mirror is on the server and in offline folders."""
    home = tmp_path_factory.mktemp("published")
    store = make_store(home / "results")
    assert build.main(["sweep=toy", f"store={store.root}", "quiet=true"]) == 0
    online = python(["bench.publish", "sweep=toy", f"results={store.root}"], environment(server, home))
    assert "5 runs at http" in online and "5 of them new" in online
    offline = ["bench.publish", "sweep=toy", f"results={store.root}", "tracker.mode=offline"]
    assert "5 runs in" in python(offline, environment(server, home))
    return store


def test_runs_on_the_server(server: Server, published: Store) -> None:
    assert set(server.runs) == {"toy", *(f"toy-{cell_id(m, s)}" for m in METHODS for s in SEVERITIES)}
    assert {(run.project, run.group) for run in server.runs.values()} == {("inversion-bench", "toy")}
    run = server.runs["toy-ddim-blur-s3-toy"]
    config = {key: entry["value"] for key, entry in run.config.items() if not key.startswith("_")}
    expected = axes("ddim", 3)
    assert {key: config[key] for key in expected} == expected
    assert config["options"] == {"p": 0.93} and config["provenance"]["git_sha"] == "0123abc"
    assert (run.job_type, run.state) == ("restore", "finished") and {"toy", "restore", "digits"} <= set(run.tags)
    rows = published.rows([cell_id("ddim", 3)])
    assert run.summary["psnr"] == rows["psnr"].mean() and run.summary["images"]["_type"] == "images/separated"
    assert run.summary["count"] == 4 and run.summary["outcome"] == "done"
    assert run.files["rows.parquet"] == (published.root / "cells" / cell_id("ddim", 3) / "rows.parquet").read_bytes()
    assert sum(name.startswith("media/images/") for name in run.files) == 2


def test_steps_of_an_adaptive_solver_are_history(server: Server, published: Store) -> None:
    """Each step is one line, with means over the images that still take it. The first line also has the images."""
    history = server.runs[f"toy-{cell_id(*ADAPTIVE)}"].history
    assert [line["_step"] for line in history] == [0, 1, 2, 3] and "images" in history[0]
    ways = [{key: line.get(f"solver/{key}") for key in ("invert/time", "decode/step_size")} for line in history]
    assert [way["invert/time"] for way in ways] == [0.0, 0.5, None, None]
    assert [way["decode/step_size"] for way in ways] == pytest.approx(
        [(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, (1 / 2 + 1 / 3 + 1 / 4) / 3, (1 / 3 + 1 / 4) / 2, 1 / 4]
    )
    assert [line["solver/decode/images"] for line in history] == [4, 3, 2, 1]
    first = {key.removeprefix("solver/invert/"): value for key, value in history[0].items() if "/invert/" in key}
    assert first == {"time": 0, "step_size": 0.5, "steps_tried": 2.5, "evaluations": 6, "images": 4}
    others = [run for name, run in server.runs.items() if name != f"toy-{cell_id(*ADAPTIVE)}" and name != "toy"]
    assert not any("solver" in key for run in others for line in run.history for key in line)


def test_a_failed_cell_is_a_failed_run(server: Server, published: Store) -> None:
    run = server.runs["toy-edict-blur-s3-toy"]
    assert run.state == "failed" and run.summary["outcome"] == "oom" and "too large" in run.summary["message"]
    assert json.loads(run.files["failure.json"]) == published.failure(cell_id("edict", 3))


def test_the_sweep_has_a_run_with_its_tables_and_report(server: Server, published: Store) -> None:
    run = server.runs["toy"]
    assert run.job_type == "sweep" and run.summary["done"] == 3 and run.summary["failed"] == 1
    table = json.loads(next(body for name, body in run.files.items() if name.startswith("media/table/table_")))
    assert "mean" in table["columns"] and table["data"]
    page = (published.root / "reports" / "toy" / "index.html").read_bytes()
    assert page in [body for name, body in run.files.items() if name.startswith("media/html/report_")]
    assert run.summary["figures/curves_psnr"]["_type"] == "image-file"


def test_publishing_again_makes_nothing_and_a_change_alone(server: Server, published: Store, tmp_path: Path) -> None:
    command = ["bench.publish", "sweep=toy", f"results={published.root}"]
    before = server.operations.count("UpsertBucket")
    assert "5 runs at" in python(command, environment(server, tmp_path))
    assert server.operations.count("UpsertBucket") == before


def test_no_telemetry_leaves(server: Server, published: Store) -> None:
    assert server.operations and server.telemetry == []


def test_tables_from_every_source_are_the_same_bytes(server: Server, published: Store, tmp_path: Path) -> None:
    first = contents(published.root / "reports" / "toy")
    assert {"table.md", "table.csv", "costs.csv", "index.html"} < set(first)
    alone = tmp_path / "alone"
    shutil.copytree(published.root / "wandb", alone / "wandb", ignore=shutil.ignore_patterns("run-*"))
    assert build.main(["sweep=toy", f"store={alone}", "source=files", "quiet=true"]) == 0
    assert contents(alone / "reports" / "toy") == first
    nothing = tmp_path / "nothing"
    python(["reports.build", "sweep=toy", f"store={nothing}", "source=wandb"], environment(server, tmp_path))
    assert contents(nothing / "reports" / "toy") == first


def test_a_cell_that_failed_and_is_done_later_keeps_its_run(server: Server, published: Store, tmp_path: Path) -> None:
    before = server.operations.count("UpsertBucket")
    write_cell(published, "edict", 3)
    command = ["bench.publish", "sweep=toy", f"results={published.root}"]
    assert "5 runs at" in python(command, environment(server, tmp_path))
    run = server.runs["toy-edict-blur-s3-toy"]
    assert run.state == "finished" and run.summary["outcome"] == "done" and "rows.parquet" in run.files
    assert len(run.history) == 1 and server.operations.count("UpsertBucket") - before <= 4
    assert server.runs["toy"].summary["done"] == 4 and server.runs["toy"].summary["failed"] == 0
    (mark,) = (mark for mark, _ in offline_runs(published.root / "wandb") if mark.run_id == run.name)
    assert mark.kind == "failure"  # the offline mirror has its own run
    python([*command, "tracker.mode=offline"], environment(server, tmp_path))
    (mark,) = (mark for mark, _ in offline_runs(published.root / "wandb") if mark.run_id == run.name)
    assert mark.kind == "cell"


# --- dashboard and training ------------------------------------------------------------------------------------------


def test_the_dashboard_is_made_once(server: Server, published: Store, tmp_path: Path) -> None:
    views = {view["type"]: view for view in server.views.values()}
    assert len(server.views) == 2 and set(views) == {"project-view", "runs"}
    summary = server.runs["toy"].summary
    assert summary["view_url"].startswith("http") and summary["report_url"].startswith("http")
    saved = views["project-view"]["spec"]
    for word in ("psnr", "ssim", "latent_std", "nfe", "severity", "images", '"toy"', "solver/decode/step_size"):
        assert word in saved and (word in views["runs"]["spec"] or word in ("latent_std", "solver/decode/step_size"))
    printed = python(["bench.publish", "sweep=toy", f"results={published.root}"], environment(server, tmp_path))
    assert summary["view_url"] in printed and len(server.views) == 2


def test_a_training_has_its_curves(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "train" / "small"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"dataset": "digits", "learning_rate": 1e-3, "steps": 60}))
    lines = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 9.0}, {"step": 20, "loss": 2.0}, {"step": 20, "held": 2.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "lo'
    (folder / "history.jsonl").write_text(text)  # back to a checkpoint, then killed in a line
    command = ["bench.publish", "train=small", f"out={tmp_path / 'train'}"]
    assert "1 runs at" in python(command, environment(server, tmp_path))
    (run,) = (run for run in server.runs.values() if run.group == "training")
    assert run.name.startswith("training-small-") and run.job_type == "train"
    assert run.config["learning_rate"]["value"] == 1e-3

    def logged() -> list[dict[str, float]]:
        return [{key: value for key, value in line.items() if not key.startswith(("_r", "_t"))} for line in run.history]

    assert logged() == [{"_step": 10, "loss": 3.0}, {"_step": 20, "loss": 2.0, "held": 2.5}]
    (folder / "history.jsonl").write_text(text + "\n" + json.dumps({"step": 40, "loss": 1.0}) + "\n")
    python(command, environment(server, tmp_path))
    assert logged()[2:] == [{"_step": 40, "loss": 1.0}] and run.state == "finished"
    assert run.files["history.jsonl"] == (folder / "history.jsonl").read_bytes()


# --- processes that end ----------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition is true, and fail after two minutes. This is no measurement of time."""
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def processes(leader: int, name: str) -> list[int]:
    """Return pids of a session and its leader's children, by command line (wandb's service leads its own session)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if leader in (int(fields[1]), int(fields[3])) and name.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def mirrored(root: Path) -> set[str]:
    return {mark.record for mark, _ in offline_runs(root / "wandb") if mark.kind == "cell"}


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Set the environment of a user who is not logged in, also in this process, and return it."""
    variables = environment(None, tmp_path)
    for name in set(os.environ) - set(variables):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def unmirrored(root: Path) -> Store:
    """Make the store as it is when a sweep starts: a manifest and no cell."""
    store = make_store(root)
    shutil.rmtree(root / "cells")
    shutil.rmtree(root / "failures")
    return store


def test_cells_are_mirrored_while_the_sweep_runs_and_a_killed_service_is_replaced(
    tmp_path: Path, logged_out: dict[str, str]
) -> None:
    store = unmirrored(tmp_path / "results")
    companion = Companion(store.root, "toy", TrackerConfig(kind="wandb"))
    try:
        write_cell(store, "ddim", 1)
        wait_for(lambda: mirrored(store.root) == {cell_id("ddim", 1)}, "the first cell's run")
        service = processes(companion.process.pid, "wandb-core")
        assert service
        for pid in service:
            os.kill(pid, signal.SIGKILL)
        for place in (("ddim", 3), ("edict", 1), ("edict", 3)):
            write_cell(store, *place)
        line = companion.close()
    finally:
        companion.stop()
    assert line.startswith("wandb: 5 runs in") and len(mirrored(store.root)) == 4
    assert processes(companion.process.pid, "") == []


def test_what_a_killed_mirror_left_is_published(tmp_path: Path, logged_out: dict[str, str]) -> None:
    store = unmirrored(tmp_path / "results")
    companion = Companion(store.root, "toy", TrackerConfig(kind="wandb"))
    try:
        write_cell(store, "ddim", 1)
        wait_for(lambda: mirrored(store.root), "the first cell's run")
        os.killpg(companion.process.pid, signal.SIGKILL)
        write_cell(store, "edict", 3)
        assert companion.close() == "wandb: the mirror stopped; python -m bench.publish sweep=toy completes it"
    finally:
        companion.stop()
    assert "3 runs in" in python(["bench.publish", "sweep=toy", f"results={store.root}"], logged_out)
    assert mirrored(store.root) == {cell_id("ddim", 1), cell_id("edict", 3)}


def test_under_an_agent_of_wandb_every_record_has_its_own_run(tmp_path: Path, logged_out: dict[str, str]) -> None:
    """An agent gives its child a run through the environment. Our runs must be different ones."""
    store = make_store(tmp_path / "results")
    agent = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "agents", "WANDB_NAME": "agents", "WANDB_RESUME": "must"}
    agent |= {"WANDB_RUN_GROUP": "agents", "WANDB_SWEEP_PARAM_PATH": str(tmp_path / "nowhere.yaml")}
    assert "5 runs in" in python(["bench.publish", "sweep=toy", f"results={store.root}"], logged_out | agent)
    folders = [path.name.split("-", 3)[3] for path in (store.root / "wandb").glob("offline-run-*")]
    wanted = Mirror(store, "toy", TrackerConfig(), "offline").wanted()
    assert sorted(folders) == sorted(mark.run_id for mark in wanted) and len(set(folders)) == 5


def test_a_sweep_does_not_notice_that_its_mirror_died(tmp_path: Path) -> None:
    variables, results = environment(None, tmp_path), tmp_path / "results"
    command = [sys.executable, "-m", "bench.run", "sweep=corruptions", "profile=digits", "method=ddim", "steps=2"]
    command += ["corruption=block_mask", "severity=1,3", "images=2", "launcher=debug", "report=false"]
    command += [f"results={results}"]
    running = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    mirror = int(wait_for(lambda: children.read_text().split(), "the mirror's process")[0])
    wait_for(lambda: processes(mirror, "bench.mirror.companion"), "the mirror's session")
    os.killpg(mirror, signal.SIGKILL)
    printed = running.communicate(timeout=240)[0]
    assert running.returncode == 0, printed
    assert "2 cells computed, 0 failed" in printed and "the mirror stopped; python -m bench.publish" in printed
    assert "3 runs in" in python(["bench.publish", "sweep=corruptions", f"results={results}"], variables)


def test_a_server_that_is_gone_costs_one_line(tmp_path: Path) -> None:
    store = unmirrored(tmp_path / "results")
    gone = environment(None, tmp_path) | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    command = ["bench.publish", "sweep=toy", f"results={store.root}"]
    assert "1 runs in" in python(command, gone)  # a node without a network
    assert "does not answer" in python([*command, "tracker.mode=online"], gone, code=2)
    error = python(["reports.build", "sweep=toy", f"store={store.root}", "source=wandb"], gone, code=2)
    assert error.count("\n") == 1 and "W&B cannot be read" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a sweep"),
        (["sweep=toi"], "nearest: toy"),
        (["sweep=toy", "tracker.mode=on"], "tracker.mode"),
        (["sweep=toy", "severity=1"], "unknown argument 'severity'"),
        (["sweep=toy", "tracker.mode=online"], "not logged in"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, logged_out: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "results")
    with pytest.raises(UserError, match=re.escape(words)):
        publish.main([*arguments, f"results={store.root}"])


def test_ids_of_runs_are_the_clients_own_and_all_different() -> None:
    marks = [Mark("s", "cell", f"a{'x' * 200}{i}", "0") for i in range(3)] + [Mark("s", "cell", "a/b c", "0")]
    ids = [mark.run_id for mark in marks]
    assert len(set(ids)) == 4 and all(len(name) <= 128 and not set(name) & set("/\\#?%: ") for name in ids)
