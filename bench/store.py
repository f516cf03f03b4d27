"""The store: one atomic folder per finished cell, one file per failure, one manifest per sweep. No torch.

    ROOT/cells/ID/rows.parquet    one row per image; an adaptive solver's row also has a list of its steps
    ROOT/cells/ID/cell.json       resolved configuration, provenance, and the sizes of the cell's other files
    ROOT/cells/ID/samples.npz     a few images: ids, truth, input, output (uint8 [k, H, W, C])
    ROOT/cells/ID/features.npz    for metrics of sets: ids, and EXTRACTOR_output, EXTRACTOR_truth (float32 [n, d])
    ROOT/failures/ID.json         the last failure of a cell that has no result yet
    ROOT/partial/ID.npz           the finished images of a long cell that is still open
    ROOT/sweeps/NAME.json         the cells that a sweep expands to, and what its report should show

A cell is done when its folder exists under its final name. The folder is written under a hidden name, flushed to the
disk and then renamed. So a killed run leaves at most a draft: no reader sees it, and a later run removes it. A full
disk, an incomplete copy or an editor can still damage a file: `damaged` finds such cells, and `discard` removes them,
so that they are computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.files import remove_drafts, remove_folder, stale, whole_file, whole_folder, write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

SCHEMA = 1
ENDS = {".parquet": (b"PAR1", b"PAR1", 4), ".npz": (b"PK\3\4", b"PK\5\6", 22)}
"""Suffix -> the first bytes of a complete file, the bytes near its end, and the distance of these from the end."""
UNREADABLE = (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""Errors that reading a damaged file can raise. JSON's, Unicode's and pyarrow's are ValueErrors."""


