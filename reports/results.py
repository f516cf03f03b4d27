"""The results of a sweep for its report: the entries of its tables, and the rows that fill them.

The lines of a table are methods (one line per value if something else varies within a method). The columns are
severities, with one block of columns per corruption. A sweep without corruptions has steps as columns and one block
per model and guidance scale. A sweep of edits has strengths as columns and one block per kind of edit. A manifest can
change this with `"layout": {"block": AXIS, "column": AXIS}`.
"""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from bench.columns import AXES, MEASUREMENT, METRICS, Metric, declared
from bench.store import Store
from reports.damage import arrays, unreadable_rows

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Axes = Mapping[str, Any]
Key = tuple[str, str, str]  # line, block, column


NAMED = 5  # most differing measurements that an error names


class MixedMeasurements(ValueError):
    """Raised if rows that a table would compare start from different measurements y. `remedy`: one line to fix it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Line:
    """A row of the tables."""

    key: str
    title: str
    method: str
    axes: Axes


def middle(axis: str, columns: Sequence[str]) -> str:
    """Return the column to show first: severity 3 (the usual one in papers) or the nearest; else the central one."""
    if axis == "severity":
        numbers = [column for column in columns if column.replace(".", "", 1).isdigit()]
        if numbers:
            return min(numbers, key=lambda column: abs(float(column) - 3))
    return columns[(len(columns) - 1) // 2]


@dataclass(frozen=True)
class Block:
    """Columns under one heading: the values of `axis` at one value of `over`, or at one value of each of `places`."""

    key: str
    title: str
    over: str
    axis: str
    columns: tuple[str, ...]
    places: tuple[tuple[str, str], ...] = ()  # (axis, value), if a block has more axes than `over`

    @property
    def shown(self) -> str:
        """The column that represents the block."""
        return middle(self.axis, self.columns)


@dataclass(frozen=True)
class Cell:
    """One cell of the manifest: its place in the tables, and its status (done, failed, damaged or missing)."""

    id: str
    key: Key
    axes: Axes
    status: str


@dataclass(frozen=True)
class Results:
    """The content of a report, read once from the store."""

    manifest: Mapping[str, Any]
    cells: tuple[Cell, ...]
    lines: tuple[Line, ...]
    blocks: tuple[Block, ...]
    rows: pd.DataFrame  # the store's rows, with `line`, `block` and `column` added
    failures: Mapping[str, Mapping[str, Any]]  # of failed cells, and of damaged cells with the class `DAMAGED`
    records: Mapping[str, Mapping[str, Any]]
    samples: Callable[[str], Mapping[str, np.ndarray]] = field(default=lambda _: {})  # cell -> sample images
    features: Callable[[str], Mapping[str, np.ndarray]] = field(
        default=lambda _: {}
    )  # cell -> features of all its images

    @property
    def edits(self) -> bool:
        return self.manifest.get("task") == "edit"

    @property
    def reconstructs(self) -> bool:
        """True if the sweep inverts and decodes clean images, where latents matter as much as errors."""
        return self.manifest.get("task") == "reconstruct"

    @property
    def guarantees(self) -> bool:
        """True if the sweep compares flows with their certificates."""
        return self.manifest.get("task") == "guarantee"

    @cached_property
    def declared(self) -> dict[str, Metric]:
        """All known metrics: ours, and those that the manifest declares."""
        return declared(self.manifest)

    def title(self, axis: str, name: str) -> str:
        """Return the title of a name on an axis, such as the title of a method."""
        return _title(self.manifest, axis, name)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics for which any row has a value. For round trips, only PSNR and `error` are printed."""
        found = tuple(metric for metric in self.declared.values() if self.has(metric.name))
        if not self.reconstructs:
            return found
        error = self.error
        return tuple(
            replace(m, printed=m.name == "psnr" or (error is not None and m.name == error.name)) for m in found
        )

    @property
    def error(self) -> Metric | None:
        """The squared error of a round trip: between latents (unclipped) if the rows have it, else between images."""
        return next((METRICS[name] for name in ("latent_mse", "mse") if self.has(name)), None)

    def has(self, name: str) -> bool:
        """Return whether any row has a value of a metric, or any cell the features for a metric of sets."""
        if name in self.declared and self.declared[name].extractor:
            return any(name in record.get("config", {}).get("metrics", {}) for record in self.records.values())
        return name in self.rows and bool(self.rows[name].notna().any())

    @cached_property
    def by_key(self) -> dict[Key, list[Cell]]:
        places: dict[Key, list[Cell]] = {}
        for cell in self.cells:
            places.setdefault(cell.key, []).append(cell)
        return places

    def axis(self, name: str) -> pd.Series:
        """Return the value of an axis for each row, from the manifest."""
        return self.rows["cell_id"].astype(object).map({cell.id: cell.axes.get(name) for cell in self.cells})

    def count(self, status: str) -> int:
        return sum(cell.status == status for cell in self.cells)


