"""How a sweep stands: `python -m bench.status [sweep=NAME] [results=DIR] [watch=true]`.

From the store and the job ids alone, in any process, on any day: a scan of each folder, one squeue and, for jobs that
are gone while cells are open, one sacct. Nothing is asked of single jobs.

    done      has its record                          queued   in a job that waits, or waits in a running one
    running   claimed by a living process             lost     was in a job that is gone: run the sweep again
    failed    by class; `retry=CLASS` runs it again   missing  was never submitted
    damaged   its record cannot be read: run the sweep again
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench import terminal
from bench.arguments import only_arguments, truth
from bench.cluster import runs, slurm
from bench.cluster.claims import Claim, Claims
from bench.errors import UserError, run_command, unknown
from bench.store import Damaged, Store, told

SLOWEST = 5
OPEN = ("running", "queued", "unknown")
"""States that are watched: what is unknown may be known at the next look."""
KEYS = {"sweep": "", "results": "results", "watch": "false"}


@dataclass(frozen=True)
class Status:
    """One sweep at one moment."""

    name: str
    cells: Mapping[str, Mapping[str, Any]]
    """id -> its entry in the manifest."""
    states: Mapping[str, str]
    """id -> done, running, queued, lost, missing, damaged, unknown, or `failed (CLASS)`."""
    used_s: float
    """Seconds that finished cells took, over all workers."""
    left_s: float | None
    """Seconds that the others should take; None while no finished cell tells."""
    gpus: int
    """Of a worker; 0 on CPUs."""
    slowest: tuple[Claim, ...]
    """What runs, the longest first."""
    troubles: tuple[str, ...]


def sweeps(store: Store, sweep: str) -> list[str]:
    """The names of a store's sweeps, or the one that is given."""
    names = store.manifests()
    if not names:
        raise UserError(f"results={str(store.root)!r} holds no sweep; python -m bench.run sweep=NAME makes one")
    if sweep and sweep not in names:
        raise unknown("sweep", sweep, names, f"in {str(store.root)!r}")
    return [sweep] if sweep else names


def look(store: Store, sweep: str = "") -> list[Status]:
    """Every sweep of the store, or one. A damaged manifest is a trouble among several sweeps; alone it is Damaged."""
    names = sweeps(store, sweep)
    found = runs.read(store.root)
    queue = runs.queue(found)
    claims = {claim.cell: claim for claim in Claims(store.root).all() if claim.alive}
    done, failed = store.done(), store.failed()
    live = {cell for run in found for job in run.live(queue) for cell in run.cells_of(job)}
    submitted = {cell: run.kind for run in found for job in run.jobs for cell in run.cells_of(job)}

    def state(cell: str) -> str:
        if cell in damaged:
            return "damaged"
        if cell in done:
            return "done"
        if cell in claims:
            return "running"
        if cell in failed:
            return f"failed ({store.failure(cell)['class']})"
        if cell in live:
            return "queued"
        if queue is None and submitted.get(cell) == "slurm":
            return "unknown"
        return "lost" if cell in submitted else "missing"

    statuses = []
    for name in names:
        try:
            cells = {cell["id"]: cell for cell in store.manifest(name)["cells"]}
        except Damaged as error:
            if sweep:
                raise
            statuses.append(Status(name, {}, {}, 0.0, None, 0, (), (str(error),)))
            continue
        damaged = store.damaged(cells)
        states = {cell: state(cell) for cell in cells}
        used, left, gpus = _hours(store, cells, states)
        slowest = sorted((claims[c] for c in cells if states[c] == "running"), key=lambda claim: claim.since)
        troubles = (*told(damaged), *runs.damaged(store.root), *_troubles(name, found, queue, states))
        statuses.append(Status(name, cells, states, used, left, gpus, tuple(slowest[:SLOWEST]), troubles))
    return statuses


def _hours(
    store: Store, cells: Mapping[str, Mapping[str, Any]], states: Mapping[str, str]
) -> tuple[float, float | None, int]:
    """(seconds used, seconds left, GPUs of a worker), by the seconds an evaluation took with each method and model."""
    used, gpus = 0.0, 0
    rates: dict[tuple[Any, ...], tuple[float, int]] = {}
    for cell, entry in cells.items():
        if states[cell] != "done":
            continue
        provenance = store.record(cell)["provenance"]
        seconds = float(provenance.get("seconds", 0))
        used, gpus = used + seconds, max(gpus, provenance.get("gpus", 0))
        for key in _kinds(entry):
            before = rates.get(key, (0.0, 0))
            rates[key] = (before[0] + seconds, before[1] + entry.get("evaluations", 1))
    left = 0.0
    for cell, entry in cells.items():
        if states[cell] == "done":
            continue
        known = next((rates[key] for key in _kinds(entry) if key in rates), None)
        if known is None:
            return used, None, gpus
        left += known[0] / known[1] * entry.get("evaluations", 1)
    return used, left, gpus


