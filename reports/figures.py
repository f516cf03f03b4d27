"""The figures: curves against the columns' axis and quality against cost as PNG and PDF, grids of images as PNG.

Colours are Okabe & Ito's (2008), told apart by every kind of colour vision; a method's colour, marker and line follow
from its place in the sorted names, so that it looks the same in every figure of a report. Files carry no dates and no
version strings: the same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.store import Store
from reports.results import Block, Line, Metric, Results
from reports.summary import EXPLODED, INPUT, INPUT_TITLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A500")
MARKERS = "osD^vph<"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)))
INPUT_COLOUR = "#808080"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,
    "svg.hashsalt": "inversion-bench",
}
MANY = 8  # lines, from which on bands are left out and panels grow
ROWS = 4  # images of a grid
METHODS_A_BAND = 8  # of an image grid; more wrap into a further band below
TILE = 96  # pixels of a tile, at least


@dataclass(frozen=True)
class Look:
    """How a line of the tables is drawn."""

    color: str
    marker: str
    linestyle: Any


def looks(lines: Sequence[Line]) -> dict[str, Look]:
    """One look a line, by sorted name: the palette repeats with other markers and dashes."""
    size = len(PALETTE)
    return {
        key: Look(PALETTE[i % size], MARKERS[(i + i // size) % len(MARKERS)], DASHES[i // size % len(DASHES)])
        for i, key in enumerate(sorted(line.key for line in lines))
    }


@contextmanager
def styled() -> Iterator[None]:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(dict[Any, Any](STYLE))
        yield


def save(figure: Figure, stem: Path, vector: bool = True) -> list[Path]:
    """stem.png and, unless the figure is a bitmap itself, stem.pdf; without dates."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in (("png", "pdf") if vector else ("png",))]
    figure.savefig(paths[0], metadata={"Software": None})
    if not vector:
        return paths
    figure.set_layout_engine("none")  # keep what was laid out: the PDF need not lay it out again
    figure.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return paths


