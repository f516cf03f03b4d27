"""Disturbances of a sweep on a real SLURM. `make test-slurm` starts this SLURM and runs these tests.

After each disturbance the same command runs again. Then every cell must exist exactly once, with its own numbers, and
nothing may be left over. The cells are trivial (trivial_cells.py); the last tests run real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from trivial_cells import number

from bench.cluster.claims import Claim, Claims
from bench.store import Store

pytestmark = pytest.mark.skipif(
    not (shutil.which("sbatch") and os.environ.get("SLURM_CONF") and shutil.which("sinfo")),
    reason="no SLURM here: make test-slurm starts a cluster of four emulated nodes and runs these",
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
COUNT = 16
SLURM = ("launcher=slurm", "launcher.gpus=0", "launcher.cpus=1", "launcher.mem_gb=0.3", "launcher.timeout_min=60")
FOUR_PER_JOB = (f"cells={COUNT}", "launcher.chunk_minutes=4")
PATIENCE = 240
"""Seconds to wait for something that must happen. It is long, as no drill is about speed and machines may be slow."""


class Driver:
    """The running command, and its output so far."""

    def __init__(self, results: Path, *arguments: str) -> None:
        words = [sys.executable, "-m", "trivial_cells", f"results={results}", *SLURM, *arguments]
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(words, env=ENVIRONMENT, cwd=ROOT, stdout=self.output, stderr=subprocess.STDOUT)

    def told(self) -> str:
        self.output.seek(0)
        return self.output.read()

    def end(self) -> str:
        """Wait until it ends, and return all its output."""
        self.process.wait(PATIENCE)
        return self.told()

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


DRIVERS: list[Driver] = []


def start(results: Path, *arguments: str) -> Driver:
    DRIVERS.append(Driver(results, *arguments))
    return DRIVERS[-1]


def rerun(results: Path, *arguments: str) -> str:
    """Run the same command again, and return its output."""
    driver = start(results, *arguments)
    told = driver.end()
    assert driver.code == 0, told
    return told


@pytest.fixture(autouse=True)
def clean_up(tmp_path: Path) -> Iterator[None]:
    """Remove what a failed drill left, so that it does not affect the next one."""
    yield
    while DRIVERS:
        DRIVERS.pop().kill()
    for job in jobs(tmp_path, "PENDING,RUNNING"):
        slurm("scancel", job)
    raise_nodes()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Return the file for which trivial cells wait."""
    return tmp_path / "gate"


def raise_nodes() -> None:
    """Start the daemons that do not run."""
    folder = Path(os.environ["SLURM_CONF"]).parent
    subprocess.run([HERE / "cluster.sh", "start", folder], check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def verb(name: str, *arguments: str, environment: Mapping[str, str] = ENVIRONMENT) -> str:
    words = [sys.executable, "-m", f"bench.{name}", *arguments]
    ended = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.1)


def jobs(results: Path, state: str) -> list[str]:
    """Return the ids of this store's jobs in a state, as squeue writes them."""
    ours = {job for file in results.glob("jobs/*/run.json") for job in json.loads(file.read_text())["jobs"]}
    return [job for job in slurm("squeue", "-h", "-r", "-t", state, "-o", "%i").split() if job in ours]


def valid_claims(results: Path) -> list[Claim]:
    return [claim for claim in Claims(results).all() if claim.alive]


def wait_at_gate(results: Path, count: int = 4, done: int = 4) -> None:
    """Wait until `count` jobs run, each with an open cell that waits for the gate, and `done` cells are done."""
    until(
        lambda: (
            len(jobs(results, "RUNNING")) == len(valid_claims(results)) == count and len(Store(results).done()) == done
        )
    )


def check(results: Path, count: int = COUNT, images: int = 1, drafts: bool = False) -> None:
    """Check that every cell exists once with its own numbers, and that nothing is left except `drafts`."""
    until(lambda: not jobs(results, "PENDING,RUNNING,COMPLETING"))
    store = Store(results)
    assert store.done() == {f"trivial-{i:05d}" for i in range(count)} and not store.failed()
    for cell in store.done():
        rows = store.rows([cell])
        assert rows.image_id.tolist() == [str(i) for i in range(images)]
        assert rows.value.tolist() == [number(cell, i) for i in range(images)]
    assert drafts or not list((results / "cells").glob(".*"))
    assert not list(results.glob("partial/*")) and not Claims(results).all(), "left over"


# --- the disturbances -------------------------------------------------------------------------------------------------


def cancel_running(results: Path) -> None:
    slurm("scancel", jobs(results, "RUNNING")[0])


