"""What all figures share: who is drawn how, panels, legends, labels at the end of a line, and files without dates.

Colours are Okabe & Ito's (2008), told apart by every kind of colour vision, and every colour has a marker and a dash
of its own, so that print without colour still tells lines apart. A method looks the same in every figure of a report.
Where more than `MANY` methods would make a thicket, the best few and the highlighted ones are drawn in colour and the
others in grey, each with its name at its end. Files carry no dates and no version strings: the same numbers give the
same bytes.
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
MANY = 8  # lines, from which on only some are coloured
BEST = 5  # of many lines are coloured for their rank
ALIKE = 0.02  # of the spread of all means: two lines that never differ by more count as one when colours are given
LABEL = 6.5  # points, of a name at the end of a line
LONGEST = 60  # characters of a name in a figure
HEAD = 34  # characters of a line over a panel
TICK = 16  # characters of a tick


@dataclass(frozen=True)
class Look:
    """How a line of the tables is drawn."""

    color: str
    marker: str
    linestyle: Any


@dataclass(frozen=True)
class Looks:
    """Everyone's look, from the best to the worst, and whom a crowded figure draws in colour."""

    by_line: dict[str, Look]
    coloured: tuple[str, ...]
    highlighted: tuple[str, ...]  # those that the sweep itself names
    titles: Mapping[str, str]

    @property
    def crowded(self) -> bool:
        return len(self.by_line) > MANY

    @property
    def rule(self) -> str:
        """Whom the figures colour, in words; empty where it is everyone."""
        if not self.crowded:
            return ""
        own = " and the sweep's highlighted methods" if self.highlighted else ""
        return f"in colour the best {len(self.coloured) - len(self.highlighted)} by mean rank{own}, in grey the others"


def ranked_lines(metric: Metric, summary: pd.DataFrame) -> list[str]:
    """The lines from the best to the worst by their mean rank over all columns, where all of their images count."""
    known = summary[(summary["metric"] == metric.name) & (summary["line"] != INPUT) & summary["mean"].notna()]
    known = known[~known["partial"].astype(bool)]
    ranks = known.groupby(["block", "column"], sort=False)["mean"].rank(ascending=not metric.higher_is_better)
    return ranks.groupby(known["line"], sort=False).mean().sort_values(kind="stable").index.astype(str).tolist()


def choose_looks(results: Results, metric: Metric | None, summary: pd.DataFrame, last: Collection[str] = ()) -> Looks:
    """Looks by standing in `metric`: the sweep's highlighted methods first, then the best, alike after their first.

    Lines in `last` (those a figure does not draw) come after all others.
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
    """Lines that follow an earlier one of `order` everywhere."""
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
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # it stands as a box; tables have it
        yield


def literal(text: str, most: int = LONGEST) -> str:
    """Text as a figure shows it: on one line, cut where it is long, and not hidden from legends by a leading "_".

    Nothing in it is mathematics: `text.parse_math` is off in the style.
    """
    line = plain(text)
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    return f"\u200b{line}" if line.startswith("_") else line


def drawable(results: Results) -> Results:
    """The results with titles as figures show them, each still of its own."""
    lines = distinct_titles({line.key: literal(line.title) for line in results.lines}, numbered=True)
    return replace(
        results,
        lines=tuple(replace(line, title=lines[line.key]) for line in results.lines),
        blocks=tuple(replace(block, title=textwrap.fill(literal(block.title), HEAD)) for block in results.blocks),
    )


def power(value: float) -> str:
    """A tick of a logarithmic axis as plain text: 10⁻³, 2×10⁻³, or 20 where that is as short."""
    from matplotlib.ticker import LogFormatterSciNotation

    return _unmathed(LogFormatterSciNotation()(value))


def _unmathed(text: str) -> str:
    inner = text.removeprefix(r"$\mathdefault{").removesuffix("}$").replace(r"\times", "×")
    return re.sub(r"\^\{(.*)\}", lambda found: found[1].translate(RAISED), inner)


RAISED = str.maketrans("0123456789-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻")


def _powers(figure: Figure) -> None:
    """Logarithmic axes write mathematics, which is off: their ticks as plain text."""
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
    """stem.png and, unless the figure is a bitmap itself, stem.pdf; without dates."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in (("png", "pdf") if vector else ("png",))]
    _powers(figure)
    figure.savefig(paths[0], metadata={"Software": None})
    if not vector:
        return paths
    figure.set_layout_engine("none")  # keep what was laid out: the PDF need not lay it out again
    figure.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return paths


def panels(count: int, width: float, height: float, most: int = 4, legend: Sequence[str] = ()) -> tuple[Figure, Any]:
    """`count` axes of width x height inches, at most `most` a row, with room below for a legend of these labels."""
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
    """How many entries stand side by side in `width` inches: a handle, a gap and the longest label."""
    return max(1, int(width / (0.62 + 0.078 * max(map(len, labels), default=1))))


def legend(figure: Figure, axes: Sequence[Axes], backwards: bool = False) -> None:
    """One legend below all panels, in the order of drawing or `backwards`."""
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
    """A line in its look, or thin and grey without one."""
    if look is None:
        panel.plot(x, y, **{"color": GREY, "linewidth": 1.0, "marker": ".", "markersize": 3, "zorder": 1.6, **changes})
        return
    panel.plot(
        x, y, color=look.color, marker=look.marker, linestyle=look.linestyle, markeredgecolor="white",
        markeredgewidth=0.6, label=title, **changes,
    )  # fmt: skip


def spaced(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Positions in order of `wanted`, at least `gap` apart where there is room, moved as little as it takes."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    blocks: list[tuple[list[int], float]] = []  # members that touch, and the position of their first
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
    """The end of a line, in data coordinates, and what is written beside it."""

    x: float
    y: float
    text: str
    color: str


def name_ends(panel: Axes, ends: Sequence[End], height: float) -> None:
    """Names right of the panel, each joined to the end of its line. `height`: of the panel in inches, roughly.

    The panel's limits must be final: the names stand where its transform puts the ends.
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
    """A column's name as a place on an axis; nan where it is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def plain_ticks(panel: Axes, x: Sequence[float]) -> None:
    """20, 50, 100 rather than powers of ten, of which a narrow range would show one or none."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if max(x) / min(x) < 300 else (1,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    if max(x) / min(x) < 2.5:
        panel.set_xlim(min(x) / 2, max(x) * 2)