def _kinds(entry: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What tells a cell's speed, the best first."""
    model, method = entry["axes"].get("model"), entry["axes"].get("method")
    return [(model, method), (model,), ()]


def _troubles(
    sweep: str, found: Sequence[runs.Run], queue: Mapping[str, tuple[str, str]] | None, states: Mapping[str, str]
) -> Iterator[str]:
    """What a user should know of the jobs: why they wait, how they were lost, what stopped them."""
    mine = [run for run in found if run.sweep == sweep]
    if queue is None:
        yield "squeue does not answer: what is queued or lost is not known"
        return
    waits = Counter(queue[job][1] for run in mine for job in run.jobs if job in queue and queue[job][0] == "PENDING")
    yield from (f"{count} jobs wait: {reason}" for reason, count in waits.most_common())
    gone = {
        job: run
        for run in mine
        for job in run.jobs
        if run.kind == "slurm" and job not in queue and any(states.get(cell) == "lost" for cell in run.cells_of(job))
    }
    for end, count in Counter(slurm.ended(gone).values() if gone else ()).most_common():
        yield f"{count} jobs with lost cells ended as {end}"
    for run in mine:
        why = runs.why_stopped(run.folder)
        if why is not None and any(states.get(cell) in ("lost", "queued") for cell in run.cells):
            yield f"stopped: {why}"


# --- showing ---------------------------------------------------------------------------------------------------


def show(status: Status) -> Group:
    """The sweep as text and tables."""
    counts = Counter(status.states.values())
    order = ("done", "running", "queued", "lost", "missing", "damaged", "unknown")
    parts = [f"{counts[state]} {state}" for state in order if counts[state]]
    parts += [f"{counts[state]} {state}" for state in sorted(counts) if state.startswith("failed")]
    unit = "GPU-hours" if status.gpus else "worker-hours"
    each = max(status.gpus, 1) / 3600
    left = "not known yet" if status.left_s is None else f"about {status.left_s * each:.2g}"
    lines: list[Any] = [
        Text(f"{status.name}: {len(status.cells)} cells: {', '.join(parts)}"),
        Text(f"{unit}: {status.used_s * each:.2g} used by finished cells, {left} left"),
    ]
    lines += [Text(trouble, style="yellow") for trouble in status.troubles]
    if status.slowest:
        table = Table("longest running", "for", "job", "last line of its log")
        for claim in status.slowest:
            minutes = (time.time() - claim.since) / 60
            job = str(claim.owner.get("job") or claim.owner.get("pid"))
            table.add_row(claim.cell, f"{minutes:.1f} min", job, last_line(claim.owner.get("log")))
        lines.append(table)
    if lost := counts["lost"]:
        lines.append(Text(f"{lost} cells are in no job any more: python -m bench.run with the same arguments goes on"))
    return Group(*lines)


def last_line(log: str | None) -> str:
    """The last line of a log and of its error stream's, the younger of the two; empty if there is none."""
    if log is None:
        return ""
    files = [file for file in (Path(log), Path(log).with_suffix(".err")) if file.is_file() and file.stat().st_size]
    if not files:
        return ""
    with open(max(files, key=lambda file: file.stat().st_mtime), "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 2000))
        return file.read().decode(errors="replace").strip().rpartition("\n")[2][-100:]


def main(arguments: list[str]) -> int:
    given = only_arguments(arguments, KEYS)
    console, store = terminal.console(), Store(Path(given["results"]).expanduser())
    if not truth(given, "watch"):
        for one in look(store, given["sweep"]):
            console.print(show(one), soft_wrap=True)
        return 0
    with Live(console=console, auto_refresh=False) as live:
        while True:  # what is shown last is what ended the watch
            seen = look(store, given["sweep"])
            live.update(Group(*(show(one) for one in seen)), refresh=True)
            if not terminal.heard() or not any(state in OPEN for one in seen for state in one.states.values()):
                return 0
            time.sleep(5)


if __name__ == "__main__":
    run_command(main)