class Damaged(UserError):
    """A file of the store cannot be read. The message names the file, the reason and what to do."""

    def __init__(self, file: Path, why: object) -> None:
        super().__init__(f"{file} is damaged ({why}); run the sweep again: python -m bench.run makes it again")


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn an error of reading in the block into Damaged, with the file's name."""
    try:
        yield
    except (IsADirectoryError, *UNREADABLE) as error:
        raise Damaged(file, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


class Store:
    """A results folder. Readers need no lock and see only complete cells."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # --- what is there -----------------------------------------------------------------------------------------

    def done(self) -> set[str]:
        """Return the ids of finished cells. This is one directory scan."""
        return _names(self.root / "cells")

    def failed(self) -> set[str]:
        """Return the ids of cells whose last attempt failed and that have no result."""
        return {name.removesuffix(".json") for name in _names(self.root / "failures")} - self.done()

    def ended(self, cell_id: str) -> bool:
        """Return True if a cell has a result or a failure."""
        return (self.root / "cells" / cell_id).is_dir() or (self.root / "failures" / f"{cell_id}.json").is_file()

    # --- damage ------------------------------------------------------------------------------------------------

    def damaged(self, cell_ids: Iterable[str]) -> dict[str, str]:
        """Return the cells whose record exists but cannot be used: id -> reason.

        The record is the result, or the failure if there is no result. The check reads sizes and the first and last
        bytes of each file, not every number.
        """
        done, failed = self.done(), self.failed()
        found = {}
        for cell_id in cell_ids:
            why = self._torn(cell_id) if cell_id in done else self._torn_failure(cell_id) if cell_id in failed else None
            if why:
                found[cell_id] = why
        return found

    def discard(self, cell_ids: Iterable[str]) -> None:
        """Remove the damaged records of these cells. The cells are then missing and can be computed again."""
        for cell_id in self.damaged(cell_ids):
            remove_folder(self.root / "cells" / cell_id)
            self.forget_failure(cell_id)

    def _torn(self, cell_id: str) -> str | None:
        """Return the reason why a result cannot be used, or None if it can."""
        folder, name = self.root / "cells" / cell_id, "cell.json"
        try:
            with open(folder / name, "rb") as opened:
                content = json.loads(opened.read())
            if content["id"] != cell_id:
                return f"{name} belongs to {content['id']}"
            # Records of an earlier version have no list of files.
            for name, size in (content.get("files") or dict.fromkeys(["rows.parquet", *os.listdir(folder)])).items():
                if (ends := ENDS.get(os.path.splitext(name)[1])) is None:
                    continue
                head, tail, distance = ends
                with open(folder / name, "rb", buffering=0) as opened:
                    found = os.fstat(opened.fileno()).st_size
                    if size not in (None, found):
                        return f"{name} has {found} of {size} bytes"
                    if found < distance or opened.read(len(head)) != head:
                        return f"{name} does not begin like such a file"
                    opened.seek(-distance, os.SEEK_END)
                    if opened.read(len(tail)) != tail:
                        return f"{name} does not end like such a file"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, *UNREADABLE) as error:
            return f"{name} cannot be read ({error})"
        return None

    def _torn_failure(self, cell_id: str) -> str | None:
        try:
            self.failure(cell_id)
        except FileNotFoundError:  # another run has removed it, to try the cell again
            return None
        except Damaged as error:
            return str(error)
        return None

    def tidy(self) -> None:
        """Remove what killed runs left: drafts, and partial images of cells that have a result.

        Young files stay, because another process may still use them.
        """
        for folder in ("cells", "failures", "partial", "sweeps", "code"):
            remove_drafts(self.root / folder)
        done = self.done()
        for name in _names(self.root / "partial"):
            if name.removesuffix(".npz") in done and stale(self.root / "partial" / name):
                self.drop_partial(name.removesuffix(".npz"))

    # --- writing -----------------------------------------------------------------------------------------------

    def write(
        self,
        cell_id: str,
        rows: list[dict[str, Any]],
        record: Mapping[str, Any],
        samples: Mapping[str, np.ndarray] | None = None,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> bool:
        """Write one finished cell. Return False if another run finished it first.

        The first result stays, unless it is damaged.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        final = self.root / "cells" / cell_id
        if final.is_dir() and self._torn(cell_id):
            remove_folder(final)
        try:
            with whole_folder(final) as draft:
                pq.write_table(pa.Table.from_pylist(rows), draft / "rows.parquet", compression="zstd")
                if samples is not None:
                    np.savez_compressed(draft / "samples.npz", allow_pickle=False, **samples)
                if features:
                    np.savez_compressed(draft / "features.npz", allow_pickle=False, **features)
                sizes = {file.name: file.stat().st_size for file in draft.iterdir()}
                content = {"schema": SCHEMA, "id": cell_id, "files": sizes, **record}
                (draft / "cell.json").write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False))
        except FileExistsError:
            return False
        (self.root / "failures" / f"{cell_id}.json").unlink(missing_ok=True)
        self.drop_partial(cell_id)
        return True

    def write_failure(self, cell_id: str, failure: Mapping[str, Any]) -> None:
        """Record why a cell failed. `failure` has at least `class`, `message` and `traceback`."""
        write_json(self.root / "failures" / f"{cell_id}.json", {"schema": SCHEMA, "id": cell_id, **failure})

    def forget_failure(self, cell_id: str) -> None:
        """Remove a cell's failure. The cell is then missing and can be tried again."""
        (self.root / "failures" / f"{cell_id}.json").unlink(missing_ok=True)

    def write_partial(
        self,
        cell_id: str,
        maker: str,
        rows: list[dict[str, Any]],
        images: Mapping[str, np.ndarray],
        seconds: float = 0.0,
    ) -> None:
        """Keep the finished images of an open cell. They replace an earlier file with fewer images.

        `maker` names the code and settings that may continue from them. `seconds` is their time over all attempts.
        """
        import numpy as np

        state = np.array(json.dumps({"maker": maker, "rows": rows, "seconds": seconds}))
        with whole_file(self.root / "partial" / f"{cell_id}.npz", "wb") as file:
            np.savez(file, allow_pickle=False, state=state, **images)

    def partial(self, cell_id: str, maker: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], float]:
        """Return the rows and images of an open cell that the same maker finished, and the seconds that they took.

        They are empty if there are none, or if the file is damaged: the file only saves work.
        """
        state, images = self._partial(cell_id)
        return (state["rows"], images, state["seconds"]) if state.get("maker") == maker else ([], {}, 0.0)

    def partial_images(self, cell_id: str) -> int:
        """Return the number of finished images of an open cell."""
        return len(self._partial(cell_id)[0].get("rows", ()))

    def _partial(self, cell_id: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        import numpy as np

        try:
            with np.load(self.root / "partial" / f"{cell_id}.npz", allow_pickle=False) as archive:
                content = {name: archive[name] for name in archive.files}
            return json.loads(str(content.pop("state"))), content
        except (FileNotFoundError, *UNREADABLE):
            return {}, {}

    def drop_partial(self, cell_id: str) -> None:
        (self.root / "partial" / f"{cell_id}.npz").unlink(missing_ok=True)

    def write_manifest(self, name: str, manifest: Mapping[str, Any]) -> None:
        write_json(self.root / "sweeps" / f"{name}.json", {"schema": SCHEMA, "name": name, **manifest})

    # --- reading -----------------------------------------------------------------------------------------------

    def manifest(self, name: str) -> dict[str, Any]:
        """Return the sweep's manifest. Raises FileNotFoundError if the sweep never ran with this store, and Damaged."""
        file = self.root / "sweeps" / f"{name}.json"
        content = _json(file, "cells")
        with _reading(file):
            if not all(isinstance(cell["id"], str) and "method" in cell["axes"] for cell in content["cells"]):
                raise ValueError("its cells have no ids or no axes")
        return content

    def manifests(self) -> list[str]:
        return sorted(name.removesuffix(".json") for name in _names(self.root / "sweeps"))

    def record(self, cell_id: str) -> dict[str, Any]:
        """Return a finished cell's configuration and provenance. Raises Damaged."""
        return _json(self.root / "cells" / cell_id / "cell.json", "id")

    def failure(self, cell_id: str) -> dict[str, Any]:
        """Return a cell's last failure. Raises Damaged."""
        return _json(self.root / "failures" / f"{cell_id}.json", "class")

    def rows(self, cell_ids: Iterable[str], without: Collection[str] = (), categories: bool = False) -> pd.DataFrame:
        """Return the rows of finished cells, in the order of `cell_ids`; missing cells are left out. Raises Damaged.

        Columns named in `without` are not read: text columns that a report does not need take most of the memory of a
        million rows. With `categories`, text columns are categorical: a million rows have few different images, and
        each name is stored once.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = {"cell_id", "image_id", "outcome", "y_sha256"} if categories else set()
        tables = []
        for cell_id in cell_ids:
            path = self.root / "cells" / cell_id / "rows.parquet"
            if not path.is_file():
                continue
            with _reading(path):
                head = pq.read_metadata(path)
                known = text.intersection(head.schema.names)
                with pq.ParquetFile(path, metadata=head, read_dictionary=sorted(known)) as file:
                    tables.append(file.read([name for name in file.schema_arrow.names if name not in without]))
        if not tables:
            return pa.table({}).to_pandas()
        table = _joined(tables)
        del tables
        return table.to_pandas(split_blocks=True, self_destruct=True)  # column by column: less memory

    def samples(self, cell_id: str) -> dict[str, np.ndarray]:
        """Return the sample images of a cell: ids, truth, input, output. Raises Damaged."""
        return self._arrays(cell_id, "samples.npz")

    def features(self, cell_id: str) -> dict[str, np.ndarray]:
        """Return the features of every image of a cell: ids, and EXTRACTOR_output and EXTRACTOR_truth.

        Empty if the cell has no features. Raises Damaged.
        """
        return self._arrays(cell_id, "features.npz")

    def _arrays(self, cell_id: str, name: str) -> dict[str, np.ndarray]:
        import numpy as np

        path = self.root / "cells" / cell_id / name
        if not path.is_file():
            return {}
        with _reading(path), np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _joined(tables: list[pa.Table]) -> pa.Table:
    """Join tables into one. A column whose types do not fit together becomes text (JSON).

    An example is an option that is 0.9 for one method and "auto" for another.
    """
    import pyarrow as pa

    def clashes(name: str) -> bool:
        fields = [pa.schema([table.schema.field(name)]) for table in tables if name in table.schema.names]
        try:
            pa.unify_schemas(fields, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return True
        return False

    def text(value: Any) -> str | None:
        return value if value is None or isinstance(value, str) else json.dumps(value)

    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        for name in filter(clashes, {name for table in tables for name in table.schema.names}):
            for i, table in enumerate(tables):
                if (place := table.schema.get_field_index(name)) >= 0:
                    column = pa.array(map(text, table.column(name).to_pylist()), pa.string())
                    tables[i] = table.set_column(place, name, column)
        return pa.concat_tables(tables, promote_options="permissive")


def damage_lines(damaged: Mapping[str, str], most: int = 5) -> list[str]:
    """Return lines that name damaged cells with the reason: at most `most` cells, then the number of the others."""
    lines = [f"damaged: {cell_id}: {why}" for cell_id, why in list(damaged.items())[:most]]
    return lines + [f"damaged: {len(damaged) - most} more cells"] * (len(damaged) > most)


def _json(file: Path, key: str) -> dict[str, Any]:
    """Return the content of a JSON file that must have this key. Raises Damaged."""
    with _reading(file):
        content = json.loads(file.read_text(encoding="utf-8"))
        if key not in content:
            raise ValueError(f"it has no {key!r}")
        return content


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        return set()
