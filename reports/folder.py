"""A report's folder: what the last build left in it, and how the next one takes its place.

A build is made in a hidden draft folder inside it. Only once the draft is whole and on the disk do its files replace
the old ones, each in one step, so an exception, a kill or a full disk never costs the last report. The folder may be
the user's own: files that no build has made are never touched.
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
    """What a build left: its inputs, its files (relative to the folder), the tables to print, and an error if any."""

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
        """None if there was no build, or one of its files has gone."""
        try:
            content = json.loads((out / INPUTS).read_text())
            tables = tuple(Table.from_dict(table) for table in content["tables"])
            built = cls(content["digest"], tuple(content["files"]), tables, content["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return built if all((out / name).is_file() for name in built.files) else None


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A draft folder, whose files take the place of the last build's when the block ends; after an exception that one
    stays. The block leaves a record (`Built.write`) in the draft."""
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".draft.*"):  # of a build that was killed
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
    # From here to the end the record names the files of both builds and has no digest: after a kill the next one starts
    # again and tidies up.
    write_json(out / INPUTS, {"digest": "", "files": sorted({*old, *new})})
    for name in new:
        os.replace(draft / name, out / name)
    for name in set(old) - set(new):
        if (out / name).resolve().is_relative_to(out.resolve()):
            (out / name).unlink(missing_ok=True)
    os.replace(draft / INPUTS, out / INPUTS)


def _files(out: Path) -> list[str]:
    """The files of the last build."""
    try:
        return [str(name) for name in json.loads((out / INPUTS).read_text())["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
