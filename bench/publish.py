"""Complete the Weights & Biases mirror: `python -m bench.publish sweep=NAME [results=DIR] [tracker.project=NAME ...]`.

Makes the runs that are missing, from the store alone, and nothing twice: a run's id follows from what it mirrors. Goes
to the server where you are logged in; `tracker.mode=offline` writes run folders to RESULTS/wandb, which
`wandb sync --yes RESULTS/wandb/offline-run-*` can upload from a machine with a network.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.config import compose_config
from bench.errors import UserError, run_command, unknown
from bench.store import Store
from bench.tracking import Mirror, complete, mode, require_login


def main(arguments: list[str]) -> int:
    own = {"sweep": "", "results": "results"}
    overrides = ["tracker=wandb"]
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        elif key.startswith("tracker."):
            overrides.append(argument)
        else:
            raise unknown("argument", key, [*own, "tracker.mode", "tracker.project", "tracker.entity"])
    store = Store(Path(own["results"]).expanduser())
    if not own["sweep"]:
        raise UserError(f"name a sweep: sweep=NAME, one of {', '.join(store.manifests()) or '(none in this store)'}")
    if own["sweep"] not in store.manifests():
        raise unknown("sweep", own["sweep"], store.manifests(), f"in {str(store.root)!r}")
    tracker = compose_config(overrides, sweep_required=False).tracker
    chosen = mode(tracker)
    if chosen == "online":
        require_login()
    if chosen == "disabled":
        raise UserError("WANDB_MODE=disabled: nothing can be published")
    console = Console(highlight=False, soft_wrap=True)
    mirror = Mirror(store, own["sweep"], tracker, chosen)
    with console.status("publishing") as status:
        outcome = complete(mirror, lambda text: status.update(f"publishing {text}"))
    console.print(outcome.line(own["sweep"]))
    return 1 if outcome.left else 0


if __name__ == "__main__":
    run_command(main)
