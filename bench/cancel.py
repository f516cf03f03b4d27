"""End a sweep's jobs: `python -m bench.cancel sweep=NAME [results=DIR]`.

From the store and the job ids alone. What is finished stays; the same `bench.run` goes on later.
"""

from __future__ import annotations

from bench import runs, slurm
from bench.claims import Claims
from bench.errors import UserError, run_command
from bench.jobs import stop
from bench.launch import end_local
from bench.status import manifests, parse
from bench.store import Store

KEYS = {"sweep": "", "results": "results"}


def cancel(store: Store, sweep: str) -> int:
    """Cancel every job of a sweep that waits or runs; returns how many. Raises UserError if SLURM does not answer."""
    found = runs.read(store.root, sweep)
    queue = runs.queue(found)
    if queue is None:
        raise UserError("squeue does not answer: nothing was cancelled; try again later")
    live = [(run, run.live(queue)) for run in found]
    for run, jobs in live:
        if jobs:
            stop(run.folder, "cancelled")  # its jobs that are just starting, and a driver that has gone unseen
    slurm.cancel(job for run, jobs in live if run.kind == "slurm" for job in jobs)
    for run, _ in live:
        if run.kind == "local":
            end_local(run)
    cells = {cell for run, jobs in live for job in jobs for cell in run.cells_of(job)}
    claims = Claims(store.root)
    for claim in claims.all():
        if claim.cell in cells:
            claims.release(claim.cell)  # it did not die of its cell
    return sum(len(jobs) for _, jobs in live)


def main(arguments: list[str]) -> int:
    given = parse(arguments, KEYS)
    store = Store(given["results"])
    if not given["sweep"]:
        raise UserError(f"name the sweep to cancel: sweep=NAME, one of {', '.join(store.manifests()) or 'none'}")
    manifests(store, given["sweep"])
    print(f"{cancel(store, given['sweep'])} jobs cancelled; what was finished is kept")
    return 0


if __name__ == "__main__":
    run_command(main)