def grid_of_panels(
    panels: int, width: float, height: float, labels: Sequence[str] = (), most: int = 4
) -> tuple[Figure, list[Axes]]:
    """Panels with room below for a legend of `labels`. Many lines get larger panels, two a row."""
    from matplotlib.figure import Figure

    if len(labels) > MANY:
        width, height, most = max(width, 4.9), max(height, 3.5), 2
    columns = min(panels, most)
    rows = math.ceil(panels / columns)
    wide = max(width * columns, 4.5)
    legend = 0.3 + 0.19 * math.ceil(len(labels) / _legend_columns(wide, labels))
    figure = Figure(figsize=(wide, height * rows + legend), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[panels:]:
        spare.set_axis_off()
    return figure, axes[:panels]


def _legend_columns(width: float, labels: Sequence[str]) -> int:
    """How many entries stand side by side in `width` inches: a handle, a gap and the longest label."""
    return max(1, int(width / (0.62 + 0.078 * max(map(len, labels), default=1))))


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        columns = min(len(handles), _legend_columns(figure.get_figwidth(), list(handles)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=2.6)


def curves(metric: Metric, summary: pd.DataFrame, results: Results) -> Figure:
    """The metric against severity (or steps): a panel a block, a line a method with its 95 % band, the input dashed."""
    chosen = summary[(summary["metric"] == metric.name) & np.isfinite(summary["mean"])]
    names = [*((line.key, line.title) for line in results.lines), (INPUT, INPUT_TITLE)]
    figure, axes = grid_of_panels(len(results.blocks), 3.0, 2.7, [title for _, title in names])
    style = looks(results.lines)
    band = 0.15 if len(results.lines) <= 5 else 0.07 if len(results.lines) <= MANY else 0.0
    for panel, block in zip(axes, results.blocks, strict=True):
        part = chosen[chosen["block"] == block.key]
        for key, title in names:
            points = part[part["line"] == key]
            if points.empty:
                continue
            # A gap in the line where a cell is missing, rather than a straight guess across it.
            whole = points.set_index("column").reindex(block.columns)
            x = np.arange(len(block.columns))
            if key == INPUT:
                panel.plot(x, whole["mean"], color=INPUT_COLOUR, linestyle="--", linewidth=1.3, label=title, zorder=1.5)
                continue
            look = style[key]
            if band:
                panel.fill_between(x, whole["low"], whole["high"], color=look.color, alpha=band, linewidth=0)
            _draw_line(panel, x, whole["mean"], look, title)
        panel.set_title(block.title)
        panel.locator_params(axis="y", nbins=6)
        panel.set_xlabel(block.axis)
        panel.set_xticks(range(len(block.columns)), block.columns)
        panel.set_xlim(-0.25, len(block.columns) - 0.75)
        if part["mean"].gt(0).all() and metric.digits.endswith("e") and len(part):
            panel.set_yscale("log")
    axes[0].set_ylabel(metric.axis)
    legend_below(figure, axes)
    return figure


def _draw_line(panel: Axes, x: Any, y: Any, look: Look, title: str) -> None:
    panel.plot(
        x,
        y,
        color=look.color,
        marker=look.marker,
        linestyle=look.linestyle,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=title,
    )


# --- round trips ---------------------------------------------------------------------------------------------------

EXACT = {"latent_mse": 1e-9, "mse": 1e-6}  # rms below which an error is the arithmetic's: float64, float32 images


def round_trip(metric: Metric, summary: pd.DataFrame, costs: pd.DataFrame, results: Results, against: str) -> Figure:
    """Root mean squared error of the round trip, log-log, a panel a block, a line a method through its columns.

    `against`: "steps" with the slopes of first and second order in grey, or "nfe". Methods whose error is that of the
    arithmetic lie side by side in a strip at the bottom: how far below it they are, the table says.
    """
    chosen = summary[(summary["metric"] == metric.name) & (summary["line"] != INPUT) & np.isfinite(summary["mean"])]
    evaluations = costs.set_index(["line", "block", "column"])["nfe"]
    style, rounding = looks(results.lines), EXACT[metric.name]
    figure, axes = grid_of_panels(len(results.blocks), 3.4, 3.2, [line.title for line in results.lines])
    for panel, block in zip(axes, results.blocks, strict=True):
        part = chosen[chosen["block"] == block.key]
        rms = np.sqrt(part["mean"].to_numpy(dtype=float))
        inexact = rms[rms > rounding]
        floor = 10.0 ** math.floor(math.log10(inexact.min() / 2)) if len(inexact) else rounding
        exact = [
            line.key for line in results.lines if (part.loc[part["line"] == line.key, "mean"] <= rounding**2).any()
        ]
        heights = dict(zip(exact, floor * 10.0 ** -np.linspace(0.15, 0.85, max(2, len(exact))), strict=False))
        xs: list[float] = []
        for line in results.lines:
            points = part[part["line"] == line.key]
            if points.empty:
                continue
            # A gap in the line where a cell is missing; a column that is no number has no place on the axis.
            whole = points.set_index("column")["mean"].reindex(block.columns)
            x = np.array(
                [
                    evaluations.get((line.key, block.key, c), math.nan) if against == "nfe" else _number(c)
                    for c in block.columns
                ]
            )
            y = np.sqrt(whole.to_numpy(dtype=float))
            y = np.where(y <= rounding, heights.get(line.key, floor), y)
            _draw_line(panel, x, y, style[line.key], line.title)
            xs += [float(v) for v in x[np.isfinite(x) & np.isfinite(y)] if v > 0]
        panel.set_title(block.title)
        panel.set_xlabel("NFE an image" if against == "nfe" else block.axis)
        if not xs:
            continue
        panel.set_xscale("log")
        panel.set_yscale("log")
        _plain_ticks(panel, xs)
        if exact:
            panel.axhspan(floor / 10, floor, color="#EEEEEE", zorder=0.5, linewidth=0)
            panel.text(
                0.01, floor * 1.1, f"exact to rounding (below {rounding:.0e})",
                transform=panel.get_yaxis_transform(), va="bottom", fontsize=6.5, color="#666666",
            )  # fmt: skip
            _decades(panel, floor)
        if against == "steps" and len(inexact) and max(xs) > min(xs):
            _slopes(panel, min(xs), max(xs), 1.4 * float(inexact.max()))
        top = 3 * float(inexact.max()) if len(inexact) else floor * 10
        panel.set_ylim(floor / 10 if exact else floor, top)
    axes[0].set_ylabel(f"rms error ({'latent' if metric.name == 'latent_mse' else 'image'})")
    legend_below(figure, axes)
    return figure


def _slopes(panel: Axes, first: float, last: float, start: float) -> None:
    """1/N and 1/N² from one point above all errors."""
    x = np.array([first, last])
    for order, name in ((1, "1/N"), (2, "1/N²")):
        y = start * (x / first) ** -order
        panel.plot(x, y, color="#9A9A9A", linewidth=1.1, linestyle=(0, (4, 2)), zorder=1.2)
        panel.annotate(
            name, (x[1], y[1]), xytext=(3, 0), textcoords="offset points",
            fontsize=7.5, color="#666666", va="center", annotation_clip=False,
        )  # fmt: skip


def _decades(panel: Axes, floor: float) -> None:
    """No tick inside the strip, whose heights mean nothing."""
    from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, NullLocator

    plain = LogFormatterSciNotation()
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value) if value > 0.99 * floor else ""))


