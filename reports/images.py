"""The sample images of cells: one gallery per column for the page, and a grid of a few images as a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.columns import Metric
from reports.drawing import TICK, Looks, literal
from reports.results import Block, Line, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
MOST = 8  # most images of a gallery
TILE = 96  # fewest pixels of a side of a tile of the grid
ZOOM = 3  # the inset shows a window of 1/ZOOM of the side
FRAME = (214, 40, 40)  # colour of the frame of the window and of the inset
TRUTH, MEASURED, UNEDITED, NO_IMAGE = "truth", "input y", "input", "no image"
UNKNOWN = (math.nan, math.nan)
Scores = Callable[[str], Mapping[str, tuple[float, float]]]
RULE = "by the mean {metric} of all methods, among the {n} images that were kept"


@dataclass(frozen=True)
class Picture:
    """An image [H, W, 3] uint8 (None if the cell has not finished) and its caption."""

    image: Pixels | None
    caption: str


@dataclass(frozen=True)
class Gallery:
    """The sample images of one column, from the worst to the best: truth, input and every method side by side."""

    block: Block
    column: str
    heads: tuple[str, ...]
    ids: tuple[str, ...]
    ranks: tuple[str, ...]  # worst, median, best or nothing
    pictures: tuple[tuple[Picture, ...], ...]
    rule: str  # meaning of worst and best
    keys: tuple[str, ...] = ()  # for each head, the key of its line, or "" for the truth and the input


def gallery(results: Results, block: Block, column: str, metric: Metric | None, scores: Scores) -> Gallery | None:
    """Return the images that all finished methods of this column have kept, or None if there are none."""
    kept: list[tuple[Line, str | None, Mapping[str, np.ndarray]]] = []
    for line in results.lines:
        cells = results.by_key.get((line.key, block.key, column))
        if cells is None:
            continue
        done = next((cell.id for cell in cells if cell.status == "done"), None)
        kept.append((line, done, results.samples(done) if done else {}))
    filled = [(cell, samples) for _, cell, samples in kept if samples]
    if not filled:
        return None
    places = {cell: {str(name): i for i, name in enumerate(samples["ids"])} for cell, samples in filled}
    ids = [name for name in places[filled[0][0]] if all(name in place for place in places.values())][:MOST]
    if not ids:
        return None
    known = {cell: scores(cell) for cell, _ in filled if cell is not None}
    ids, ranks = ranked(ids, list(known.values()), metric)
    source, reference = filled[0]
    measured = "input" in reference and not results.reconstructs  # a round trip's input is the truth
    rows = []
    for name in ids:
        i = places[source][name]
        row = [Picture(_rgb(reference["truth"][i]), "")]
        if measured:
            value = known[str(source)].get(name, UNKNOWN)[1]
            row.append(Picture(_rgb(reference["input"][i]), _caption(metric, value)))
        for _, cell, samples in kept:
            if cell is None or not samples:
                row.append(Picture(None, NO_IMAGE))
                continue
            value = known[cell].get(name, UNKNOWN)[0]
            row.append(Picture(_rgb(samples["output"][places[cell][name]]), _caption(metric, value)))
        rows.append(tuple(row))
    given = UNEDITED if results.edits else MEASURED
    heads = (TRUTH, *((given,) if measured else ()), *(line.title for line, _, _ in kept))
    rule = RULE.format(metric=metric.title, n=len(ids)) if metric is not None else ""
    keys = ("",) * (len(heads) - len(kept)) + tuple(line.key for line, _, _ in kept)
    return Gallery(block, column, heads, tuple(ids), tuple(ranks), tuple(rows), rule, keys)


def ranked(
    ids: Sequence[str], scores: Sequence[Mapping[str, tuple[float, float]]], metric: Metric | None
) -> tuple[list[str], list[str]]:
    """Return the images from the worst to the best by mean score over methods, and which is worst, median and best."""
    if metric is None:
        return list(ids), [""] * len(ids)
    sign = 1 if metric.higher_is_better else -1

    def mean(name: str) -> float:
        known = [value for of in scores if not math.isnan(value := of.get(name, UNKNOWN)[0])]
        return sign * sum(known) / len(known) if known else -math.inf

    order = sorted(ids, key=lambda name: (mean(name), name))
    ranks = [""] * len(order)
    if len(order) > 2:
        ranks[0], ranks[(len(order) - 1) // 2], ranks[-1] = "worst", "median", "best"
    return order, ranks


def scores_of(results: Results, metric: Metric | None) -> Scores:
    """Return a function: cell -> image -> (metric, metric of the input). It looks up rows of a cell on each call."""
    rows = results.rows
    if metric is None or metric.name not in rows:
        return lambda _: {}
    places = rows.groupby("cell_id", sort=False, observed=True).indices
    blank = np.full(len(rows), math.nan)
    images, values = rows["image_id"], rows[metric.name].to_numpy(dtype=float)
    before = rows[f"input_{metric.name}"].to_numpy(dtype=float) if f"input_{metric.name}" in rows else blank

    def scores(cell: str) -> dict[str, tuple[float, float]]:
        chosen = places.get(cell, np.array([], dtype=int))
        pairs = zip(values[chosen].tolist(), before[chosen].tolist(), strict=True)
        return dict(zip(images.iloc[chosen].astype(str), pairs, strict=True))

    return scores


def _caption(metric: Metric | None, value: float) -> str:
    if metric is None or math.isnan(value):
        return ""
    return "∞" if math.isinf(value) else metric.text(value)


def _rgb(image: np.ndarray) -> Pixels:
    image = image[..., None] if image.ndim == 2 else image
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def enlarge(image: Pixels, side: int) -> Pixels:
    """Enlarge to a square of `side` pixels by nearest neighbour, so that every source pixel stays visible."""
    rows = np.arange(side) * image.shape[0] // side
    columns = np.arange(side) * image.shape[1] // side
    return image[rows][:, columns]


# --- the grid ------------------------------------------------------------------------------------------------------


def window(images: Sequence[Pixels]) -> tuple[slice, slice]:
    """Return the square window, 1/ZOOM of the side, where the images differ most (largest summed variance)."""
    stack = np.stack(images).astype(np.float64)
    variance = stack.var(axis=0).mean(axis=-1)
    height, width = variance.shape
    size = max(1, min(height, width) // ZOOM)
    total = np.pad(variance, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    y, x = np.unravel_index(int(np.argmax(np.round(sums, 6))), sums.shape)
    return slice(int(y), int(y) + size), slice(int(x), int(x) + size)


def _tile(image: Pixels, side: int, part: tuple[slice, slice]) -> Pixels:
    """Return the whole image above its enlarged window [2 side + gap, side, 3], with a frame in both."""
    whole, inset = enlarge(image, side).copy(), enlarge(image[part], side).copy()
    scale_y, scale_x = side / image.shape[0], side / image.shape[1]
    y0, y1 = (int(v * scale_y) for v in (part[0].start, part[0].stop))
    x0, x1 = (int(v * scale_x) for v in (part[1].start, part[1].stop))
    line = max(1, side // 64)
    _frame(whole[y0:y1, x0:x1], line)
    _frame(inset, line)
    return np.concatenate([whole, np.full((side // 24, side, 3), 255, np.uint8), inset])


def _frame(view: Pixels, line: int) -> None:
    for edge in (view[:line], view[-line:], view[:, :line], view[:, -line:]):
        edge[...] = FRAME


def _wrapped(head: str) -> list[str]:
    return textwrap.wrap(head, 16, max_lines=4, placeholder="…")


def image_grid(shown: Gallery, looks: Looks) -> Figure:
    """Draw the worst, the median and the best image, each with an inset below, for the methods in colour.

    All tiles are in one bitmap: one axis per tile would take seconds to draw.
    """
    from matplotlib.figure import Figure

    columns = [i for i, key in enumerate(shown.keys) if not key or key in looks.coloured]
    rows = [i for i, rank in enumerate(shown.ranks) if rank] or list(range(min(3, len(shown.ids))))
    images = [p.image for row in shown.pictures for p in row if p.image is not None]
    largest = max(image.shape[0] for image in images)
    side = largest * max(1, math.ceil(TILE / largest)) if largest < 256 else 256
    gap, foot, margin = side // 16, side // 4, side // 5
    inch = 0.95 / side  # a tile is .95 inch wide on paper, for any number of pixels
    heads = [_wrapped(looks.titles.get(shown.keys[column], shown.heads[column])) for column in columns]
    lines = max(map(len, heads))
    tall = 2 * side + side // 24 + foot
    canvas = np.full((len(rows) * tall, margin + len(columns) * (side + gap) - gap, 3), 255, dtype=np.uint8)
    head, border = 0.5 + 0.13 * lines, 0.12
    width, height = canvas.shape[1] * inch + 2 * border, canvas.shape[0] * inch + head + border
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((border / width, border / height, 1 - 2 * border / width, canvas.shape[0] * inch / height))
    for r, row in enumerate(rows):
        pictures = [shown.pictures[row][column] for column in columns]
        made = [p.image for p, column in zip(pictures, columns, strict=True) if shown.keys[column]]
        known = [image for image in made if image is not None]
        part = window(known or [p.image for p in pictures if p.image is not None])
        for c, picture in enumerate(pictures):
            y, x = r * tall, margin + c * (side + gap)
            tile = None if picture.image is None else _tile(picture.image, side, part)
            canvas[y : y + tall - foot, x : x + side] = 238 if tile is None else tile
            if picture.caption:
                low, va = (side, "center") if tile is None else (tall - foot * 0.9, "top")
                axes.text(x + side / 2, y + low, picture.caption, ha="center", va=va, fontsize=6.5, color="#444444")
        words = shown.ranks[row] or literal(shown.ids[row])
        axes.text(
            margin * 0.45, r * tall + side, words, rotation=90, ha="center", va="center", fontsize=8, color="#555555"
        )
    axes.imshow(canvas, interpolation="none", aspect="auto")
    axes.set_axis_off()
    for c, head_lines in enumerate(heads):
        x = margin + c * (side + gap) + side // 2
        axes.text(x, -side / 14, "\n".join(head_lines), ha="center", va="bottom", fontsize=7.5)
    title = f"{literal(shown.block.title)}, {shown.block.axis} {literal(shown.column, TICK)}"
    figure.text(border / width, 1 - 0.06 / height, title, fontsize=9.5, va="top")
    note = f"Worst, median, best: {shown.rule}. Inset: where the outputs differ most." if shown.rule else ""
    figure.text(border / width, 1 - 0.26 / height, textwrap.shorten(note, 130), fontsize=6.5, va="top", color="#666666")
    return figure
