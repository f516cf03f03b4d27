"""The launchers: cells run in this process (debug), in local processes, as SLURM arrays, or by a plugin of submitit.

The store alone says which cells are done. The driver only submits and watches, so it may be killed. A local worker
takes the next cell without a valid claim, and stops when its driver has ended. SLURM jobs do not need the driver. If
cells are already in the jobs of an earlier driver, the new driver watches those jobs and does not submit the cells
again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench import hub
from bench.cluster import runs, slurm, snapshot
from bench.cluster.claims import Claims, started
from bench.cluster.jobs import Job
from bench.cluster.runs import Run
from bench.errors import UserError, unknown, writing
from bench.files import without_percent
from bench.spec.cells import Cell
from bench.spec.chunks import Chunk
from bench.spec.config import LauncherConfig, Resources, RunConfig
from bench.spec.registry import resolve
from bench.store import Store
from bench.weights import torch_home

Progress = Callable[[str, str], None]
"""Called with a cell's id and its outcome: `done` or the class of its failure."""


def backend(launcher: LauncherConfig) -> str:
    """Return the kind of launcher: slurm, local, debug or plugin. `auto` means slurm where a cluster answers, else
    local."""
    if launcher.kind == "auto":
        return "slurm" if shutil.which("sbatch") and _controller_answers() else "local"
    if launcher.kind == "slurm" and not shutil.which("sbatch"):
        raise UserError("launcher=slurm: there is no sbatch on the PATH; use launcher=local")
    return launcher.kind


