"""The numbers of every table and curve: one line per entry, with interval, missing parts and rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.columns import COSTS, LATENTS, OF_INPUT, SHARE, Metric
from reports.distances import DISTANCES
from reports.results import DAMAGED, Block, Cell, Line, Results, words
from reports.statistics import cluster_means, holm, interval, paired_difference, rank

if TYPE_CHECKING:
    import pandas as pd

INPUT = "input"
INPUT_TITLE = "input y (no restoration)"
EDIT_TITLE = "input (not edited)"
EXPLODED = 3.0


def summarise(results: Results) -> pd.DataFrame:
    """Return one row per (metric, line, block, column): mean, low, high, n and counts of missing parts, in table order.

    `mark` is best or second if the paired test confirms it (`reports.statistics.rank`). Every other whole entry has its
    difference to the leading one: `to_best*`, Holm's `p_holm`, the share of images on which it is better (`wins`) and
    Hedges' g. A distance between sets is one number for all images, without interval and rank.
    """
    import pandas as pd

    records: list[dict[str, Any]] = []
    rows = _Rows(results)
    for metric in results.metrics:
        for block in results.blocks:
            for column in block.columns:
                here = rows.columns.get((block.key, column))
                entries = [] if here is None else _input(metric, rows, here, block, column)
                expected = 0 if here is None else rows.expected(metric, here)
                for line in results.lines:
                    cells = results.by_key.get((line.key, block.key, column))
                    if cells is not None:
                        place = rows.entries.get((line.key, block.key, column))
                        entries.append(_entry(metric, line, block, column, cells, rows, place, expected))
                if here is not None and not metric.extractor:
                    _rank(metric, entries, rows, block, column)
                records.extend(entries)
    return pd.DataFrame.from_records(records, columns=COLUMNS)


class _Rows:
    """The rows as arrays [N], with images numbered in the order of their names. Thousands of pandas frames are slow."""

    def __init__(self, results: Results) -> None:
        import pandas as pd

        rows = results.rows
        self.results = results
        self.images: npt.NDArray[np.int64] = pd.factorize(rows["image_id"], sort=True)[0]
        self.seeds: npt.NDArray[np.int64] = pd.factorize(rows["seed"], use_na_sentinel=False)[0]
        outcome = rows["outcome"].to_numpy() if "outcome" in rows else np.full(len(rows), "ok")
        self.numerical = outcome != "ok"
        self.entries = _positions(rows, ["line", "block", "column"])
        self.columns = _positions(rows, ["block", "column"])
        self.known: dict[str, npt.NDArray[np.float64]] = {}

    def values(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self.known:
            rows = self.results.rows
            self.known[name] = rows[name].to_numpy(dtype=float) if name in rows else np.full(len(rows), np.nan)
        return self.known[name]

    def expected(self, metric: Metric, here: npt.NDArray[np.int64]) -> int:
        """Return how many images should have a value at a column: those for which any method has one or failed.

        Other images cannot have a value. For example, an edit of the whole image has no outside.
        """
        due = self.numerical[here] | (bool(metric.extractor) or ~np.isnan(self.values(metric.name)[here]))
        return len(np.unique(self.images[here][due]))

    def distance(self, metric: Metric, cells: Sequence[Cell]) -> tuple[float, int, int]:
        """Return (distance between sets, number of outputs, number of images) over all finite outputs of cells.

        Every truth counts once.
        """
        done = sorted(cell.id for cell in cells if cell.status == "done")
        outputs, truths, images = _pooled(self.results, metric.extractor, done)
        return DISTANCES[metric.distance](outputs, truths), len(outputs), images


def _positions(rows: pd.DataFrame, by: list[str]) -> dict[tuple[str, ...], npt.NDArray[np.int64]]:
    return dict(rows.groupby(by, sort=False).indices) if len(rows) else {}


def _pooled(results: Results, extractor: str, ids: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
    """Return the features of the outputs of cells and of their truths, both in the order of the images' names.

    The third value is the number of images that have outputs.
    """
    outputs: list[npt.NDArray[Any]] = []
    names: list[str] = []
    truths: dict[str, npt.NDArray[Any]] = {}
    for cell_id in ids:
        found = results.features(cell_id)
        if f"{extractor}_output" not in found:
            continue
        finite = np.isfinite(found[f"{extractor}_output"]).all(axis=1)
        outputs.append(found[f"{extractor}_output"][finite])
        names += found["ids"][finite].tolist()
        truths |= dict(zip(found["ids"].tolist(), found[f"{extractor}_truth"], strict=True))
    if not outputs:
        return np.zeros((0, 1)), np.zeros((0, 1)), 0
    known = [truth for _, truth in sorted(truths.items()) if np.isfinite(truth).all()]
    order = np.argsort(np.asarray(names), kind="stable")
    return np.concatenate(outputs)[order], np.stack(known) if known else np.zeros((0, 1)), len(set(names))


COLUMNS = [
    "metric", "line", "title", "method", "block", "block_title", "axis", "column", "mean", "low", "high", "n",
    "n_values", "n_numerical", "cells", "cells_done", "cells_failed", "failure", "partial", "mark", "to_best",
    "to_best_low", "to_best_high", "p_holm", "wins", "hedges_g",
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


def _mean(metric: Metric, values: npt.NDArray[np.float64], images: npt.NDArray[np.int64]) -> dict[str, Any]:
    found = interval(cluster_means(values, images), share=metric.unit == SHARE)
    count = int((~np.isnan(values)).sum())
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n, "n_values": count}


def _above_floor(metric: Metric, value: Any) -> Any:
    return np.maximum(value, metric.floor) if metric.floor else value


def _input(metric: Metric, rows: _Rows, here: npt.NDArray[np.int64], block: Block, column: str) -> list[dict[str, Any]]:
    """Return the entry of the methods' input. All methods share it, so each (image, seed) counts once."""
    values = rows.values(f"{OF_INPUT}{metric.name}")
    known = here[~np.isnan(values[here])]
    if not len(known):
        return []
    _, first = np.unique(rows.images[known] * (rows.seeds.max() + 1) + rows.seeds[known], return_index=True)
    once = known[first]
    entry = _blank(metric, block, column) | _mean(metric, values[once], rows.images[once])
    title = EDIT_TITLE if rows.results.edits else INPUT_TITLE
    return [entry | {"line": INPUT, "title": title, "method": INPUT, "cells": 0, "cells_done": 0}]


