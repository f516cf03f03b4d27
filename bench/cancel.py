"""End a sweep's jobs: `python -m bench.cancel sweep=NAME [results=DIR]`.

It needs only the store and the job ids. Finished cells stay, and the same `bench.run` can continue later.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.arguments import only_arguments
from bench.cluster import runs, slurm
from bench.cluster.claims import Claims
from bench.cluster.launch import end_local
from bench.errors import UserError, run_command
from bench.status import sweeps
from bench.store import Store

KEYS = {"sweep": "", "results": "results"}


def cancel(store: Store, sweep: str) -> tuple[int, set[str]]:
    """Cancel every job of a sweep that waits or runs.

    Returns the number of cancelled jobs and the ids of the others: jobs that SLURM did not cancel, and a plugin's jobs.
    These stop after their current cell. Raises UserError if SLURM does not answer.
    """
    found = runs.read(store.root, sweep)
    queue = runs.queue(found)
    if queue is None:
        raise UserError("squeue does not answer: nothing was cancelled; try again later")
    live = [(run, job) for run in found for job in run.live(queue)]
    for folder in {run.folder for run, _ in live}:
        runs.stop(folder, "cancelled")  # for jobs that are just starting, and a driver that is not visible here
    refused = slurm.cancel(job for run, job in live if run.kind == "slurm")
    refused |= {job for run, job in live if run.kind == "plugin"}
    for run in found:
        if run.kind == "local":
            end_local(run)
    ended = [(run, job) for run, job in live if job not in refused]
    cells = {cell for run, job in ended for cell in run.cells_of(job)}
    claims = Claims(store.root)
    for claim in claims.all():
        if claim.cell in cells:
            claims.release(claim.cell)  # the process was cancelled: its cell is not the cause
    return len(ended), refused


def main(arguments: list[str]) -> int:
    given = only_arguments(arguments, KEYS)
    store = Store(Path(given["results"]).expanduser())
    if not given["sweep"]:
        raise UserError(f"name the sweep to cancel: sweep=NAME, one of {', '.join(store.manifests()) or 'none'}")
    sweeps(store, given["sweep"])
    for line in runs.damaged(store.root):
        print(f"{line}; none of them is cancelled", file=sys.stderr)
    count, refused = cancel(store, given["sweep"])
    print(f"{count} jobs cancelled; what was finished is kept")
    if refused:
        text = f"{len(refused)} jobs could not be cancelled, the first {min(refused)}: they end after the cell in hand"
        print(text, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    run_command(main)
