"""Training as a SLURM job: one process a GPU (Lightning DDP) under submitit, requeued and resumed by it alone.

Lightning's own requeueing is off. On SIGUSR2 the processes agree on an update after which all of them write the last
checkpoint together; then submitit requeues the job, which goes on from there. On SIGTERM, on a cluster or not, they
write it too, and end. What a kill without a signal costs is the work since the last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException

from bench import slurm, snapshot
from bench.claims import Claims
from bench.config import LauncherConfig, ModelConfig
from bench.errors import UserError
from bench.interrupts import Interrupts
from bench.launch import environment
from bench.registry import resolve
from bench.store import write_json

JOB_FILE = "job.json"
"""In a training's folder: the job that was last submitted for it."""
EVERY = 10
"""Updates between two looks at whether any process was told to stop: each look is a message between all of them."""


def placement() -> dict[str, Any]:
    """The Trainer's arguments for this process: one of a job's, or alone on this machine."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1")) if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else 1
    if tasks == 1:
        return {"accelerator": "auto", "devices": "auto", "plugins": [LightningEnvironment()]}
    return {
        "accelerator": "auto",
        "devices": tasks,
        "num_nodes": 1,
        "strategy": "ddp",
        "plugins": [SLURMEnvironment(auto_requeue=False)],
    }


class StopTogether(pl.Callback):
    """Saves `last` and leaves, at the same update in every process, once one of them was asked to."""

    def __init__(self, last: Path, interrupts: Interrupts) -> None:
        self.last = last
        self.interrupts = interrupts

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step % EVERY == 0 and trainer.strategy.reduce_boolean_decision(
            self.interrupts.asked, all=False
        ):
            trainer.save_checkpoint(self.last)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                self.interrupts.leave()  # requeues, which ends the others too, by SIGTERM
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning's handler talks to a process that has left
            time.sleep(60)
            raise SystemExit(0)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """On SIGTERM all processes leave Lightning's loop after the same update, which is kept."""
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self.last)
            exception.code = 128 + signal.SIGTERM
            if trainer.is_global_zero:
                print(f"stopped after update {trainer.global_step}: the same command goes on from there")


@dataclass(frozen=True)
class Training:
    """The callable that submitit pickles: what `bench.train` would do here."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        from bench.train import train

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
