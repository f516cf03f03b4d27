"""Figures of round trips: error against steps and evaluations, the scale of latents, and comparisons with theory.

Orders of accuracy are the slopes of the errors. The parasitic growth of EDICT, p^(-2N), and of BDIA, gamma^(-N), is a
latent that explodes behind a perfect round trip. Theorems 3.4 and 3.5 of RF-Inversion say that the marginals of its
ODEs and SDEs agree only at gamma (or eta) 0 and 1.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.columns import COSTS, LATENTS, Metric
from reports.drawing import (
    LABEL,
    PALETTE,
    End,
    Looks,
    draw_line,
    ink,
    legend,
    name_ends,
    number,
    panels,
    plain_ticks,
    power,
)
from reports.results import Results, words
from reports.statistics import bootstrap
from reports.summary import EXPLODED, INPUT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, TALL = 4.9, 3.7  # inches of a panel
STRIP = 0.2  # share of a panel's height for the names of exact methods
DASHED: dict[str, Any] = {"color": "#9A9A9A", "linewidth": 1.1, "linestyle": (0, (4, 2)), "zorder": 1.2}
GROWTH: Mapping[str, tuple[str, str, Callable[[float], float]]] = {
    "methods.inversion.edict.EDICT": ("p", "p⁻²ᴺ", lambda p: p**-2),
    "methods.inversion.bdia.BDIA": ("gamma", "γ⁻ᴺ", lambda gamma: 1 / gamma),
}
"""Class of a method -> (its option, law of growth as text, option -> growth factor per step)."""


# --- error ---------------------------------------------------------------------------------------------------------


def exact(metric: Metric, summary: pd.DataFrame) -> set[str]:
    """Return the lines whose error is only rounding in every column."""
    chosen = summary[(summary["metric"] == metric.name) & summary["mean"].notna()]
    worst = chosen.groupby("line", sort=False)["mean"].max()
    return set(worst.index[worst <= metric.exact**2])


def round_trip(
    metric: Metric, summary: pd.DataFrame, costs: pd.DataFrame, results: Results, looks: Looks, against: str
) -> Figure:
    """Draw the root mean squared error of the round trip, log-log: one panel per block, one line per method.

    `against` is "nfe" or "steps"; "steps" also shows slopes of first and second order in grey and the observed order of
    each method. Methods with only rounding errors are named in a strip at the bottom; the table has their errors.
    """
    chosen = summary[(summary["metric"] == metric.name) & (summary["line"] != INPUT) & np.isfinite(summary["mean"])]
    evaluations = costs.set_index(["line", "block", "column"])["nfe"]
    rounding = metric.exact
    figure, axes = panels(len(results.blocks), WIDE, TALL, 2)
    for panel, block in zip(axes, results.blocks, strict=True):
        part = chosen[chosen["block"] == block.key]
        rms = np.sqrt(part["mean"].to_numpy(dtype=float))
        inexact = rms[rms > rounding]
        panel.set_title(block.title)
        panel.set_xlabel(COSTS["nfe"].axis if against == "nfe" else block.axis)
        if not len(rms):
            continue
        floor = 10.0 ** math.floor(math.log10(inexact.min() / 2)) if len(inexact) else rounding
        top = 3 * float(inexact.max()) if len(inexact) else floor * 10
        bottom = floor * (floor / top) ** (STRIP / (1 - STRIP))
        named, drawn, xs = [], [], []
        for key in looks.by_line:
            points = part[part["line"] == key]
            if points.empty:
                continue
            if (points["mean"] <= rounding**2).all():
                named.append(looks.titles[key])
                continue
            # A missing cell leaves a gap in the line. A column that is not a number has no place on the axis.
            whole = points.set_index("column")["mean"].reindex(block.columns)
            nfe = [evaluations.get((key, block.key, c), math.nan) for c in block.columns]
            x = np.array(nfe if against == "nfe" else [number(c) for c in block.columns], dtype=float)
            y = np.sqrt(whole.to_numpy(dtype=float))
            drawn.append((key, x, y))
            xs += [float(v) for v in x[np.isfinite(x) & np.isfinite(y)] if v > 0]
        if not xs:
            continue
        panel.set_xscale("log")
        panel.set_yscale("log")
        plain_ticks(panel, xs)
        panel.set_xlim(min(xs) * 0.93, max(xs) * 1.02)
        panel.set_ylim(bottom, top)
        ends = []
        for key, x, y in drawn:
            low = np.where(y <= rounding, bottom * (floor / bottom) ** 0.12, y)
            draw_line(panel, x, low, looks.by_line[key], looks.titles[key])
            last = int(np.flatnonzero(np.isfinite(low))[-1])
            above = against == "steps" and y[last] > rounding
            order = observed(x, np.where(y <= rounding, math.nan, y)) if above else None
            label = looks.titles[key] + ("" if order is None else f"  {round(order, 1) + 0.0:.1f}")
            ends.append(End(float(x[last]), float(low[last]), label, ink(looks.by_line[key])))
        if against == "steps" and len(inexact) and max(xs) > min(xs):
            ends += _slopes(panel, min(xs), max(xs), 1.3 * float(inexact.max()))
        name_ends(panel, ends, TALL - 0.7)
        if named or (rms <= rounding).any():
            _strip(panel, floor, bottom, named, rounding)
    for panel in axes[::2]:
        panel.set_ylabel(f"rms error ({'latent' if metric.name == 'latent_mse' else 'image'})")
    return figure


def observed(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return the order of accuracy between the last two columns: minus the slope of log y against log x."""
    known = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    if known.sum() < 2:
        return None
    (x0, x1), (y0, y1) = x[known][-2:], y[known][-2:]
    return math.log(y0 / y1) / math.log(x1 / x0)


