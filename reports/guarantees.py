"""Tables and figures of task=guarantee: measurements of a flow compared with its certificate.

A bound holds for every image. So values with a bound are shown by their extremes over the images, and a single image
outside the bound counts. Errors, costs and amplifications are means over images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.columns import GUARANTEES, TRIP, TRIPS
from reports.drawing import TICK, Looks, draw_line, legend, literal, panels, plain_ticks
from reports.results import Block, Line, Results
from reports.tables import MISSING, Entry, Group, Row, Table, absent, csv

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NFE = "_nfe"
DOPRI5 = "dopri5_"
INVARIANT = "Lengths are in the coordinate in which the method's solver works. The certificate holds in it."


@dataclass(frozen=True)
class Place:
    """The rows of one entry of the tables."""

    line: Line
    block: Block
    column: str
    rows: pd.DataFrame

    def values(self, name: str) -> np.ndarray:
        """Return the values of a column as float64, without missing ones."""
        if name not in self.rows:
            return np.zeros(0)
        found = self.rows[name].astype(float).to_numpy()
        return found[np.isfinite(found)]

    def mean(self, name: str) -> float:
        values = self.values(name)
        return float(values.mean()) if len(values) else math.nan

    def span(self, kind: str) -> tuple[float, float] | None:
        """Return the smallest KIND_min and the largest KIND_max over the images."""
        low, high = self.values(f"{kind}_min"), self.values(f"{kind}_max")
        return (float(low.min()), float(high.max())) if len(low) and len(high) else None

    @property
    def band(self) -> tuple[float, float] | None:
        """The certificate's constants: the tightest over all images."""
        low, high = self.values("certified_min"), self.values("certified_max")
        return (float(low.max()), float(high.min())) if len(low) and len(high) else None

    @property
    def certified(self) -> bool:
        """False if the constants are nominal or there are none."""
        values = self.values("certified")
        return bool(len(values) and values.all())


def places(results: Results) -> Iterator[Place]:
    """Yield the places that have rows, in the order of the tables."""
    groups = dict(iter(results.rows.groupby(["line", "block", "column"], sort=False)))
    for block in results.blocks:
        for line in results.lines:
            for column in block.columns:
                rows = groups.get((line.key, block.key, column))
                if rows is not None:
                    yield Place(line, block, column, rows)


def round_trips(results: Results) -> list[str]:
    """Return the solvers that made round trips: dopri5 from the largest tolerance to the smallest, then the others."""
    names = [str(c).removeprefix(TRIP) for c in results.rows.columns if str(c).startswith(TRIP)]
    solvers = [name for name in names if not name.endswith(tuple(filter(None, TRIPS)))]
    return sorted(solvers, key=lambda name: (not name.startswith(DOPRI5), -_tolerance(name), name))


def _named(solver: str) -> str:
    """Return the solver's name in the tables."""
    words = solver.replace("_bits", ", integers").replace("_", " ")
    return words.replace("mccallum foster", "McCallum-Foster").replace("heun", "Heun")


def _tolerance(solver: str) -> float:
    return float(solver.removeprefix(DOPRI5)) if solver.startswith(DOPRI5) else 0.0


# --- tables ---------------------------------------------------------------------------------------------------------


AMPLIFIED = ("amplification", "amplification_max")
SOLVED = ("rk4_error", "rk4_local_errors", "gronwall_bound")
CHANGED = ("edit_inside", "edit_outside", "edit_bound")


def _heads(*names: str) -> tuple[str, ...]:
    return tuple(GUARANTEES[name].head for name in names)


DISTANCES = _heads("sv_max", "adversarial_max", "certified_max", "used_max", "violated", "pairs_max")
VOLUMES = (*_heads("log_det", "certified_log_det"), "log condition", "at most")
STABILITY = _heads(*AMPLIFIED, "encoded_std", "encoded_max", *SOLVED)
EDITS = _heads(*CHANGED)


