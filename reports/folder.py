"""The folder of a report: the record of the last build, and the replacement of its files by the next build.

A build writes into a hidden draft folder inside the report's folder. When the draft is complete and on the disk, its
files replace the old ones, each in one step. So an exception, a kill or a full disk never destroys the last report. The
folder may also hold the user's own files: files that no build has written are never changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.files import draft_of, flush, write_json
from reports.tables import Table, without_hints

INPUTS = ".inputs"
STALE_SECONDS = 3600


@dataclass(frozen=True)
class Built:
    """The record of a build: digest of its inputs, files (relative to the folder), tables to print, and any error."""

    digest: str
    files: tuple[str, ...]
    tables: tuple[Table, ...]
    error: str = ""

    def write(self, folder: Path) -> None:
        tables = [without_hints(table).as_dict() for table in self.tables]
        content = {"digest": self.digest, "files": sorted(self.files), "error": self.error, "tables": tables}
        write_json(folder / INPUTS, content)

    @classmethod
    def read(cls, out: Path) -> Built | None:
        """Return the record of the last build, or None if there is none or one of its files is missing."""
        try:
            content = json.loads((out / INPUTS).read_text())
            tables = tuple(Table.from_dict(table) for table in content["tables"])
            built = cls(content["digest"], tuple(content["files"]), tables, content["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return built if all((out / name).is_file() for name in built.files) else None


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a draft folder whose files replace those of the last build when the block ends.

    After an exception the last build stays. The block must write a record (`Built.write`) into the draft.
    """
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".draft.*"):  # the draft of a killed build
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    draft = draft_of(out / "draft")
    draft.mkdir()
    try:
        yield draft
        _swap(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: Path, out: Path) -> None:
    paths = [path for path in sorted(draft.rglob("*")) if path.is_file()]
    new = [str(path.relative_to(draft)) for path in paths if path.name != INPUTS]
    old = _files(out)
    for name in new:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if (out / name).is_dir():
            raise IsADirectoryError(f"{out / name} is a folder")
    for path in paths:
        flush(path)
    # From here to the end, the record names the files of both builds and has no digest. After a kill, the next build
    # starts again and removes what is not needed.
    write_json(out / INPUTS, {"digest": "", "files": sorted({*old, *new})})
    for name in new:
        os.replace(draft / name, out / name)
    for name in set(old) - set(new):
        if (out / name).resolve().is_relative_to(out.resolve()):
            (out / name).unlink(missing_ok=True)
    os.replace(draft / INPUTS, out / INPUTS)


def _files(out: Path) -> list[str]:
    """Return the names of the files of the last build."""
    try:
        return [str(name) for name in json.loads((out / INPUTS).read_text())["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
