"""Comparison of cells with a store: done, missing, failed and retried cells. Pure, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.spec.cells import Cell


@dataclass(frozen=True)
class Plan:
    """Cells by their state in a store. A run computes `missing` and `retried`."""

    done: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    failed: tuple[Cell, ...]
    retried: tuple[Cell, ...]

    @property
    def todo(self) -> tuple[Cell, ...]:
        return self.missing + self.retried


def reconcile(
    cells: Iterable[Cell], done: set[str], failed: set[str], retry: Sequence[str], failure_class: Callable[[str], str]
) -> Plan:
    """Split cells into done, missing, failed and retried.

    Retried cells are failed cells whose failure class is in `retry`. `failure_class` returns the class of a cell id.
    """
    groups: dict[str, list[Cell]] = {"done": [], "missing": [], "failed": [], "retried": []}
    for cell in cells:
        if cell.id in done:
            groups["done"].append(cell)
        elif cell.id not in failed:
            groups["missing"].append(cell)
        else:
            again = "all" in retry or (bool(retry) and failure_class(cell.id) in retry)
            groups["retried" if again else "failed"].append(cell)
    return Plan(**{name: tuple(members) for name, members in groups.items()})
