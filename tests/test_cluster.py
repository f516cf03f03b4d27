"""Launching without a cluster: the text for sbatch, arrays, snapshots, claims, signals, partial cells, status."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bench import cancel, run, status, train
from bench.cell.guard import Guard, classify
from bench.cell.interrupts import CellTimeout, Interrupts
from bench.cluster import launch, runs, slurm, snapshot
from bench.cluster.claims import Claim, Claims
from bench.cluster.jobs import Job, _take
from bench.errors import NodeFault, StoreError, UserError
from bench.spec.cells import Cell, expand
from bench.spec.chunks import Chunk
from bench.spec.compose import compose_config
from bench.spec.config import LauncherConfig
from bench.store import Store

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
TINY = ["sweep=theory", "method=ddim", "model=gmm", "guidance=1.0", "tracker=none", "report=false"]
"""A cell for every `steps`, on an exact denoiser."""

# --- what SLURM receives -----------------------------------------------------------------------------------------

ENVIRONMENT = {"PYTHONPATH": "/store/code/abc:/home/me", "HF_HUB_OFFLINE": "1", "NOTE": "two words"}
SITE = ["launcher.partition=gpu", "launcher.account=lab", "launcher.qos=long", "launcher.constraint=a100",
        "launcher.setup=[module load cuda]", "launcher.additional_parameters={mail-type: FAIL}"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "overrides", "count"),
    [
        ("one_gpu", ["launcher=slurm"], 7),
        ("one_job", ["launcher=slurm"], 1),
        ("eight_gpus", ["launcher=slurm_8gpu"], 3),
        ("site", ["launcher=slurm", *SITE], 100),
        ("no_gpu", ["launcher=slurm", "launcher.gpus=0", "launcher.mem_gb=0.5"], 2),
    ],
)
def test_the_text_for_sbatch_is_as_recorded(name: str, overrides: list[str], count: int) -> None:
    launcher = compose_config(overrides, sweep_required=False).launcher
    asked = slurm.parameters(launcher, launcher.resources("flux"), "corruptions", ENVIRONMENT)
    text = slurm.script(asked, Path("/store/jobs/RUN/logs"), count, "/env/bin/python")
    assert text == (GOLDEN / f"sbatch_{name}.sh").read_text()


def test_a_model_may_ask_for_more() -> None:
    overrides = ["launcher=slurm", "launcher.models={flux: {mem_gb: 120, gpus: 2}}"]
    launcher = compose_config(overrides, sweep_required=False).launcher
    assert (launcher.resources("flux").mem_gb, launcher.resources("flux").gpus) == (120, 2)
    assert launcher.resources("sd15").mem_gb == launcher.mem_gb == 40
    with pytest.raises(UserError, match=r"unknown key 'mem' in launcher.models.flux.*nearest: mem_gb"):
        compose_config(["launcher=slurm", "launcher.models={flux: {mem: 1}}"], sweep_required=False)


@given(st.integers(1, 5000), st.integers(1, 1001), st.integers(1, 300))
def test_arrays_hold_every_job_and_no_more_than_they_may(count: int, largest: int, parallel: int) -> None:
    cut = slurm.shares(count, largest, parallel)
    assert sum(size for size, _ in cut) == count and all(1 <= size <= largest for size, _ in cut)
    assert all(each >= 1 for _, each in cut) and sum(each for _, each in cut) <= max(parallel, len(cut))


def test_jobs_open_no_connection_and_see_the_copy_first(tmp_path: Path) -> None:
    values = launch.environment(LauncherConfig(env={"WANDB_MODE": "disabled"}), tmp_path, 3)
    assert values["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path) and values["PYTHONSAFEPATH"] == "1"
    assert values["HF_HUB_OFFLINE"] == values["TRANSFORMERS_OFFLINE"] == "1" and values["OMP_NUM_THREADS"] == "3"
    assert values["WANDB_MODE"] == "disabled", "the user's word is the last"


def test_weights_come_from_the_folder_that_the_nodes_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/mine")
    folders = [("/mine", LauncherConfig()), ("/scratch/weights", LauncherConfig(cache="/scratch/weights"))]
    for folder, launcher in folders:
        values = launch.environment(launcher, tmp_path, 1)
        assert (values["HF_HUB_CACHE"], values["TORCH_HOME"]) == (f"{folder}/huggingface/hub", f"{folder}/torch")


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    folder.mkdir()
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    launch._controller_answers.cache_clear()


def test_clients_without_a_cluster_are_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(tmp_path / "bin", monkeypatch, sbatch="exit 1", scontrol="exit 1")
    assert launch.backend(LauncherConfig()) == "local"
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nexit 0\n")
    launch._controller_answers.cache_clear()
    assert launch.backend(LauncherConfig()) == "slurm"
    launch._controller_answers.cache_clear()


SCONTROL = """case "$1 $2" in
'show job') echo "JobId=8 ReqNodeList=(null) {known}" ;;
'show hostnames') echo $3 | tr , '\\n' ;;
'update JobId=7_0') echo $3 >{update} ;;
esac"""


@pytest.mark.parametrize(
    ("known", "other", "excluded"),
    [
        ("ExcNodeList=(null)", "b2|idle|a100|gpu:8", "b1"),
        ("ExcNodeList=b3,b4", "b2|idle~|a100|gpu:8", "b3,b4,b1"),
        ("ExcNodeList=(null)", "b2|down|a100|gpu:8", ""),
        ("ExcNodeList=(null)", "b2|idle|v100|gpu:8", ""),
        ("ExcNodeList=b2", "b2|idle|a100|gpu:8", ""),
        ("ExcNodeList=(null) Reservation=ours", "b2|idle|a100|gpu:8", ""),
    ],
    ids=["idle", "powered down", "down", "of another kind", "excluded already", "reserved"],
)
def test_a_bad_node_is_excluded_where_there_is_another_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str, other: str, excluded: str
) -> None:
    update = tmp_path / "update"
    update.touch()
    scontrol = SCONTROL.format(known=known, update=update)
    fake_slurm(tmp_path / "bin", monkeypatch, scontrol=scontrol, sinfo=f"echo 'b1|comp|a100|gpu:8'; echo '{other}'")
    inside = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_PARTITION": "gpu"}
    for name, value in (inside | {"SLURMD_NODENAME": "b1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(signal, "signal", lambda number, answer: None)
    slurm.avoid_node()
    assert update.read_text().strip() == (f"ExcNodeList={excluded}" if excluded else "")


def test_a_dry_run_prints_what_sbatch_would_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm(tmp_path / "bin", monkeypatch, sbatch="exit 1", scontrol="echo 'MaxArraySize = 3'")
    results = tmp_path / "results"
    overrides = [*TINY, "steps=1,2,3,4,5", f"results={results}", "launcher=slurm", "launcher.chunk_minutes=0.0001"]
    assert run.main([*overrides, "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert "#SBATCH --array=0-2%3" in printed and "#SBATCH --array=0-1%2" in printed, "five jobs, three per array"
    assert f"export PYTHONPATH={snapshot.place(results, [])}" in printed and not results.exists()


# --- the code that jobs run --------------------------------------------------------------------------------------


def test_a_snapshot_is_what_runs_after_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "myplugin.py"
    plugin.write_text("class Mine: answer = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    copy = snapshot.take(tmp_path / "store", ["myplugin.Mine", "methods.inversion.ddim.DDIM", "json.JSONDecoder"])
    assert snapshot.take(tmp_path / "store", ["myplugin.Mine", "methods.inversion.ddim.DDIM"]) == copy
    plugin.write_text("class Mine: answer = 2\n")
    assert snapshot.take(tmp_path / "store", ["myplugin.Mine"]) != copy
    code = "import myplugin, bench.cluster.snapshot as s, json\n"
    code += "print(json.dumps([myplugin.Mine.answer, s.__file__, s.identity()]))"
    environment = {**os.environ, **launch.environment(LauncherConfig(), copy, 1)}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    answer, file, identity = json.loads(printed.stdout)
    assert answer == 1 and Path(file).is_relative_to(copy)
    assert identity["code"] == copy.name and identity["git_sha"] == snapshot.identity()["git_sha"]
    assert (copy / "sweeps" / "run.yaml").is_file() and list((copy / "methods" / "zoo").glob("*.safetensors"))
    assert not (copy / "json").exists()


def test_a_snapshot_holds_what_plugins_import_from_beside_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module, its helper, the helper's package, and a package without __init__.py; not what no module imports."""
    plugins = tmp_path / "plugins"
    (plugins / "loose").mkdir(parents=True)
    (plugins / "kit").mkdir()
    (plugins / "plug.py").write_text("import numpy, helper\nclass Mine: pass\n")
    (plugins / "helper.py").write_text("def late():\n    from kit.tools import x\n")
    (plugins / "kit" / "__init__.py").write_text("")
    (plugins / "kit" / "tools.py").write_text("import plug\nx = 1\n")
    (plugins / "loose" / "mine.py").write_text("class Mine: pass\n")
    (plugins / "other.py").write_text("broken(\n")
    monkeypatch.syspath_prepend(str(plugins))
    classes = ["plug.Mine", "loose.mine.Mine"]
    names = {part.name for part in snapshot.foreign(classes)}
    assert names == {"plug.py", "helper.py", "kit", "loose"}
    copy = snapshot.take(tmp_path / "store", classes)
    for edited in ("helper.py", "kit/tools.py", "loose/mine.py"):
        before = snapshot.place(tmp_path / "store", classes)
        assert (copy / edited).read_bytes() == (plugins / edited).read_bytes()
        with open(plugins / edited, "a") as file:
            file.write("# edited\n")
        assert snapshot.place(tmp_path / "store", classes) != before


