"""Run a sweep: `python -m bench.run sweep=corruptions [key=value ...]`.

Expands the sweep into cells, computes those that the store does not hold, mirrors them to W&B and rebuilds the report.
The same command again computes nothing; after a crash it computes what is missing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.cluster.launch import cores, launch, waits
from bench.errors import UserError, run_command
from bench.mirror.companion import Companion
from bench.plan import Outlook, look, require_assets, say_gaps, show, summary
from bench.spec.datasets import inventory
from bench.store import Store

LINE = 160
"""Characters of a failure's message that the terminal shows."""


def manifest(outlook: Outlook) -> dict[str, object]:
    """What a report needs to know of the sweep: its cells by id and axes, and what could not be."""
    config = outlook.config
    return {
        "title": config.title,
        "description": config.description,
        "task": config.task,
        "profile": config.profile.name,
        "images": config.images,
        "datasets": inventory(cell.spec for cell in outlook.expansion.cells),
        "highlight": config.highlight,
        "cells": [{"id": c.id, "axes": c.axes, "evaluations": c.evaluations} for c in outlook.expansion.cells],
        "reference": list(config.reference),
        "options": {name: method.options for name, method in config.method.items() if method.options},
        "unavailable": outlook.expansion.unavailable,
        "skipped": [{"axes": skip.axes, "reason": skip.reason} for skip in outlook.expansion.skipped],
    }


def compute(outlook: Outlook, console: Console) -> dict[str, int]:
    """Run the missing cells with a progress bar; returns how many ended how."""
    counts: dict[str, int] = {}
    total = len(outlook.plan.todo)
    store = Store(outlook.config.results)
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} done"),
        TextColumn("{task.fields[running]} running  {task.fields[failed]} failed"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(outlook.config.name, total=total, running=0, failed=0)
        launcher = outlook.config.launcher
        slots = (launcher.workers or cores()) if waits(launcher) else 0

        def ended(cell_id: str, outcome: str) -> None:
            counts[outcome] = counts.get(outcome, 0) + 1
            finished = sum(counts.values())
            failed = finished - counts.get("done", 0)
            bar.update(task, completed=finished, failed=failed, running=min(slots, total - finished))
            if outcome != "done":
                text = f"failed ({outcome}): {cell_id}: {_why(store, cell_id)}"
                bar.console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
            elif not console.is_terminal and (finished % 10 == 0 or finished == total):
                console.print(f"{finished}/{total} cells done, {failed} failed", highlight=False)

        bar.update(task, running=min(slots, total))
        launch(outlook.chunks, outlook.config, ended, {cell.id for cell in outlook.plan.retried})
    return counts


def _why(store: Store, cell_id: str) -> str:
    """The message of a failure, in one line of a sensible length; the store keeps the whole of it."""
    try:
        message = " ".join(str(store.failure(cell_id)["message"]).split())
    except FileNotFoundError:  # another driver retries it
        return "tried again elsewhere"
    return message if len(message) <= LINE else message[: LINE - 1] + "…"


def companion(outlook: Outlook) -> Companion | None:
    """The process that mirrors the cells to W&B while they end, if there are any to come while we wait."""
    config = outlook.config
    if config.tracker.kind != "wandb" or not outlook.plan.todo or not waits(config.launcher):
        return None
    return Companion(Path(config.results), config.name, config.tracker)


def report(outlook: Outlook) -> int:
    """Rebuild tables, figures and HTML in a process of their own: reports know the store, not us."""
    command = [sys.executable, "-m", "reports.build", f"sweep={outlook.config.name}", f"store={outlook.config.results}"]
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(command, env=_with_path(root), check=False).returncode


def _with_path(root: Path) -> dict[str, str]:
    import os

    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


def main(arguments: list[str]) -> int:
    console = Console(width=None if Console().is_terminal else 120)
    outlook = look(arguments)
    if outlook.config.dry_run:
        show(outlook, console)
        return 0
    require_assets(outlook)
    console.print(summary(outlook), highlight=False, soft_wrap=True)
    say_gaps(outlook, console)
    store = Store(outlook.config.results)
    try:
        store.write_manifest(outlook.config.name, manifest(outlook))
    except OSError as error:
        raise UserError(f"results={outlook.config.results} cannot be written: {error}") from error
    mirror = companion(outlook)
    try:
        counts = compute(outlook, console) if outlook.plan.todo else {}
    except BaseException:
        if mirror:
            mirror.stop()
        raise
    if outlook.plan.todo and not waits(outlook.config.launcher):
        text = f"{len(outlook.plan.todo)} cells are in jobs; once they have ended, the same command writes the report"
        console.print(text, highlight=False, soft_wrap=True)
        return 0
    computed = counts.get("done", 0)
    failed = sum(counts.values()) - computed
    lost = len(outlook.plan.todo) - sum(counts.values())
    console.print(f"{computed} cells computed, {failed} failed" + (f", {lost} lost" if lost else ""), highlight=False)
    if failed or outlook.plan.failed:
        text = f"retry=all runs failed cells again; tracebacks: {store.root / 'failures'}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    code = report(outlook) if outlook.config.report else 0
    if mirror:
        console.print(mirror.close(), highlight=False, soft_wrap=True)
    return 1 if failed or lost or outlook.plan.failed else code


if __name__ == "__main__":
    run_command(main)
