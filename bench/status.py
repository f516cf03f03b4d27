"""Show the state of a sweep: `python -m bench.status [sweep=NAME] [results=DIR] [watch=true]`.

It needs only the store and the job ids, so it works in any process at any time. It scans each folder, calls squeue once
and calls sacct once if jobs have ended while their cells are open. It does not contact single jobs.

    done      has its record                          queued   in a job that waits, or waits in a running job
    running   claimed by a process that still runs    lost     was in a job that has ended: run the sweep again
    failed    by class; `retry=CLASS` runs it again   missing  was never submitted
    damaged   its record cannot be read: run the sweep again
    unknown   in a SLURM job, but squeue does not answer
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
from bench.store import Damaged, Store, damage_lines

SLOWEST = 5
OPEN = ("running", "queued", "unknown")
"""States that `watch=true` waits for. An unknown state may be known at the next look."""
KEYS = {"sweep": "", "results": "results", "watch": "false"}


@dataclass(frozen=True)
class Status:
    """One sweep at one moment."""

    name: str
    cells: Mapping[str, Mapping[str, Any]]
    """id -> entry in the manifest."""
    states: Mapping[str, str]
    """id -> done, running, queued, lost, missing, damaged, unknown, or `failed (CLASS)`."""
    used_s: float
    """Seconds of computation of the finished cells, over all workers."""
    left_s: float | None
    """Predicted seconds of the other cells; None while no finished cell gives a speed."""
    gpus: int
    """GPUs per worker; 0 on CPUs."""
    slowest: tuple[Claim, ...]
    """Claims of running cells, the longest running first."""
    troubles: tuple[str, ...]


def sweeps(store: Store, sweep: str) -> list[str]:
    """Return the names of a store's sweeps, or only the given one. Raises UserError if there is none."""
    names = store.manifests()
    if not names:
        raise UserError(f"results={str(store.root)!r} holds no sweep; python -m bench.run sweep=NAME makes one")
    if sweep and sweep not in names:
        raise unknown("sweep", sweep, names, f"in {str(store.root)!r}")
    return [sweep] if sweep else names


def look(store: Store, sweep: str = "") -> list[Status]:
    """Return the status of every sweep of the store, or of one.

    If one sweep is named and its manifest is damaged, this raises Damaged. With several sweeps it is one of `troubles`.
    """
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
        troubles = (*damage_lines(damaged), *runs.damaged(store.root), *_troubles(name, found, queue, states))
        statuses.append(Status(name, cells, states, used, left, gpus, tuple(slowest[:SLOWEST]), troubles))
    return statuses


def _hours(
    store: Store, cells: Mapping[str, Mapping[str, Any]], states: Mapping[str, str]
) -> tuple[float, float | None, int]:
    """Return (seconds used, seconds left, GPUs per worker).

    The seconds left follow from the seconds per evaluation of finished cells with the same method and model.
    """
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
    """Return the keys by which a cell's speed is looked up, the most specific first."""
    model, method = entry["axes"].get("model"), entry["axes"].get("method")
    return [(model, method), (model,), ()]


def _troubles(
    sweep: str, found: Sequence[runs.Run], queue: Mapping[str, tuple[str, str]] | None, states: Mapping[str, str]
) -> Iterator[str]:
    """Yield lines about the jobs for the user: why they wait, how they were lost, what stopped them."""
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
    """Return the sweep's status as text and tables."""
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
        lines.append(
            Text(f"{lost} cells are in no job any more: python -m bench.run with the same arguments continues")
        )
    return Group(*lines)


def last_line(log: str | None) -> str:
    """Return the last line of a log or of its error log, whichever is younger; empty if there is none."""
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
        while True:  # show first, then check: the last view shows why the watch ended
            seen = look(store, given["sweep"])
            live.update(Group(*(show(one) for one in seen)), refresh=True)
            if not terminal.heard() or not any(state in OPEN for one in seen for state in one.states.values()):
                return 0
            time.sleep(5)


if __name__ == "__main__":
    run_command(main)