def _entry(
    metric: Metric,
    line: Line,
    block: Block,
    column: str,
    cells: list[Cell],
    rows: _Rows,
    place: npt.NDArray[np.int64] | None,
    expected: int,
) -> dict[str, Any]:
    """Return one entry. `place`: its rows; `expected`: how many images should have a value at this column."""
    failures = rows.results.failures
    failed = [cell.id for cell in cells if cell.status in ("failed", DAMAGED)]
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
    if place is None:
        return entry
    whole = expected * len(np.unique(rows.seeds[place]))
    if metric.extractor:
        value, count, images = rows.distance(metric, cells)
        entry |= {"mean": value, "n": images if not math.isnan(value) else 0, "n_values": count}
    else:
        entry |= _mean(metric, rows.values(metric.name)[place], rows.images[place])
    partial = entry["n"] > 0 and (done < len(cells) or entry["n_values"] < whole)
    return entry | {"n_numerical": int(rows.numerical[place].sum()), "partial": bool(partial)}


SAME = "same"
"""Value of an axis in a manifest's `reference`: each line is compared at its own value of that axis."""


def effects(results: Results) -> pd.DataFrame:
    """Return one row per (metric, line, block, column) that has a reference line in the manifest.

    A row has the mean difference to the reference with its interval, n, Hedges' g and the p-value of Wilcoxon's test,
    Holm over a column. The frame is empty without a reference. `comparison` is the number of the reference, from 0.
    """
    import pandas as pd

    references = results.manifest.get("reference") or ()
    records: list[dict[str, Any]] = []
    rows = _Rows(results)
    for number, axes in enumerate([references] if isinstance(references, Mapping) else references):
        wanted = {axis: words(value) for axis, value in axes.items()}
        pairs = {line.key: found for line in results.lines if (found := _reference(line, wanted, results.lines))}
        for metric in results.metrics if pairs else ():
            if metric.extractor:
                continue
            for block in results.blocks:
                for column in block.columns:
                    entries = _against(metric, pairs, block, column, rows)
                    records += [record | {"comparison": number} for record in entries]
    return pd.DataFrame.from_records(records, columns=EFFECTS)


