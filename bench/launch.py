"""Where cells run: in this process (debug), in local worker processes, or as SLURM arrays; the last two by submitit.

The store says what is done, whoever did it: the driver only watches it. Local workers take the next cell that nobody
has claimed, so none idles; a worker whose driver is gone stops after the cell in hand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cells import Cell
from bench.chunks import Chunk
from bench.config import LauncherConfig, RunConfig
from bench.errors import UserError
from bench.store import Store

Progress = Callable[[str, str], None]
"""Called with a cell's id and its outcome: `done` or the class of its failure."""


def backend(launcher: LauncherConfig) -> str:
    """slurm | local | debug: what `auto` means here."""
    if launcher.kind == "auto":
        return "slurm" if shutil.which("sbatch") else "local"
    if launcher.kind == "slurm" and not shutil.which("sbatch"):
        raise UserError("launcher=slurm: there is no sbatch on the PATH; use launcher=local")
    return launcher.kind


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(launcher: LauncherConfig, cells: int) -> int:
    """Local processes to start: as asked, else one for every `threads` cores, never more than cells."""
    return max(1, min(launcher.workers or cores() // launcher.threads or 1, cells))


@dataclass(frozen=True)
class Job:
    """What one worker does: a callable that submitit can pickle by reference."""

    cells: tuple[Cell, ...]
    store: str
    batch_size: int
    samples: int
    device: str
    threads: int
    claims: str | None = None
    driver: int | None = None

    def __call__(self) -> int:
        """Run the cells that no other worker has claimed; returns how many."""
        import torch

        from bench.execute import run_cells

        torch.set_num_threads(self.threads)
        device = self.device if self.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        if self.claims:
            Path(self.claims, f"worker-{os.getpid()}").touch()
        store = Store(self.store)
        ran = run_cells(self._claimed(), store, self.batch_size, self.samples, device, self._orphaned)
        return sum(1 for _ in ran)

    def _claimed(self) -> Iterator[Cell]:
        for cell in self.cells:
            if self.claims is None:
                yield cell
                continue
            try:
                os.close(os.open(Path(self.claims, cell.id), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            yield cell

    def _orphaned(self) -> bool:
        if self.driver is None:
            return False
        try:
            os.kill(self.driver, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def launch(chunks: Sequence[Chunk], config: RunConfig, progress: Progress) -> None:
    """Run all chunks; returns when every cell has ended or every worker has."""
    cells = tuple(cell for chunk in chunks for cell in chunk.cells)
    if not cells:
        return
    kind = backend(config.launcher)
    job = Job(
        cells, str(Path(config.results).resolve()), config.batch_size, config.samples, config.launcher.device,
        config.launcher.threads,
    )  # fmt: skip
    {"debug": _debug, "local": _local, "slurm": _slurm}[kind](job, chunks, config, progress)


def _debug(job: Job, chunks: Sequence[Chunk], config: RunConfig, progress: Progress) -> None:
    import torch

    from bench.execute import run_cells

    torch.set_num_threads(job.threads)
    device = job.device if job.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    for cell, outcome in run_cells(job.cells, Store(job.store), job.batch_size, job.samples, device):
        progress(cell.id, outcome)


def _watch(job: Job, jobs: Sequence[Any], progress: Progress, poll: float) -> None:
    """Report every cell once as it ends, until all have or no job is left that could end one."""
    store = Store(job.store)
    open_cells = {cell.id for cell in job.cells}
    earlier = store.failed() & open_cells
    stamps = {cell_id: _stamp(store, cell_id) for cell_id in earlier}
    while True:
        idle = all(submitted.done() for submitted in jobs)
        for cell_id in sorted(open_cells & store.done()):
            open_cells.discard(cell_id)
            progress(cell_id, "done")
        for cell_id in sorted(open_cells & store.failed()):
            if stamps.get(cell_id) != _stamp(store, cell_id):
                open_cells.discard(cell_id)
                progress(cell_id, store.failure(cell_id)["class"])
        if not open_cells or idle:
            return
        time.sleep(poll)


def _stamp(store: Store, cell_id: str) -> int:
    try:
        return (store.root / "failures" / f"{cell_id}.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _run_folder(config: RunConfig) -> Path:
    folder = Path(config.results).resolve() / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    (folder / "claims").mkdir(parents=True)
    return folder


def _local(job: Job, chunks: Sequence[Chunk], config: RunConfig, progress: Progress) -> None:
    import submitit

    folder = _run_folder(config)
    claims = folder / "claims"
    count = workers(config.launcher, len(job.cells))
    executor = submitit.AutoExecutor(folder=folder / "logs", cluster="local")
    executor.update_parameters(timeout_min=60 * 24 * 7)
    # Largest first keeps the last worker from holding one long cell while the others are done.
    order = tuple(sorted(job.cells, key=lambda cell: -cell.evaluations))
    job = replace(job, cells=order, claims=str(claims), driver=os.getpid())
    with (
        _environment(OMP_NUM_THREADS=str(job.threads), MKL_NUM_THREADS=str(job.threads), PYTHONPATH=_python_path()),
        _children_ignore_interrupts(),
    ):
        jobs = [executor.submit(job) for _ in range(count)]
    try:
        _watch(job, jobs, progress, poll=0.2)
    except BaseException:
        # Results are written whole or not at all, so the cell in hand can simply be dropped.
        for pid in [*(int(file.name.removeprefix("worker-")) for file in claims.glob("worker-*")), *_controllers(jobs)]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        raise
    _complain(jobs, folder)


def _controllers(jobs: Sequence[Any]) -> list[int]:
    """submitit's local job id is the pid of the process that watches the worker."""
    return [int(submitted.job_id) for submitted in jobs]


@contextlib.contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Ctrl-C reaches the whole process group; the driver alone shall act on it, once."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _complain(jobs: Sequence[Any], folder: Path) -> None:
    """A worker that died says so, with where to read on: its cell is still missing."""
    for submitted in jobs:
        if submitted.done() and submitted.exception() is not None:
            print(f"worker {submitted.job_id} died; its log is in {folder / 'logs'}", file=sys.stderr)


def _slurm(job: Job, chunks: Sequence[Chunk], config: RunConfig, progress: Progress) -> None:
    import submitit

    launcher = config.launcher
    folder = _run_folder(config)
    executor = submitit.AutoExecutor(folder=folder / "logs", cluster="slurm")
    parameters: dict[str, Any] = {
        "name": f"bench-{config.name}"[:60],
        "timeout_min": launcher.timeout_min,
        "cpus_per_task": launcher.cpus,
        "mem_gb": launcher.mem_gb,
        "slurm_array_parallelism": launcher.array_parallelism,
        "slurm_setup": list(launcher.setup),
        "slurm_additional_parameters": dict(launcher.additional_parameters),
    }
    if launcher.gpus:
        parameters["gpus_per_node"] = launcher.gpus
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(launcher, key):
            parameters[f"slurm_{key}"] = getattr(launcher, key)
    executor.update_parameters(**parameters)
    with _environment(PYTHONPATH=_python_path()):
        jobs = executor.submit_array([replace(job, cells=chunk.cells, threads=launcher.cpus) for chunk in chunks])
    print(f"submitted {len(jobs)} jobs, {jobs[0].job_id.split('_')[0]}; logs in {folder / 'logs'}")
    _watch(job, jobs, progress, poll=2.0)


def _python_path() -> str:
    """Workers import the same code, also when it is not installed."""
    root = str(Path(__file__).resolve().parent.parent)
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([root, os.getcwd(), *([before] if before else [])])


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
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