def plain(text: object) -> str:
    """Return text on one line: white space and control characters become single spaces, surrogates U+FFFD."""
    kinds = {"Cc": " ", "Cs": "\ufffd"}
    return " ".join("".join(kinds.get(unicodedata.category(c), c) for c in str(text)).split())


def title_of(manifest: Mapping[str, Any]) -> str:
    return plain(manifest.get("title") or manifest["name"])


def words(value: Any) -> str:
    """Return an axis value as text. 20 and 20.0 give the same text."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _title(manifest: Mapping[str, Any], axis: str, name: str, otherwise: str = "") -> str:
    """Return the manifest's title of a name, else `otherwise`, else the name, on one line."""
    return plain((manifest.get("titles") or {}).get(axis, {}).get(name) or otherwise) or name


def _layout(manifest: Mapping[str, Any], cells: Sequence[Axes]) -> tuple[str, str]:
    declared = manifest.get("layout")
    if declared:
        return declared["block"], declared["column"]
    if any(axes.get("edit") for axes in cells):
        return "edit", "method.strength" if any("method.strength" in axes for axes in cells) else "steps"
    return ("corruption", "severity") if any(axes.get("corruption") for axes in cells) else ("guidance", "steps")


ABSENT = ""


def _varying(cells: Sequence[Axes], placed: set[str]) -> dict[str, list[str]]:
    """Return method -> axes that distinguish its lines, in the order of the manifest.

    If any method runs on several models, every line names its model. An axis that only some cells of a method have
    also distinguishes lines.
    """
    seen: dict[str, dict[str, set[str]]] = {}
    named: dict[tuple[str, str], int] = {}
    sizes: dict[str, int] = {}
    for axes in cells:
        method = str(axes["method"])
        own = seen.setdefault(method, {})
        sizes[method] = sizes.get(method, 0) + 1
        for name, value in axes.items():
            if name not in placed:
                own.setdefault(name, set()).add(words(value))
                named[method, name] = named.get((method, name), 0) + 1
    for (method, name), count in named.items():
        if count < sizes[method]:
            seen[method][name].add(ABSENT)
    models = any(len(own.get("model", ())) > 1 for own in seen.values())
    return {
        method: [name for name, values in own.items() if len(values) > 1 or (name == "model" and models)]
        for method, own in seen.items()
    }


UNNAMED = ("model", "solver", "procedure")
"""Axes whose values are shown without the name of the axis."""


def _column_order(columns: set[str]) -> tuple[str, ...]:
    def order(column: str) -> tuple[bool, float, str]:
        try:
            return False, float(column), column
        except ValueError:
            return True, 0.0, column

    return tuple(sorted(columns, key=order))


