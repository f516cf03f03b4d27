"""Train an embedded model: `python -m bench.train model=scenes_vp [train.steps=5000] [out=DIR] [card=only]`.

Checkpoints go to DIR/NAME/ (default results/train), and the same command continues from the last one. At the end DIR
holds NAME.safetensors and its card: NAME.md, NAME.json (figures, sha256, command) and a picture. The curves go to
DIR/NAME/history.jsonl, and from there to Weights & Biases (tracker=none turns that off).

With `launcher=slurm launcher.gpus=8` the training is a job of eight processes (bench.training.job), which requeues
itself. While it waits or runs, no other job is submitted for its folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.cluster.launch import backend
from bench.errors import run_command
from bench.spec.compose import compose_config
from bench.training.fit import parse, train


def main(arguments: list[str]) -> int:
    name, config, out, _ = parse(arguments)
    own = [argument for argument in arguments if argument.startswith(("launcher", "config_dir="))]
    launcher = compose_config(own, sweep_required=False).launcher
    if launcher.kind != "slurm":
        train(arguments)
        return 0
    backend(launcher)
    from bench.training.job import submit

    job = submit(arguments, name, config, out, launcher)
    print(
        f"submitted job {job}, {max(launcher.gpus, launcher.tasks)} processes; logs in {out.resolve() / name / 'logs'}"
    )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    run_command(main)
