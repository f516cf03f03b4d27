"""The project's folders, and functions that write a file or folder whole or not at all. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

PROJECT = "inversion-bench"
ROOT = Path(__file__).resolve().parent.parent
SWEEPS = ROOT / "sweeps"
ZOO = ROOT / "methods" / "zoo"
STALE_SECONDS = 600
"""Age in seconds from which a draft has no writer any more. Another process may still write a younger one."""


def sha256(file: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Write a file or a folder from the system's cache to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def draft_of(path: Path) -> Path:
    """Return a new hidden name in the same folder: `.NAME.RANDOM`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")


def stale(path: Path) -> bool:
    """Return True if a file or folder has not changed for STALE_SECONDS; False if it does not exist."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    return False


def remove_drafts(folder: Path) -> None:
    """Remove the stale drafts in a folder. A killed process left them."""
    for path in folder.glob(".*.*"):
        if _DRAFT.fullmatch(path.name) and stale(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder in one step, so that no reader sees a part of it. An interruption leaves a draft."""
    draft = draft_of(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, draft)
    shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that gets its name when the block ends. After an exception it does not appear."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        with open(draft, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    flush(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as file:
        json.dump(content, file, indent=1, sort_keys=True, allow_nan=False)


def create_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Write a JSON file, whole or not at all, if its name is free. Return False if the name is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(content, file, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())  # without it, a crash could leave the name without the content
        os.link(draft, path)
    except FileExistsError:
        # A network file system repeats a request if the answer was lost. Then it finds the link that it made itself.
        return draft.stat().st_nlink == 2
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return True


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Make a draft folder that gets the name `final` when the block ends; after an exception it is removed.

    If another process has made `final` in the meantime, that folder stays, the draft is removed, and FileExistsError
    is raised.
    """
    draft = draft_of(final)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in [*draft.rglob("*"), draft]:
            flush(path)
        try:
            os.rename(draft, final)
        except OSError as error:
            if final.is_dir():
                raise FileExistsError(final) from error
            raise
        flush(final.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def without_percent(folder: Path) -> Path:
    """Return a path without `%` for an absolute path, because submitit and sbatch replace %j and similar in paths.

    For a path that has a `%` this makes a link in the user's cache.
    """
    last = max((i for i, part in enumerate(folder.parts) if "%" in part), default=None)
    if last is None:
        return folder
    named = Path(*folder.parts[: last + 1])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / PROJECT / "paths"
    link = cache / hashlib.sha256(os.fsencode(named)).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(named)
    return link / folder.relative_to(named)


def child_environment() -> dict[str, str]:
    """Return the environment for a Python child process, so that it imports this code from any working directory."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path}
