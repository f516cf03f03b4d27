"""Division of cells into jobs: cells of one model and data set together, limited by predicted minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from bench.spec.cells import Cell
from bench.spec.config import weights_file


@dataclass(frozen=True)
class Chunk:
    """The cells of one job, in order. They share a model, so that its weights are loaded once."""

    cells: tuple[Cell, ...]
    minutes: float


def chunk(cells: Iterable[Cell], minutes: Callable[[Cell], float], limit: float) -> tuple[Chunk, ...]:
    """Divide cells into jobs of at most `limit` predicted minutes. A longer cell is a job of its own."""
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
    """Predicts the minutes of a cell.

    The prediction follows from finished cells of the same method and model, or else of the same model. If there are
    none, it follows from evaluations, pixels and parameters, at a rate measured for the shipped U-Net on one CPU
    thread. Such a prediction has the right order of magnitude on a CPU. On a GPU it is far too long, so that the jobs
    of a first run are too short.
    """

    SECONDS_PER_MEGAPIXEL = 5.0
    """The seconds per evaluation and megapixel of the shipped U-Net."""
    UNET_MEGABYTES = 4.6
    """The size of its weights. The size of another model's weights stands for its number of parameters."""

    def __init__(self, recorded: Iterable[tuple[str, str, int, float]] = ()) -> None:
        """`recorded`: (model, method, evaluations, seconds) of finished cells."""
        totals: dict[tuple[str, ...], tuple[int, float]] = {}
        for model, method, evaluations, seconds in recorded:
            for key in ((model,), (model, method)):
                before = totals.get(key, (0, 0.0))
                totals[key] = (before[0] + evaluations, before[1] + seconds)
        self.rates = {key: seconds / evaluations for key, (evaluations, seconds) in totals.items() if evaluations}

    def minutes(self, cell: Cell) -> float:
        model, method = cell.axes["model"], cell.axes["method"]
        rate = self.rates.get((model, method)) or self.rates.get((model,)) or self._guess(cell)
        return (cell.evaluations * rate + 0.2) / 60

    def _guess(self, cell: Cell) -> float:
        """Return the predicted seconds per evaluation."""
        _, height, width = cell.spec["model"]["shape"]
        size = _megabytes(cell.spec["model"].get("weights")) or self.UNET_MEGABYTES
        return self.SECONDS_PER_MEGAPIXEL * height * width / 1e6 * size / self.UNET_MEGABYTES


@cache
def _megabytes(weights: str | None) -> float:
    """Return the size of a file of weights in megabytes; 0 if there is none."""
    file = weights_file(weights)
    return file.stat().st_size / 1e6 if file is not None and file.is_file() else 0.0