def test_a_package_that_is_installed_elsewhere_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "elsewhere.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(str(folder))
    assert snapshot.foreign(["elsewhere.Mine"]) == []


def test_an_edit_during_the_copy_is_not_kept_under_the_old_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hasty.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    old, plain = snapshot.place(tmp_path / "store", ["hasty.A"]), shutil.copyfile

    def copyfile(source: Path, target: Path) -> None:
        (tmp_path / "hasty.py").write_text("A = 2\n")
        plain(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    copy = snapshot.take(tmp_path / "store", ["hasty.A"])
    assert copy == snapshot.place(tmp_path / "store", ["hasty.A"]) and (copy / "hasty.py").read_text() == "A = 2\n"
    assert list(copy.parent.iterdir()) == [copy] and copy != old


def test_the_code_behind_an_entry_point_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="mine", value="plug:Mine")
    monkeypatch.setattr("bench.spec.registry.entry_points", lambda group: [point] if group.endswith("methods") else [])
    assert launch._classes([Cell("c", {}, {"method": {"class": "mine"}}, 1)]) == {"plug.Mine"}


# --- claims ------------------------------------------------------------------------------------------------------


def test_one_cell_one_owner(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours, Claims(tmp_path, job="7") as theirs:
        assert theirs.take("c") and not ours.take("c") and not theirs.take("c")
        seen = ours.look("c")
        assert seen and seen.alive and seen.owner["job"] == "7"
        theirs.release("c")
        assert ours.look("c") is None and ours.take("c")
    assert not Claims(tmp_path).all()[0].alive, "its owner has left"


def test_the_dead_lose_their_cells_and_deaths_are_counted_unless_images_were_finished(tmp_path: Path) -> None:
    def die(images: int) -> Any:
        with Claims(tmp_path) as owner:
            return owner.take("c", images)

    assert [die(images).deaths for images in (0, 0, 0, 3, 3, 5)] == [0, 1, 2, 1, 2, 1]


def test_a_killed_process_is_dead_at_once_and_a_silent_one_after_its_lease(tmp_path: Path) -> None:
    code = "import sys, time\nfrom bench.cluster.claims import Claims\n"
    code += "with Claims(sys.argv[1]) as c: c.take('c'); print(flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout and process.stdout.readline()
    with Claims(tmp_path) as claims:
        assert not claims.take("c")
        process.kill()
        process.wait()
        assert claims.take("c")
        claims.release("c")
    owner = tmp_path / "claims" / ".owners" / "far"
    owner.write_text(json.dumps({"host": "another node", "pid": 1, "started": "1"}))
    (tmp_path / "claims" / "d").write_text(
        json.dumps({"owner": "far", "since": 0, "deaths": 0, "images": 0, "cause": "node"})
    )
    with Claims(tmp_path) as claims:
        assert not claims.take("d"), "its pulse is fresh"
        os.utime(owner, (time.time() - 200,) * 2)
        assert claims.take("d")


def test_a_claim_says_why_its_last_owner_left(tmp_path: Path) -> None:
    for cause, message in (("preempted", ""), ("node", "CUDA error: x"), ("preempted", "")):
        with Claims(tmp_path) as owner:
            claim = owner.take("c")
            assert claim
            owner.leave(claim, cause, message, message and "Traceback")
        with Claims(tmp_path) as heir:
            claim = heir.take("c")
            assert claim and (claim.cause, claim.message, claim.trace) == (cause, message, message and "Traceback")
    with Claims(tmp_path) as owner:
        claim = owner.take("c")
        assert claim and (claim.cause, claim.deaths) == ("node", 6), "the last one went without a word"


def test_a_valid_claim_that_was_removed_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Claims(tmp_path) as ended:
        ended.take("c")
    with Claims(tmp_path) as slow, Claims(tmp_path, job="quick") as quick:
        look = slow.look

        def look_and_be_overtaken(cell: str) -> Any:
            seen = look(cell)
            monkeypatch.setattr(slow, "look", look)
            assert quick.take("c")
            return seen

        monkeypatch.setattr(slow, "look", look_and_be_overtaken)
        assert not slow.take("c")
        seen = slow.look("c")
        assert seen and seen.alive and seen.owner["job"] == "quick"
    assert [path.name for path in (tmp_path / "claims").iterdir() if path.is_file()] == ["c"]


def test_a_repeated_link_is_no_other_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS repeats it when the answer to the first was lost."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert ours.take("c") and not theirs.take("c") and not theirs._write(Claim("c", {}, True, 0, 0, 0))


def test_a_card_is_there_whole_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, tidied = os.replace, []
    with Claims(tmp_path) as other:

        def replace_after_tidying(source: Path, target: Path) -> None:
            other.tidy(())
            tidied.append(target)
            replace(source, target)

        monkeypatch.setattr(os, "replace", replace_after_tidying)
        monkeypatch.setattr("bench.cluster.claims.PULSE_SECONDS", 0.005)
        with Claims(tmp_path) as owner:
            card = owner.owners / owner.name
            assert tidied == [card] and card.exists()
            card.unlink()
            deadline = time.monotonic() + 60
            while not card.exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            owner.take("c")
            assert not other.take("c")


def test_only_one_is_alone(tmp_path: Path) -> None:
    waited = []
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs, ours.alone("submit", lambda: None):
        assert not theirs.take(".submit") and not waited
    with Claims(tmp_path) as ours, ours.alone("submit", lambda: waited.append(1)):
        assert not waited


# --- signals -----------------------------------------------------------------------------------------------------


def test_the_answer_to_usr2_waits_for_a_safe_point() -> None:
    calls: list[str] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append("requeued"))
    try:
        with pytest.raises(SystemExit), Interrupts(60, lambda: calls.append("left")) as interrupts:  # noqa: PT012
            interrupts.safe_point()
            os.kill(os.getpid(), signal.SIGUSR2)
            assert interrupts.asked and calls == []
            interrupts.safe_point()
        assert calls == ["left", "requeued"]
        with pytest.raises(SystemExit), Interrupts(0.05):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(5)
        assert calls[2:] == ["requeued"], "no safe point came in time"
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_term_ends_at_a_safe_point_and_requeues_nothing() -> None:
    calls: list[str] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append("requeued"))
    term_before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit), Interrupts(60, lambda: calls.append("left")) as interrupts:  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupts.asked and calls == []
            interrupts.safe_point()
        assert calls == ["left"]
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGTERM, term_before)