def cancel_array(results: Path) -> None:
    slurm("scancel", jobs(results, "PENDING,RUNNING")[0].partition("_")[0])


def kill_python(results: Path) -> None:
    os.kill(valid_claims(results)[0].owner["pid"], signal.SIGKILL)


def requeue(results: Path) -> None:
    slurm("scontrol", "requeue", jobs(results, "RUNNING")[0])


def user_signal(results: Path) -> None:
    slurm("scancel", "--signal=USR2", jobs(results, "RUNNING")[0].partition("_")[0])
    until(lambda: len(jobs(results, "PENDING")) == 4)


def kill_slurmd(results: Path) -> None:
    """The controller loses the node. Its jobs start again elsewhere; the old processes go on until the node is back."""
    node = slurm("squeue", "-h", "-r", "-j", jobs(results, "RUNNING")[0], "-o", "%N").strip()
    folder = Path(os.environ["SLURM_CONF"]).parent
    os.kill(int((folder / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=drill")
    until(lambda: jobs(results, "PENDING"))
    until(lambda: len(jobs(results, "RUNNING")) == 4)
    assert len(valid_claims(results)) == 4, "the old processes still have the cells"
    raise_nodes()


@pytest.mark.parametrize(
    ("disturbance", "recovers"),
    [
        (cancel_running, False),
        (cancel_array, False),
        (kill_python, False),
        (requeue, True),
        (user_signal, True),
        (kill_slurmd, True),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_disturbance_loses_nothing(
    tmp_path: Path, gate: Path, disturbance: Callable[[Path], None], recovers: bool
) -> None:
    arguments = (*FOUR_PER_JOB, f"gate={gate}")
    driver = start(tmp_path, *arguments)
    wait_at_gate(tmp_path)
    disturbance(tmp_path)
    gate.touch()
    told = driver.end()
    assert driver.code == (0 if recovers else 1), told
    rerun(tmp_path, *arguments)
    check(tmp_path)


def test_a_pending_element_that_vanishes_is_noticed(tmp_path: Path, gate: Path) -> None:
    """SLURM forgets it: neither squeue nor sacct ever says that it is gone."""
    one_at_a_time = (*FOUR_PER_JOB, f"gate={gate}", "launcher.array_parallelism=1")
    driver = start(tmp_path, *one_at_a_time)
    wait_at_gate(tmp_path, 1, 1)
    slurm("scancel", jobs(tmp_path, "PENDING")[-1])
    gate.touch()
    told = driver.end()
    assert driver.code == 1 and f"{COUNT - 4} of {COUNT} ended" in told, told
    assert "4 lost" in verb("status", f"results={tmp_path}")
    rerun(tmp_path, *one_at_a_time)
    check(tmp_path)


def test_a_killed_driver_is_not_needed(tmp_path: Path, gate: Path) -> None:
    arguments = (*FOUR_PER_JOB, f"gate={gate}")
    driver = start(tmp_path, *arguments)
    wait_at_gate(tmp_path)
    driver.kill()
    again = start(tmp_path, *arguments)
    until(lambda: "12 cells are in jobs of an earlier run: followed, not submitted again" in again.told())
    gate.touch()
    told = again.end()
    assert again.code == 0, told
    check(tmp_path)
    assert len(list(tmp_path.glob("jobs/*"))) == 1


def test_two_drivers_submit_each_cell_once(tmp_path: Path) -> None:
    drivers = [start(tmp_path, *FOUR_PER_JOB) for _ in range(2)]
    told = [driver.end() for driver in drivers]
    assert [driver.code for driver in drivers] == [0, 0], told
    check(tmp_path)
    runs = [json.loads(file.read_text()) for file in tmp_path.glob("jobs/*/run.json")]
    assert sorted(i for run in runs for cells in run["jobs"].values() for i in cells) == list(range(COUNT))


def test_preemption_keeps_the_images_of_an_open_cell(tmp_path: Path, gate: Path) -> None:
    one_per_job = ("cells=4", "images=10", f"gate={gate}", "each=1", "launcher.chunk_minutes=1")
    driver = start(tmp_path, *one_per_job, "launcher.partition=low")
    wait_at_gate(tmp_path, 4, 0)
    slurm("sbatch", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    until(lambda: len(jobs(tmp_path, "PENDING")) == 4)
    gate.touch()
    told = driver.end()
    assert driver.code == 0, told
    check(tmp_path, 4, images=10)
    resumed = [Store(tmp_path).record(cell)["provenance"]["resumed"] for cell in Store(tmp_path).done()]
    assert min(resumed) > 0, resumed


def test_a_bad_node_is_left_for_another(tmp_path: Path) -> None:
    told = rerun(tmp_path, "cells=8", "launcher.chunk_minutes=4", f"bad={tmp_path / 'bad'}")
    check(tmp_path, 8)
    logs = [log.read_text() for log in tmp_path.glob("jobs/*/logs/*_log.out")]
    faults = [log.count("this machine is at fault") for log in logs]
    assert max(faults) == 1 and len(faults) == 2, told


def test_a_finished_job_that_runs_again_changes_nothing(tmp_path: Path) -> None:
    rerun(tmp_path, *FOUR_PER_JOB)
    check(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*")}
    job = next(iter(json.loads(next(tmp_path.glob("jobs/*/run.json")).read_text())["jobs"]))
    slurm("scontrol", "requeue", job)
    until(lambda: "Exiting after successful completion" in _again(tmp_path, job))
    check(tmp_path)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*")}


def _again(results: Path, job: str) -> str:
    log = next(results.glob(f"jobs/*/logs/{job}_0_log.out")).read_text()
    return log.partition("Exiting after successful completion")[2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk that holds a snapshot of the code with its weights, and is small enough to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=99m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def make_room(disk: Path) -> None:
    (disk / "ballast").unlink()


def forbid(disk: Path) -> None:
    """Make cells and claims read-only for the jobs. The logs with the error are on another disk at most sites."""
    for name in ("cells", "claims"):
        folder = str(disk / "results" / name)
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        remount = ["mount", "-o", "remount,ro,bind", folder]
        until(lambda remount=remount: not subprocess.run(remount, capture_output=True, check=False).returncode)


def allow(disk: Path) -> None:
    for name in ("cells", "claims"):
        subprocess.run(["umount", disk / "results" / name], check=True)


@pytest.mark.parametrize(
    ("damage", "repair", "word"),
    [(fill, make_room, "No space left"), (forbid, allow, "Read-only")],
    ids=["full", "read-only"],
)
def test_a_store_that_cannot_be_written_fails_no_cell(
    small_disk: Path, gate: Path, damage: Callable[[Path], None], repair: Callable[[Path], None], word: str
) -> None:
    results, arguments = small_disk / "results", (*FOUR_PER_JOB, f"gate={gate}")
    driver = start(results, *arguments)
    wait_at_gate(results)
    damage(small_disk)
    gate.touch()
    told = driver.end()
    assert driver.code == 1 and not Store(results).failed(), told
    assert damage is fill or word in told, "a full disk leaves no room for the log that would say so"
    again = start(results, *arguments)
    assert word in again.end() and again.code == 1, again.told()
    repair(small_disk)
    rerun(results, *arguments)
    check(results, drafts=damage is forbid)


# --- the verbs -------------------------------------------------------------------------------------------------


def test_status_and_cancel_need_no_driver(tmp_path: Path, gate: Path) -> None:
    arguments = (*FOUR_PER_JOB, f"gate={gate}", "launcher.array_parallelism=2", "launcher.wait=false")
    rerun(tmp_path, *arguments)
    wait_at_gate(tmp_path, 2, 2)
    seen = verb("status", f"results={tmp_path}")
    assert "16 cells: 2 done, 2 running, 12 queued" in seen and "2 jobs wait: JobArrayTaskLimit" in seen, seen
    assert "4 jobs cancelled" in verb("cancel", "sweep=trivial", f"results={tmp_path}")
    until(lambda: not jobs(tmp_path, "PENDING,RUNNING,COMPLETING"))
    assert not Claims(tmp_path).all(), "a cancellation does not make a cell fail"
    seen = verb("status", f"results={tmp_path}")
    assert "16 cells: 2 done, 14 lost" in seen and "stopped: cancelled" in seen, seen
    gate.touch()
    rerun(tmp_path, *arguments[:3])
    check(tmp_path)


def test_jobs_that_inherit_no_environment_run(tmp_path: Path) -> None:
    rerun(tmp_path, *FOUR_PER_JOB, "launcher.additional_parameters={export: NONE}")
    check(tmp_path)


def test_arrays_are_cut_at_the_sites_limit(tmp_path: Path) -> None:
    assert "submitted 25 jobs" in rerun(tmp_path, "cells=25", "launcher.chunk_minutes=1")
    check(tmp_path, 25)
    ids = json.loads(next(tmp_path.glob("jobs/*/run.json")).read_text())["jobs"]
    assert len({job.partition("_")[0] for job in ids}) == 2, "MaxArraySize is 20 here"


def test_a_thousand_cells_are_tens_of_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    told = rerun(tmp_path / "chunks", "cells=1000", "launcher.chunk_minutes=63")
    chunked = time.monotonic() - started
    check(tmp_path / "chunks", 1000)
    count = len(json.loads(next(tmp_path.glob("chunks/jobs/*/run.json")).read_text())["jobs"])
    started = time.monotonic()
    rerun(tmp_path / "single", "cells=40", "launcher.chunk_minutes=1")
    single = time.monotonic() - started
    assert count < 100, told
    with capsys.disabled():
        print(f"\n1,000 trivial cells in {count} jobs: {chunked:.1f} s; one job a cell: {single:.1f} s for 40")


# --- real cells ------------------------------------------------------------------------------------------------

SMALL = (
    "profile=digits",
    "method=ddim,edict",
    "corruption=random_mask,gaussian_blur",
    "steps=2",
    "images=2",
    "severity=2,4",
)
MEASURED = ["seconds", "peak_mib"]


def science(results: Path) -> str:
    """Return the rows of the sweep as text, without seconds and memory."""
    store = Store(results)
    rows = store.rows(sorted(store.done())).drop(columns=MEASURED)
    return rows.sort_values(["cell_id", "image_id"]).to_csv(index=False)


WITNESS = """
import os, sys

if os.environ.get("SUBMITIT_EXECUTOR"):
    def note(what):
        with open(os.environ["WITNESS"], "a") as file:
            file.write(what + chr(10))

    note("a job")
    sys.addaudithook(lambda event, about: note(str(about[1])) if event == "socket.connect" else None)
"""
"""The sitecustomize of a job. It records each connection that its Python opens."""


def test_the_corruption_sweep_gives_the_table_of_a_local_run(tmp_path: Path) -> None:
    """By default a part of the embedded sweep runs. WHOLE_SWEEP=1 runs all of it, about 15 CPU minutes per run.
    WHOLE_SWEEP=DIR compares with the results of a local run in DIR."""
    whole = os.environ.get("WHOLE_SWEEP", "")
    chosen = () if whole else SMALL
    local = Path(whole) if Path(whole).is_absolute() else tmp_path / "local"
    (tmp_path / "witness").mkdir()
    (tmp_path / "witness" / "sitecustomize.py").write_text(WITNESS)
    path = os.pathsep.join([str(tmp_path / "witness"), ENVIRONMENT["PYTHONPATH"]])
    environment = {**ENVIRONMENT, "PYTHONPATH": path, "WITNESS": str(tmp_path / "connections")}
    resources = ("launcher.gpus=0", "launcher.cpus=1", "launcher.mem_gb=1", "launcher.chunk_minutes=1")
    for folder, launcher in ((local, ("launcher=local",)), (tmp_path / "slurm", ("launcher=slurm", *resources))):
        verb(
            "run", "sweep=corruptions", "tracker=none", f"results={folder}", *chosen, *launcher, environment=environment
        )
    assert science(tmp_path / "slurm") == science(local)
    tables = [folder / "reports" / "corruptions" / "table.csv" for folder in (tmp_path / "slurm", local)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert set((tmp_path / "connections").read_text().splitlines()) == {"a job"}, "nothing on a node opens a connection"


def test_training_on_several_processes_is_requeued_and_resumed(tmp_path: Path) -> None:
    recipe = ("train.steps=160", "train.images=256", "train.batch_size=16", "train.validate_every=80", "train.warmup=5")
    resources = ("launcher.gpus=2", "launcher.cpus=1", "launcher.mem_gb=2", "launcher.timeout_min=60")
    told = verb("train", "model=digits_vp", f"out={tmp_path}", "tracker=none", *recipe, "launcher=slurm", *resources)
    job = told.split()[2].rstrip(",;")
    until(lambda: (tmp_path / "digits_vp" / "last.ckpt").is_file(), 900)
    slurm("scancel", "--signal=USR2", job)
    until(lambda: "Requeued job" in _log(tmp_path, job), 900)
    until(lambda: not slurm("squeue", "-h", "-j", job, "-t", "PENDING,RUNNING,COMPLETING"), 900)
    assert (tmp_path / "digits_vp.safetensors").is_file(), _log(tmp_path, job)
    assert "Restoring states from the checkpoint" in _log(tmp_path, job) and "MEMBER: 2/2" in _log(tmp_path, job)


def _log(out: Path, job: str) -> str:
    return "".join(file.read_text() for file in (out / "digits_vp" / "logs").glob(f"{job}_*_log.*"))
