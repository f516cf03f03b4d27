"""Expansion of a sweep's axes into points: the product, zipped axes, exclude and include. Pure, no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from bench.columns import EDIT_AXIS, NAME_AXES, NUMBER_AXES
from bench.errors import UserError, unknown
from bench.spec.config import RunConfig
from bench.spec.registry import options_class

Point = dict[str, Any]


def axes_of(config: RunConfig) -> list[list[Point]]:
    """Return the factors of the product. Each factor is a list of partial points.

    The axes of one `zip` entry make one factor.
    """
    names = {axis: list(getattr(config, axis)) for axis in NAME_AXES}
    values: dict[str, Sequence[Any]] = {axis: chosen for axis, chosen in names.items() if chosen}
    values |= config.matrix
    zipped = [axis for group in config.zip for axis in group]
    for axis, options in config.matrix.items():
        _check_axis(axis, options, config, "matrix")
    for group in config.zip:
        if not group:
            raise UserError("an entry of zip names no axis")
        for axis, options in group.items():
            _check_axis(axis, options, config, "zip")
    for axis in zipped:
        if zipped.count(axis) > 1 or (axis in config.matrix):
            raise UserError(f"axis {axis} is both in matrix and in zip, or twice in zip")
    factors = [[{axis: value} for value in options] for axis, options in values.items() if axis not in zipped]
    for group in config.zip:
        lengths = {axis: len(options) for axis, options in group.items()}
        if len(set(lengths.values())) > 1:
            stated = ", ".join(f"{axis} has {length}" for axis, length in lengths.items())
            raise UserError(f"axes of one zip need the same number of values: {stated}")
        factors.append([dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)])
    return factors


def _check_axis(axis: str, values: Collection[Any], config: RunConfig, where: str) -> None:
    if axis in NAME_AXES:
        chosen = getattr(config, axis)
        for value in values:
            if not isinstance(value, str) or value not in chosen:
                raise unknown(axis, str(value), chosen, f"in {where} (it takes what {axis}=NAME has chosen)")
    elif axis.startswith("method."):
        option = axis.removeprefix("method.")
        known = {field for c in config.method.values() for field in _fields(c.class_path)}
        if option not in known:
            raise unknown("method option", option, known, f"in {where}")
    elif axis in NUMBER_AXES:
        for value in values:
            check_number(axis, value)
    elif axis == EDIT_AXIS:
        for value in values:
            if not isinstance(value, str):
                raise UserError(f"edit={value!r}: must be the name of an edit")
    else:
        raise unknown("axis", axis, [*NUMBER_AXES, *NAME_AXES, EDIT_AXIS, "method.OPTION"], f"in {where}")
    if not values:
        raise UserError(f"axis {axis} has no values in {where}")


def check_number(axis: str, value: Any) -> None:
    """Raise UserError if an axis's value is not a number of the right kind, or if a seed is negative.

    Other ranges are checked by the method's options. Text and bools are not numbers here, although pydantic would
    convert them.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if axis == "guidance" and not number:
        raise UserError(f"guidance={value!r}: must be a number")
    if axis != "guidance" and (not number or isinstance(value, float)):
        raise UserError(f"{axis}={value!r}: must be a whole number")
    if axis == "seed" and value < 0:
        raise UserError(f"seed={value!r}: must be 0 or more")


def _fields(class_path: str) -> set[str]:
    return set(options_class(class_path, "method").model_fields)


def _matches(point: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    return all(point.get(axis) in _listed(value) for axis, value in pattern.items())


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def points(config: RunConfig) -> Iterator[Point]:
    """Yield every combination of axis values: the product without `exclude`, then the entries of `include`.

    An entry of `include` is used only if this run has chosen the names in it.
    """
    factors = axes_of(config)
    first = {k: v for factor in factors if factor for k, v in factor[0].items()}
    for pattern in config.exclude:
        for axis in pattern:
            if axis not in first:
                raise unknown("axis", axis, first, "in exclude")
            if axis in NUMBER_AXES:
                for value in _listed(pattern[axis]):
                    check_number(axis, value)
    for combination in itertools.product(*factors):
        point = {k: v for part in combination for k, v in part.items()}
        if not any(_matches(point, pattern) for pattern in config.exclude):
            yield point
    for extra in config.include:
        named = {axis: extra[axis] for axis in NAME_AXES if isinstance(extra.get(axis), str)}
        if any(name not in getattr(config, axis) for axis, name in named.items()):
            continue  # the name exists, but this run has not chosen it
        for axis, value in extra.items():
            _check_axis(axis, [value], config, "include")
        yield first | extra