def _slopes(panel: Axes, first: float, last: float, start: float) -> list[End]:
    """Draw 1/N and 1/N² from one point above all errors."""
    ends = []
    for order, name in ((1, "1/N"), (2, "1/N²")):
        y = start * (last / first) ** -order
        panel.plot([first, last], [start, y], **DASHED)
        ends.append(End(last, y, name, "#707070"))
    return ends


def _strip(panel: Axes, floor: float, bottom: float, named: list[str], rounding: float) -> None:
    """Write the names of exact methods below `floor`. The axis has no ticks there, since heights have no meaning."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    panel.axhspan(bottom, floor, color="#F0F0F0", zorder=0.5, linewidth=0)
    words = f"exact to rounding (below {rounding:.0e}): {', '.join(named) or 'lines that end here'}"
    panel.text(
        0.012, STRIP * 0.94, textwrap.fill(words, 56), transform=panel.transAxes, va="top", fontsize=LABEL,
        color="#555555", linespacing=1.15, zorder=4, bbox={"facecolor": "#F0F0F0", "edgecolor": "none", "pad": 1},
    )  # fmt: skip
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value) if value > 0.99 * floor else ""))


# --- latents -------------------------------------------------------------------------------------------------------


def latent_scale(costs: pd.DataFrame, results: Results, looks: Looks) -> Figure:
    """Draw the latent's standard deviation (log) against the columns. The prior has 1; above 3 the latent exploded."""
    figure, axes = panels(len(results.blocks), WIDE, 3.3, 2)
    for panel, block in zip(axes, results.blocks, strict=True):
        part = costs[(costs["block"] == block.key) & np.isfinite(costs["latent_std"]) & (costs["latent_std"] > 0)]
        panel.set_title(block.title)
        panel.set_xlabel(block.axis)
        xs = [x for x in map(number, block.columns) if x > 0]
        if part.empty or not xs:
            continue
        low, high = min(0.25, part["latent_std"].min() / 1.3), max(4.0, part["latent_std"].max() * 1.3)
        panel.set_xscale("log")
        panel.set_yscale("log")
        plain_ticks(panel, xs)
        panel.set_xlim(min(xs) * 0.93, max(xs) * 1.02)
        panel.set_ylim(low, high)
        panel.axhline(1, **DASHED)
        panel.axhspan(EXPLODED, high, color="#FBE3E0", zorder=0.5, linewidth=0)
        panel.axhspan(low, 1 / EXPLODED, color="#E3ECF7", zorder=0.5, linewidth=0)
        for height, va, word in ((EXPLODED * 1.05, "bottom", "exploded"), (1 / EXPLODED / 1.05, "top", "collapsed")):
            if word == "collapsed" and high / low > 300:
                continue  # no room for the word
            panel.text(0.01, height, word, transform=panel.get_yaxis_transform(), va=va, fontsize=6.5, color="#666666")
        ends = []
        for key in looks.by_line:
            points = part[part["line"] == key]
            if points.empty:
                continue
            x = np.array([number(c) for c in block.columns])
            y = points.set_index("column")["latent_std"].reindex(block.columns).to_numpy(dtype=float)
            look = looks.by_line[key] if points["flag"].any() or key in looks.coloured else None
            draw_line(panel, x, y, look, looks.titles[key])
            last = int(np.flatnonzero(np.isfinite(y))[-1])
            ends.append(End(float(x[last]), float(y[last]), looks.titles[key], ink(look)))
        if high / low < 300:
            _plain_y_ticks(panel)
        name_ends(panel, ends, 2.6)
    for panel in axes[::2]:
        panel.set_ylabel(LATENTS["latent_std"].axis)
    return figure