def latent_scale(costs: pd.DataFrame, results: Results) -> Figure:
    """The latent's standard deviation against the columns, log: 1 is the prior's, beyond 3 the latent has exploded."""
    style = looks(results.lines)
    figure, axes = grid_of_panels(len(results.blocks), 3.4, 2.8, [line.title for line in results.lines])
    for panel, block in zip(axes, results.blocks, strict=True):
        part = costs[(costs["block"] == block.key) & np.isfinite(costs["latent_std"]) & (costs["latent_std"] > 0)]
        known: list[float] = []
        for line in results.lines:
            points = part[part["line"] == line.key]
            if points.empty:
                continue
            y = points.set_index("column")["latent_std"].reindex(block.columns).to_numpy(dtype=float)
            _draw_line(panel, [_number(c) for c in block.columns], y, style[line.key], line.title)
            known += y[np.isfinite(y)].tolist()
        panel.set_title(block.title)
        panel.set_xlabel(block.axis)
        if not known:
            continue
        panel.set_xscale("log")
        panel.set_yscale("log")
        _plain_ticks(panel, [x for x in map(_number, block.columns) if x > 0])
        low, high = min(0.25, min(known) / 1.3), max(4.0, max(known) * 1.3)
        panel.axhline(1, color="#9A9A9A", linewidth=1.1, linestyle=(0, (4, 2)), zorder=1.2)
        panel.axhspan(EXPLODED, high, color="#FBE3E0", zorder=0.5, linewidth=0)
        panel.axhspan(low, 1 / EXPLODED, color="#E3ECF7", zorder=0.5, linewidth=0)
        for height, va, word in ((EXPLODED * 1.05, "bottom", "exploded"), (1 / EXPLODED / 1.05, "top", "collapsed")):
            panel.text(
                0.01, height, word, transform=panel.get_yaxis_transform(), va=va, fontsize=6.5, color="#666666"
            )  # fmt: skip
        panel.set_ylim(low, high)
        if high / low < 300:
            _plain_y_ticks(panel)
    axes[0].set_ylabel("std of the latent")
    legend_below(figure, axes)
    return figure


