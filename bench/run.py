"""Run a sweep: `python -m bench.run sweep=corruptions [key=value ...]`.

It expands the sweep into cells, computes those that are not in the store, mirrors them to W&B and rebuilds the report.
The same command again computes nothing. After a crash it computes the missing and the damaged cells. A run of a part of
a sweep does not change the report of the whole sweep (`named`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import terminal
from bench.cluster.launch import cores, launch, tidy, waits
from bench.errors import UserError, run_command
from bench.files import child_environment
from bench.mirror.companion import Companion
from bench.plan import Outlook, look, require_assets, say_gaps, show, summary
from bench.spec import metrics
from bench.spec.datasets import inventory
from bench.store import Damaged, Store

LINE = 160
"""The number of characters of a failure's message that the terminal shows."""
NO_CELLS = (
    "results", "name", "title", "description", "highlight", "launcher", "tracker", "report", "retry", "batch_size",
    "samples",
)  # fmt: skip
"""Keys that do not change which cells a run has."""


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM. The run ends as with Ctrl-C."""


def manifest(outlook: Outlook, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the sweep's manifest for the report: cells with id and axes, titles, and what could not be computed."""
    config = outlook.config
    return {
        "title": config.title,
        "description": config.description,
        "task": config.task,
        "profile": config.profile.name,
        "images": config.images,
        "datasets": inventory(cell.spec for cell in outlook.expansion.cells),
        "highlight": config.highlight,
        "titles": config.titles,
        "columns": metrics.foreign(config.metrics),
        "chosen_by": sorted(a for a in arguments if re.split(r"[.=]", a)[0] not in NO_CELLS),
        "cells": [{"id": c.id, "axes": c.axes, "evaluations": c.evaluations} for c in outlook.expansion.cells],
        "reference": list(config.reference),
        "options": {name: method.options for name, method in config.method.items() if method.options},
        "unavailable": outlook.expansion.unavailable,
        "skipped": [{"axes": skip.axes, "reason": skip.reason} for skip in outlook.expansion.skipped],
    }


def named(outlook: Outlook, content: Mapping[str, Any], store: Store) -> tuple[str, str]:
    """Return the name of the run's report, and a line for the user if that report does not replace the sweep's.

    A run of a part of a sweep does not change the report of the whole. If that report already has all cells of this
    run, nothing changes. If not, an option differs and the numbers do not belong in that table: the run gets a report
    of its own. The same command, or one with at least all earlier places, replaces the report, because the sweep itself
    may have changed.
    """
    name = outlook.config.name
    try:
        before = store.manifest(name)
    except (FileNotFoundError, Damaged):
        return name, ""
    places, ids = _places(content), {cell["id"] for cell in content["cells"]}
    if before.get("chosen_by") == content["chosen_by"] or places >= _places(before):
        return name, ""
    if ids <= {cell["id"] for cell in before["cells"]}:
        return name, f"{len(ids)} of the {len(before['cells'])} cells of {name}: its report shows all of them"
    own = f"{name}-{hashlib.sha256(repr(sorted(places)).encode()).hexdigest()[:6]}"
    return (
        own,
        f"not all cells of {name}, whose report stays as it is: this run's name is {own} (or name=NAME)",
    )


def _places(content: Mapping[str, Any]) -> set[str]:
    """Return the places of a manifest's cells in a table: their axes as JSON."""
    return {json.dumps(cell["axes"], sort_keys=True) for cell in content["cells"]}


def compute(outlook: Outlook, console: Console) -> dict[str, int]:
    """Run the missing cells with a progress bar, and return the number of cells for each outcome."""
    counts: dict[str, int] = {}
    total = len(outlook.plan.todo)
    store = Store(outlook.config.results)
    columns = (
        TextColumn("{task.description}", "bold", markup=False), BarColumn(),
        TextColumn("{task.completed}/{task.total} done"),
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
                bar.console.print(text, style="red", soft_wrap=True)
            elif not console.is_terminal and (finished % 10 == 0 or finished == total):
                console.print(f"{finished}/{total} cells done, {failed} failed")

        bar.update(task, running=min(slots, total))
        launch(outlook.chunks, outlook.config, ended, {cell.id for cell in outlook.plan.retried})
    return counts


def _why(store: Store, cell_id: str) -> str:
    """Return the message of a failure in one short line. The store keeps the full message."""
    try:
        message = " ".join(str(store.failure(cell_id)["message"]).split())
    except (FileNotFoundError, Damaged):  # another driver retries it
        return "another run tries it again"
    return message if len(message) <= LINE else message[: LINE - 1] + "…"


def companion(outlook: Outlook) -> Companion | None:
    """Start the process that mirrors finished cells to W&B, if this run computes cells and waits for them."""
    config = outlook.config
    if config.tracker.kind != "wandb" or not outlook.plan.todo or not waits(config.launcher):
        return None
    return Companion(Path(config.results), config.name, config.tracker)


def report(outlook: Outlook) -> int:
    """Rebuild tables, figures and HTML in a separate process, and return its exit code."""
    command = [sys.executable, "-m", "reports.build", f"sweep={outlook.config.name}", f"store={outlook.config.results}"]
    return subprocess.run(command, env=child_environment(), check=False).returncode


@contextlib.contextmanager
def _ends_on_term() -> Iterator[None]:
    """Raise Terminated in the block at the first SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str]) -> int:
    try:
        with _ends_on_term():
            return _run(arguments)
    except Terminated:
        print("terminated: what was finished is kept; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGTERM


def _run(arguments: list[str]) -> int:
    console = terminal.console()
    outlook = look(arguments)
    if outlook.config.dry_run:
        show(outlook, console)
        return 0
    require_assets(outlook)
    console.print(summary(outlook), soft_wrap=True)
    say_gaps(outlook, console)
    store = Store(outlook.config.results)
    content = manifest(outlook, arguments)
    name, note = named(outlook, content, store)
    if note:
        console.print(note, soft_wrap=True)
    try:
        if not note or name != outlook.config.name:  # else the sweep's manifest already has all these cells
            store.write_manifest(name, content)
        tidy(store.root)
    except OSError as error:
        raise UserError(f"results={outlook.config.results} cannot be written: {error}") from error
    outlook = dataclasses.replace(outlook, config=outlook.config.model_copy(update={"name": name}))
    mirror = companion(outlook)
    try:
        counts = compute(outlook, console) if outlook.plan.todo else {}
    except BaseException:
        if mirror:
            mirror.stop()
        raise
    if outlook.plan.todo and not waits(outlook.config.launcher):
        text = f"{len(outlook.plan.todo)} cells are in jobs; once they have ended, the same command writes the report"
        console.print(text, soft_wrap=True)
        return 0
    computed = counts.get("done", 0)
    failed = sum(counts.values()) - computed
    lost = len(outlook.plan.todo) - sum(counts.values())
    console.print(f"{computed} cells computed, {failed} failed" + (f", {lost} lost" if lost else ""))
    if failed or outlook.plan.failed:
        text = f"retry=all runs failed cells again; tracebacks: {store.root / 'failures'}"
        console.print(text, soft_wrap=True)
    code = report(outlook) if outlook.config.report else 0
    if mirror:
        console.print(mirror.close(), soft_wrap=True)
    return 1 if failed or lost or outlook.plan.failed else code


if __name__ == "__main__":
    run_command(main)
