"""A training as one SLURM job with one process per GPU. The job requeues itself."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
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
"""The file in the folder of a training that names its last submitted job."""


@dataclass(frozen=True)
class Training:
    """The callable that submitit pickles. It does the same as `bench.train` in this process."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        from bench.training.fit import train

        # The job has one node, and a node may not be able to resolve its own name.
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        train(list(self.arguments))

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(arguments: list[str], name: str, config: ModelConfig, out: Path, launcher: LauncherConfig) -> str:
    """Submit a training as one job with one process per GPU. Returns the id of the job. Raises UserError if another job
    still runs the same training."""
    code = snapshot.take(out.resolve(), [resolve(config.class_path, "model")])
    resources = launcher.resources(name).model_copy(update={"tasks": max(launcher.gpus, launcher.tasks)})
    settings = slurm.parameters(launcher, resources, f"train-{name}", environment(launcher, code, resources.cpus))
    waiting = partial(print, "waiting until another training is submitted")
    with Claims(out) as claims, claims.alone("submit", waiting):
        _require_no_other(out / name / JOB_FILE)
        (job,) = slurm.submit([Training(tuple(arguments))], settings, out.resolve() / name / "logs")
        write_json(out / name / JOB_FILE, {"job": job})
    return job


def _require_no_other(file: Path) -> None:
    """Raise UserError if the job of `file` still runs: two trainings would write the same checkpoints and curves."""
    if not file.is_file():
        return
    job, queue = json.loads(file.read_text())["job"], slurm.queue()
    if queue is None:
        raise UserError(f"squeue does not answer, so job {job} may still train into {file.parent}; try again later")
    if job in queue:
        raise UserError(f"job {job} ({queue[job][0].lower()}) already trains into {file.parent}; scancel {job} ends it")
