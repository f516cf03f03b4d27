"""Where a number comes from: code, packages, machine. Stored beside every cell."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "scipy", "hydra-core", "pydantic", "submitit")


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def static() -> dict[str, Any]:
    """What does not change while a process lives."""
    import torch

    diff = _git("diff", "HEAD")
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    cuda = torch.cuda.is_available()
    return {
        "git_sha": (_git("rev-parse", "HEAD") or "unknown").strip(),
        "dirty": hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else None,
        "packages": packages,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "torch_threads": torch.get_num_threads(),
        "job_id": os.environ.get("SLURM_JOB_ID"),
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
