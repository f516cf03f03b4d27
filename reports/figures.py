"""Figures of a restoration or an edit: curves, quality against cost, performance profiles, single images.

`reports.drawing` decides which lines are coloured, and writes files that are the same in every build.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.columns import COSTS, Metric
from reports.drawing import (
    ALIKE,
    GREY,
    INPUT_COLOUR,
    LABEL,
    PALETTE,
    TICK,
    End,
    Looks,
    draw_line,
    ink,
    legend,
    literal,
    name_ends,
    panels,
    plain_ticks,
    ranked_lines,
)
from reports.results import Results
from reports.statistics import performance_profile
from reports.summary import INPUT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Images = npt.NDArray[np.float64]  # one value per image, nan if there is none
WIDE, TALL = 4.9, 3.6  # inches of a panel with many lines
NAMED = 24  # with more points than this, only those in colour have names
DRAWS = 1000  # bootstrap samples of a profile's band


def curves(metric: Metric, summary: pd.DataFrame, results: Results, looks: Looks) -> Figure:
    """Draw the metric against severity (or steps): one panel per block, one line with 95 % band per method."""
    chosen = summary[(summary["metric"] == metric.name) & np.isfinite(summary["mean"])]
    crowded = looks.crowded
    given = next(iter(chosen.loc[chosen["line"] == INPUT, "title"]), "")
    titles = [*looks.titles.values(), given]
    width, height, most = (WIDE, TALL, 2) if crowded else (3.0, 2.7, 4)
    figure, axes = panels(len(results.blocks), width, height, most, () if crowded else titles)
    band = 0.15 if len(looks.titles) <= 5 else 0.1
    for panel, block in zip(axes, results.blocks, strict=True):
        part = chosen[chosen["block"] == block.key]
        x = np.arange(len(block.columns))
        ends: list[End] = []
        for key in reversed([*looks.by_line, INPUT]):  # the best is drawn last, on top
            points = part[part["line"] == key]
            if points.empty:
                continue
            # A missing cell leaves a gap in the line.
            whole = points.set_index("column").reindex(block.columns)
            look = looks.by_line[key] if key in looks.coloured else None
            if key == INPUT:
                panel.plot(x, whole["mean"], color=INPUT_COLOUR, linestyle="--", linewidth=1.3, label=given)
            else:
                draw_line(panel, x, whole["mean"], look, looks.titles[key])
            if look is not None:
                panel.fill_between(x, whole["low"], whole["high"], color=look.color, alpha=band, linewidth=0, zorder=1)
            last = int(np.flatnonzero(whole["mean"].notna().to_numpy())[-1])
            name = given.split(" (")[0] if key == INPUT else looks.titles[key]
            ends.append(End(float(x[last]), float(whole["mean"].iloc[last]), name, ink(look)))
        panel.set_title(block.title)
        panel.locator_params(axis="y", nbins=6)
        panel.set_xlabel(block.axis)
        panel.set_xticks(x, [literal(column, TICK) for column in block.columns])
        panel.set_xlim(-0.15 if crowded else -0.25, len(x) - (1 if crowded else 0.75))
        if part["mean"].gt(0).all() and metric.digits.endswith("e") and len(part):
            panel.set_yscale("log")
        panel.set_ylim(panel.get_ylim())
        if crowded:
            name_ends(panel, ends, height - 0.7)
    for panel in axes[::most]:
        panel.set_ylabel(fill(metric.axis, 26))
    if not crowded:
        legend(figure, axes, backwards=True)
    return figure


def intervals(metric: Metric, summary: pd.DataFrame, results: Results, looks: Looks) -> Figure:
    """Draw blocks of one column each: one panel per block, one row with 95 % interval per method, the input dashed."""
    chosen = summary[(summary["metric"] == metric.name) & np.isfinite(summary["mean"])]
    order = ranked_lines(metric, summary)
    names = [fill(looks.titles[key], 44) for key in order]
    row_height = 0.06 + 0.14 * max((name.count("\n") + 1 for name in names), default=1)
    figure, axes = panels(len(results.blocks), 2.9, 0.9 + row_height * len(order), 4)
    for i, (panel, block) in enumerate(zip(axes, results.blocks, strict=True)):
        part = chosen[chosen["block"] == block.key].set_index("line")
        for row, key in enumerate(order):
            if key not in part.index:
                continue
            entry, look = part.loc[key], looks.by_line[key] if key in looks.coloured else None
            panel.plot([entry["low"], entry["high"]], [row, row], color=ink(look), linewidth=1.6, alpha=0.55)
            panel.plot(
                entry["mean"], row, color=ink(look), marker=look.marker if look else "o", markersize=6 if look else 4,
                markeredgecolor="white", markeredgewidth=0.6,
            )  # fmt: skip
        if INPUT in part.index:
            panel.axvline(part.loc[INPUT, "mean"], color=INPUT_COLOUR, linestyle="--", linewidth=1.1, zorder=1)
        panel.set_title(
            f"{block.title}, {block.axis} {literal(block.columns[0], TICK)}" if block.columns else block.title
        )
        panel.set_ylim(len(order) - 0.4, -0.6)  # the best on top
        panel.set_yticks(range(len(order)), names if i % 4 == 0 else [""] * len(names))
        panel.grid(visible=False, axis="y")
        if part["mean"].gt(0).all() and metric.digits.endswith("e") and len(part):
            panel.set_xscale("log")
        else:
            panel.locator_params(axis="x", nbins=5)
        panel.margins(x=0.08)
        panel.set_xlabel(fill(metric.axis, 34))
    return figure


# --- quality against cost ------------------------------------------------------------------------------------------


def shared_columns(metric: Metric, summary: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """Return (entries, shared columns, all columns): the entries at columns where every method has a whole entry.

    Means over different columns, or over only the images that a method solved, would compare different problems.
    Methods without any entry do not count.
    """
    chosen = summary[(summary["metric"] == metric.name) & (summary["line"] != INPUT)]
    places = chosen.groupby(["block", "column"], sort=False).ngroups
    known = chosen[np.isfinite(chosen["mean"]) & ~chosen["partial"].astype(bool)]
    have = known.groupby(["block", "column"], sort=False)["line"].transform("nunique")
    shared = known[have == known["line"].nunique()]
    return shared, shared.groupby(["block", "column"], sort=False).ngroups, places


def pareto(metric: Metric, summary: pd.DataFrame, costs: pd.DataFrame, looks: Looks) -> Figure:
    """Draw the mean metric against NFE and against seconds; a staircase joins the methods that none beats in both."""
    shared, columns, places = shared_columns(metric, summary)
    means = shared.groupby("line", sort=False)["mean"].mean()
    table = costs.set_index("line")
    figure, axes = panels(2, 4.9, 4.2, 2)
    for panel, cost in zip(axes, (COSTS["nfe"], COSTS["seconds"]), strict=True):
        points: dict[str, tuple[float, float]] = {}
        for key in reversed(looks.by_line):
            x, y = float(table.at[key, cost.name]), float(means.get(key, math.nan))
            if not (math.isfinite(x) and math.isfinite(y) and x > 0):
                continue
            points[key] = (x, y)
            look = looks.by_line[key] if key in looks.coloured else None
            panel.plot(
                x, y, linestyle="none", markeredgecolor="white", zorder=3 if look else 2,
                **({"color": look.color, "marker": look.marker, "markersize": 8} if look
                   else {"color": GREY, "marker": "o", "markersize": 5.5}),
            )  # fmt: skip
        front = _staircase(panel, list(points.values()), metric.higher_is_better)
        free = [
            looks.titles[key] for key in looks.by_line if float(table.at[key, cost.name]) == 0 and key in means.index
        ]
        panel.set_xlabel("\n".join([cost.axis, *(fill(f"0, not shown: {name}", 60) for name in free)]))
        panel.margins(0.12)
        if points:
            panel.set_xscale("log")
            plain_ticks(panel, [x for x, _ in points.values()])
            _name_points(panel, points, front, looks, (4.1, 3.5))
    axes[0].set_ylabel(fill(f"{metric.axis}, mean over {columns} of {places} columns", 52))
    return figure


def _staircase(panel: Axes, points: Sequence[tuple[float, float]], higher: bool) -> list[tuple[float, float]]:
    """Draw the staircase of the best points and return its corners."""
    sign = 1 if higher else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    if len(front) > 1:
        panel.step(*zip(*front, strict=True), where="post", color="#BBBBBB", linewidth=1.2, zorder=1)
    inner = [(x, before) for (_, before), (x, _) in pairwise(front)]
    return [corner for pair in zip_longest(front, inner) for corner in pair if corner is not None]


def _name_points(
    panel: Axes, points: dict[str, tuple[float, float]], front: Sequence[tuple[float, float]], looks: Looks,
    inches: tuple[float, float],
) -> None:  # fmt: skip
    """Write each point's name at the nearest place that covers no point, no other name and no step of the staircase."""
    panel.set_xlim(panel.get_xlim())
    panel.set_ylim(panel.get_ylim())
    to_axes = panel.transData + panel.transAxes.inverted()
    size = np.array(inches) * 72  # size of the panel in points (1/72 inch), roughly
    dots = {key: np.asarray(to_axes.transform(point)) * size for key, point in points.items()}
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots.values()]
    corners = [np.asarray(to_axes.transform(corner)) * size for corner in front]
    taken += [(*(np.minimum(a, b) - 1), *(np.maximum(a, b) + 1)) for a, b in pairwise(corners)]
    for key in looks.by_line if len(dots) <= NAMED else looks.coloured:  # the best methods get the best places
        if key not in dots:
            continue
        is_coloured = key in looks.coloured
        font = LABEL + 0.7 * is_coloured
        width, height = 0.56 * font * len(looks.titles[key]) + 2, 1.2 * font
        dot = dots[key]
        corner, reach = _free_place(dot, (width, height), taken, (float(size[0]), float(size[1])))
        taken.append((corner[0], corner[1], corner[0] + width, corner[1] + height))
        color = looks.by_line[key].color if is_coloured else "#6B7177"
        middle = (corner + np.array([width / 2, height / 2])) / size
        panel.text(
            middle[0], middle[1], looks.titles[key], transform=panel.transAxes, fontsize=font, color=color, ha="center",
            va="center", zorder=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
        if reach > 8:
            near = np.clip(dot, corner, corner + np.array([width, height]))
            panel.plot(
                *zip(dot / size, near / size, strict=True),
                transform=panel.transAxes,
                color=color,
                linewidth=0.5,
                zorder=1.5,
            )


def _free_place(
    dot: npt.NDArray[np.float64], box: tuple[float, float], taken: Sequence[tuple[float, float, float, float]],
    size: tuple[float, float],
) -> tuple[npt.NDArray[np.float64], float]:  # fmt: skip
    """Return (lower left corner of a name, its distance from the dot), both in points (1/72 inch)."""
    width, height = box
    best: tuple[float, npt.NDArray[np.float64], float] | None = None
    for reach in (6, 12, 20, 30, 42, 56, 72):
        for angle in np.radians([0, 180, 90, 270, 45, 135, 225, 315, 20, 160, 200, 340]):
            across, up = math.cos(angle), math.sin(angle)
            middle = dot + np.array([across * (reach + width / 2), up * (reach + height / 2)])
            corner = middle - np.array([width / 2, height / 2])
            x0, y0, x1, y1 = corner[0], corner[1], corner[0] + width, corner[1] + height
            outside = max(0.0, -x0) + max(0.0, -y0) + max(0.0, x1 - size[0]) + max(0.0, y1 - size[1])
            covered = sum(
                max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, top) - max(y0, low))
                for left, low, right, top in taken
            )
            cost = covered + 50 * outside
            if best is None or cost < best[0] - 1e-9:
                best = (cost, corner, float(reach))
            if cost == 0:
                return corner, float(reach)
    assert best is not None
    return best[1], best[2]


