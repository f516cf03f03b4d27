"""SLURM: what a job asks for, the text that sbatch gets, and what squeue and sacct answer. No torch.

The text is made by submitit's own pure function from `parameters`, so that what a dry run prints is what is submitted.
squeue and sacct are asked once for all jobs. A job that squeue does not list has ended; an answer that does not come
says nothing.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import provenance
from bench.errors import UserError
from bench.files import without_percent
from bench.spec.config import LauncherConfig, Resources

REQUEUES = 1000
"""Every requeue makes progress, or is counted by the claim of the cell that does not let it."""
DEFAULT_ARRAY = 1001
LAUNCH_FAILED = "launch failed requeued held"
"""The reason that squeue gives of a job which SLURM holds because its node could not start it."""
WORKING = ("idle", "mix", "alloc", "comp")
"""States of nodes that take jobs now or later; with ~ or # one that is powered down or starting."""


def parameters(
    launcher: LauncherConfig, resources: Resources, name: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    """What submitit's SLURM executor is told; `environment` is exported by the script, after the site's setup lines."""
    asked: dict[str, Any] = {
        "job_name": f"bench-{name}"[:60],
        "time": resources.timeout_min,
        "cpus_per_task": resources.cpus,
        "mem": f"{round(resources.mem_gb * 1024)}MB",
        "ntasks_per_node": resources.tasks,
        "nodes": 1,
        # Since 22.05 a step does not take its CPUs from its job. It would take --export=NONE, and so lose what the
        # script has set up.
        "srun_args": [f"--cpus-per-task={resources.cpus}", "--export=ALL"],
        "signal_delay_s": launcher.signal_s,
        "array_parallelism": launcher.array_parallelism,
        "setup": [*launcher.setup, *(f"export {key}={shlex.quote(value)}" for key, value in environment.items())],
        "additional_parameters": {"requeue": True, **resources.additional_parameters},
    }
    if resources.gpus:
        asked["gpus_per_node"] = resources.gpus
    return asked | {
        key: value for key in ("partition", "account", "qos", "constraint") if (value := getattr(resources, key))
    }


def script(asked: Mapping[str, Any], folder: Path, count: int, python: str = sys.executable) -> str:
    """The text for sbatch: an array of `count` jobs, or one job. Pure."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command, folder, map_count=count if count > 1 else None, **asked)


def shares(count: int, largest: int, parallel: int) -> list[tuple[int, int]]:
    """(jobs, jobs at a time) of the arrays that `count` jobs make where an array takes `largest`. Pure."""
    arrays = -(-count // largest)
    sizes = [count // arrays + (i < count % arrays) for i in range(arrays)]
    return [(size, max(1, parallel // arrays)) for size in sizes]


def largest_array() -> int:
    """How many jobs an array may have here."""
    for line in _ask(["scontrol", "show", "config"]) or ():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return max(1, int(value))
    return DEFAULT_ARRAY


def submit(jobs: Sequence[Any], asked: Mapping[str, Any], folder: Path) -> list[str]:
    """Submit callables as one array (one of them as a plain job); returns their ids. UserError if sbatch refuses."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=without_percent(folder), max_num_timeout=REQUEUES)
    executor.update_parameters(**asked)
    try:
        with _no_job():
            return [submitted.job_id for submitted in executor.submit_array(list(jobs))]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused: {error}") from error


@contextlib.contextmanager
def _no_job() -> Iterator[None]:
    """Submitting from inside a job: its own limits must not become those of the new one."""
    kept = ("SLURM_CONF", "SLURM_BITSTR_LEN", "SLURM_CLUSTERS")
    inherited = {key: value for key, value in os.environ.items() if key.startswith("SLURM_") and key not in kept}
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)


def queue() -> dict[str, tuple[str, str]] | None:
    """Our jobs that are waiting or running: id -> (state, reason). None if SLURM does not answer."""
    lines = _ask(["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%T|%r"])
    return None if lines is None else {i: (state, why) for i, state, why in (line.split("|", 2) for line in lines)}


def ended(ids: Iterable[str]) -> dict[str, str]:
    """How jobs ended, as far as accounting knows: id -> COMPLETED, FAILED, TIMEOUT, NODE_FAIL, CANCELLED ..."""
    asked = set(ids)
    arrays = sorted({job.partition("_")[0] for job in asked})  # sacct tells of the other jobs of an array, too
    lines = arrays and _ask(["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(arrays)])
    states = (line.split("|", 1) for line in lines or ())
    return {job: state.split(" ")[0] for job, state in states if job in asked}


def cancel(ids: Iterable[str]) -> set[str]:
    """One scancel for all. Returns those that go on; that some have ended meanwhile is no error."""
    chosen = list(ids)
    answers = [_ask(["scancel", *chosen[start : start + 1000]]) for start in range(0, len(chosen), 1000)]
    if None not in answers:
        return set()
    left = queue()
    return {job for job in chosen if left is None or left.get(job, ("COMPLETING", ""))[0] != "COMPLETING"}


def release(ids: Iterable[str]) -> None:
    """Let jobs that are held wait for their turn again."""
    _ask(["scontrol", "release", ",".join(ids)])


def avoid_node() -> None:
    """Have this process's job, which was just requeued, start on another node: its own is idle, and the scheduler would
    take it again. Only where there is another such node, for else the job would wait for ever."""
    job, node = provenance.job_id(), os.environ.get("SLURMD_NODENAME")
    if job is None or node is None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with the requeue, and would end scontrol too
    told = " ".join(_ask(["scontrol", "show", "job", "-o", job]) or ())
    known = dict(word.split("=", 1) for word in told.split() if "=" in word)
    if known.get("ReqNodeList") != "(null)" or "Reservation" in known:
        return  # it may run on some nodes only
    before = known.get("ExcNodeList", "(null)")
    excluded = node if before == "(null)" else f"{before},{node}"
    names = _ask(["scontrol", "show", "hostnames", excluded]) or ()
    partition = os.environ.get("SLURM_JOB_PARTITION", "")
    lines = _ask(["sinfo", "-h", "-N", "-p", partition, "-o", "%N|%t|%f|%G|%c|%m"]) or ()
    nodes = [line.split("|", 2) for line in lines]
    own = [kind for name, _, kind in nodes if name == node]
    if any(kind in own and state.rstrip("~#") in WORKING and name not in names for name, state, kind in nodes):
        _ask(["scontrol", "update", f"JobId={job}", f"ExcNodeList={excluded}"])


def _ask(command: list[str]) -> list[str] | None:
    environment = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # else long ranges of arrays are cut
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()
