"""A training as one SLURM job with a process for each GPU, which requeues itself."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cluster import slurm, snapshot
from bench.cluster.claims import Claims
from bench.cluster.launch import environment
from bench.errors import UserError
from bench.files import write_json
from bench.spec.config import LauncherConfig, ModelConfig
from bench.spec.registry import resolve

JOB_FILE = "job.json"
"""In a training's folder: the job that was last submitted for it."""


@dataclass(frozen=True)
class Training:
    """The callable that submitit pickles: what `bench.train` would do here."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        from bench.training.fit import train

        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # one node; its name may not resolve on itself
        train(list(self.arguments))

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(arguments: list[str], name: str, config: ModelConfig, out: Path, launcher: LauncherConfig) -> str:
    """Submit a training as one job with a process a GPU; returns the job's id. UserError while another one has it."""
    code = snapshot.take(out.resolve(), [resolve(config.class_path, "model")])
    resources = launcher.resources(name).model_copy(update={"tasks": max(launcher.gpus, launcher.tasks)})
    asked = slurm.parameters(launcher, resources, f"train-{name}", environment(launcher, code, resources.cpus))
    with Claims(out) as claims, claims.alone("submit", lambda: print("waiting for another training's submission")):
        _require_no_other(out / name / JOB_FILE)
        (job,) = slurm.submit([Training(tuple(arguments))], asked, out.resolve() / name / "logs")
        write_json(out / name / JOB_FILE, {"job": job})
    return job


def _require_no_other(file: Path) -> None:
    """Two trainings would write the same checkpoints and curves."""
    if not file.is_file():
        return
    job, queue = json.loads(file.read_text())["job"], slurm.queue()
    if queue is None:
        raise UserError(f"squeue does not answer: it is not known whether job {job} still trains into {file.parent}")
    if job in queue:
        raise UserError(f"job {job} ({queue[job][0].lower()}) trains into {file.parent} already; scancel {job} ends it")