def guarantee_tables(results: Results) -> tuple[Table, ...]:
    found = list(places(results))
    notes = tuple(absent(results))
    return (
        Table(
            "guarantees",
            "Distances under the flow, compared with the certificate",
            _groups(results, found, DISTANCES, _distances),
            (
                "Ranges go from the smallest to the largest value over images.",
                "σ of J: singular values of the flow's Jacobian (Lanczos; the smallest ones from the inverse flow).",
                "Sought pairs: |Φ(a) − Φ(b)| / |a − b| for pairs that gradient steps find. Random pairs: the same "
                "ratio for pairs in random directions.",
                "The flow attains all measured values. One value outside the certified constants would disprove them.",
                INVARIANT,
                "Used: the measured extreme divided by the certified one, at the end where they are closer; at most 1 "
                "inside the constants.",
                "In brackets: nominal constants. They have the certified form, but nothing enforces them here.",
                "Outside: images with any value, the volume included, outside the constants. A value counts only if it "
                "is also outside with twice the solver steps, and by more than the doubling changed it.",
                *notes,
            ),
        ),
        Table(
            "volumes",
            "Volume and condition",
            _groups(results, found, VOLUMES, _volumes),
            (
                "Log det: log |det J| by Hutchinson's estimator; mean over images ± its standard error.",
                "Log condition: the largest log(σ max / σ min) over images.",
                "At most: the certified bound of the column before it; in brackets: nominal.",
                *notes,
            ),
        ),
        Table(
            "stability",
            "Stability: noise in the measurement, the latent, and a reverse solve",
            _groups(results, found, STABILITY, _stability),
            (
                "Amplified: |R(y + n) − R(y)| / |n| for the restoration R and noise n on measured values; mean "
                "over draws and images. At most: the largest value of any draw. The conditioner is not certified, "
                "so these values have no bound.",
                "Latent std and max: standard deviation and largest value of the clean image's latent u, under the "
                "condition that restores the image; mean and largest over images. Noise has 1 and about 3.",
                "Error: |u − u'|; mean over images. A solve with half steps starts at u. The way back by rk4, with few "
                "full steps, ends at u'.",
                "Local: local errors of rk4 in both directions, estimated by step doubling; mean over images.",
                "Bound: e^K times the local errors (Gronwall); mean over images. It holds if the estimate of the local "
                "errors holds. In brackets: K is nominal.",
                *notes,
            ),
        ),
        *_edit_tables(results, found, notes),
        _trip_table(results, notes),
    )


def _groups(results: Results, found: Sequence[Place], columns: tuple[str, ...], entries: Any) -> tuple[Group, ...]:
    groups = []
    for block in results.blocks:
        rows = tuple(
            Row(place.line.title, (Entry(place.column), *entries(place))) for place in found if place.block == block
        )
        groups.append(Group(block.title, (block.axis, *columns), rows, "method"))
    return tuple(groups)


def _distances(place: Place) -> list[Entry]:
    used = [place.values(f"used_{end}").max(initial=-math.inf) for end in ("min", "max")]
    return [
        _span(place.span("sv")),
        _span(place.span("adversarial")),
        _constant(place, _span(place.band)),
        _number(max(used), ".3g"),
        _outside(place),
        _span(place.span("pairs")),
    ]


def _constant(place: Place, entry: Entry) -> Entry:
    """Put an entry in brackets if its constants are nominal."""
    nominal = entry.value is not None and not place.certified
    return replace(entry, text=f"({entry.text})", hint="nominal") if nominal else entry


def _outside(place: Place) -> Entry:
    values = place.values("violated")
    if not len(values):
        return Entry("no certificate", mark="missing")
    count = int(values.sum())
    return Entry(f"{count} of {len(values)}", count / len(values), n=len(values), mark="failed" if count else "")


def _volumes(place: Place) -> list[Entry]:
    volume, error = place.mean("log_det"), place.mean("log_det_error")
    condition = np.log(place.values("sv_max") / place.values("sv_min"))
    band = place.band
    return [
        Entry(f"{volume:.3g} ±{error:.2g}", volume) if math.isfinite(volume) else Entry(MISSING, mark="missing"),
        _constant(place, _mean_of(place, "certified_log_det")),
        _number(condition.max(initial=-math.inf), ".3g"),
        _constant(place, _number(math.log(band[1] / band[0]) if band else math.nan, ".3g")),
    ]


def _stability(place: Place) -> list[Entry]:
    amplified, most = AMPLIFIED
    error, local, bound = SOLVED
    return [
        _mean_of(place, amplified),
        _most_of(place, most),
        _mean_of(place, "encoded_std"),
        _most_of(place, "encoded_max"),
        _mean_of(place, error),
        _mean_of(place, local),
        _constant(place, _mean_of(place, bound)),
    ]


def _edit_tables(results: Results, found: Sequence[Place], notes: tuple[str, ...]) -> tuple[Table, ...]:
    """Return one table of the flows whose latents can be edited under a bound, or none if there are no such flows."""
    edited = [place for place in found if len(place.values("edit_bound"))]
    if not edited:
        return ()
    return (
        Table(
            "edits",
            "Local edits of the latent",
            tuple(group for group in _groups(results, edited, EDITS, _edits) if group.rows),
            (
                "Noise of std 1 changes the latent u in the central square of half the image's side.",
                "Inside, outside: L2 change of the image in and outside the square, range [-1, 1]; mean over images.",
                "At most: the largest change outside that the certificate allows; in brackets: nominal.",
                *notes,
            ),
        ),
    )


