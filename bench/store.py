"""The store: one atomic folder per finished cell, one file per failure, one manifest per sweep. No torch.

    ROOT/cells/ID/rows.parquet    a row an image; of an adaptive solver also its steps, in a list
    ROOT/cells/ID/cell.json       resolved configuration and provenance
    ROOT/cells/ID/samples.npz     a few images: ids, truth, input, output (uint8 [k, H, W, C])
    ROOT/cells/ID/features.npz    where a metric is of sets: ids, and EXTRACTOR_output, EXTRACTOR_truth (float32 [n, d])
    ROOT/failures/ID.json         the last failure of a cell that has no result yet
    ROOT/partial/ID.npz           the finished images of a long cell that is still open
    ROOT/sweeps/NAME.json         the cells that a sweep expands to, and what its report should show

A cell is done when its folder exists under its final name: it is written beside, flushed to the disk and renamed, so
a killed run leaves at most a temporary folder, which nobody reads and the next writer of that cell removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import whole_file, whole_folder, write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

SCHEMA = 1
STALE_SECONDS = 600


class Store:
    """A results folder. Readers need no lock and see only whole cells."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # --- what is there -----------------------------------------------------------------------------------------

    def done(self) -> set[str]:
        """Ids of finished cells: one directory scan."""
        return _names(self.root / "cells")

    def failed(self) -> set[str]:
        """Ids of cells whose last attempt failed and that have no result."""
        return {name.removesuffix(".json") for name in _names(self.root / "failures")} - self.done()

    def ended(self, cell_id: str) -> bool:
        """Whether a cell has a result or a failure."""
        return (self.root / "cells" / cell_id).is_dir() or (self.root / "failures" / f"{cell_id}.json").is_file()

    # --- writing -----------------------------------------------------------------------------------------------

    def write(
        self,
        cell_id: str,
        rows: list[dict[str, Any]],
        record: Mapping[str, Any],
        samples: Mapping[str, np.ndarray] | None = None,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> bool:
        """Write one finished cell. False if another run had finished it before (its result stays)."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        final = self.root / "cells" / cell_id
        _remove_stale(final)
        try:
            with whole_folder(final) as draft:
                pq.write_table(pa.Table.from_pylist(rows), draft / "rows.parquet", compression="zstd")
                if samples is not None:
                    np.savez_compressed(draft / "samples.npz", allow_pickle=False, **samples)
                if features:
                    np.savez_compressed(draft / "features.npz", allow_pickle=False, **features)
                content = {"schema": SCHEMA, "id": cell_id, **record}
                (draft / "cell.json").write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False))
        except FileExistsError:
            return False
        (self.root / "failures" / f"{cell_id}.json").unlink(missing_ok=True)
        self.drop_partial(cell_id)
        return True

    def write_failure(self, cell_id: str, failure: Mapping[str, Any]) -> None:
        """Record why a cell failed: at least `class`, `message` and `traceback`."""
        write_json(self.root / "failures" / f"{cell_id}.json", {"schema": SCHEMA, "id": cell_id, **failure})

    def forget_failure(self, cell_id: str) -> None:
        """The cell is missing again: it is to be tried once more."""
        (self.root / "failures" / f"{cell_id}.json").unlink(missing_ok=True)

    def write_partial(
        self,
        cell_id: str,
        maker: str,
        rows: list[dict[str, Any]],
        images: Mapping[str, np.ndarray],
        seconds: float = 0.0,
    ) -> None:
        """Keep the finished images of an open cell, in place of fewer of them. `maker`: who may go on from them;
        `seconds`: what they took, over all attempts."""
        import numpy as np

        state = np.array(json.dumps({"maker": maker, "rows": rows, "seconds": seconds}))
        with whole_file(self.root / "partial" / f"{cell_id}.npz", "wb") as file:
            np.savez(file, allow_pickle=False, state=state, **images)

    def partial(self, cell_id: str, maker: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], float]:
        """The rows and images of an open cell that the same maker has finished, and the seconds they took; empty if
        there are none."""
        state, images = self._partial(cell_id)
        return (state["rows"], images, state["seconds"]) if state.get("maker") == maker else ([], {}, 0.0)

    def partial_images(self, cell_id: str) -> int:
        """How many images of an open cell are finished."""
        return len(self._partial(cell_id)[0].get("rows", ()))

    def _partial(self, cell_id: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        import numpy as np

        try:
            with np.load(self.root / "partial" / f"{cell_id}.npz", allow_pickle=False) as archive:
                content = {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            return {}, {}
        return json.loads(str(content.pop("state"))), content

    def drop_partial(self, cell_id: str) -> None:
        (self.root / "partial" / f"{cell_id}.npz").unlink(missing_ok=True)

    def write_manifest(self, name: str, manifest: Mapping[str, Any]) -> None:
        write_json(self.root / "sweeps" / f"{name}.json", {"schema": SCHEMA, "name": name, **manifest})

    # --- reading -----------------------------------------------------------------------------------------------

    def manifest(self, name: str) -> dict[str, Any]:
        """The sweep's manifest. Raises FileNotFoundError if that sweep never ran into this store."""
        return json.loads((self.root / "sweeps" / f"{name}.json").read_text())

    def manifests(self) -> list[str]:
        return sorted(name.removesuffix(".json") for name in _names(self.root / "sweeps"))

    def record(self, cell_id: str) -> dict[str, Any]:
        return json.loads((self.root / "cells" / cell_id / "cell.json").read_text())

    def failure(self, cell_id: str) -> dict[str, Any]:
        return json.loads((self.root / "failures" / f"{cell_id}.json").read_text())

    def rows(self, cell_ids: Iterable[str], without: Collection[str] = (), categories: bool = False) -> pd.DataFrame:
        """The rows of finished cells, in the order asked; cells that are not there are left out.

        Columns named in `without` are not read: text that nobody asks for is most of a million rows. With `categories`
        text is categorical: a million rows name few images, and a number stands for each.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = {"cell_id", "image_id", "outcome", "y_sha256"} if categories else set()
        tables = []
        for cell_id in cell_ids:
            path = self.root / "cells" / cell_id / "rows.parquet"
            if path.is_file():
                head = pq.read_metadata(path)
                known = text.intersection(head.schema.names)
                with pq.ParquetFile(path, metadata=head, read_dictionary=sorted(known)) as file:
                    tables.append(file.read([name for name in file.schema_arrow.names if name not in without]))
        if not tables:
            return pa.table({}).to_pandas()
        table = _joined(tables)
        del tables
        return table.to_pandas(split_blocks=True, self_destruct=True)  # a column at a time, never all twice

    def samples(self, cell_id: str) -> dict[str, np.ndarray]:
        """The sample images of a cell: ids, truth, input, output."""
        return self._arrays(cell_id, "samples.npz")

    def features(self, cell_id: str) -> dict[str, np.ndarray]:
        """Features of every image of a cell: ids, and EXTRACTOR_output and EXTRACTOR_truth; empty where it has none."""
        return self._arrays(cell_id, "features.npz")

    def _arrays(self, cell_id: str, name: str) -> dict[str, np.ndarray]:
        import numpy as np

        path = self.root / "cells" / cell_id / name
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _joined(tables: list[pa.Table]) -> pa.Table:
    """One table of many. A column whose types have no common one, as an option that is 0.9 for one method and "auto"
    for another, becomes text (JSON)."""
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


def _remove_stale(final: Path) -> None:
    """Temporary folders that killed runs left of this cell; a younger one may be another run's that is still alive."""
    for path in final.parent.glob(f".{final.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        return set()
