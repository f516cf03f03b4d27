"""A sweep as the reports see it: which entries its tables have, and the rows that fill them.

A table's lines are methods (times whatever else varies within a method), its columns are severities, and it has one
block of columns a corruption; a sweep without corruptions has steps for columns and one block a model and guidance
scale, and a sweep of edits has strengths for columns and one block a kind of edit. A manifest may say otherwise with
`"layout": {"block": AXIS, "column": AXIS}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.columns import AXES, MEASUREMENT, METRICS, Metric, declared
from bench.store import Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Axes = Mapping[str, Any]
Key = tuple[str, str, str]  # line, block, column


NAMED = 5  # differing measurements that an error names


class MixedMeasurements(ValueError):
    """Rows that a table would compare start from different measurements y."""


@dataclass(frozen=True)
class Line:
    """A row of the tables."""

    key: str
    title: str
    method: str
    axes: Axes


def middle(axis: str, columns: Sequence[str]) -> str:
    """The column to show first: severity 3, the common published setting, or the nearest; else the central one."""
    if axis == "severity":
        numbers = [column for column in columns if column.replace(".", "", 1).isdigit()]
        if numbers:
            return min(numbers, key=lambda column: abs(float(column) - 3))
    return columns[(len(columns) - 1) // 2]


@dataclass(frozen=True)
class Block:
    """Columns under one heading: the values of `axis` at one value of `over`, or at one of each of `places`."""

    key: str
    title: str
    over: str
    axis: str
    columns: tuple[str, ...]
    places: tuple[tuple[str, str], ...] = ()  # (axis, value), where a block is more than one value of `over`

    @property
    def shown(self) -> str:
        """The column that stands for the block."""
        return middle(self.axis, self.columns)


@dataclass(frozen=True)
class Cell:
    """One cell of the manifest: its place in the tables, and done, failed or missing."""

    id: str
    key: Key
    axes: Axes
    status: str


@dataclass(frozen=True)
class Results:
    """Everything a report is made of, read once."""

    manifest: Mapping[str, Any]
    cells: tuple[Cell, ...]
    lines: tuple[Line, ...]
    blocks: tuple[Block, ...]
    rows: pd.DataFrame  # the store's rows and `line`, `block`, `column`
    failures: Mapping[str, Mapping[str, Any]]
    records: Mapping[str, Mapping[str, Any]]
    features: Callable[[str], Mapping[str, np.ndarray]] = field(default=lambda _: {})  # of a cell's images

    @property
    def edits(self) -> bool:
        return self.manifest.get("task") == "edit"

    @property
    def reconstructs(self) -> bool:
        """Whether the sweep inverts and decodes clean images, where latents matter as much as errors."""
        return self.manifest.get("task") == "reconstruct"

    @property
    def guarantees(self) -> bool:
        """Whether flows were measured against their certificates."""
        return self.manifest.get("task") == "guarantee"

    @cached_property
    def declared(self) -> dict[str, Metric]:
        """Every metric that there may be: ours, and those that the manifest declares."""
        return declared(self.manifest)

    def title(self, axis: str, name: str) -> str:
        """The title of a name on an axis, such as a method's."""
        return _title(self.manifest, axis, name)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that any row has a value for. Of a round trip PSNR and `error` are printed."""
        found = tuple(metric for metric in self.declared.values() if self.has(metric.name))
        if not self.reconstructs:
            return found
        error = self.error
        return tuple(
            replace(m, printed=m.name == "psnr" or (error is not None and m.name == error.name)) for m in found
        )

    @property
    def error(self) -> Metric | None:
        """The squared error of a round trip: between latents, unclipped, if the rows have it; else between images."""
        return next((METRICS[name] for name in ("latent_mse", "mse") if self.has(name)), None)

    def has(self, name: str) -> bool:
        """Whether any row has a value of a metric, or any cell the features of one of sets."""
        if name in self.declared and self.declared[name].extractor:
            return any(name in record.get("config", {}).get("metrics", {}) for record in self.records.values())
        return name in self.rows and bool(self.rows[name].notna().any())

    @cached_property
    def by_key(self) -> dict[Key, list[Cell]]:
        places: dict[Key, list[Cell]] = {}
        for cell in self.cells:
            places.setdefault(cell.key, []).append(cell)
        return places

    def count(self, status: str) -> int:
        return sum(cell.status == status for cell in self.cells)


def words(value: Any) -> str:
    """An axis value as text: 20 and 20.0 are the same level."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _title(manifest: Mapping[str, Any], axis: str, name: str, plain: str | None = None) -> str:
    """As the manifest titles it, else `plain`, else the name."""
    return str((manifest.get("titles") or {}).get(axis, {}).get(name) or plain or name)


def _layout(manifest: Mapping[str, Any], cells: Sequence[Axes]) -> tuple[str, str]:
    declared = manifest.get("layout")
    if declared:
        return declared["block"], declared["column"]
    if any(axes.get("edit") for axes in cells):
        return "edit", "method.strength" if any("method.strength" in axes for axes in cells) else "steps"
    return ("corruption", "severity") if any(axes.get("corruption") for axes in cells) else ("guidance", "steps")


ABSENT = ""


def _varying(cells: Sequence[Axes], placed: set[str]) -> dict[str, list[str]]:
    """Method -> axes that tell its lines apart, in the order the manifest names them; the model's name stands in every
    line where any method runs on several. An axis that only some cells of a method name tells these from the others."""
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


