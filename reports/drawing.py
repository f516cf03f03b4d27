"""Parts of all figures: looks of lines, panels, legends, labels at the end of a line, and files without dates.

The colours are those of Okabe & Ito (2008), which people with every kind of colour vision can distinguish. Each colour
has its own marker and dash, so lines stay distinct in print without colour. A method looks the same in every figure of
a report. With more than `MANY` methods, only the best few and the highlighted ones are drawn in colour and the others
in grey, each with its name at the end of its line. Files have no dates and no version strings: the same numbers give
the same bytes.
"""

from __future__ import annotations

import math
import re
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.columns import Metric
from reports.results import Results, distinct_titles, plain
from reports.summary import INPUT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).parent / "report.mplstyle"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A500")
MARKERS = "osD^vph<"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)))
GREY, GREY_INK, INPUT_COLOUR = "#C4C8CC", "#80868C", "#808080"
MANY = 8  # with more lines, only some are coloured
BEST = 5  # number of lines that are coloured for their rank
ALIKE = 0.02  # share of the range of all means: lines that never differ by more count as one in the choice of colours
LABEL = 6.5  # font size in points of a name at the end of a line
LONGEST = 60  # most characters of a name in a figure
HEAD = 34  # most characters of a title line over a panel
TICK = 16  # most characters of a tick label


@dataclass(frozen=True)
class Look:
    """The look of a line of the tables in figures."""

    color: str
    marker: str
    linestyle: Any


@dataclass(frozen=True)
class Looks:
    """The looks of all lines, from the best to the worst, and the lines that a crowded figure draws in colour."""

    by_line: dict[str, Look]
    coloured: tuple[str, ...]
    highlighted: tuple[str, ...]  # lines of the methods that the sweep highlights
    titles: Mapping[str, str]

    @property
    def crowded(self) -> bool:
        return len(self.by_line) > MANY

    @property
    def rule(self) -> str:
        """A sentence on the lines in colour; empty if all are in colour."""
        if not self.crowded:
            return ""
        own = " and the sweep's highlighted methods" if self.highlighted else ""
        return (
            f"In colour: the best {len(self.coloured) - len(self.highlighted)} by mean rank{own}; in grey: the others"
        )


def ranked_lines(metric: Metric, summary: pd.DataFrame) -> list[str]:
    """Return the lines from the best to the worst by mean rank over all columns, without partial entries."""
    known = summary[(summary["metric"] == metric.name) & (summary["line"] != INPUT) & summary["mean"].notna()]
    known = known[~known["partial"].astype(bool)]
    ranks = known.groupby(["block", "column"], sort=False)["mean"].rank(ascending=not metric.higher_is_better)
    return ranks.groupby(known["line"], sort=False).mean().sort_values(kind="stable").index.astype(str).tolist()