def _reference(line: Line, wanted: Mapping[str, str], lines: Sequence[Line]) -> Line | None:
    """Return the reference of a line: the first line with the wanted axis values, or None."""
    own = {axis: words(line.axes.get(axis)) if value == SAME else value for axis, value in wanted.items()}
    found = (other for other in lines if own and all(words(other.axes.get(a)) == v for a, v in own.items()))
    return next(found, None)


EFFECTS = [
    "comparison", "metric", "line", "block", "column", "reference", "mean", "low", "high", "n", "partial", "hedges_g",
    "p_holm",
]  # fmt: skip


def _against(metric: Metric, pairs: Mapping[str, Line], block: Block, column: str, rows: _Rows) -> list[dict[str, Any]]:
    """Return the differences of the entries of one column to their references, paired by image."""
    known: dict[str, dict[int, float]] = {}

    def means(key: str) -> dict[int, float]:
        if key not in known:
            place = rows.entries.get((key, block.key, column))
            values, images = (
                (np.zeros(0), np.zeros(0, int))
                if place is None
                else (rows.values(metric.name)[place], rows.images[place])
            )
            there = ~np.isnan(values)
            averages = cluster_means(values[there], images[there]) if there.any() else np.zeros(0)
            known[key] = dict(zip(np.unique(images[there]).tolist(), averages.tolist(), strict=True))
        return known[key]

    records: list[dict[str, Any]] = []
    for line in rows.results.lines:
        reference = pairs.get(line.key)
        if reference is None or line.key == reference.key:
            continue
        base, mine = means(reference.key), means(line.key)
        shared = sorted(base.keys() & mine.keys())
        if len(shared) < 2:
            continue
        gap = paired_difference([mine[i] for i in shared], [base[i] for i in shared])
        due = rows.expected(metric, rows.columns[block.key, column])
        records.append(
            {
                "metric": metric.name, "line": line.key, "block": block.key, "column": column,
                "reference": reference.title, "mean": gap.interval.mean, "low": gap.interval.low,
                "high": gap.interval.high, "n": len(shared), "partial": len(shared) < due,
                "hedges_g": gap.effect, "p_holm": gap.p,
            }
        )  # fmt: skip
    for record, p in zip(records, holm([record["p_holm"] for record in records]), strict=True):
        record["p_holm"] = p
    return records


def _rank(metric: Metric, entries: list[dict[str, Any]], rows: _Rows, block: Block, column: str) -> None:
    """Rank entries that are whole. A method that failed on the hard images would look too good."""
    whole = [e for e in entries if e["line"] != INPUT and e["n"] and not e["partial"]]
    if len(whole) < 2:
        return
    places = [rows.entries[e["line"], block.key, column] for e in whole]
    names = np.unique(np.concatenate([rows.images[place] for place in places]))
    scores = np.full((len(whole), len(names)), np.nan)
    for row, place in zip(scores, places, strict=True):
        values, images = rows.values(metric.name)[place], rows.images[place]
        known = ~np.isnan(values)
        row[np.searchsorted(names, np.unique(images[known]))] = cluster_means(values[known], images[known])
    ranking = rank(_above_floor(metric, scores), metric.higher_is_better)
    for index, mark in ranking.marks.items():
        whole[index]["mark"] = mark
    for index, difference, p in zip(ranking.order[1:], ranking.differences, ranking.adjusted, strict=True):
        found = difference.interval
        whole[index] |= {
            "to_best": found.mean,
            "to_best_low": found.low,
            "to_best_high": found.high,
            "p_holm": p,
            "wins": difference.wins if metric.higher_is_better else 1 - difference.wins,
            "hedges_g": difference.effect,
        }