# --- image by image ------------------------------------------------------------------------------------------------


def by_image(metric: Metric, results: Results) -> pd.DataFrame:
    """Return the metric of every image, averaged over seeds: columns line, block, column, image_id and value.

    An image whose output was not finite has the worst value, an infinite one: the method tried and failed.
    """
    import pandas as pd

    places = ["line", "block", "column", "image_id"]
    if metric.name not in results.rows:
        return pd.DataFrame(columns=[*places, "value"])
    rows, values = results.rows[places], results.rows[metric.name].astype(float)
    diverged = results.rows["outcome"] != "ok" if "outcome" in results.rows else values.isna() & False
    values = values.mask(diverged & values.isna(), -math.inf if metric.higher_is_better else math.inf)
    known = values.notna()
    means = values[known].groupby([rows.loc[known, place] for place in places], sort=False, observed=True).mean()
    return means.rename("value").reset_index()


def profiles(metric: Metric, scores: pd.DataFrame, results: Results, looks: Looks) -> Figure:
    """Draw the share of images that reach each value, over all columns of a block (score distributions, Agarwal et al.
    2021).

    `scores` comes from `by_image`. Bands: 95 % bootstrap that draws images, each with all its columns.
    """
    labels = [looks.titles[key] for key in looks.coloured]
    figure, axes = panels(len(results.blocks), 4.2, 3.1, 2, [*labels, "other methods"])
    for panel, block in zip(axes, results.blocks, strict=True):
        part = scores[scores["block"] == block.key]
        panel.set_title(block.title)
        panel.set_xlabel(fill(f"{metric.axis}: {'at least' if metric.higher_is_better else 'at most'}", 44))
        if not np.isfinite(part["value"]).any():
            continue
        table = part.pivot(index=["image_id", "column"], columns="line", values="value")
        table = table.dropna() if len(table.dropna()) else table  # so all methods have the same problems
        low, high = np.nanquantile(table.where(np.isfinite(table)).to_numpy(), [0.002, 0.998])
        levels = np.linspace(low, high, 120)
        images = table.index.get_level_values("image_id").astype(str).to_numpy()
        for key in reversed(looks.by_line):
            if key not in table:
                continue
            values = table[key].to_numpy(dtype=float)
            known = ~np.isnan(values)
            (share,) = performance_profile([values[known]], levels, metric.higher_is_better)
            if key not in looks.coloured:
                panel.plot(levels, share, color=GREY, linewidth=1.0, label="other methods", zorder=1.6)
                continue
            look = looks.by_line[key]
            lower, upper = _profile_band(_solved(values[known], levels, metric.higher_is_better), images[known])
            panel.fill_between(levels, lower, upper, color=look.color, alpha=0.1, linewidth=0, zorder=1)
            panel.plot(
                levels, share, color=look.color, linestyle=look.linestyle, marker=look.marker,
                markevery=(4, 17), markeredgecolor="white", markeredgewidth=0.6, label=looks.titles[key],
            )  # fmt: skip
        panel.set_ylim(-0.02, 1.02)
        panel.set_xlim(low, high)
    for panel in axes[::2]:
        panel.set_ylabel("share of images")
    legend(figure, axes, backwards=True)
    return figure


