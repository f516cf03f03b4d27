"""Where a number comes from: code, packages, machine. Stored beside every cell."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bench import snapshot

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "scipy", "hydra-core", "pydantic", "submitit")


@cache
def static() -> dict[str, Any]:
    """What does not change while a process lives."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    cuda = torch.cuda.is_available()
    return {
        **snapshot.identity(),
        "packages": packages,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "cpu": cpu(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "torch_threads": torch.get_num_threads(),
        "job_id": job_id(),
        "gpus": torch.cuda.device_count() if cuda else 0,
    }


def cpu() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    return platform.machine()


def job_id() -> str | None:
    """SLURM's name of the job that this process runs in, as squeue writes it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
