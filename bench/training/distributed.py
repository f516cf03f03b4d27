"""Training as a SLURM job: one process a GPU (Lightning DDP) under submitit, requeued and resumed by it alone.

Lightning's own requeueing is off. On SIGUSR2 the processes agree on an update after which all of them write the last
checkpoint together; then submitit requeues the job, which goes on from there. On SIGTERM, on a cluster or not, they
write it too, and end. What a kill without a signal costs is the work since the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException

from bench.cell.interrupts import Interrupts

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