def _solved(values: Images, levels: Images, higher: bool) -> npt.NDArray[np.bool_]:
    """Return whether each value reaches each level: [images, levels]."""
    return values[:, None] >= levels if higher else values[:, None] <= levels


def _profile_band(solved: npt.NDArray[np.bool_], images: npt.NDArray[Any]) -> tuple[Images, Images]:
    """Return both ends of the 95 % interval, [levels] each. Images are drawn with replacement, in chunks of draws."""
    names, index = np.unique(images, return_inverse=True)
    first = np.searchsorted(np.sort(index), np.arange(len(names)))
    totals = np.add.reduceat(solved[np.argsort(index, kind="stable")].astype(float), first)
    sizes, n, rng = np.bincount(index), len(names), np.random.default_rng(0)
    chunk, shares = max(1, 1_000_000 // n), []
    for start in range(0, DRAWS, chunk):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(chunk, DRAWS - start))
        shares.append((weights @ totals) / (weights @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(shares), [0.025, 0.975], axis=0)
    return low, high


def scatter(metric: Metric, scores: pd.DataFrame, summary: pd.DataFrame, results: Results, looks: Looks) -> Figure:
    """Draw each image as a point: the leading method against its best rival per block; shade and marker: column."""
    leader = looks.coloured[0]
    figure, axes = panels(len(results.blocks), 3.1, 3.2, 4)
    for panel, block in zip(axes, results.blocks, strict=True):
        panel.set_title(block.title)
        rival = _rival(metric, summary, block.key, leader)
        part = scores[(scores["block"] == block.key) & np.isfinite(scores["value"])]
        pair = part[part["line"].isin([leader, rival])]
        table = pair.pivot(index=["column", "image_id"], columns="line", values="value")
        if rival is None or leader not in table or rival not in table:
            continue
        table = table.dropna()
        if len(table) > 4000:
            table = table.iloc[:: math.ceil(len(table) / 4000)]
        for i, column in enumerate(block.columns):
            chosen = table[table.index.get_level_values("column") == column]
            shade = _shade(i, len(block.columns))
            panel.plot(
                chosen[rival], chosen[leader], "osD^v"[i % 5], color=shade, markersize=4.2, alpha=0.9,
                label=literal(column, TICK), markeredgecolor="white", markeredgewidth=0.5, linestyle="none",
            )  # fmt: skip
        both = table.to_numpy()
        ends = np.array([np.nanmin(both), np.nanmax(both)])
        ends += np.array([-0.04, 0.04]) * max(float(np.ptp(ends)), 1e-12)
        panel.plot(ends, ends, color="#9A9A9A", linewidth=0.9, zorder=1)
        panel.set_xlim(ends)
        panel.set_ylim(ends)
        panel.set_aspect("equal")
        panel.locator_params(nbins=5)
        panel.set_xlabel(fill(looks.titles[rival], 38), color=looks.by_line[rival].color)
        panel.set_ylabel(fill(looks.titles[leader], 38), color=looks.by_line[leader].color)
        ahead = table[leader] > table[rival] if metric.higher_is_better else table[leader] < table[rival]
        words = f"{fill(looks.titles[leader], 24)}\nbetter in {int(ahead.sum())} of {len(table)}"
        shares = (table[[rival, leader]].to_numpy() - ends[0]) / (ends[1] - ends[0])
        below = _crowd(shares, 0.55, 0) < _crowd(
            shares, 0, 0.8
        )  # the text goes to the emptier corner: lower right or upper left
        x, y, ha, va = (0.97, 0.03, "right", "bottom") if below else (0.03, 0.97, "left", "top")
        panel.text(x, y, words, transform=panel.transAxes, fontsize=7, ha=ha, va=va, color="#555555")
    handles = {text: h for panel in axes for h, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        title = results.blocks[0].axis
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), title=title)
    return figure


