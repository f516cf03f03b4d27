"""The project's folders, and how files are written here: whole or not at all. No torch."""

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
"""Age from which a draft has no writer any more: a younger one may be in the hands of another process."""


def sha256(file: Path) -> str:
    """The sha256 of a file's content, hex."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the disk hold a file or a folder as it is now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def draft_of(path: Path) -> Path:
    """A new hidden name beside a path: `.NAME.RANDOM`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")


def stale(path: Path) -> bool:
    """Whether a file or folder has not changed for STALE_SECONDS; one that is not there is not stale."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    return False


def remove_drafts(folder: Path) -> None:
    """Remove the stale drafts in a folder: a killed process left them."""
    for path in folder.glob(".*.*"):
        if _DRAFT.fullmatch(path.name) and stale(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder at once: no reader sees it in part. If that is interrupted, a draft is left."""
    draft = draft_of(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, draft)
    shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under its name when the block ends, with all that was written; after an exception, not."""
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
    """Write a JSON file, whole or not at all, if nothing has its name yet; False if something has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(content, file, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())  # else a crash could leave the name without the content
        os.link(draft, path)
    except FileExistsError:
        # A network file system repeats a request whose answer was lost, and meets what it has made itself.
        return draft.stat().st_nlink == 2
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return True


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A draft folder that gets its name `final` when the block ends; after an exception it is removed. If another
    process has made `final` meanwhile, that one stays and the draft is removed: FileExistsError."""
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
    """The absolute path, by way of a link in the user's cache if there is a `%` in it: submitit and sbatch replace %j
    and the like in paths."""
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
    """The environment for a Python process of ours: it imports this code, from whatever folder it starts in."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path}
