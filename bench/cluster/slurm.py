"""SLURM: the resources of a job, the script for sbatch, and the answers of squeue and sacct. No torch.

A pure function of submitit makes the script from `parameters`, so a dry run prints exactly the script that is
submitted. squeue and sacct are called once for all jobs. A job that squeue does not list has ended. If squeue does not
answer, nothing is known about the jobs.
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
"""The limit of requeues for submitit, far above any need: a requeue makes progress, or the claim of its open cell
counts it."""
DEFAULT_ARRAY = 1001
LAUNCH_FAILED = "launch failed requeued held"
"""The reason in squeue for a job that SLURM holds because its node could not start it."""
WORKING = ("idle", "mix", "alloc", "comp")
"""States of nodes that take jobs now or later. A node that is powered down or starting has ~ or # after its state."""


def parameters(
    launcher: LauncherConfig, resources: Resources, name: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Return the parameters of submitit's SLURM executor. The script exports `environment` after the setup lines of the
    site."""
    settings: dict[str, Any] = {
        "job_name": f"bench-{name}"[:60],
        "time": resources.timeout_min,
        "cpus_per_task": resources.cpus,
        "mem": f"{round(resources.mem_gb * 1024)}MB",
        "ntasks_per_node": resources.tasks,
        "nodes": 1,
        # Since SLURM 22.05 a step does not take its number of CPUs from its job. It would take --export=NONE from it,
        # and then lose the environment that the script sets.
        "srun_args": [f"--cpus-per-task={resources.cpus}", "--export=ALL"],
        "signal_delay_s": launcher.signal_s,
        "array_parallelism": launcher.array_parallelism,
        "setup": [*launcher.setup, *(f"export {key}={shlex.quote(value)}" for key, value in environment.items())],
        "additional_parameters": {"requeue": True, **resources.additional_parameters},
    }
    if resources.gpus:
        settings["gpus_per_node"] = resources.gpus
    return settings | {
        key: value for key in ("partition", "account", "qos", "constraint") if (value := getattr(resources, key))
    }


def script(settings: Mapping[str, Any], folder: Path, count: int, python: str = sys.executable) -> str:
    """Return the script for sbatch: an array of `count` jobs, or one job. Pure."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command, folder, map_count=count if count > 1 else None, **settings)


def shares(count: int, largest: int, parallel: int) -> list[tuple[int, int]]:
    """Split `count` jobs into arrays of at most `largest`. Returns (jobs, jobs at a time) for each array. Pure."""
    arrays = -(-count // largest)
    sizes = [count // arrays + (i < count % arrays) for i in range(arrays)]
    return [(size, max(1, parallel // arrays)) for size in sizes]


def largest_array() -> int:
    """Return the largest number of jobs that an array may have on this cluster."""
    for line in _ask(["scontrol", "show", "config"]) or ():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return max(1, int(value))
    return DEFAULT_ARRAY


def submit(jobs: Sequence[Any], settings: Mapping[str, Any], folder: Path) -> list[str]:
    """Submit callables as one array (a single one as a plain job). Returns the job ids. Raises UserError if sbatch
    refuses."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=without_percent(folder), max_num_timeout=REQUEUES)
    executor.update_parameters(**settings)
    try:
        with _outside_job():
            return [submitted.job_id for submitted in executor.submit_array(list(jobs))]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused: {error}") from error


@contextlib.contextmanager
def _outside_job() -> Iterator[None]:
    """Hide the variables of the job that this process runs in: its limits must not become those of the new job."""
    kept = ("SLURM_CONF", "SLURM_BITSTR_LEN", "SLURM_CLUSTERS")
    inherited = {key: value for key, value in os.environ.items() if key.startswith("SLURM_") and key not in kept}
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)


def queue() -> dict[str, tuple[str, str]] | None:
    """Return our jobs that wait or run: id -> (state, reason). None if SLURM does not answer."""
    lines = _ask(["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%T|%r"])
    return None if lines is None else {i: (state, why) for i, state, why in (line.split("|", 2) for line in lines)}


def ended(ids: Iterable[str]) -> dict[str, str]:
    """Return the final states from the accounting: id -> COMPLETED, FAILED, TIMEOUT, NODE_FAIL, CANCELLED, ... Jobs
    that it does not know are left out."""
    wanted = set(ids)
    arrays = sorted({job.partition("_")[0] for job in wanted})  # sacct also lists the other jobs of an array
    lines = arrays and _ask(["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(arrays)])
    states = (line.split("|", 1) for line in lines or ())
    return {job: state.split(" ")[0] for job, state in states if job in wanted}


def cancel(ids: Iterable[str]) -> set[str]:
    """Cancel jobs, with one call of scancel per 1,000 jobs. Returns those that still run. A job that has already ended
    is no error."""
    chosen = list(ids)
    answers = [_ask(["scancel", *chosen[start : start + 1000]]) for start in range(0, len(chosen), 1000)]
    if None not in answers:
        return set()
    left = queue()
    return {job for job in chosen if left is None or left.get(job, ("COMPLETING", ""))[0] != "COMPLETING"}


def release(ids: Iterable[str]) -> None:
    """Release jobs that SLURM holds, so that they wait in the queue again."""
    _ask(["scontrol", "release", ",".join(ids)])


def avoid_node() -> None:
    """Make the job of this process, which was just requeued, start on another node. The scheduler would choose the same
    node again, since it is idle. Does nothing if no other node is like this one, because the job would then wait for
    ever."""
    job, node = provenance.job_id(), os.environ.get("SLURMD_NODENAME")
    if job is None or node is None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the requeue sends it, and it would also end scontrol
    answer = " ".join(_ask(["scontrol", "show", "job", "-o", job]) or ())
    known = dict(word.split("=", 1) for word in answer.split() if "=" in word)
    if known.get("ReqNodeList") != "(null)" or "Reservation" in known:
        return  # the job may only run on certain nodes
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
    environment = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # without this, long ranges of arrays are cut
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()