def arrange(
    manifest: Mapping[str, Any], status: Mapping[str, str]
) -> tuple[tuple[Cell, ...], tuple[Line, ...], tuple[Block, ...]]:
    """Return the cells, lines and blocks of the tables. Methods and blocks keep the manifest's order."""
    listed: list[Axes] = [cell["axes"] for cell in manifest["cells"]]
    block_axis, column_axis = _layout(manifest, listed)
    datasets = {words(axes.get("dataset")) for axes in listed}
    placed = {"method", "corruption", "severity", "seed", "dataset", "task", block_axis, column_axis}
    # Round-trip errors of different models are not compared: each model has its own blocks. Restorations are compared.
    by_model = manifest.get("task") == "reconstruct" and len({words(axes.get("model")) for axes in listed}) > 1
    varying = _varying(listed, placed | ({"model"} if by_model else set()))
    cells: list[Cell] = []
    lines: dict[str, Line] = {}
    tails: dict[str, str] = {}
    titles: dict[str, str] = {}
    columns: dict[str, set[str]] = {}
    places: dict[str, tuple[tuple[str, str], ...]] = {}
    for entry, axes in zip(manifest["cells"], listed, strict=True):
        method = str(axes["method"])
        shown = [(name.removeprefix("method."), words(axes[name])) for name in varying[method] if name in axes]
        tail = "".join(f" · {word}" if name in UNNAMED else f" · {name} {word}" for name, word in shown)
        name = _title(manifest, "method", method)
        line = Line(method + tail, name, method, axes)
        tails[line.key] = plain(tail.replace("_", " "))
        value = words(axes.get(block_axis))
        where = [name for name, several in (("model", by_model), ("dataset", len(datasets) > 1)) if several]
        named = [(name, words(axes.get(name))) for name in where if name != block_axis]
        place = "".join(f" · {word}" for _, word in named)
        block = value + place
        places[block] = (*named, (block_axis, value)) if named else ()
        named_itself = block_axis in ("corruption", "edit")
        otherwise = value.replace("_", " ") if named_itself else f"{block_axis} {value}"
        title = _title(manifest, block_axis, value, otherwise)
        lines.setdefault(line.key, line)
        titles.setdefault(block, title + place if not by_model else f"{place.removeprefix(' · ')} · {title}")
        column = words(axes.get(column_axis))
        columns.setdefault(block, set()).add(column)
        cells.append(Cell(entry["id"], (line.key, block, column), axes, status.get(entry["id"], "missing")))
    blocks = [
        Block(key, title, block_axis, column_axis.removeprefix("method."), _column_order(columns[key]), places[key])
        for key, title in distinct_titles(titles).items()
    ]
    if by_model:  # the blocks of a model are neighbours; models keep the manifest's order
        models = list(dict.fromkeys(dict(block.places).get("model") for block in blocks))
        blocks.sort(key=lambda block: models.index(dict(block.places).get("model")))
    return tuple(cells), tuple(sorted(_titled(lines, tails), key=_method_order(lines))), tuple(blocks)


def _titled(lines: Mapping[str, Line], tails: Mapping[str, str]) -> list[Line]:
    """Return lines with full titles: the method's title and the values that vary within the method.

    If all lines are of one method and have varying values, the title has only these values.
    """
    alone = len({line.method for line in lines.values()}) == 1 and all(tails.values())
    titles = {
        k: tails[k].removeprefix("· ") if alone else f"{line.title} {tails[k]}".strip() for k, line in lines.items()
    }
    distinct = distinct_titles(titles)
    return [replace(line, title=distinct[key]) for key, line in lines.items()]


def distinct_titles(titles: Mapping[str, str], numbered: bool = False) -> dict[str, str]:
    """Return titles of keys. If several keys have the same title, the key or a number is added in brackets."""
    same: dict[str, list[str]] = {}
    for key, title in titles.items():
        same.setdefault(title, []).append(key)
    behind = {key: str(n) if numbered else plain(key) for keys in same.values() for n, key in enumerate(keys, start=1)}
    return {k: title if len(same[title]) == 1 else f"{title} ({behind[k]})" for k, title in titles.items()}


def _method_order(lines: Mapping[str, Line]) -> Any:
    """Return a sort key: lines of one method are neighbours, and methods keep the manifest's order."""
    first: dict[str, int] = {}
    for line in lines.values():
        first.setdefault(line.method, len(first))
    return lambda line: first[line.method]


UNREAD = (*AXES, *MEASUREMENT)
"""Columns that no table or figure reads. Axes come from the manifest, since one option may have two types."""

DAMAGED = "damaged"
"""The status of a cell whose files cannot be read, and its class among the failures."""


