"""Cells -> jobs: those of one model and data set together, cut by predicted minutes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.cells import Cell


@dataclass(frozen=True)
class Chunk:
    """The cells of one job, in order: its weights are loaded once."""

    cells: tuple[Cell, ...]
    minutes: float


def chunk(cells: Iterable[Cell], minutes: Callable[[Cell], float], limit: float) -> tuple[Chunk, ...]:
    """Cut into jobs of at most `limit` predicted minutes (a longer cell is a job of its own)."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.axes["model"], cell.axes["dataset"]), []).append(cell)
    chunks = []
    for members in groups.values():
        current: list[Cell] = []
        total = 0.0
        for cell in members:
            if current and total + minutes(cell) > limit:
                chunks.append(Chunk(tuple(current), total))
                current, total = [], 0.0
            current.append(cell)
            total += minutes(cell)
        chunks.append(Chunk(tuple(current), total))
    return tuple(chunks)


class Clock:
    """Predicts a cell's minutes: from finished cells of the same model where there are any, else from the number of
    evaluations and pixels at a rate measured for the shipped U-Net on one CPU thread."""

    SECONDS_PER_MEGAPIXEL = 5.0

    def __init__(self, recorded: Iterable[tuple[str, int, float]] = ()) -> None:
        """`recorded`: (model, evaluations, seconds) of finished cells."""
        totals: dict[str, tuple[int, float]] = {}
        for model, evaluations, seconds in recorded:
            before = totals.get(model, (0, 0.0))
            totals[model] = (before[0] + evaluations, before[1] + seconds)
        self.rates = {model: seconds / evaluations for model, (evaluations, seconds) in totals.items() if evaluations}

    def minutes(self, cell: Cell) -> float:
        _, height, width = cell.spec["model"]["shape"]
        rate = self.rates.get(cell.axes["model"], self.SECONDS_PER_MEGAPIXEL * height * width / 1e6)
        return (cell.evaluations * rate + 0.2) / 60
