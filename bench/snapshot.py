"""The code that jobs run: a copy of the tree, taken when they are submitted and named by its hash. No torch.

A queued job must not run what was edited meanwhile. ROOT/code/HASH holds the packages, the YAMLs and the shipped
weights, and modules of third parties that the sweep names and that no package manager guards. It is made once a hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
import uuid
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "methods", "corruptions", "sweeps")
CARD = "snapshot.json"
LEFT_OUT = (".pyc", ".png", ".md")


def files(folder: Path) -> Iterator[Path]:
    """What a job may read of a package, in a fixed order."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.endswith(LEFT_OUT))


def foreign(class_paths: Iterable[str]) -> list[Path]:
    """Packages and modules that classes come from, where they are neither ours nor installed for good."""
    installed = [Path(sysconfig.get_paths()[kind]).resolve() for kind in ("stdlib", "platlib", "purelib")]
    found = set()
    for top in {path.partition(".")[0] for path in class_paths} - {*ROOMS}:
        spec = importlib.util.find_spec(top)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        origin = Path(spec.origin).resolve()
        if not any(origin.is_relative_to(folder) for folder in installed):
            found.add(origin.parent if spec.submodule_search_locations else origin)
    return sorted(found)


def _hash(parts: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for file in files(part) if part.is_dir() else [part]:
            digest.update(f"{file.relative_to(part.parent)}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
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
    """Which code this is: git_sha, dirty (hash of the changes or None) and code (hash of the files that count)."""
    if (ROOT / CARD).is_file():
        return json.loads((ROOT / CARD).read_text())
    difference = _git("diff", "HEAD")
    return {
        "git_sha": (_git("rev-parse", "HEAD") or "unknown").strip(),
        "dirty": hashlib.sha256(difference.encode()).hexdigest()[:12] if difference else None,
        "code": _hash(ROOT / room for room in ROOMS),
    }


def _parts(class_paths: Iterable[str]) -> list[Path]:
    return [*(ROOT / room for room in ROOMS), *foreign(class_paths)]


def place(store: Path, class_paths: Iterable[str]) -> Path:
    """Where the copy of the code as it is now belongs."""
    return store / "code" / _hash(_parts(class_paths))


def take(store: Path, class_paths: Iterable[str]) -> Path:
    """Make the copy if it is not there. Returns its folder, which goes in front of a job's PYTHONPATH."""
    parts, final = _parts(class_paths), place(store, class_paths)
    if final.is_dir():
        return final
    draft = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        for part in parts:
            for file in files(part) if part.is_dir() else [part]:
                copy = draft / file.relative_to(part.parent)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        (draft / CARD).write_text(json.dumps({**identity(), "code": final.name}))
        try:
            os.rename(draft, final)
        except OSError:
            if not final.is_dir():  # else another driver has made the same copy
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final