def load(store: Store, manifest: Mapping[str, Any], unreadable: Mapping[str, str] | None = None) -> Results:
    """Read the finished cells of a sweep. Damaged cells have no rows.

    `unreadable` (cell -> reason) gives damaged cells that are already known. A damaged file may be found only when
    `Results` reads it later; then `reports.damage.DamagedFile` is raised.
    """
    import pandas as pd

    ids = [cell["id"] for cell in manifest["cells"]]
    done, failed = store.done(), store.failed()
    broken = {**store.damaged(ids), **(unreadable or {})}
    unread = {*UNREAD, *(name for cell in manifest["cells"] for name in cell["axes"])}
    whole = [i for i in ids if i in done and i not in broken]
    try:
        rows = store.rows(whole, unread, categories=True)
        if whole and set(rows["cell_id"].unique()) != set(whole):
            raise ValueError("rows of other cells")
    except Exception:  # a damaged file may raise anything: the cells are read one by one
        broken |= unreadable_rows(store, whole)
        whole = [i for i in whole if i not in broken]
        rows = store.rows(whole, unread, categories=True)
    failures = {i: store.failure(i) for i in ids if i in failed and i not in broken}
    failures |= {i: {"class": DAMAGED, "message": broken[i], "traceback": broken[i]} for i in ids if i in broken}
    status = {i: DAMAGED if i in broken else "done" if i in done else "failed" for i in ids if i in done or i in failed}
    records = {i: store.record(i) for i in whole}
    cells, lines, blocks = arrange(manifest, status)
    if rows.empty:
        rows = pd.DataFrame({"cell_id": pd.Series(dtype=str), "image_id": pd.Series(dtype=str)})
    place = {cell.id: (*cell.key, cell.axes.get("seed")) for cell in cells}
    codes, names = pd.factorize(rows["cell_id"])
    for position, name in enumerate(("line", "block", "column", "seed")):
        values = pd.Series([place[cell_id][position] for cell_id in names], dtype=object).infer_objects()
        if name != "seed":
            values = values.astype("category")
        rows[name] = values.take(codes).array
    return Results(
        manifest, cells, lines, blocks, rows, failures, records,
        partial(arrays, store, "samples"), partial(arrays, store, "features"),
    )  # fmt: skip


def check_measurements(results: Results, cells: str = "results/cells") -> None:
    """Raise MixedMeasurements if an image has two measurements at one corruption (or edit), severity and seed.

    `cells`: the store's folder of cells, for the remedy. It removes the cells that do not agree with the youngest cell
    of the same entry, so that the same run computes them again.
    """
    if not results.has("y_sha256"):
        return
    places = ["block", "column", "image_id", "seed"]
    columns = [*places, "y_sha256", "cell_id", "line"]
    known = results.rows.loc[results.rows["y_sha256"].notna(), columns]
    kinds = known.drop_duplicates([*places, "y_sha256"])
    clashing = kinds.loc[kinds.duplicated(places, keep=False), places].drop_duplicates()
    if clashing.empty:
        return
    titles = {block.key: f"{block.title}, {block.axis}" for block in results.blocks}
    methods = {line.key: line.title for line in results.lines}
    found: list[str] = []
    outdated: set[str] = set()
    for place, rows in known.merge(clashing, on=places).groupby(places, sort=True, dropna=False, observed=True):
        youngest = max(rows["cell_id"], key=lambda i: (_started(results.records[i]), i))
        agreed = rows.loc[rows["cell_id"] == youngest, "y_sha256"].iloc[0]
        outdated |= set(rows.loc[rows["y_sha256"] != agreed, "cell_id"])
        if len(found) < NAMED:
            block, column, image, seed = place
            sources = "; ".join(
                f"{sha[:12]}… in {', '.join(f'{i} ({methods[line]})' for i, line in _pairs(part))}"
                for sha, part in rows.groupby("y_sha256", sort=True, observed=True)
            )
            found.append(f"image {image}, {titles[block]} {column}, seed {seed}: {sources}")
    more = len(clashing) - len(found)
    folders = " ".join(shlex.quote(f"{cells}/{i}") for i in sorted(outdated))
    raise MixedMeasurements(
        f"{len(clashing)} measurement(s) differ between cells that a table would compare: {' | '.join(found)}"
        + (f" | and {more} more" if more else ""),
        f"rm -r {folders} (cells that do not agree with the youngest one), then the same bench.run command again",
    )


def _pairs(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return sorted(set(zip(rows["cell_id"], rows["line"], strict=True)))


def _started(record: Mapping[str, Any]) -> str:
    return str(record.get("provenance", {}).get("started", ""))