def test_a_timeout_acts_inside() -> None:
    with Interrupts(60) as interrupts:
        with pytest.raises(CellTimeout), interrupts.limit(0.05):  # noqa: PT012
            while True:
                pass
        with interrupts.limit(None), interrupts.limit(60):
            pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


# --- a cell under guard --------------------------------------------------------------------------------------------


def one_cell(*overrides: str) -> Cell:
    return expand(compose_config([*TINY, "steps=4", "images=4", *overrides])).cells[0]


def guard(store: Path, batch_size: int = 4, **launcher: Any) -> Guard:
    return Guard(Store(store), batch_size, 2, LauncherConfig(**launcher), Interrupts(60))


SCIENCE = ("seconds", "peak_mib")


def rows(store: Path, cell: Cell) -> list[dict[str, Any]]:
    return Store(store).rows([cell.id]).drop(columns=list(SCIENCE)).to_dict("records")


def interrupt(store: Path, cell: Cell, samples: int = 2, images: int = 2) -> None:
    """Run a cell until so many more of its images are finished."""

    class After(Interrupts):
        points = 0

        def safe_point(self) -> None:
            self.points += 1
            if self.points == images:
                raise SystemExit

    stopped = Guard(Store(store), 1, samples, LauncherConfig(partial_s=0), After(60))
    with pytest.raises(SystemExit):
        stopped.run(cell)


