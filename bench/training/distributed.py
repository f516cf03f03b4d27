"""Training as a SLURM job: one process per GPU (Lightning DDP) under submitit, which requeues and resumes it.

The requeueing of Lightning is off. On SIGUSR2 the processes agree on an update and write the last checkpoint together
after it. Then submitit requeues the job, which continues from the checkpoint. On SIGTERM, on a cluster or not, they
write the checkpoint too, and end. A kill without a signal loses the work since the last checkpoint.
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
"""The processes check every so many updates if one of them has to stop: each check is a message between all of them."""


def placement() -> dict[str, Any]:
    """Return the arguments of the Trainer, for one of several processes of a job or for a single process."""
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
    """Saves the checkpoint `last` and ends all processes at the same update, after one of them has received a
    signal."""

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
                self.interrupts.leave()  # requeues the job: SLURM then ends the other processes by SIGTERM
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning's handler sends to a process that has ended
            time.sleep(60)
            raise SystemExit(0)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Save the checkpoint on SIGTERM: all processes leave the loop of Lightning after the same update."""
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self.last)
            exception.code = 128 + signal.SIGTERM
            if trainer.is_global_zero:
                print(f"stopped after update {trainer.global_step}: the same command continues from there")