def _plain_y_ticks(panel: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def growing(results: Results) -> dict[str, tuple[str, float]]:
    """Return line -> (law as text, growth factor per step) for the methods of `GROWTH` with finished cells."""
    found = {}
    for cell in results.cells:
        method = results.records.get(cell.id, {}).get("config", {}).get("method", {})
        if cell.key[0] not in found and isinstance(method, Mapping) and method.get("class") in GROWTH:
            option, law, factor = GROWTH[method["class"]]
            value = method["options"].get(option)
            if not isinstance(value, float):
                continue
            symbol = {"p": "p", "gamma": "γ"}[option]
            found[cell.key[0]] = (f"{law}, {symbol} = {value:g}", factor(value))
    return found


def growth(costs: pd.DataFrame, results: Results, looks: Looks) -> Figure | None:
    """Draw the latent's std against the steps: one panel per method with parasitic growth, with its law in grey.

    Returns None if no such method ran at three numbers of steps.
    """
    laws = growing(results)
    axis = results.blocks[0].axis if results.blocks else ""
    if axis != "steps" or not laws or max(len(block.columns) for block in results.blocks) < 3:
        return None
    figure, axes = panels(len(laws), 4.4, 3.4, 2, [block.title for block in results.blocks])
    for panel, (key, (law, factor)) in zip(axes, laws.items(), strict=True):
        part = costs[(costs["line"] == key) & np.isfinite(costs["latent_std"])]
        panel.set_title(looks.titles[key])
        panel.set_xlabel("steps N")
        panel.set_yscale("log")
        panel.axhline(1, **DASHED)
        strongest: tuple[float, float] | None = None
        for i, block in enumerate(results.blocks):
            points = part[part["block"] == block.key]
            if points.empty:
                continue
            x = np.array([number(c) for c in points["column"]])
            y = points["latent_std"].to_numpy(dtype=float)
            panel.plot(
                x, y, color=PALETTE[i % len(PALETTE)], marker="osD^vph<"[i % 8], label=block.title, alpha=0.9,
                markeredgecolor="white", markeredgewidth=0.6, linestyle=("-", (0, (5, 1.5)))[i % 2],
            )  # fmt: skip
            if y[-1] >= EXPLODED and (strongest is None or y[-1] > strongest[1]):
                strongest, rate = (float(x[-1]), float(y[-1])), _rate(x, y)
                measured = (
                    f"measured: ×{rate:.3f} ({block.title})"
                    if rate
                    else "only the last point exceeds the latent itself"
                )
                words = f"law: ×{factor:.3f} per step\n{measured}"
        low, high = panel.get_ylim()
        if strongest is not None:
            n = np.linspace(0, strongest[0], 50)
            panel.plot(n, strongest[1] * factor ** (n - strongest[0]), **DASHED | {"label": "law"})
            panel.text(0.03, 0.95, f"{law}\n{words}", transform=panel.transAxes, va="top", fontsize=7, color="#555555")
        else:
            panel.text(
                0.03, 0.95, f"{law}: ×{factor:.3f} per step\ndoes not yet exceed the latent itself",
                transform=panel.transAxes, va="top", fontsize=7, color="#555555",
            )  # fmt: skip
        panel.set_ylim(min(low, 0.3), max(high, 10) * 4)
    axes[0].set_ylabel(LATENTS["latent_std"].axis)
    legend(figure, axes)
    return figure


def _rate(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return the growth per step between the last two columns, if the parasitic part is dominant in both."""
    if len(y) < 2 or y[-1] < EXPLODED or y[-2] < EXPLODED:
        return None
    return float((y[-1] / y[-2]) ** (1 / (x[-1] - x[-2])))


# --- marginals -----------------------------------------------------------------------------------------------------

SIDES = (
    ("inversion", "gamma", "mode_forward", "latent_std", "std of Yₛ over pixels", "γ"),
    ("decoding", "eta", "mode_reverse", "latent_mse", "rms distance of X to y₀", "η"),
)
"""RF-Inversion: (direction, option of the control, option ODE or SDE, column of the rows, axis label, symbol)."""


def marginals(results: Results) -> Figure | None:
    """Draw the marginals of RF-Inversion's ODEs and SDEs against their control. None if a sweep varies neither."""
    import pandas as pd

    shown = [
        side for side in SIDES if _varies(results, side[1]) and _varies(results, side[2]) and side[3] in results.rows
    ]
    if not shown:
        return None
    figure, axes = panels(len(shown), 4.2, 3.2, 2, ("ODE", "SDE"))
    for panel, (direction, control, mode, column, label, symbol) in zip(axes, shown, strict=True):
        rows = results.rows
        other_control, other_mode = next((s[1], s[2]) for s in SIDES if s[1] != control)
        # Only rows with the other direction at its plain setting can be compared.
        plain = results.axis(f"method.{other_control}").eq(1.0 if control == "eta" else 0.0)
        if _varies(results, other_mode):
            plain &= results.axis(f"method.{other_mode}").eq("ode")
        if _varies(results, "start"):  # inversions stop before pure noise, decodings start from it
            plain &= results.axis("method.start").eq(0.0) == (control == "eta")
        levels = pd.to_numeric(results.axis(f"method.{control}"), errors="coerce")
        rows = rows.assign(mode=results.axis(f"method.{mode}"), control=levels)
        rows = rows[plain & rows[column].notna() & levels.notna()]
        for i, kind in enumerate(("ode", "sde")):
            part = rows[rows["mode"] == kind]
            levels = sorted(part["control"].unique())
            found = []
            for level in levels:
                here = part[part["control"] == level]
                found.append(bootstrap(here[column].to_numpy(dtype=float), here["image_id"].to_numpy(dtype=str)))
            mean, low, high = (np.array([getattr(f, name) for f in found]) for name in ("mean", "low", "high"))
            if column == "latent_mse":
                mean, low, high = (np.sqrt(np.maximum(ends, 0)) for ends in (mean, low, high))
            reach = np.maximum([mean - low, high - mean], 0)  # rounding may put an end on the wrong side of the mean
            panel.errorbar(
                np.array(levels) + (0.012, -0.012)[i], mean, yerr=reach, color=PALETTE[i],
                marker="os"[i], capsize=3, linestyle="none", markersize=6, label=kind.upper(),
            )  # fmt: skip
            panel.set_xticks(levels)
        panel.set_title(f"{direction}: {symbol} of the controller")
        panel.set_xlabel(symbol)
        panel.set_ylabel(label)
        panel.set_xlim(-0.2, 1.2)
        panel.set_ylim(0, None)
    legend(figure, axes)
    return figure


def _varies(results: Results, option: str) -> bool:
    name = f"method.{option}"
    return len({words(cell.axes[name]) for cell in results.cells if cell.status == "done" and name in cell.axes}) > 1