MEASURED = (*COSTS, *LATENTS)
"""Columns whose means are in the tables of costs and latents."""


def _of_the_prior(rows: pd.DataFrame) -> pd.DataFrame:
    """Remove the latents of inversions that stop before the noise: they are still partly an image.

    Rows without the column `walked` count as complete inversions.
    """
    if "walked" not in rows:
        return rows
    return rows.assign(**{name: rows[name].where(rows["walked"].fillna(1) == 1) for name in LATENTS if name in rows})


def _lost(rows: pd.DataFrame) -> int:
    """Return how many latents of complete inversions are not finite."""
    reached = rows["walked"].fillna(1) == 1 if "walked" in rows else True
    return int((rows["latent_std"].isna() & reached).sum()) if "latent_std" in rows else 0


def _seconds(rows: pd.DataFrame) -> tuple[float, float]:
    """Return (seconds per image of the median cell, time of an evaluation in slow cells divided by that in fast cells).

    Slow and fast are the 90 % and the 10 % quantile. The median is taken since other work on a machine only adds time.
    """
    known = rows[rows["seconds"].notna()] if "seconds" in rows else rows[:0]
    if known.empty:
        return math.nan, math.nan
    cells = known.astype({"seconds": float, "nfe": float}).groupby("cell_id", sort=False)[["seconds", "nfe"]].mean()
    each = (cells["seconds"] / cells["nfe"].clip(lower=1)).to_numpy()
    low, high = np.quantile(each, [0.1, 0.9])
    return float(cells["seconds"].median()), float(high / low) if low > 0 else math.nan


def costs(results: Results) -> pd.DataFrame:
    """Return one row per line of the tables: its costs over all finished cells, and the scale of its latents."""
    import pandas as pd

    records: list[dict[str, Any]] = []
    table = _of_the_prior(results.rows)
    for line in results.lines:
        rows = table[table["line"] == line.key]
        record: dict[str, Any] = {"line": line.key, "title": line.title, "method": line.method}
        record["model"] = words_of(cell.axes.get("model") for cell in results.cells if cell.key[0] == line.key)
        for name in MEASURED:
            record[name] = float(rows[name].astype(float).mean()) if name in rows and len(rows) else math.nan
        record["seconds"], record["unsteady"] = _seconds(rows)
        flag = latent_flag(record["latent_std"], _lost(rows))
        record["flag"] = f"latent {flag}" if flag else ""
        cells = [cell for cell in results.cells if cell.key[0] == line.key]
        record |= {"cells": len(cells), "cells_done": sum(c.status == "done" for c in cells), "n_values": len(rows)}
        records.append(record)
    return pd.DataFrame.from_records(records)


def latent_flag(std: float, lost: int) -> str:
    """Return "exploded" or "collapsed" if latents have left the scale of their prior, else "".

    `std`: mean standard deviation; `lost`: number of latents that are not finite.
    """
    if math.isnan(std):
        return ""
    return "exploded" if std > EXPLODED or lost else "collapsed" if std < 1 / EXPLODED else ""


def entry_costs(results: Results) -> pd.DataFrame:
    """Return one row per (line, block, column) with the means of `costs`, for sweeps where they depend on the steps."""
    import pandas as pd

    table = _of_the_prior(results.rows)
    numbers = table.reindex(columns=list(MEASURED)).astype(float)
    groups = numbers.groupby([table[name] for name in ("line", "block", "column")], sort=False)
    means = {key: dict(row) for key, row in groups.mean().iterrows()}
    sizes = groups.size().to_dict()
    lost = {key: _lost(table.loc[places]) for key, places in groups.groups.items()}
    blank = dict.fromkeys(MEASURED, math.nan)
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
                record["flag"] = latent_flag(record["latent_std"], lost.get(key, 0))
                record |= {"cells": len(cells), "cells_done": sum(c.status == "done" for c in cells)}
                records.append(record | {"n_values": sizes.get(key, 0)})
    return pd.DataFrame.from_records(records)


def words_of(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))