def test_an_interrupted_cell_goes_on_from_its_images(tmp_path: Path) -> None:
    cell = one_cell()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert guard(whole, 1).run(cell) == "done"
    interrupt(broken, cell)
    assert Store(broken).partial_images(cell.id) == 2 and not Store(broken).ended(cell.id)
    assert guard(broken, 1).run(cell) == "done"
    assert rows(broken, cell) == rows(whole, cell)
    assert Store(broken).record(cell.id)["provenance"]["resumed"] == 2
    assert not list(broken.glob("partial/*"))
    ours, theirs = Store(broken).samples(cell.id), Store(whole).samples(cell.id)
    assert ours["ids"].tolist() == theirs["ids"].tolist() and (ours["output"] == theirs["output"]).all()


def test_images_are_not_gone_on_from_with_another_number_of_samples(tmp_path: Path) -> None:
    cell = one_cell()
    interrupt(tmp_path, cell, samples=1, images=3)
    assert guard(tmp_path, 1).run(cell) == "done"
    assert Store(tmp_path).record(cell.id)["provenance"]["resumed"] == 0
    ids = rows(tmp_path, cell)[0]["image_id"], rows(tmp_path, cell)[1]["image_id"]
    assert tuple(Store(tmp_path).samples(cell.id)["ids"]) == ids
    assert len(Store(tmp_path).samples(cell.id)["output"]) == 2


def test_the_seconds_of_every_attempt_count(tmp_path: Path) -> None:
    cell, store = one_cell(), Store(tmp_path)
    interrupt(tmp_path, cell)
    state, images = store._partial(cell.id)
    assert state["seconds"] > 0
    store.write_partial(cell.id, state["maker"], state["rows"], images, 1000.0)
    interrupt(tmp_path, cell, images=1)
    assert guard(tmp_path, 1).run(cell) == "done"
    assert store.record(cell.id)["provenance"]["seconds"] > 1000 and store.record(cell.id)["provenance"]["resumed"] == 3


def test_weights_that_changed_while_a_cell_waited_are_not_used(tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    shutil.copy(ROOT / "methods" / "zoo" / "digits_vp.safetensors", weights)
    chosen = ["sweep=corruptions", "profile=digits", "method=ddim", "corruption=gaussian_blur", "severity=3", "steps=2"]
    cells = expand(compose_config([*chosen, "images=1", f"model.digits_vp.weights={weights}"])).cells
    save_file({name: 0.9 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert guard(tmp_path).run(cells[0]) == "asset-missing"
    printed = Store(tmp_path).failure(cells[0].id)["message"]
    assert f"the weights {weights} have changed since this cell was planned" in printed and "\n" not in printed


def test_images_of_other_code_are_not_gone_on_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_partial("c", "old", [{"image_id": "0"}], {})
    assert store.partial("c", "old")[0] == [{"image_id": "0"}] and store.partial("c", "new") == ([], {}, 0)


def test_out_of_memory_halves_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.inversion.ddim import DDIM

    tried, plain = [], DDIM.invert

    def greedy(self: Any, x0: Any, *rest: Any, **more: Any) -> Any:
        tried.append(len(x0))
        if len(x0) > 1:
            raise MemoryError("no room")
        return plain(self, x0, *rest, **more)

    monkeypatch.setattr(DDIM, "invert", greedy)
    cell = one_cell()
    assert guard(tmp_path, 16).run(cell) == "done"
    assert tried == [4, 2, 1, 1, 1, 1]
    assert Store(tmp_path).record(cell.id)["provenance"]["batch_size"] == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "oom"), (CellTimeout(), "timeout"), (FileNotFoundError(), "asset-missing"),
        (ZeroDivisionError(), "numerical"), (RuntimeError("CUDA error: an illegal memory access"), "node"),
        (RuntimeError("CUDA out of memory"), "oom"), (KeyError(1), "bug"),
    ],
)  # fmt: skip
def test_failures_have_classes(error: Exception, kind: str) -> None:
    assert classify(error) == kind


def failing(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> list[Exception]:
    """DDIM raises these, one a call, and then works."""
    from methods.inversion.ddim import DDIM

    left, plain = list(errors), DDIM.invert

    def invert(self: Any, *rest: Any, **more: Any) -> Any:
        if left:
            raise left.pop(0)
        return plain(self, *rest, **more)

    monkeypatch.setattr(DDIM, "invert", invert)
    return left


def test_retries_are_by_class_and_have_a_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = one_cell()
    left = failing(monkeypatch, *[ArithmeticError("x")] * 5)
    assert guard(tmp_path, retries={"numerical": 2, "bug": 9}).run(cell) == "numerical" and len(left) == 2
    assert "ArithmeticError" in Store(tmp_path).failure(cell.id)["traceback"]
    assert guard(tmp_path, retries={"numerical": 2}).run(cell) == "done" and not left


def test_a_broken_gpu_is_no_failure_of_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, RuntimeError("CUDA error: uncorrectable ECC error"))
    cell = one_cell()
    with pytest.raises(NodeFault):
        guard(tmp_path).run(cell)
    assert not Store(tmp_path).ended(cell.id)