@cache
def _controller_answers() -> bool:
    """Return True if the controller of SLURM answers: its commands may be installed where there is no cluster."""
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(launcher: LauncherConfig, cells: int) -> int:
    """Return the number of local processes: `launcher.workers`, else one per `threads` cores; at most one per cell."""
    return max(1, min(launcher.workers or cores() // launcher.threads or 1, cells))


def waits(launcher: LauncherConfig) -> bool:
    """Return True if the driver waits until the cells have ended; else it leaves them to SLURM."""
    return launcher.wait or backend(launcher) != "slurm"


def launch(
    chunks: Sequence[Chunk], config: RunConfig, progress: Progress, retried: Collection[str] = frozenset()
) -> None:
    """Run all chunks. Returns when every cell has ended or no worker is left. If the driver does not wait, returns when
    the jobs are submitted. Removes damaged records, and the failure records of the cells in `retried`."""
    cells = tuple(cell for chunk in chunks for cell in chunk.cells)
    if not cells:
        return
    kind, store = backend(config.launcher), Path(config.results).resolve()
    with writing():
        Store(store).discard(cell.id for cell in cells)
        code = snapshot.ROOT if kind == "debug" else snapshot.take(store, _classes(cells))
        run = Run(runs.new_folder(store), config.name, kind, [cell.id for cell in cells], code.name)
        run.write()
    # The largest cells come first: else one worker may still compute a long cell when all others have finished.
    order = cells if kind == "debug" else tuple(sorted(cells, key=lambda cell: -cell.evaluations))
    job = Job(
        order, str(store), str(run.folder), config.batch_size, config.samples, config.launcher, config.launcher.threads,
        len(cells),
    )  # fmt: skip
    try:
        if kind == "slurm":
            _slurm(job, run, chunks, code, progress, retried)
        else:
            with _retrying(Store(store), retried, run):
                {"debug": _debug, "local": _local, "plugin": _plugin}[kind](job, run, chunks, code, progress)
    finally:
        if kind != "debug" and not run.jobs:  # it was refused, or other jobs have all its cells
            shutil.rmtree(run.folder, ignore_errors=True)


def tidy(results: Path) -> None:
    """Remove the files that killed runs left in a store and that no process uses."""
    store = Store(results)
    with writing(), Claims(results) as claims:
        store.tidy()
        claims.tidy(store.done() | store.failed())
        runs.tidy(results)


@contextlib.contextmanager
def _retrying(store: Store, cells: Collection[str], run: Run) -> Iterator[None]:
    """Remove the failure records of these cells, since workers skip a cell that has failed. If the block raises, write
    the records of the cells that are in no job again."""
    failures = {}
    for cell in cells:
        with contextlib.suppress(FileNotFoundError):  # another driver retries it too
            failures[cell] = store.failure(cell)
            store.forget_failure(cell)
    try:
        yield
    except BaseException:
        submitted = {cell for job in run.jobs for cell in run.cells_of(job)}
        for cell, failure in failures.items():
            if cell not in submitted and not store.ended(cell):
                store.write_failure(cell, failure)
        raise


def _classes(cells: Sequence[Cell]) -> set[str]:
    parts = ("method", "model", "dataset", "corruption")
    named = {(cell.spec[part]["class"], part) for cell in cells for part in parts if part in cell.spec}
    return {resolve(path, kind) for path, kind in named}


def environment(launcher: LauncherConfig, code: Path, threads: int) -> dict[str, str]:
    """Return the variables of every job: the copy of the code, the threads, and settings that keep libraries
    offline."""
    folders = [str(code), os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(folders)),
        "PYTHONSAFEPATH": "1",  # else `python -m` finds the newer code of the working folder first
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_CACHE": str(hub.cache() if launcher.cache is None else Path(launcher.cache, "huggingface", "hub")),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TORCH_HOME": str(torch_home() if launcher.cache is None else Path(launcher.cache, "torch")),
        "WANDB_MODE": "offline",
        **launcher.env,
    }


# --- watching --------------------------------------------------------------------------------------------------


def _watch(job: Job, progress: Progress, poll: float, idle: Callable[[set[str]], bool]) -> set[str]:
    """Report each cell once when it ends. Stops when all cells have ended, or when `idle` says that no job has the open
    ones. Returns the open cells."""
    store, left = Store(job.store), {cell.id for cell in job.cells}
    while True:
        unattended = idle(left)
        done, failed = store.done(), store.failed()
        for cell_id in sorted(left & (done | failed)):
            left.discard(cell_id)
            progress(cell_id, "done" if cell_id in done else store.failure(cell_id)["class"])
        if not left or unattended:
            return left
        time.sleep(poll)


def _debug(job: Job, run: Run, chunks: Sequence[Chunk], code: Path, progress: Progress) -> None:
    for cell_id, outcome in job.run():
        progress(cell_id, outcome)
    _print_why_stopped(run)


def _print_why_stopped(run: Run) -> None:
    if (why := runs.why_stopped(run.folder)) is not None:
        print(f"stopped: {why}", file=sys.stderr)


# --- local -----------------------------------------------------------------------------------------------------


def _local(job: Job, run: Run, chunks: Sequence[Chunk], code: Path, progress: Progress) -> None:
    import submitit

    launcher = job.launcher
    executor = submitit.AutoExecutor(folder=without_percent(run.logs), cluster="local")
    executor.update_parameters(timeout_min=60 * 24 * 7)
    worker = job.driven_by(os.getpid())
    with _environment(environment(launcher, code, job.threads)), _children_ignore_interrupts():
        jobs = [executor.submit(worker) for _ in range(workers(launcher, len(job.cells)))]
    # The id of a local job of submitit is the pid of the process that watches the worker.
    run.add([f"{j.job_id}:{started(int(j.job_id))}" for j in jobs], [run.cells] * len(jobs))
    try:
        _watch(job, progress, 0.2, lambda left: all(submitted.done() for submitted in jobs))
    except BaseException:
        # Results are written whole or not at all, so an open cell can be dropped.
        end_local(run)
        raise
    _report_failed_workers(jobs, run.logs)
    _print_why_stopped(run)


def end_local(run: Run) -> None:
    """Kill the workers of a run on this machine. Their end does not count against their cells."""
    controllers = [int(job.partition(":")[0]) for job in run.live({})]
    children = [pid for parent in controllers for pid in _children(parent)]
    for pid in [*controllers, *children]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    Claims(run.folder.parent.parent).forget(children)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Make child processes ignore Ctrl-C: it reaches the whole process group, and only the driver must act on it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _report_failed_workers(jobs: Sequence[Any], logs: Path) -> None:
    """Print the reason why a worker failed, or the folder of its log, since its cell is missing."""
    messages = set()
    for submitted in jobs:
        if submitted.done() and (error := submitted.exception()) is not None:
            last = str(error).strip().splitlines()[-1]
            reason = last.partition("StoreError: ")[2]
            messages.add(reason or f"worker {submitted.job_id} ended with an error; its log is in {logs}")
    for line in sorted(messages):
        print(line, file=sys.stderr)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --- plugins of submitit -----------------------------------------------------------------------------------------


def _plugin(job: Job, run: Run, chunks: Sequence[Chunk], code: Path, progress: Progress) -> None:
    import submitit
    from submitit.core.plugins import get_executors

    launcher = job.launcher
    if launcher.executor not in get_executors():
        raise unknown("launcher.executor", str(launcher.executor), get_executors())
    executor = submitit.AutoExecutor(folder=without_percent(run.logs), cluster=launcher.executor)
    executor.update_parameters(
        name=f"bench-{run.sweep}", timeout_min=launcher.timeout_min, cpus_per_task=launcher.cpus,
        mem_gb=launcher.mem_gb, gpus_per_node=launcher.gpus, **launcher.additional_parameters,
    )  # fmt: skip
    with _environment(environment(launcher, code, job.threads)):
        jobs = executor.submit_array([job.of(chunk.cells) for chunk in chunks])
    # Only the executor knows the state of its jobs. For other processes they run as long as this process, the watcher.
    run.add([f"{os.getpid()}:{started(os.getpid())}"], [run.cells])
    print(f"submitted {len(jobs)} jobs to {launcher.executor}; logs in {run.logs}")
    _watch(job, progress, 0.5, lambda left: all(submitted.done() for submitted in jobs))
    _report_failed_workers(jobs, run.logs)
    _print_why_stopped(run)


# --- SLURM -----------------------------------------------------------------------------------------------------


def arrays(chunks: Sequence[Chunk], launcher: LauncherConfig) -> list[tuple[Resources, list[Chunk]]]:
    """Group the chunks by the resources of their jobs: all jobs of an array have the same."""
    groups: dict[str, tuple[Resources, list[Chunk]]] = {}
    for chunk in chunks:
        resources = launcher.resources(chunk.cells[0].axes["model"])
        groups.setdefault(resources.model_dump_json(), (resources, []))[1].append(chunk)
    return list(groups.values())


def scripts(chunks: Sequence[Chunk], config: RunConfig) -> list[str]:
    """Return the scripts that sbatch would get. RUN stands for the name of the folder, which is not known yet."""
    store, launcher = Path(config.results).resolve(), config.launcher
    code = snapshot.place(store, _classes([cell for chunk in chunks for cell in chunk.cells]))
    texts, logs = [], store / "jobs" / "RUN" / "logs"
    for resources, members in arrays(chunks, launcher):
        settings = slurm.parameters(launcher, resources, config.name, environment(launcher, code, resources.cpus))
        for size, parallel in slurm.shares(len(members), slurm.largest_array(), launcher.array_parallelism):
            texts.append(slurm.script({**settings, "array_parallelism": parallel}, logs, size))
    return texts


def _slurm(
    job: Job, run: Run, chunks: Sequence[Chunk], code: Path, progress: Progress, retried: Collection[str]
) -> None:
    store = Path(job.store)
    waiting = partial(print, "waiting for another driver that is submitting")
    with Claims(store) as claims, claims.alone("submit", waiting):
        again = Store(store).failed() & set(retried)
        earlier = _in_jobs(store) - again  # a running job does not try a failed cell again
        rest = without(chunks, earlier | Store(store).done())
        with _retrying(Store(store), again, run):
            ids = _submit(job, run, rest, code)
    mine = {cell.id for cell in job.cells}
    if mine & earlier:
        watched = "watched, " if job.launcher.wait else ""
        print(f"{len(mine & earlier)} cells are in jobs of an earlier run: {watched}not submitted again")
    if ids:
        names = sorted({i.partition("_")[0] for i in ids})
        print(f"submitted {len(ids)} jobs, {', '.join(names)}; logs in {run.logs}", flush=True)
    if not job.launcher.wait:
        print(f"python -m bench.status sweep={run.sweep} results={store} shows their state")
        return
    try:
        left = _watch(job, progress, 0.5, Unattended(store))
    except KeyboardInterrupt:
        print("the jobs continue to run: bench.status shows them, bench.cancel ends them", file=sys.stderr)
        raise
    if left and ids:
        _report_failed_jobs(run)
        _print_why_stopped(run)


def _in_jobs(store: Path) -> set[str]:
    """Return the cells of jobs that wait or run. Raises UserError if SLURM does not answer."""
    found = runs.read(store)
    queue = runs.queue(found)
    if queue is None:
        raise UserError("squeue does not answer, so the cells that are already in jobs are not known; try again later")
    _release(found, queue)
    for line in runs.damaged(store):
        print(f"{line}; its cells may be computed twice", file=sys.stderr)
    stopped = {run.folder for run in found if runs.why_stopped(run.folder) is not None}
    # A job that is ending starts no cell.
    queue = {job: (state, why) for job, (state, why) in queue.items() if state != "COMPLETING"}
    live = ((run, job) for run in found if run.folder not in stopped for job in run.live(queue))
    return {cell for run, job in live if run.kind == "slurm" for cell in run.cells_of(job)}


def _release(found: Sequence[Run], queue: Mapping[str, tuple[str, str]]) -> None:
    """Release the jobs that SLURM holds because a node could not start them, for example since an earlier process of
    the job still ran there. SLURM itself never releases them."""
    held = [job for run in found for job in run.jobs if queue.get(job, ("", ""))[1] == slurm.LAUNCH_FAILED]
    if held:
        print(f"{len(held)} jobs were held because a node could not start them: released", flush=True)
        slurm.release(held)


def without(chunks: Sequence[Chunk], cells: set[str]) -> list[Chunk]:
    """Return the chunks without some cells. Pure."""
    left = [(chunk, tuple(cell for cell in chunk.cells if cell.id not in cells)) for chunk in chunks]
    return [Chunk(kept, chunk.minutes * len(kept) / len(chunk.cells)) for chunk, kept in left if kept]


def _submit(job: Job, run: Run, chunks: Sequence[Chunk], code: Path) -> list[str]:
    launcher, ids = job.launcher, []
    largest = slurm.largest_array() if chunks else 0
    for resources, members in arrays(chunks, launcher):
        run.gpus = max(run.gpus, resources.gpus)
        settings = slurm.parameters(launcher, resources, run.sweep, environment(launcher, code, resources.cpus))
        start = 0
        for size, parallel in slurm.shares(len(members), largest, launcher.array_parallelism):
            part, start = members[start : start + size], start + size
            jobs = [job.of(chunk.cells, resources.cpus) for chunk in part]
            new = slurm.submit(jobs, {**settings, "array_parallelism": parallel}, run.logs)
            run.add(new, [[cell.id for cell in chunk.cells] for chunk in part])
            ids += new
    return ids


class Unattended:
    """A check that no job has any of the open cells. It needs two answers of squeue in a row, since one may come too
    early."""

    def __init__(self, store: Path, pause: float = 2.0) -> None:
        self.store = store
        self.pause = pause
        self.last_query = time.monotonic()
        self.misses = 0

    def __call__(self, left: set[str]) -> bool:
        if time.monotonic() - self.last_query < self.pause:
            return False
        found = runs.read(self.store)
        queue = runs.queue(found)
        self.last_query = time.monotonic()
        if queue is None:
            return False
        _release(found, queue)
        live = {cell for run in found for job in run.live(queue) for cell in run.cells_of(job)}
        self.misses = 0 if live & left else self.misses + 1
        self.pause = 2.0 if self.misses else min(self.pause * 1.2, 20.0)
        return self.misses >= 2


def _report_failed_jobs(run: Run) -> None:
    """Print how many jobs ended badly, if the accounting knows it, and the errors of the store from their logs."""
    states = slurm.ended(run.jobs)
    bad: dict[str, list[str]] = {}
    for job in run.jobs:
        if (state := states.get(job, "")) not in ("", "COMPLETED", "RUNNING", "PENDING"):
            bad.setdefault(state, []).append(job)
    for state, jobs in sorted(bad.items()):
        print(f"{len(jobs)} jobs ended as {state}, the first {jobs[0]}; logs in {run.logs}", file=sys.stderr)
    messages = {line for job in run.jobs for line in _store_errors(run.logs / f"{job}_0_log.err")}
    for line in sorted(messages):
        print(line, file=sys.stderr)


def _store_errors(log: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in log.read_text(errors="replace").splitlines():
            if "bench.errors.StoreError: " in line:
                yield line.partition("StoreError: ")[2]