def _edits(place: Place) -> list[Entry]:
    inside, outside, bound = (_mean_of(place, name) for name in CHANGED)
    return [inside, outside, _constant(place, bound)]


def _trip_table(results: Results, notes: tuple[str, ...]) -> Table:
    """Return the table of round trips: one group per method, one row per solver, means over all images."""
    groups = []
    for line in results.lines:
        rows = results.rows[results.rows["line"] == line.key]
        made = tuple(Row(_named(name), _trip_entries(rows, name)) for name in round_trips(results))
        groups.append(Group(line.title, tuple(column.head for column in TRIPS.values()), made, "solver"))
    return Table(
        "round_trips",
        "Round trips of the image",
        tuple(groups),
        (
            "Images are encoded and decoded in float64 under one condition. Entries are means over images, corruptions "
            "and severities.",
            "rms error: error of the image, range [-1, 1]. The number after dopri5 is its tolerance (rtol = atol).",
            "NFE: network evaluations of both directions.",
            "Unequal: how many numbers of an image, as the solver holds them, change in a round trip; 0: none.",
            "x_T alone: error if decoding starts without the rest of the solver's state.",
            "float32: error of the method's own solver in float32.",
            f"{MISSING} in a whole row: not computed, or the solver gave up (it had no more integers or steps).",
            *notes,
        ),
    )


def _trip_entries(rows: pd.DataFrame, solver: str) -> tuple[Entry, ...]:
    return tuple(_number(_mean(rows, f"{TRIP}{solver}{end}"), column.digits) for end, column in TRIPS.items())


def guarantee_csv(results: Results) -> str:
    """Return CSV with one line per image: all measurements and all constants, at full precision."""
    rows = results.rows
    names = {"line": "line", "block": "corruption", "column": "severity"}
    trips = [str(column) for column in rows.columns if str(column).startswith(TRIP)]
    kept = [name for name in (*names, "image_id", "seed", *GUARANTEES, *trips) if name in rows]
    return csv(rows[kept].rename(columns=names))


def _span(span: tuple[float, float] | None) -> Entry:
    if span is None:
        return Entry(MISSING, mark="missing")
    return Entry(f"{span[0]:.3g} – {span[1]:.3g}", span[1], *span)


def _mean_of(place: Place, name: str) -> Entry:
    """Return the mean of a column over images."""
    return _number(place.mean(name), GUARANTEES[name].digits)


def _most_of(place: Place, name: str) -> Entry:
    """Return the largest value of a column over images."""
    return _number(place.values(name).max(initial=-math.inf), GUARANTEES[name].digits)


def _number(value: float, style: str) -> Entry:
    """Return a number as an entry. Only an exact 0 is written as 0."""
    text = format(value, style) if value else "0"
    return Entry(text, float(value)) if math.isfinite(value) else Entry(MISSING, mark="missing")


# --- figures --------------------------------------------------------------------------------------------------------


def trip_figure(results: Results, looks: Looks) -> Figure:
    """Draw the round-trip error of the image against evaluations and against dopri5's tolerance, log-log.

    Each method has one line, its mean over images, corruptions and severities. Solvers with fixed steps have one
    marker each.
    """
    from matplotlib.lines import Line2D

    solvers = round_trips(results)
    adaptive = [name for name in solvers if name.startswith(DOPRI5)]
    markers = dict(zip((name for name in solvers if name not in adaptive), itertools.cycle(MARKS), strict=False))
    labels = [*looks.titles.values(), *map(_named, markers)]
    figure, (work, tolerance) = panels(2, 4.2, 3.2, legend=labels)
    for line in results.lines:
        rows = results.rows[results.rows["line"] == line.key]
        means = {name: (_mean(rows, f"{TRIP}{name}{NFE}"), _mean(rows, f"{TRIP}{name}")) for name in solvers}
        look, errors = looks.by_line[line.key], [max(means[name][1], EXACT) for name in adaptive]
        draw_line(work, [means[name][0] for name in adaptive], errors, look, line.title)
        draw_line(tolerance, [_tolerance(name) for name in adaptive], errors, look, line.title)
        for name, marker in markers.items():
            if math.isfinite(means[name][1]):
                work.scatter(means[name][0], max(means[name][1], EXACT), 34, look.color, marker, linewidths=1.2)
    ends = [_tolerance(name) for name in adaptive]
    if ends:
        tolerance.plot(ends, ends, color="#9A9A9A", linestyle=(0, (4, 2)), linewidth=1.1, label="error = tolerance")
    for panel, label in ((work, "NFE of both directions"), (tolerance, "rtol = atol of dopri5")):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(label)
    work.set_ylabel("rms error of the image")
    if any((results.rows[f"{TRIP}{name}"] == 0).any() for name in markers):
        work.axhline(EXACT, color="#9A9A9A", linewidth=0.8, zorder=1)
        work.annotate("0", (1, EXACT), xycoords=("axes fraction", "data"), xytext=(3, -3), textcoords="offset points")
    evaluations = [x for name in solvers for x in results.rows[f"{TRIP}{name}{NFE}"].dropna().astype(float)]
    if evaluations:
        plain_ticks(work, evaluations)
    for name, marker in markers.items():
        work.add_line(Line2D([], [], color="#606060", marker=marker, linestyle="none", label=_named(name)))
    legend(figure, (work, tolerance))
    return figure


