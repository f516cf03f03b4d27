"""Provenance of results: code, packages and machine. It is stored with every cell."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.files import ROOT

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "scipy", "hydra-core", "pydantic", "submitit")


@cache
def static() -> dict[str, Any]:
    """Return the provenance that does not change during a process."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    cuda = torch.cuda.is_available()
    return {
        **identity(),
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
    """Return the processor's name, or its architecture if the system does not give a name."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    return platform.machine()


def job_id() -> str | None:
    """Return the SLURM id of the job that this process runs in, as squeue writes it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- the code ---

ROOMS = ("bench", "methods", "corruptions", "sweeps")
CARD = "snapshot.json"
"""The file in a copy of the code (bench.cluster.snapshot) that says which code it is."""
LEFT_OUT = (".pyc", ".png", ".md")


def files(folder: Path) -> Iterator[Path]:
    """Return the files of a package that a job may read, in a fixed order."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.endswith(LEFT_OUT))


def members(parts: Iterable[Path]) -> dict[str, Path]:
    """Return name in the copy -> file. If two folders have the same name, the first wins, as in Python's imports."""
    found: dict[str, Path] = {}
    for part in parts:
        for file in files(part) if part.is_dir() else [part]:
            found.setdefault(file.relative_to(part.parent).as_posix(), file)
    return found


def tree_hash(members: Mapping[str, Path]) -> str:
    """Return the hash (16 hex digits) of the names and contents of files."""
    digest = hashlib.sha256()
    for name, file in sorted(members.items()):
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def identity() -> dict[str, Any]:
    """Return the identity of this code: git_sha, dirty (hash of the changes, or None) and code (hash of the files)."""
    if (ROOT / CARD).is_file():
        return json.loads((ROOT / CARD).read_text())
    difference = _git("diff", "HEAD")
    return {
        "git_sha": (_git("rev-parse", "HEAD") or "unknown").strip(),
        "dirty": hashlib.sha256(difference.encode()).hexdigest()[:12] if difference else None,
        "code": tree_hash(members(ROOT / room for room in ROOMS)),
    }