def test_a_timeout_is_a_failure_and_the_images_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.inversion.ddim import DDIM

    calls, plain = [], DDIM.invert

    def slow(self: Any, *rest: Any, **more: Any) -> Any:
        calls.append(1)
        while len(calls) == 3:
            pass
        return plain(self, *rest, **more)

    monkeypatch.setattr(DDIM, "invert", slow)
    cell = one_cell()
    with Interrupts(60) as interrupts:
        chosen = LauncherConfig(partial_s=0, cell_timeout_min=2 / 60)
        assert Guard(Store(tmp_path), 1, 2, chosen, interrupts).run(cell) == "timeout"
    assert Store(tmp_path).failure(cell.id)["class"] == "timeout" and Store(tmp_path).partial_images(cell.id) == 2


def test_a_store_that_cannot_be_written_is_no_failure_of_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.files.flush", full)
    with pytest.raises(StoreError, match="No space left"):
        guard(tmp_path).run(one_cell())
    assert not Store(tmp_path).failed()


# --- a job's cells ---------------------------------------------------------------------------------------------------


class FakeGuard:
    """Ends cells by name: bad ones fail."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def run(self, cell: Cell) -> str:
        if "bad" in cell.id:
            self.fail(cell, "bug", "bad")
            return "bug"
        self.store.write(cell.id, [{"cell_id": cell.id}], {})
        return "done"

    def fail(self, cell: Cell, kind: str, message: str, trace: str = "") -> None:
        self.store.write_failure(cell.id, {"class": kind, "message": message, "traceback": trace})


class FakeJob(Job):
    def guard(self, store: Store, interrupts: Interrupts) -> Any:
        return FakeGuard(store)


def job(store: Path, *names: str, kind: type[Job] = FakeJob, **launcher: Any) -> Job:
    cells = tuple(Cell(name, {"model": "m"}, {"images": 1}, 1) for name in names)
    folder = runs.new_folder(store)
    runs.Run(folder, "s", "local", list(names), "code").write()
    return kind(cells, str(store), str(folder), 1, 0, LauncherConfig(**launcher), 1, len(cells))


def test_a_job_leaves_what_has_ended_and_comes_back_to_what_others_had(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("done", [{"cell_id": "done"}], {})
    store.write_failure("failed", {"class": "bug"})
    with Claims(tmp_path) as other:
        other.take("taken")
        running = job(tmp_path, "done", "failed", "taken", "free").run()
        assert next(running) == ("free", "done")
        other.release("taken")
        assert list(running) == [("taken", "done")]
    assert not Claims(tmp_path).all()


def test_images_of_the_living_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Store, "partial_images")
    with Claims(tmp_path) as owner, Claims(tmp_path) as other:
        owner.take("c")
        assert _take(other, Store(tmp_path), Cell("c", {}, {}, 1)) is None


class FaultyGuard(FakeGuard):
    def run(self, cell: Cell) -> str:
        raise NodeFault("RuntimeError: CUDA error: x") from RuntimeError("CUDA error: x")


class FaultyJob(Job):
    def guard(self, store: Store, interrupts: Interrupts) -> Any:
        return FaultyGuard(store)


def test_a_job_on_a_bad_node_is_requeued_and_then_kept_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(slurm, "avoid_node", lambda: calls.append("elsewhere"))
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append("requeued"))
    try:
        with pytest.raises(SystemExit):
            list(job(tmp_path, "c", kind=FaultyJob).run())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert calls == ["requeued", "elsewhere"], "scontrol excludes nodes of a job that is pending only"


def test_a_cell_that_is_given_up_says_what_went_wrong(tmp_path: Path) -> None:
    faulty = job(tmp_path, "c", deaths=2, kind=FaultyJob)
    for _ in range(2):
        with pytest.raises(SystemExit):
            list(faulty.run())
    assert list(faulty.run()) == [("c", "node")]
    failure = Store(tmp_path).failure("c")
    assert failure["message"] == "2 processes ended in this cell; the last one: RuntimeError: CUDA error: x"
    assert "CUDA error: x" in failure["traceback"]


def test_a_cell_whose_processes_were_always_asked_to_stop_was_preempted(tmp_path: Path) -> None:
    for _ in range(3):
        with Claims(tmp_path) as owner:
            claim = owner.take("c")
            assert claim
            owner.leave(claim, "preempted")
    assert list(job(tmp_path, "c", deaths=3).run()) == [("c", "preempted")]
    assert "the last one: stopped by a signal" in Store(tmp_path).failure("c")["message"]


def test_the_end_of_a_cancelled_run_is_no_death(tmp_path: Path) -> None:
    class CancelledJob(Job):
        def guard(self, store: Store, interrupts: Interrupts) -> Any:
            def run(cell: Cell) -> None:
                runs.stop(Path(self.folder), "cancelled")
                interrupts.leave()

            return SimpleNamespace(run=run)

    with pytest.raises(SystemExit):
        list(job(tmp_path, "c", kind=CancelledJob).run())
    assert not Claims(tmp_path).all()


def test_a_cell_that_takes_every_process_with_it_is_given_up(tmp_path: Path) -> None:
    for _ in range(3):
        with Claims(tmp_path) as owner:
            assert owner.take("deadly")
    assert list(job(tmp_path, "deadly", "fine", deaths=3).run()) == [("deadly", "node"), ("fine", "done")]
    assert "3 processes ended in this cell" in Store(tmp_path).failure("deadly")["message"]


@pytest.mark.parametrize("limit", [2, 0.3])
def test_a_hopeless_run_stops(tmp_path: Path, limit: float) -> None:
    hopeless = job(tmp_path, "bad1", "ok1", "bad2", "ok2", "ok3", "ok4", max_failed=limit)
    assert [name for name, _ in hopeless.run()] == ["bad1", "ok1", "bad2"]
    assert f"2 of 6 cells failed; launcher.max_failed={limit:g}" in (Path(hopeless.folder) / "stop").read_text()


def test_a_stopped_run_ends_after_the_cell_in_hand(tmp_path: Path) -> None:
    stopped = job(tmp_path, "a", "b")
    running = stopped.run()
    next(running)
    runs.stop(Path(stopped.folder), "enough")
    assert list(running) == []


def test_chunks_less_what_others_have() -> None:
    a, b, c = (Cell(name, {}, {}, 1) for name in "abc")
    assert launch.without([Chunk((a, b), 4.0), Chunk((c,), 1.0)], {"b", "c"}) == [Chunk((a,), 2.0)]


# --- plugins ---------------------------------------------------------------------------------------------------------


def test_any_executor_of_submitit_will_do(tmp_path: Path) -> None:
    assert run.main([*TINY, "steps=4", f"results={tmp_path}", "launcher=plugin", "launcher.executor=local"]) == 0
    assert len(Store(tmp_path).done()) == 1
    with pytest.raises(UserError, match=r"unknown launcher.executor 'slrum'.*nearest: slurm"):
        run.main([*TINY, f"results={tmp_path}", "steps=5", "launcher=plugin", "launcher.executor=slrum"])


def test_a_plugins_waiting_cells_are_queued_while_its_driver_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def watch(*_: object) -> set[str]:
        seen.append(status.look(Store(tmp_path))[0].states)
        assert cancel.main(["sweep=theory", f"results={tmp_path}"]) == 1
        return set()

    class Executor:
        def __init__(self, **_: object) -> None:
            pass

        def update_parameters(self, **_: object) -> None:
            pass

        def submit_array(self, jobs: list[Job]) -> list[Any]:
            return []

    seen: list[Any] = []
    monkeypatch.setattr("submitit.AutoExecutor", Executor)
    monkeypatch.setattr(launch, "_watch", watch)
    run.main([*TINY, "steps=4,5", f"results={tmp_path}", "launcher=plugin", "launcher.executor=local"])
    assert list(seen[0].values()) == ["queued", "queued"]
    printed = capsys.readouterr()
    assert "0 jobs cancelled" in printed.out and "they end after the cell in hand" in printed.err
    assert [folder.name for folder in tmp_path.glob("jobs/*/stop")], "its workers are printed"


# --- submitting ------------------------------------------------------------------------------------------------------


SUBMITTING = [*TINY, "steps=4,5", "launcher=slurm", "launcher.wait=false"]


def fake_submission(folder: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str, queue: str = "") -> None:
    """A SLURM that takes jobs or refuses them, and whose squeue prints the file `queue`."""
    (folder / "queue").write_text(queue)
    fake_slurm(
        folder / "bin", monkeypatch, sbatch=sbatch, srun="", sacct="", scontrol="echo 'MaxArraySize = 9'",
        squeue=f"cat {folder}/queue",
    )  # fmt: skip


TAKES = "echo Submitted batch job $$"
REFUSES = "echo 'invalid partition specified: nope' >&2; exit 1"


def test_submit_and_leave_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_submission(tmp_path, monkeypatch, TAKES)
    monkeypatch.setattr(run, "report", lambda outlook: pytest.fail("there is nothing to report yet"))
    results = tmp_path / "results"
    command = [*(a for a in SUBMITTING if a != "report=false"), f"results={results}"]
    assert run.main(command) == 0
    printed = capsys.readouterr().out
    assert "submitted 1 jobs" in printed and "2 cells are in jobs" in printed and "lost" not in printed, printed
    (job,) = runs.read(results)[0].jobs
    (tmp_path / "queue").write_text(f"{job}|PENDING|Priority\n")
    assert run.main(command) == 0
    printed = capsys.readouterr().out
    assert "2 cells are in jobs of an earlier run: not submitted again" in printed, printed
    assert len(runs.read(results)) == 1
    (tmp_path / "queue").write_text(f"{job}|COMPLETING|None\n")
    assert run.main(command) == 0
    assert "submitted 1 jobs" in capsys.readouterr().out, "a job that ends starts none of its cells"


def test_what_sbatch_refuses_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_submission(tmp_path, monkeypatch, REFUSES)
    results, store = tmp_path / "results", Store(tmp_path / "results")
    cell = expand(compose_config([*SUBMITTING, f"results={results}"])).cells[0].id
    store.write_failure(cell, {"class": "bug", "message": "m", "traceback": "t"})
    before = store.failure(cell)
    with pytest.raises(UserError, match="sbatch refused"):
        run.main([*SUBMITTING, f"results={results}", "retry=bug"])
    assert store.failed() == {cell} and store.failure(cell) == before
    assert sorted(status.look(store)[0].states.values()) == ["failed (bug)", "missing"]
    assert not list(results.glob("jobs/*"))


def test_failures_of_cells_that_came_into_no_job_come_back(tmp_path: Path) -> None:
    store, started = Store(tmp_path), runs.Run(runs.new_folder(tmp_path), "s", "slurm", ["a", "b", "c"], "code")
    for cell in ("a", "b"):
        store.write_failure(cell, {"class": "bug"})
    with pytest.raises(UserError), launch._retrying(store, ["a", "b", "c"], started):  # noqa: PT012
        assert not store.failed()
        started.add(["7"], [["a"]])
        raise UserError("the second array is refused")
    assert store.failed() == {"b"}
    with launch._retrying(store, ["b"], started):
        pass
    assert not store.failed()


def test_a_failed_cell_is_retried_while_its_job_has_other_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_submission(tmp_path, monkeypatch, TAKES)
    results, store = tmp_path / "results", Store(tmp_path / "results")
    run.main([*SUBMITTING, f"results={results}"])
    (first,) = runs.read(results)
    (job,) = first.jobs
    (tmp_path / "queue").write_text(f"{job}|RUNNING|None\n")
    store.write_failure(first.cells[0], {"class": "bug"})
    run.main([*SUBMITTING, f"results={results}", "retry=bug"])
    (again,) = (found for found in runs.read(results) if found.folder != first.folder)
    assert [again.cells_of(job) for job in again.jobs] == [[first.cells[0]]] and not store.failed()


def test_auto_asks_slurm_for_what_its_own_file_asks() -> None:
    auto, named = (compose_config([f"launcher={kind}"], sweep_required=False).launcher for kind in ("auto", "slurm"))
    assert auto.model_copy(update={"kind": "slurm"}) == named


def test_a_checkpoint_folder_has_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again is refused while its job lives or squeue is silent, and submitted once it has ended."""
    fake_submission(tmp_path, monkeypatch, f"echo >>{tmp_path}/submitted; {TAKES}")
    out = tmp_path / "train"
    command = ["model=digits_vp", f"out={out}", "tracker=none", "launcher=slurm"]
    assert train.main(command) == 0
    job = json.loads((out / "digits_vp" / "job.json").read_text())["job"]
    (tmp_path / "queue").write_text(f"{job}|PENDING|Priority\n")
    with pytest.raises(UserError, match=rf"job {job} \(pending\) already trains into .*digits_vp"):
        train.main(command)
    assert train.main([*command[:1], f"out={tmp_path / 'other'}", *command[2:]]) == 0, "into another folder"
    (tmp_path / "queue").unlink()
    with pytest.raises(UserError, match="squeue does not answer"):
        train.main(command)
    (tmp_path / "queue").write_text("")
    assert train.main(command) == 0
    assert len((tmp_path / "submitted").read_text().splitlines()) == 3