def choose_looks(results: Results, metric: Metric | None, summary: pd.DataFrame, last: Collection[str] = ()) -> Looks:
    """Choose looks by rank in `metric`: first the sweep's highlighted methods, then the best, then the others.

    Lines that are like a better one come last among the others. Lines in `last` (which a figure does not draw) come
    after all others.
    """
    order = ranked_lines(metric, summary) if metric is not None else []
    titles = {line.key: line.title for line in results.lines}
    order += [key for key in titles if key not in order]
    order.sort(key=lambda key: key in last)
    named = set(results.manifest.get("highlight") or ())
    highlighted = [line.key for line in results.lines if line.method in named]
    rest = [key for key in order if key not in highlighted]
    alike = _alike(metric, summary, [*highlighted, *rest])
    leaders = [key for key in rest if key not in alike][:BEST]
    follow = sorted((key for key in rest if key not in leaders), key=lambda key: (key in last, key in alike))
    order = [*highlighted, *leaders, *follow]
    size = len(PALETTE)
    by_line = {
        key: Look(PALETTE[i % size], MARKERS[(i + i // size) % len(MARKERS)], DASHES[i // size % len(DASHES)])
        for i, key in enumerate(order)
    }
    coloured = order if len(titles) <= MANY else [*highlighted, *leaders]
    return Looks(by_line, tuple(coloured), tuple(highlighted), titles)


def _alike(metric: Metric | None, summary: pd.DataFrame, order: Sequence[str]) -> set[str]:
    """Return lines that are as good as an earlier one of `order` at every column."""
    if metric is None:
        return set()
    chosen = summary[(summary["metric"] == metric.name) & summary["line"].isin(order) & np.isfinite(summary["mean"])]
    means = chosen.pivot(index=["block", "column"], columns="line", values="mean")
    if metric.digits.endswith("e"):  # an error over many powers of ten
        means = np.log10(means.clip(lower=metric.floor or 1e-30))
    extent = float(np.nanmax(means.to_numpy()) - np.nanmin(means.to_numpy())) if means.size else 0.0
    kept: list[str] = []
    for key in (key for key in order if key in means):
        if not any(bool(((means[key] - means[other]).abs() <= ALIKE * extent).all()) for other in kept):
            kept.append(key)
    return {key for key in order if key in means and key not in kept}


# --- files and panels ----------------------------------------------------------------------------------------------


@contextmanager
def styled() -> Iterator[None]:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(matplotlib.rc_params_from_file(STYLE, use_default_template=False))
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # it is drawn as a box; tables show it
        yield


def literal(text: str, most: int = LONGEST) -> str:
    """Return text for a figure: on one line, cut if it is long, and visible in legends despite a leading "_".

    None of it is read as mathematics: `text.parse_math` is off in the style.
    """
    line = plain(text)
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    return f"\u200b{line}" if line.startswith("_") else line


def drawable(results: Results) -> Results:
    """Return the results with titles for figures. Titles that were distinct stay distinct."""
    lines = distinct_titles({line.key: literal(line.title) for line in results.lines}, numbered=True)
    return replace(
        results,
        lines=tuple(replace(line, title=lines[line.key]) for line in results.lines),
        blocks=tuple(replace(block, title=textwrap.fill(literal(block.title), HEAD)) for block in results.blocks),
    )


def power(value: float) -> str:
    """Return a tick of a logarithmic axis as plain text: 10⁻³, 2×10⁻³, or 20 if that is as short."""
    from matplotlib.ticker import LogFormatterSciNotation

    return _unmathed(LogFormatterSciNotation()(value))


def _unmathed(text: str) -> str:
    inner = text.removeprefix(r"$\mathdefault{").removesuffix("}$").replace(r"\times", "×")
    return re.sub(r"\^\{(.*)\}", lambda found: found[1].translate(RAISED), inner)


RAISED = str.maketrans("0123456789-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻")


def _powers(figure: Figure) -> None:
    """Write the ticks of logarithmic axes as plain text, since mathematics is off."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Powers(LogFormatterSciNotation):
        def __call__(self, x: float, pos: Any = None) -> str:
            return _unmathed(super().__call__(x, pos))

    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            if type(axis.get_major_formatter()) is LogFormatterSciNotation:
                axis.set_major_formatter(Powers())
            if type(axis.get_minor_formatter()) is LogFormatterSciNotation:
                axis.set_minor_formatter(Powers())


def save(figure: Figure, stem: Path, vector: bool = True) -> list[Path]:
    """Write stem.png and, with `vector`, stem.pdf, both without dates. Return their paths."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in (("png", "pdf") if vector else ("png",))]
    _powers(figure)
    figure.savefig(paths[0], metadata={"Software": None})
    if not vector:
        return paths
    figure.set_layout_engine("none")  # keep the layout, so that the PDF needs no new one
    figure.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return paths


def panels(count: int, width: float, height: float, most: int = 4, legend: Sequence[str] = ()) -> tuple[Figure, Any]:
    """Return a figure and `count` axes of width x height inches, at most `most` per row, with room for a legend."""
    from matplotlib.figure import Figure

    columns = min(count, most)
    rows = math.ceil(count / columns)
    wide = max(width * columns, 4.5)
    below = 0.3 + 0.19 * math.ceil(len(legend) / _legend_columns(wide, legend)) if legend else 0.0
    figure = Figure(figsize=(wide, height * rows + below), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _legend_columns(width: float, labels: Sequence[str]) -> int:
    """Return the number of legend entries that fit side by side in `width` inches."""
    return max(1, int(width / (0.62 + 0.078 * max(map(len, labels), default=1))))


def legend(figure: Figure, axes: Sequence[Axes], backwards: bool = False) -> None:
    """Add one legend below all panels, in drawing order or `backwards`."""
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if backwards:
        handles = dict(reversed(handles.items()))
    if handles:
        columns = min(len(handles), _legend_columns(figure.get_figwidth(), list(handles)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=2.6)


# --- lines and their names -----------------------------------------------------------------------------------------


def draw_line(panel: Axes, x: Any, y: Any, look: Look | None, title: str, **changes: Any) -> None:
    """Draw a line in its look, or thin and grey if it has none."""
    if look is None:
        panel.plot(x, y, **{"color": GREY, "linewidth": 1.0, "marker": ".", "markersize": 3, "zorder": 1.6, **changes})
        return
    panel.plot(
        x, y, color=look.color, marker=look.marker, linestyle=look.linestyle, markeredgecolor="white",
        markeredgewidth=0.6, label=title, **changes,
    )  # fmt: skip


def spaced(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Return positions in the order of `wanted`, at least `gap` apart if there is room, moved as little as possible."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    blocks: list[tuple[list[int], float]] = []  # members that touch, and the position of the first one
    for i in order:
        members, start = [i], wanted[i]
        while True:
            start = min(max(start, low), high - gap * (len(members) - 1))
            if not blocks or blocks[-1][1] + gap * len(blocks[-1][0]) <= start + 1e-12:
                break
            members = [*blocks.pop()[0], *members]
            start = float(np.mean([wanted[m] - k * gap for k, m in enumerate(members)]))
        blocks.append((members, start))
    placed = {m: start + k * gap for members, start in blocks for k, m in enumerate(members)}
    return [placed[i] for i in range(len(wanted))]


@dataclass(frozen=True)
class End:
    """The end of a line in data coordinates, and the text beside it."""

    x: float
    y: float
    text: str
    color: str


def name_ends(panel: Axes, ends: Sequence[End], height: float) -> None:
    """Write names to the right of the panel and join each to the end of its line. `height`: panel height in inches.

    The limits of the panel must be final, since its transform gives the places of the names.
    """
    if not ends:
        return
    to_axes: Callable[[Any], Any] = (panel.transData + panel.transAxes.inverted()).transform
    places = [to_axes((end.x, end.y)) for end in ends]
    rows = spaced([float(y) for _, y in places], LABEL * 1.22 / 72 / height, -0.03, 1.03)
    for end, (x, y), row in zip(ends, places, rows, strict=True):
        panel.annotate(
            end.text, (1.055, row), xycoords="axes fraction", fontsize=LABEL, color=end.color, va="center",
            annotation_clip=False,
        )  # fmt: skip
        panel.plot(
            [x + 0.008, 1.015, 1.047], [y, row, row], transform=panel.transAxes, color=end.color, linewidth=0.5,
            alpha=0.6, clip_on=False, zorder=1.4,
        )  # fmt: skip


def ink(look: Look | None) -> str:
    return GREY_INK if look is None else look.color


def number(text: str) -> float:
    """Return a column's name as a number for an axis, or nan if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def plain_ticks(panel: Axes, x: Sequence[float]) -> None:
    """Write ticks as 20, 50, 100. A narrow range would have only one power of ten, or none."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if max(x) / min(x) < 300 else (1,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    if max(x) / min(x) < 2.5:
        panel.set_xlim(min(x) / 2, max(x) * 2)
