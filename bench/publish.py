"""Complete the Weights & Biases mirror: `python -m bench.publish sweep=NAME [results=DIR] [tracker.project=NAME ...]`.

Mirror the curves of a training: `python -m bench.publish train=NAME [out=DIR]`.

It makes the missing runs from the store alone. It makes no run twice, because a run's id follows from its content. For
a sweep on a server it also makes the dashboard (bench.mirror.dashboard). It uses the server where you are logged in.
`tracker.mode=offline` writes run folders to RESULTS/wandb instead; `wandb sync --yes RESULTS/wandb/offline-run-*` can
upload them from a machine with a network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.text import Text

from bench import terminal
from bench.arguments import only_arguments
from bench.errors import UserError, run_command, unknown
from bench.mirror.companion import publish_command
from bench.mirror.records import RECIPE_FILE
from bench.mirror.server import mode, require_login
from bench.mirror.writing import Mirror, TrainingMirror, complete, one_line
from bench.spec.compose import compose_config, options_of_group
from bench.spec.config import TrackerConfig
from bench.store import Store, damage_lines

KEYS = {"sweep": "", "results": "results", "train": "", "out": "results/train"}
Maker = Callable[[TrackerConfig, str], Mirror]


def _sweep(name: str, results: str) -> Maker:
    store = Store(Path(results).expanduser())
    if not name:
        raise UserError(f"name a sweep: sweep=NAME, one of {', '.join(store.manifests()) or '(none in this store)'}")
    if name not in store.manifests():
        raise unknown("sweep", name, store.manifests(), f"in {str(store.root)!r}")
    for line in damage_lines(store.damaged(cell["id"] for cell in store.manifest(name)["cells"])):
        print(f"{line}; not mirrored", file=sys.stderr)
    return lambda tracker, mode: Mirror(store, name, tracker, mode)


def _training(name: str, out: Path) -> Maker:
    trainings = [path.parent.name for path in out.glob(f"*/{RECIPE_FILE}")]
    if name not in trainings:
        error = unknown("training", name, trainings, f"in {str(out)!r}")
        made = name in options_of_group("model")
        raise UserError(f"{error}; python -m bench.train model={name} makes it") if made else error
    return lambda tracker, mode: TrainingMirror(out, name, tracker, mode)


def dashboard(mirror: Mirror) -> str:
    """Make the dashboard and return a line about it. A failure is only reported: the runs are already written."""
    from bench.mirror.dashboard import ensure

    try:
        return ensure(mirror)
    except Exception as error:
        return f"dashboard: not made ({one_line(error)})"


def main(arguments: list[str]) -> int:
    tracking = [argument for argument in arguments if argument.startswith("tracker.")]
    others = [argument for argument in arguments if argument not in tracking]
    own = only_arguments(others, KEYS, more=("tracker.mode", "tracker.project", "tracker.entity"))
    make = (
        _training(own["train"], Path(own["out"]).expanduser()) if own["train"] else _sweep(own["sweep"], own["results"])
    )
    tracker = compose_config(["tracker=wandb", *tracking], sweep_required=False).tracker
    chosen = mode(tracker)
    if chosen == "disabled":
        raise UserError("WANDB_MODE=disabled: nothing can be published")
    if chosen == "online":
        require_login()
    console = terminal.console()
    mirror = make(tracker, chosen)
    with console.status(Text("publishing")) as status:
        outcome = complete(mirror, lambda text: status.update(Text(f"publishing {text}")))
    if chosen == "online" and own["sweep"] and not outcome.left:
        console.print(dashboard(mirror), soft_wrap=True)
    line = outcome.line(publish_command(own["train"] or own["sweep"], bool(own["train"])))
    console.print(line, soft_wrap=True)
    return 1 if outcome.left else 0


if __name__ == "__main__":
    run_command(main)