def test_a_site_has_its_launcher_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "mysite.yaml").write_text("# @package launcher\nkind: slurm\npartition: night\n")
    fake_submission(tmp_path, monkeypatch, f"cat $1 >{tmp_path}/script; {TAKES}")
    site = [f"config_dir={tmp_path}", "launcher=mysite"]
    assert train.main(["model=digits_vp", f"out={tmp_path / 'out'}", "tracker=none", *site]) == 0
    assert "#SBATCH --partition=night" in (tmp_path / "script").read_text()


def test_a_training_takes_the_code_of_its_model_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynetwork.py").write_text("from methods.backbones.unet import UNet\nclass Mine(UNet): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fake_submission(tmp_path, monkeypatch, TAKES)
    model = ["model=digits_vp", "model.digits_vp.class=mynetwork.Mine"]
    assert train.main([*model, f"out={tmp_path / 'out'}", "tracker=none", "launcher=slurm"]) == 0
    assert list((tmp_path / "out" / "code").glob("*/mynetwork.py"))


# --- status and cancel -----------------------------------------------------------------------------------------


def sweep(store: Path, monkeypatch: pytest.MonkeyPatch, queue: str) -> None:
    """Six cells: done, failed, running, in a waiting job, in a job that is gone, never submitted."""
    names = ["done", "failed", "running", "queued", "lost", "missing"]
    held = Store(store)
    cells = [{"id": name, "axes": {"model": "m", "method": "x"}, "evaluations": 10} for name in names]
    held.write_manifest("s", {"title": "S", "cells": cells})
    held.write("done", [{"cell_id": "done"}], {"provenance": {"seconds": 36.0, "gpus": 1}})
    held.write_failure("failed", {"class": "oom", "message": "", "traceback": ""})
    known = runs.Run(runs.new_folder(store), "s", "slurm", names[:5], "code")
    known.add(["7_0", "7_1", "7_2"], [["done", "failed", "running"], ["queued"], ["lost"]])
    fake_slurm(
        store / "bin", monkeypatch, squeue=queue, sacct="echo '7_2|NODE_FAIL'", scancel=f"echo $@ >{store}/cancelled"
    )