EXACT = 1e-18
"""Height at which an error of 0 is drawn."""
MARKS = ("*", "P", "X", "v", "d", "h")


def _mean(rows: pd.DataFrame, name: str) -> float:
    return float(rows[name].astype(float).mean()) if name in rows and len(rows) else math.nan


def band_figure(results: Results, looks: Looks) -> Figure:
    """Draw two panels per corruption.

    Above: measured singular values (thick) and sought pairs (thin), from the smallest to the largest over images, in
    the certified band (shaded; hatched if nominal), log scale, one bar per method and severity. Below: amplification of
    noise in the measurement by the restoration, one line per method, from the mean over images up to the largest.
    """
    count = len(results.blocks)
    figure, axes = panels(2 * count, 3.2, 2.6, most=count, legend=list(looks.titles.values()))
    for above, below, block in zip(axes[:count], axes[count:], results.blocks, strict=True):
        shown = [place for place in places(results) if place.block == block]
        _draw_bands(above, shown, block, results.lines, looks)
        _draw_amplification(below, shown, block, results.lines, looks)
        for panel in (above, below):
            panel.set_xlim(-0.5, len(block.columns) - 0.5)
            panel.set_xlabel(block.axis)
            panel.set_xticks(range(len(block.columns)), [literal(column, TICK) for column in block.columns])
        above.set_title(block.title)
    axes[0].set_ylabel("|Φ(a) − Φ(b)| / |a − b|")
    axes[count].set_ylabel("noise in y: |R(y + n) − R(y)| / |n|")
    legend(figure, axes)
    return figure


def _draw_bands(panel: Axes, shown: Sequence[Place], block: Block, lines: Sequence[Line], looks: Looks) -> None:
    step = 0.8 / max(1, len(lines))
    for place in shown:
        centre = block.columns.index(place.column) + step * (lines.index(place.line) - (len(lines) - 1) / 2)
        look = looks.by_line[place.line.key]
        if band := place.band:
            how: dict[str, Any] = (
                {"color": look.color, "alpha": 0.16} if place.certified else {"fill": False, "hatch": "////"}
            )
            panel.bar(centre, band[1] - band[0], 0.9 * step, bottom=band[0], linewidth=0, edgecolor="#BBBBBB", **how)
        for kind, width, aside in (("sv", 4.0, -0.12), ("adversarial", 1.2, 0.18)):
            if span := place.span(kind):
                title = place.line.title if kind == "sv" else None
                panel.plot(
                    [centre + aside * step] * 2,
                    span,
                    color=look.color,
                    linewidth=width,
                    solid_capstyle="butt",
                    label=title,
                )
    panel.axhline(1, color="#9A9A9A", linewidth=0.8, zorder=1)
    panel.use_sticky_edges = False  # else the axis would end at the bottom of a bar
    panel.set_yscale("log")


def _draw_amplification(panel: Axes, shown: Sequence[Place], block: Block, lines: Sequence[Line], looks: Looks) -> None:
    top = 0.0
    for line in lines:
        own = [place for place in shown if place.line == line]
        x, y = [block.columns.index(place.column) for place in own], [place.mean("amplification") for place in own]
        draw_line(panel, x, y, looks.by_line[line.key], line.title)
        most = [place.values("amplification_max").max(initial=-math.inf) for place in own]
        panel.vlines(x, y, most, color=looks.by_line[line.key].color, linewidth=1.0)
        top = max(top, *most, 0.0)
    panel.set_ylim(0, 1.08 * top or 1.0)
