"""The numbers behind every table and curve: one line an entry, with its interval, its gaps and its rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reports.results import Block, Cell, Line, Metric, Results
from reports.statistics import bootstrap, cluster_means, holm, paired_difference

if TYPE_CHECKING:
    import pandas as pd

INPUT = "input"
INPUT_TITLE = "input y (no restoration)"
LEVEL = 0.05
EXPLODED = 3.0


def summarise(results: Results) -> pd.DataFrame:
    """A line a (metric, line, block, column): mean, low, high, n and what is missing, in the order of the tables.

    `mark` is best or second where the paired test holds it (see `_rank`), `to_best*` and `p_holm` compare the entry
    with the highest ranked one on the images of both.
    """
    import pandas as pd

    records: list[dict[str, Any]] = []
    by_entry = {
        key: _part(rows, results.metrics) for key, rows in results.rows.groupby(["line", "block", "column"], sort=False)
    }
    by_column = dict(iter(results.rows.groupby(["block", "column"], sort=False)))
    images_of = {key: rows["image_id"].nunique() for key, rows in by_column.items()}
    for metric in results.metrics:
        for block in results.blocks:
            for column in block.columns:
                shared = by_column.get((block.key, column))
                entries = [] if shared is None else _input(metric, shared, block, column)
                images: dict[str, dict[str, float]] = {}
                for line in results.lines:
                    cells = results.by_key.get((line.key, block.key, column))
                    if cells is None:
                        continue
                    part = by_entry.get((line.key, block.key, column))
                    expected = images_of.get((block.key, column), 0)
                    record = _entry(metric, line, block, column, cells, part, expected, results.failures)
                    entries.append(record)
                    if part is not None and not record["partial"] and record["n"]:
                        by_image = _by_image(part.values[metric.name], part.images)
                        images[line.key] = {name: _above_floor(metric, value) for name, value in by_image.items()}
                _rank(metric, entries, images)
                records.extend(entries)
    return pd.DataFrame.from_records(records, columns=COLUMNS)


@dataclass(frozen=True)
class _Part:
    """The rows of one entry as arrays [N]: pandas is slow at thousands of small frames."""

    images: npt.NDArray[Any]
    values: Mapping[str, npt.NDArray[np.float64]]
    seeds: int
    numerical: int


def _part(rows: pd.DataFrame, metrics: Sequence[Metric]) -> _Part:
    return _Part(
        rows["image_id"].to_numpy(dtype=str),
        {metric.name: rows[metric.name].to_numpy(dtype=float) for metric in metrics},
        rows["seed"].nunique(dropna=False),
        int((rows["outcome"] != "ok").sum()) if "outcome" in rows else 0,
    )


COLUMNS = [
    "metric", "line", "title", "method", "block", "block_title", "axis", "column", "mean", "low", "high", "n",
    "n_values", "n_numerical", "cells", "cells_done", "cells_failed", "failure", "partial", "mark", "to_best",
    "to_best_low", "to_best_high", "p_holm",
]  # fmt: skip


def _blank(metric: Metric, block: Block, column: str) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "block": block.key,
        "block_title": block.title,
        "axis": block.axis,
        "column": column,
        "cells_failed": 0,
        "failure": "",
        "n_numerical": 0,
        "partial": False,
        "mark": "",
    }


def _mean(values: npt.NDArray[np.float64], images: npt.NDArray[Any]) -> dict[str, Any]:
    interval = bootstrap(values, images)
    count = int((~np.isnan(values)).sum())
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n, "n_values": count}


def _by_image(values: npt.NDArray[np.float64], images: npt.NDArray[Any]) -> dict[str, float]:
    """Image -> mean over its seeds."""
    known = ~np.isnan(values)
    names = images[known]
    means = cluster_means(values[known], names)
    return dict(zip(sorted(set(names.tolist())), means.tolist(), strict=True))


def _above_floor(metric: Metric, value: float) -> float:
    return max(value, metric.floor) if metric.floor else value


def _input(metric: Metric, rows: pd.DataFrame, block: Block, column: str) -> list[dict[str, Any]]:
    """The measurement itself as a restoration; the methods share it, so each (image, seed) counts once."""
    name = f"input_{metric.name}"
    if name not in rows or not rows[name].notna().any():
        return []
    once = rows[rows[name].notna()].drop_duplicates(["image_id", "seed"])
    entry = _blank(metric, block, column) | _mean(
        once[name].to_numpy(dtype=float), once["image_id"].to_numpy(dtype=str)
    )
    return [entry | {"line": INPUT, "title": INPUT_TITLE, "method": INPUT, "cells": 0, "cells_done": 0}]


def _entry(
    metric: Metric,
    line: Line,
    block: Block,
    column: str,
    cells: list[Cell],
    part: _Part | None,
    expected: int,
    failures: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    failed = [cell.id for cell in cells if cell.status == "failed"]
    done = sum(cell.status == "done" for cell in cells)
    entry = _blank(metric, block, column) | {
        "line": line.key,
        "title": line.title,
        "method": line.method,
        "cells": len(cells),
        "cells_done": done,
        "cells_failed": len(failed),
        "failure": ", ".join(sorted({str(failures[i].get("class", "unknown")) for i in failed})),
        "mean": math.nan,
        "low": math.nan,
        "high": math.nan,
        "n": 0,
        "n_values": 0,
    }
    if part is None:
        return entry
    # Images that any method has at this column are what this one should have too, for each of its seeds.
    whole = expected * part.seeds
    entry |= _mean(part.values[metric.name], part.images)
    partial = entry["n"] > 0 and (done < len(cells) or entry["n_values"] < whole)
    return entry | {"n_numerical": part.numerical, "partial": bool(partial)}


def _rank(metric: Metric, entries: list[dict[str, Any]], images: Mapping[str, dict[str, float]]) -> None:
    """Mark the best if it beats every other line, and then the second if it beats the rest (Wilcoxon, Holm, 5 %).

    Only whole entries are ranked: a method that failed on the hard images would look better than it is.
    """
    by_line = {entry["line"]: entry for entry in entries}
    sign = -1 if metric.higher_is_better else 1
    ranking = sorted(images, key=lambda line: sign * by_line[line]["mean"])
    for position, mark in enumerate(("best", "second")):
        if len(ranking) < position + 2:
            return
        leader, others = ranking[position], ranking[position + 1 :]
        differences = []
        for other in others:
            both = sorted(images[other].keys() & images[leader].keys())
            a, b = ([images[line][image] for image in both] for line in (other, leader))
            differences.append(paired_difference(a, b))
        adjusted = holm([difference.p for difference in differences])
        if position == 0:
            for other, difference, p in zip(others, differences, adjusted, strict=True):
                interval = difference.interval
                by_line[other] |= {
                    "to_best": interval.mean,
                    "to_best_low": interval.low,
                    "to_best_high": interval.high,
                    "p_holm": p,
                }
        if max(adjusted) >= LEVEL:
            return
        by_line[leader]["mark"] = mark


COSTS = ("nfe", "nfe_grad", "seconds", "peak_mib", "state_bytes", "latent_std", "latent_kurtosis")


def costs(results: Results) -> pd.DataFrame:
    """A line a method: means of what it costs over all finished cells, and how wide its latents are."""
    import pandas as pd

    records: list[dict[str, Any]] = []
    for line in results.lines:
        rows = results.rows[results.rows["line"] == line.key]
        record: dict[str, Any] = {"line": line.key, "title": line.title, "method": line.method}
        record["model"] = words_of(cell.axes.get("model") for cell in results.cells if cell.key[0] == line.key)
        for name in COSTS:
            record[name] = float(rows[name].astype(float).mean()) if name in rows and len(rows) else math.nan
        std = record["latent_std"]
        flag = latent_flag(std, 0 if math.isnan(std) else int(rows["latent_std"].isna().sum()))
        record["flag"] = f"latent {flag}" if flag else ""
        cells = [cell for cell in results.cells if cell.key[0] == line.key]
        record |= {"cells": len(cells), "cells_done": sum(c.status == "done" for c in cells), "n_values": len(rows)}
        records.append(record)
    return pd.DataFrame.from_records(records)


def latent_flag(std: float, lost: int) -> str:
    """exploded or collapsed where latents have left the scale of their prior: their mean std, and how many have none
    because they were not finite."""
    if math.isnan(std):
        return ""
    return "exploded" if std > EXPLODED or lost else "collapsed" if std < 1 / EXPLODED else ""


def entry_costs(results: Results) -> pd.DataFrame:
    """A line a (line, block, column): the same means as `costs`, where they depend on the steps."""
    import pandas as pd

    numbers = results.rows.reindex(columns=list(COSTS)).astype(float)
    groups = numbers.groupby([results.rows[name] for name in ("line", "block", "column")], sort=False)
    means = {key: dict(row) for key, row in groups.mean().iterrows()}
    sizes, known = groups.size().to_dict(), groups["latent_std"].count().to_dict()
    blank = dict.fromkeys(COSTS, math.nan)
    records: list[dict[str, Any]] = []
    for block in results.blocks:
        for line in results.lines:
            for column in block.columns:
                key = (line.key, block.key, column)
                cells = results.by_key.get(key)
                if cells is None:
                    continue
                record: dict[str, Any] = {"line": line.key, "title": line.title, "method": line.method}
                record |= {"block": block.key, "axis": block.axis, "column": column, **means.get(key, blank)}
                record["flag"] = latent_flag(record["latent_std"], sizes.get(key, 0) - known.get(key, 0))
                record |= {"cells": len(cells), "cells_done": sum(c.status == "done" for c in cells)}
                records.append(record | {"n_values": sizes.get(key, 0)})
    return pd.DataFrame.from_records(records)


def words_of(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))