QUEUE = "printf '7_0|RUNNING|None\\n7_1|PENDING|Priority\\n9|RUNNING|None\\n'"


def test_status_tells_every_cell_from_the_store_and_squeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, monkeypatch, QUEUE)
    log = tmp_path / "log.out"
    log.write_text("first\nstep 3 of 9\n")
    with Claims(tmp_path, job="7_0", log=str(log)) as claims:
        claims.take("running")
        seen = status.look(Store(tmp_path))[0]
        assert status.main([f"results={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert dict(seen.states) == {name: name for name in seen.cells if name != "failed"} | {"failed": "failed (oom)"}
    assert seen.used_s == 36 and seen.left_s == 5 * 36 and seen.gpus == 1
    for text in (
        "1 done, 1 running, 1 queued, 1 lost, 1 missing, 1 failed (oom)", "GPU-hours: 0.01 used", "about 0.05 left",
        "1 jobs wait: Priority", "1 jobs with lost cells ended as NODE_FAIL", "step 3 of 9", "7_0",
    ):  # fmt: skip
        assert text in printed, printed


@pytest.mark.parametrize("other", ["7_0|COMPLETED", "7_[1-7%2]|PENDING"])
def test_how_other_jobs_of_an_array_ended_is_not_told_of_the_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    sweep(tmp_path, monkeypatch, QUEUE)
    (tmp_path / "bin" / "sacct").write_text(f"#!/bin/sh\nprintf '{other.replace('%', '%%')}\\n7_2|NODE_FAIL\\n'\n")
    troubles = status.look(Store(tmp_path))[0].troubles
    assert [text for text in troubles if "ended" in text] == ["1 jobs with lost cells ended as NODE_FAIL"]


def test_watching_outlives_a_squeue_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path, monkeypatch, "exit 1")
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\n")  # answers: no job is left

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep, time=time.time))
    assert status.main([f"results={tmp_path}", "watch=true"]) == 0 and len(looks) == 1