def _crowd(points: np.ndarray, x: float, y: float) -> int:
    """Return how many of the points [n, 2] lie in the corner at (x, y), .45 x .2 of the panel."""
    return int(((points >= (x, y)) & (points <= (x + 0.45, y + 0.2))).all(axis=1).sum())


def _rival(metric: Metric, summary: pd.DataFrame, block: str, leader: str) -> str | None:
    """Return the best other method of a block by its mean over columns, without methods that never differ."""
    shared, _, _ = shared_columns(metric, summary[summary["block"] == block])
    table = shared.pivot(index="column", columns="line", values="mean")
    if leader not in table:
        return None
    extent = float(table.max().max() - table.min().min())
    differs = (table.sub(table[leader], axis=0).abs() > ALIKE * extent).any()
    means = table.loc[:, differs].mean()
    if means.empty:
        return None
    return str(means.idxmax() if metric.higher_is_better else means.idxmin())


def _shade(i: int, n: int) -> Any:
    """Return shade i of n from light to dark blue. The order is visible in every kind of colour vision."""
    from matplotlib.colors import to_rgb

    dark = np.array(to_rgb(PALETTE[0]))
    share = 0.35 + 0.65 * i / max(1, n - 1)
    return tuple((1 - share) * np.array([0.93, 0.8, 0.45]) + share * dark * (0.8 if share > 0.9 else 1))
