"""Quality against the strictness of a certified field: the price of the certificate.

A field certified with K, the integral of k(t), stretches or squeezes distances in its gauge by at most e^K. So 2K
bounds the log of the flow's condition number. If a sweep restores with three or more certified models, the metric is
shown against 2K. Models without a constraint are shown beside the curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.columns import Metric
from reports.drawing import MARKERS, PALETTE, legend, literal, panels
from reports.results import Block, Line, Results
from reports.tables import MISSING, Entry, Group, Row, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 3
"""Number of certified models that a curve needs."""


@dataclass(frozen=True)
class Strict:
    """A line of the tables on one model. `rest` is the part of its title without the model."""

    line: Line
    model: str
    rest: str
    bound: float
    """2K, nominal if the model is not certified."""
    certified: bool


def strict_lines(results: Results) -> list[Strict]:
    """Return lines that ran on `LEAST` or more certified models of different K, by K; then those on other models."""
    if not {"K", "certified"} <= set(results.rows.columns) or results.guarantees:
        return []
    constants = results.rows.groupby("line", sort=False)[["K", "certified"]].first().dropna()
    found = []
    for line in results.lines:
        if line.key not in constants.index:
            continue
        bound, certified = (float(constants.at[line.key, name]) for name in ("K", "certified"))
        model = str(line.axes["model"]).replace("_", " ")  # as in the line's title
        rest = " · ".join(part for part in line.title.split(" · ") if part != model)
        found.append(Strict(line, model, rest, 2 * bound, certified == 1))
    found.sort(key=lambda strict: (not strict.certified, strict.bound if strict.certified else 0))
    curves: dict[str, set[float]] = {}
    for strict in found:
        curves.setdefault(strict.rest, set()).update({strict.bound} if strict.certified else ())
    return [strict for strict in found if len(curves[strict.rest]) >= LEAST]


def _names(lines: list[Strict]) -> dict[str, str]:
    """Return short names of the models, without their common beginning: `soft` for `digits inode soft`."""
    models = {strict.model for strict in lines}
    shared = f"{min(models, key=len)} "
    return {model: model.removeprefix(shared) for model in models}


def strictness_table(metric: Metric, lines: list[Strict], summary: pd.DataFrame, results: Results) -> Table:
    """Return a table with one group per way of restoring and one row per model: its bound, and the metric per block."""
    known = summary[summary["metric"] == metric.name].set_index(["line", "block", "column"])
    groups = []
    for rest in dict.fromkeys(strict.rest for strict in lines):
        rows = []
        for strict in (s for s in lines if s.rest == rest):
            bound = f"{strict.bound:.2f}" if strict.certified else f"({strict.bound:.2f})"
            hint = "certified" if strict.certified else "nominal: nothing enforces it"
            entries = [Entry(bound, strict.bound, hint=hint)]
            for block in results.blocks:
                place = (strict.line.key, block.key, block.shown)
                mean = float(known.at[place, "mean"]) if place in known.index else math.nan
                low, high = (
                    float(known.at[place, end]) if place in known.index else math.nan for end in ("low", "high")
                )
                entries.append(
                    Entry(f"{mean:{metric.digits}} ±{(high - low) / 2:{metric.digits}}", mean, low, high)
                    if math.isfinite(mean)
                    else Entry(MISSING, mark="missing")
                )
            rows.append(Row(strict.model, tuple(entries)))
        groups.append(
            Group(rest, ("2K", *(f"{b.title}, {b.axis} {b.shown}" for b in results.blocks)), tuple(rows), "model")
        )
    return Table(
        f"strictness_{metric.name}",
        f"Strictness of the constraint, and {metric.heading}",
        tuple(groups),
        (
            "2K bounds the log of the flow's condition number in the gauge, at any input.",
            "In brackets: nominal 2K of a field without a constraint.",
        ),
    )


def strictness_figure(metric: Metric, lines: list[Strict], summary: pd.DataFrame, results: Results) -> Figure:
    """Draw one panel per block: the metric with its 95 % interval against 2K, one line per way of restoring.

    Models that are not certified are open markers to the right of the curve.
    """
    known = summary[summary["metric"] == metric.name].set_index(["line", "block", "column"])
    ways = list(dict.fromkeys(strict.rest for strict in lines))
    names = _names(lines)
    free = list(dict.fromkeys(strict.model for strict in lines if not strict.certified))
    bounds = sorted({strict.bound for strict in lines if strict.certified})
    gap = (bounds[-1] - bounds[0]) / 7
    aside = {model: bounds[-1] + gap * (1.5 + i) for i, model in enumerate(free)}
    figure, axes = panels(len(results.blocks), 3.0, 3.0, legend=ways)
    for panel, block in zip(axes, results.blocks, strict=True):
        for i, way in enumerate(ways):
            color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
            for certified in (True, False):
                points = [
                    (strict.bound if certified else aside[strict.model], known.loc[place, ["mean", "low", "high"]])
                    for strict in lines
                    if strict.rest == way and strict.certified == certified
                    and (place := (strict.line.key, block.key, block.shown)) in known.index
                ]  # fmt: skip
                if not points:
                    continue
                x, y = [bound for bound, _ in points], [float(entry["mean"]) for _, entry in points]
                error = [
                    [v - float(e["low"]) for v, (_, e) in zip(y, points, strict=True)],
                    [float(e["high"]) - v for v, (_, e) in zip(y, points, strict=True)],
                ]
                panel.errorbar(
                    x, y, error, color=color, marker=marker, linestyle="-" if certified else "none", capsize=2,
                    markersize=5, elinewidth=0.8, label=way if certified else None,
                    **({} if certified else {"markerfacecolor": "white"}),
                )  # fmt: skip
        if free:
            panel.axvline(bounds[-1] + 0.75 * gap, color="#C4C8CC", linewidth=0.8)
        _ticks(panel, bounds, {aside[model]: names[model] for model in free})
        _head(panel, block, metric if panel is axes[0] else None)
    legend(figure, axes)
    return figure


def _ticks(panel: Axes, bounds: list[float], free: dict[float, str]) -> None:
    places = [*bounds, *free]
    panel.set_xticks(places, [*(f"{bound:.1f}" for bound in bounds), *map(literal, free.values())], fontsize=7)
    for label in panel.get_xticklabels()[len(bounds) :]:
        label.set(rotation=60, horizontalalignment="right", rotation_mode="anchor")


def _head(panel: Axes, block: Block, metric: Metric | None) -> None:
    panel.set_title(block.title)
    panel.set_xlabel("2K ≥ log of the condition number")
    if metric is not None:
        panel.set_ylabel(metric.axis)