def test_a_tilde_is_the_home_for_every_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path / "rr", monkeypatch, QUEUE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert status.main(["results=~/rr"]) == 0 and cancel.main(["sweep=s", "results=~/rr"]) == 0


def test_watching_ends_with_the_last_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, monkeypatch, QUEUE)

    def sleep(seconds: float) -> None:
        for cell in ("queued", "running"):
            if not Store(tmp_path).ended(cell):
                Store(tmp_path).write(cell, [{"cell_id": cell}], {"provenance": {"seconds": 36.0}})
                return

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep, time=time.time))  # other threads sleep as ever
    assert status.main([f"results={tmp_path}", "watch=true"]) == 0
    assert "3 done, 1 lost, 1 missing, 1 failed (oom)" in capsys.readouterr().out


def test_a_run_that_vanishes_while_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stays", "goes"):
        runs.Run(runs.new_folder(tmp_path), name, "slurm", [], "code").write()
    read = Path.read_text

    def late(file: Path) -> str:
        if '"goes"' in read(file):
            shutil.rmtree(file.parent)
        return read(file)

    monkeypatch.setattr(Path, "read_text", late)
    assert [found.sweep for found in runs.read(tmp_path)] == ["stays"]


def test_no_answer_is_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path, monkeypatch, "exit 1")
    seen = status.look(Store(tmp_path))[0]
    assert seen.states["lost"] == seen.states["queued"] == "unknown" and seen.states["missing"] == "missing"
    unattended = launch.Unattended(tmp_path, pause=0)
    assert not any(unattended({"queued", "lost"}) for _ in range(3))
    with pytest.raises(UserError, match="squeue does not answer"):
        cancel.cancel(Store(tmp_path), "s")


def test_one_miss_is_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path, monkeypatch, QUEUE)
    unattended = launch.Unattended(tmp_path, pause=0)
    assert not unattended({"queued"}) and not unattended({"lost"})
    unattended.last_query = 0
    assert unattended({"lost"})


def test_a_job_that_slurm_holds_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = "printf '7_0|PENDING|launch failed requeued held\\n7_1|PENDING|JobHeldUser\\n9|PENDING|{}\\n'"
    sweep(tmp_path, monkeypatch, held.format(slurm.LAUNCH_FAILED))
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho $@ >>{tmp_path}/released\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    assert not launch.Unattended(tmp_path, pause=0)({"running"})
    assert (tmp_path / "released").read_text() == "release 7_0\n", "neither the user's own hold nor a stranger's job"
    assert "1 jobs were held" in capsys.readouterr().out


def test_cancel_ends_the_jobs_of_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path, monkeypatch, QUEUE)
    assert cancel.main(["sweep=s", f"results={tmp_path}"]) == 0
    assert (tmp_path / "cancelled").read_text().split() == ["7_0", "7_1"]
    with pytest.raises(UserError, match=r"unknown sweep 't'.*allowed: s"):
        cancel.main(["sweep=t", f"results={tmp_path}"])
    with pytest.raises(UserError, match="name the sweep"):
        cancel.main([f"results={tmp_path}"])


def test_cancel_says_what_slurm_would_not_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """7_0 goes on, and 7_1 had ended before scancel came to it."""
    sweep(tmp_path, monkeypatch, f"[ -e {tmp_path}/tried ] && echo '7_0|RUNNING|None' || {QUEUE}")
    refusal = "echo 'scancel: error: Kill job error on job id 7_0: Access/permission denied' >&2; exit 1"
    (tmp_path / "bin" / "scancel").write_text(f"#!/bin/sh\ntouch {tmp_path}/tried; {refusal}\n")
    with Claims(tmp_path) as worker:
        worker.take("running")
        assert cancel.main(["sweep=s", f"results={tmp_path}"]) == 1
        printed = capsys.readouterr()
        assert "1 jobs cancelled" in printed.out and "1 jobs could not be cancelled, the first 7_0" in printed.err
        assert worker.look("running"), "its job goes on"


@pytest.mark.parametrize("arguments", [["results=nowhere"], ["swep=s"], ["watch=perhaps", "results=."]])
def test_status_explains_mistakes(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        status.main(arguments)


def test_cancel_ends_local_workers(tmp_path: Path) -> None:
    arguments = [*TINY, "steps=1,2,3,4,5,6,7,8,9,10,11,12", "images=64", "batch_size=1", f"results={tmp_path}"]
    words = [sys.executable, "-m", "bench.run", *arguments, "launcher=local", "launcher.workers=1"]
    driver = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not [claim for claim in Claims(tmp_path).all() if claim.alive] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert cancel.main(["sweep=theory", f"results={tmp_path}"]) == 0
    assert driver.wait(60) == 1 and not any(claim.alive for claim in Claims(tmp_path).all())