SPEAKING = ("model", "solver", "procedure")
"""Axes whose values need no name beside them."""


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
    """The tables' lines, blocks and columns. Methods and blocks keep the manifest's order."""
    listed: list[Axes] = [cell["axes"] for cell in manifest["cells"]]
    block_axis, column_axis = _layout(manifest, listed)
    datasets = {words(axes.get("dataset")) for axes in listed}
    placed = {"method", "corruption", "severity", "seed", "dataset", "task", block_axis, column_axis}
    # A round trip's error is of one model: models stand in blocks of their own, where a restoration compares them.
    by_model = manifest.get("task") == "reconstruct" and len({words(axes.get("model")) for axes in listed}) > 1
    varying = _varying(listed, placed | ({"model"} if by_model else set()))
    cells: list[Cell] = []
    lines: dict[str, Line] = {}
    titles: dict[str, str] = {}
    columns: dict[str, set[str]] = {}
    places: dict[str, tuple[tuple[str, str], ...]] = {}
    for entry, axes in zip(manifest["cells"], listed, strict=True):
        method = str(axes["method"])
        told = [(name.removeprefix("method."), words(axes[name])) for name in varying[method] if name in axes]
        tail = "".join(f" · {word}" if name in SPEAKING else f" · {name} {word}" for name, word in told)
        line = Line(method + tail, _title(manifest, "method", method) + tail.replace("_", " "), method, axes)
        value = words(axes.get(block_axis))
        where = [name for name, several in (("model", by_model), ("dataset", len(datasets) > 1)) if several]
        named = [(name, words(axes.get(name))) for name in where if name != block_axis]
        place = "".join(f" · {word}" for _, word in named)
        block = value + place
        places[block] = (*named, (block_axis, value)) if named else ()
        named_itself = block_axis in ("corruption", "edit")
        plain = value.replace("_", " ") if named_itself else f"{block_axis} {value}"
        title = _title(manifest, block_axis, value, plain)
        lines.setdefault(line.key, line)
        titles.setdefault(block, title + place if not by_model else f"{place.removeprefix(' · ')} · {title}")
        column = words(axes.get(column_axis))
        columns.setdefault(block, set()).add(column)
        cells.append(Cell(entry["id"], (line.key, block, column), axes, status.get(entry["id"], "missing")))
    blocks = [
        Block(key, title, block_axis, column_axis.removeprefix("method."), _column_order(columns[key]), places[key])
        for key, title in titles.items()
    ]
    if by_model:  # a model's guidance scales stand together, models as the manifest first names them
        models = list(dict.fromkeys(dict(block.places).get("model") for block in blocks))
        blocks.sort(key=lambda block: models.index(dict(block.places).get("model")))
    return tuple(cells), tuple(sorted(_told_apart(lines.values()), key=_method_order(lines))), tuple(blocks)


def _told_apart(lines: Collection[Line]) -> list[Line]:
    """Without the method's name in their titles where all lines are of one method and have more to tell."""
    shared = {line.title.partition(" · ")[0] for line in lines}
    if len(shared) > 1 or not all(" · " in line.title for line in lines):
        return list(lines)
    return [replace(line, title=line.title.partition(" · ")[2]) for line in lines]


def _method_order(lines: Mapping[str, Line]) -> Any:
    """Lines of one method stand together, methods as the manifest first names them."""
    first: dict[str, int] = {}
    for line in lines.values():
        first.setdefault(line.method, len(first))
    return lambda line: first[line.method]


UNREAD = (*AXES, *MEASUREMENT)
"""Columns of the rows that no table or figure needs: the axes come from the manifest."""


def load(store: Store, manifest: Mapping[str, Any]) -> Results:
    """Read the finished cells of a sweep."""
    import pandas as pd

    done, failed = store.done(), store.failed()
    ids = [cell["id"] for cell in manifest["cells"]]
    status = {i: "done" if i in done else "failed" for i in ids if i in done or i in failed}
    cells, lines, blocks = arrange(manifest, status)
    rows = store.rows((i for i in ids if i in done), UNREAD, categories=True)
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
        manifest,
        cells,
        lines,
        blocks,
        rows,
        {i: store.failure(i) for i in ids if status.get(i) == "failed"},
        {i: store.record(i) for i in ids if status.get(i) == "done"},
        store.features,
    )


def check_measurements(results: Results) -> None:
    """Raise MixedMeasurements if one image at one corruption (or edit), severity and seed was measured in two ways."""
    if not results.has("y_sha256"):
        return
    places = ["block", "column", "image_id", "seed"]
    columns = [*places, "y_sha256", "cell_id"]
    known = results.rows.loc[results.rows["y_sha256"].notna(), columns]
    kinds = known.drop_duplicates([*places, "y_sha256"])
    clashing = kinds.loc[kinds.duplicated(places, keep=False), places].drop_duplicates()
    if clashing.empty:
        return
    titles = {block.key: f"{block.title}, {block.axis}" for block in results.blocks}
    told = []
    for place, rows in known.merge(clashing.head(NAMED), on=places).groupby(places, sort=True, dropna=False):
        block, column, image, seed = place
        sources = "; ".join(
            f"{sha[:12]}… in {', '.join(sorted(part['cell_id'].unique()))}"
            for sha, part in rows.groupby("y_sha256", sort=True)
        )
        told.append(f"image {image}, {titles[block]} {column}, seed {seed}: {sources}")
    more = len(clashing) - len(told)
    raise MixedMeasurements(
        f"{len(clashing)} measurement(s) differ between cells that would be compared: {' | '.join(told)}"
        + (f" | and {more} more" if more else "")
    )