def _plain_y_ticks(panel: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# --- quality against cost ------------------------------------------------------------------------------------------


def shared_columns(metric: Metric, summary: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """The methods' entries at the columns where all of them have one: (entries, shared columns, all columns).

    Means over different columns would compare different problems. Methods without any entry do not count.
    """
    chosen = summary[(summary["metric"] == metric.name) & (summary["line"] != INPUT)]
    places = chosen.groupby(["block", "column"], sort=False).ngroups
    known = chosen[np.isfinite(chosen["mean"])]
    have = known.groupby(["block", "column"], sort=False)["line"].transform("nunique")
    shared = known[have == known["line"].nunique()]
    return shared, shared.groupby(["block", "column"], sort=False).ngroups, places


def pareto(metric: Metric, summary: pd.DataFrame, costs: pd.DataFrame, results: Results) -> Figure:
    """Mean metric against network evaluations and against seconds; the staircase joins what nothing beats in both."""
    shared, columns, places = shared_columns(metric, summary)
    means = shared.groupby("line", sort=False)["mean"].mean()
    table = costs.set_index("line")
    style = looks(results.lines)
    figure, axes = grid_of_panels(2, 4.2, 3.2, [line.title for line in results.lines])
    for panel, (cost, label) in zip(axes, (("nfe", "NFE an image"), ("seconds", "seconds an image")), strict=True):
        points = []
        for line in results.lines:
            x, y = table.at[line.key, cost], means.get(line.key, math.nan)
            if not (math.isfinite(x) and math.isfinite(y) and x > 0):
                continue
            look = style[line.key]
            panel.plot(
                x,
                y,
                color=look.color,
                marker=look.marker,
                markersize=8,
                linestyle="none",
                markeredgecolor="white",
                label=line.title,
                zorder=3,
            )
            points.append((x, y))
        _staircase(panel, points, metric.higher_is_better)
        if points:
            panel.set_xscale("log")
            _plain_ticks(panel, [x for x, _ in points])
        panel.set_xlabel(label)
        panel.margins(0.12)
    axes[0].set_ylabel(f"{metric.axis}, mean over {columns} of {places} columns")
    legend_below(figure, axes)
    return figure


def _plain_ticks(panel: Axes, x: Sequence[float]) -> None:
    """20, 50, 100 rather than powers of ten, of which a narrow range would show one or none."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if max(x) / min(x) < 300 else (1,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    if max(x) / min(x) < 2.5:
        panel.set_xlim(min(x) / 2, max(x) * 2)


def _staircase(panel: Axes, points: Sequence[tuple[float, float]], higher: bool) -> None:
    sign = 1 if higher else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    if len(front) > 1:
        panel.step(*zip(*front, strict=True), where="post", color="#BBBBBB", linewidth=1.2, zorder=1)


# --- images --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """An image [H, W, 3] uint8 with what is printed below it; None where the cell has not finished."""

    image: np.ndarray | None
    caption: str


@dataclass(frozen=True)
class Gallery:
    """The sample images of one column: a row an image; truth, input and every method side by side."""

    block: Block
    column: str
    heads: tuple[str, ...]
    ids: tuple[str, ...]
    pictures: tuple[tuple[Picture, ...], ...]


def gallery(
    store: Store, results: Results, block: Block, column: str, metric: Metric | None, scores: Mapping[Any, Any]
) -> Gallery | None:
    """The first images that every finished method of this column kept. None where no cell kept any.

    `scores`: (cell, image) -> (value, value of the input), as `score_index` gives it.
    """
    kept: list[tuple[Line, str | None, dict[str, np.ndarray]]] = []
    for line in results.lines:
        cells = results.by_key.get((line.key, block.key, column))
        if cells is None:
            continue
        done = next((cell.id for cell in cells if cell.status == "done"), None)
        kept.append((line, done, store.samples(done) if done else {}))
    filled = [(cell, samples) for _, cell, samples in kept if samples]
    if not filled:
        return None
    places = {cell: {str(name): i for i, name in enumerate(samples["ids"])} for cell, samples in filled}
    ids = [name for name in places[filled[0][0]] if all(name in place for place in places.values())][:ROWS]
    source, reference = filled[0]
    measured = "input" in reference and not results.reconstructs  # a round trip's input is the truth
    rows = []
    for name in ids:
        i = places[source][name]
        truth = _rgb(reference["truth"][i])
        row = [Picture(truth, "")]
        if measured:
            value = scores.get((source, name), (math.nan, math.nan))[1]
            row.append(Picture(_rgb(reference["input"][i]), _caption(metric, value)))
        for _, cell, samples in kept:
            if cell is None or not samples:
                row.append(Picture(None, MISSING_CAPTION))
                continue
            value = scores.get((cell, name), (math.nan, math.nan))[0]
            row.append(Picture(_rgb(samples["output"][places[cell][name]]), _caption(metric, value)))
        rows.append(tuple(row))
    heads = (TRUTH, *((MEASURED,) if measured else ()), *(line.title for line, _, _ in kept))
    return Gallery(block, column, heads, tuple(ids), tuple(rows))


MISSING_CAPTION = "no image"
TRUTH, MEASURED = "truth", "input y"


def score_index(results: Results, metric: Metric | None) -> dict[tuple[str, str], tuple[float, float]]:
    """(cell, image) -> (metric, metric of the input)."""
    rows = results.rows
    if metric is None or metric.name not in rows:
        return {}
    values = rows[metric.name].astype(float)
    inputs = rows[f"input_{metric.name}"].astype(float) if f"input_{metric.name}" in rows else values * math.nan
    keys = zip(rows["cell_id"].astype(str), rows["image_id"].astype(str), strict=True)
    return dict(zip(keys, zip(values.tolist(), inputs.tolist(), strict=True), strict=True))


def _caption(metric: Metric | None, value: float) -> str:
    if metric is None or math.isnan(value):
        return ""
    return "∞" if math.isinf(value) else f"{value:{metric.digits}}{f' {metric.unit}' if metric.unit else ''}"


def _rgb(image: np.ndarray) -> np.ndarray:
    image = image[..., None] if image.ndim == 2 else image
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Nearest neighbour to a square of `side` pixels: every source pixel stays visible."""
    rows = np.arange(side) * image.shape[0] // side
    columns = np.arange(side) * image.shape[1] // side
    return image[rows][:, columns]


def image_grid(shown: Gallery) -> Figure:
    """The gallery as one figure. One bitmap holds all tiles: an axis a tile would take seconds to draw."""
    import textwrap

    from matplotlib.figure import Figure

    largest = max(p.image.shape[0] for row in shown.pictures for p in row if p.image is not None)
    side = largest * max(1, math.ceil(TILE / largest)) if largest < 256 else 256
    gap, foot = side // 12, side // 5
    inch = 0.95 / side  # a tile is .95 inch wide on paper, whatever its pixels
    heads = [textwrap.wrap(title, 15, max_lines=3, placeholder="…") for title in shown.heads]
    lines = max(map(len, heads))
    bands = wrapped(shown)
    rows, columns = len(shown.pictures), max(map(len, bands))
    above = math.ceil((0.13 * lines + 0.08) / inch)  # pixels of the heads over a further band
    tall = rows * (side + foot) + above
    canvas = np.full((len(bands) * tall - above, columns * (side + gap) - gap, 3), 255, dtype=np.uint8)
    placed = [
        (b * tall + r * (side + foot), c * (side + gap), row[column])
        for b, band in enumerate(bands)
        for r, row in enumerate(shown.pictures)
        for c, column in enumerate(band)
    ]
    for y, x, picture in placed:
        tile = np.full((side, side, 3), 238, np.uint8) if picture.image is None else enlarge(picture.image, side)
        canvas[y : y + side, x : x + side] = tile
    head, border = 0.36 + 0.13 * lines, 0.12
    width, height = canvas.shape[1] * inch + 2 * border, canvas.shape[0] * inch + head + border
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((border / width, border / height, 1 - 2 * border / width, canvas.shape[0] * inch / height))
    axes.imshow(canvas, interpolation="none", aspect="auto")
    axes.set_axis_off()
    for b, band in enumerate(bands):
        for c, column in enumerate(band):
            words = "\n".join(heads[column])
            left, base = c * (side + gap) + side / 2, b * tall - side / 14
            axes.text(left, base, words, ha="center", va="bottom", fontsize=7.5)
    for y, x, picture in placed:
        if picture.caption:
            inside = picture.image is None
            axes.text(
                x + side / 2,
                y + side / 2 if inside else y + side + foot * 0.12,
                picture.caption,
                ha="center",
                va="center" if inside else "top",
                fontsize=6.5,
                color="#777777" if inside else "#333333",
            )
    title = f"{shown.block.title}, {shown.block.axis} {shown.column}"
    figure.text(border / width, 1 - 0.06 / height, title, fontsize=9.5, va="top")
    return figure


def wrapped(shown: Gallery) -> list[list[int]]:
    """The columns of each band of a grid: at most METHODS_A_BAND methods, evenly, after the truth and the input."""
    lead = sum(head in (TRUTH, MEASURED) for head in shown.heads[:2])
    methods = list(range(lead, len(shown.heads)))
    bands = max(1, math.ceil(len(methods) / METHODS_A_BAND))
    size = math.ceil(len(methods) / bands)
    return [[*range(lead), *methods[i * size : (i + 1) * size]] for i in range(bands)]


def middle(axis: str, columns: Sequence[str]) -> str:
    """The column to show first: severity 3, the common published setting, or the nearest; else the central one."""
    if axis == "severity":
        numbers = [column for column in columns if column.replace(".", "", 1).isdigit()]
        if numbers:
            return min(numbers, key=lambda column: abs(float(column) - 3))
    return columns[(len(columns) - 1) // 2]
