"""Show what a run would do, without doing it: `python -m bench.plan sweep=corruptions [key=value ...]`.

Prints the cells (done, missing, failed), the jobs that would compute the missing ones, predicted time and missing
assets.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from bench import hub, terminal
from bench.cluster.launch import backend, scripts, workers
from bench.errors import UserError, run_command, unknown
from bench.spec.cells import Cell, Expansion, expand
from bench.spec.chunks import Chunk, Clock, chunk
from bench.spec.compose import compose_config
from bench.spec.config import FailureClass, RunConfig
from bench.spec.datasets import differing, inventory, notes
from bench.spec.reconcile import Plan, reconcile
from bench.store import Damaged, Store, damage_lines

FAILURES = get_args(FailureClass)


@dataclass(frozen=True)
class Outlook:
    """A checked configuration, its cells, their state in the store and the jobs that remain."""

    config: RunConfig
    expansion: Expansion
    plan: Plan
    chunks: tuple[Chunk, ...]
    missing_assets: tuple[str, ...]
    damaged: Mapping[str, str]
    """Missing cells whose record exists but cannot be read: id -> reason."""

    @property
    def minutes(self) -> float:
        """Predicted minutes of computation, summed over all jobs."""
        return sum(job.minutes for job in self.chunks)


def look(overrides: list[str]) -> Outlook:
    """Compose and expand the configuration and compare it with the store. It starts nothing.

    Raises UserError for a user's mistake.
    """
    try:
        return _look(overrides)
    except OSError as error:  # a path that the user gave is too long or not permitted
        raise UserError(f"cannot be read: {error}") from error


def _look(overrides: list[str]) -> Outlook:
    config = compose_config(overrides)
    for name in config.retry:
        if name not in (*FAILURES, "all"):
            raise unknown("failure class", name, [*FAILURES, "all"], "in retry")
    kind = backend(config.launcher)
    gc.disable()  # thousands of cells stay in memory: looking for garbage among them costs a fifth of the time
    try:
        expansion = expand(config)
    finally:
        gc.enable()
    there = _existing(Path(config.results))
    if not there.is_dir():
        raise UserError(f"results={config.results!r}: {str(there)!r} is a file; it must be a folder")
    store = Store(config.results)
    damaged = store.damaged(cell.id for cell in expansion.cells)
    done, failed = store.done() - damaged.keys(), store.failed() - damaged.keys()
    plan = reconcile(expansion.cells, done, failed, config.retry, lambda cell_id: store.failure(cell_id)["class"])
    clock = Clock(_recorded(store, expansion.cells, done))
    used = {cell.axes["model"] for cell in expansion.cells}
    limit = config.launcher.chunk_minutes if kind in ("slurm", "plugin") else float("inf")
    chunks = chunk(plan.todo, clock.minutes, limit)
    return Outlook(config, expansion, plan, chunks, missing_assets(config, used), damaged)


def _existing(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _recorded(store: Store, cells: tuple[Cell, ...], done: set[str]) -> list[tuple[str, str, int, float]]:
    """Return (model, method, evaluations, seconds) of finished cells.

    A sample of about 200 cells is enough to know the speed of methods and models.
    """
    sample = [cell for cell in cells if cell.id in done][:: max(1, len(done) // 200)]
    recorded = []
    for cell in sample:
        try:
            seconds = store.record(cell.id)["provenance"]["seconds"]
        except (OSError, KeyError, Damaged):
            continue
        recorded.append((cell.axes["model"], cell.axes["method"], cell.evaluations, float(seconds)))
    return recorded


def missing_assets(config: RunConfig, used: Collection[str] | None = None) -> tuple[str, ...]:
    """Return a line for each model of `used` (None: every model) whose weights or pipeline cannot be loaded here."""
    missing = []
    for name, model in config.models.items():
        if used is not None and name not in used:
            continue
        if (file := model.weights_file) is not None and not file.is_file():
            missing.append(f"weights of model {name}: {model.weights} (python -m bench.train makes them)")
        if model.pretrained is not None and (why := hub.missing(model.pretrained, model.revision)):
            missing.append(f"pipeline of model {name}: {why} (python -m bench.prefetch model={name} fetches it)")
    return tuple(missing)


def require_assets(outlook: Outlook) -> None:
    """Raise UserError if assets are missing or the results folder is not writable."""
    if outlook.missing_assets and outlook.plan.todo:
        raise UserError(f"missing {'; '.join(outlook.missing_assets)}")
    there = _existing(Path(outlook.config.results))
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"results={outlook.config.results!r}: no permission to write in {str(there)!r}")


def summary(outlook: Outlook) -> str:
    """Return one line: the number of cells in each state, the number of jobs, and the predicted time."""
    plan, launcher = outlook.plan, outlook.config.launcher
    kind = backend(launcher)
    total = len(outlook.expansion.cells)
    text = f"{total} cells: {len(plan.done)} done, {len(plan.missing)} missing, {len(plan.failed)} failed"
    if plan.retried:
        text += f", {len(plan.retried)} to retry"
    if not plan.todo:
        return text + "; nothing to compute"
    count = (
        len(outlook.chunks)
        if kind in ("slurm", "plugin")
        else 1
        if kind == "debug"
        else workers(launcher, len(plan.todo))
    )
    jobs = f"jobs of {launcher.executor}"
    runners = {"slurm": "SLURM jobs", "local": "local workers", "debug": "this process", "plugin": jobs}[kind]
    where = runners if kind == "debug" else f"{count} {runners}"
    return text + f"; {len(plan.todo)} to compute in {where}, about {duration(outlook.minutes / count)}"


def duration(minutes: float) -> str:
    if minutes < 2:
        return f"{minutes * 60:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def say_gaps(outlook: Outlook, console: Console) -> None:
    """Print what the sweep lacks, and why: skipped combinations, unavailable metrics, damaged cells.

    The console is the one of bench.terminal, which prints text as it is.
    """
    for line in damage_lines(outlook.damaged):
        console.print(f"{line}; it will be computed again", style="yellow", soft_wrap=True)
    for reason, count in Counter(skip.reason for skip in outlook.expansion.skipped).items():
        console.print(f"skipped {count} combinations: {reason}", style="yellow", soft_wrap=True)
    for reason in dict.fromkeys(outlook.expansion.unavailable.values()):
        console.print(f"unavailable: {reason}", style="yellow", soft_wrap=True)
    for line in notes(cell.spec for cell in outlook.expansion.cells) + changed_files(outlook):
        console.print(line, style="yellow", soft_wrap=True)


def changed_files(outlook: Outlook) -> list[str]:
    """Return a line for each data set whose files differ from those of the sweep's last run.

    Only data sets that finished cells used are named.
    """
    store, lines = Store(outlook.config.results), []
    try:
        before = store.manifest(outlook.config.name)
    except (FileNotFoundError, Damaged):  # the run writes it
        return []
    gone = store.done() - {cell.id for cell in outlook.expansion.cells}
    stale = Counter(cell["axes"]["dataset"] for cell in before["cells"] if cell["id"] in gone)
    for name, now in inventory(cell.spec for cell in outlook.expansion.cells).items():
        count = differing(before.get("datasets", {}).get(name), now)
        if count and stale[name]:
            lines.append(
                f"dataset {name} has changed since its cells were computed: {count} images or captions differ; "
                f"{stale[name]} cells are computed again"
            )
    return lines


def show(outlook: Outlook, console: Console) -> None:
    """Print the plan as a table with one line per method, model, data set and corruption, then what is missing."""
    kinds = ("done", "missing", "failed", "retried")
    states = {cell.id: kind for kind in kinds for cell in getattr(outlook.plan, kind)}
    table = Table(title=f"{outlook.config.name}: {outlook.config.title}", title_justify="left")
    for column in ("method", "model", "dataset", "task", "severities / steps"):
        table.add_column(column)
    for column in ("cells", "done", "missing", "failed"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in outlook.expansion.cells:
        a = cell.axes
        groups.setdefault((a["method"], a["model"], a["dataset"], a["corruption"] or a["task"]), []).append(cell)
    for group, cells in groups.items():
        axis = "severity" if cells[0].axes["severity"] is not None else "steps"
        found = [states[cell.id] for cell in cells]
        values = " ".join(str(v) for v in sorted({cell.axes[axis] for cell in cells}))
        bad = found.count("failed") + found.count("retried")
        table.add_row(*group, values, *(str(n) for n in (len(cells), found.count("done"), found.count("missing"), bad)))
    console.print(table)
    console.print(summary(outlook), soft_wrap=True)
    say_gaps(outlook, console)
    for asset in outlook.missing_assets:
        console.print(f"missing {asset}", style="red", soft_wrap=True)
    if outlook.chunks and backend(outlook.config.launcher) == "slurm":
        for text in scripts(outlook.chunks, outlook.config):
            console.print(text, soft_wrap=True)


def main(arguments: list[str]) -> int:
    show(look(arguments), terminal.console())
    return 0


if __name__ == "__main__":
    run_command(main)
