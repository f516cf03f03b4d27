"""From a data set's name in a cell to the data set itself, its options checked. No torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from bench.errors import UserError, unknown
from bench.spec.config import DatasetConfig
from bench.spec.registry import identity, load


def dataset_spec(name: str, config: DatasetConfig) -> dict[str, Any]:
    """What a cell records of its data set."""
    return {
        "name": name,
        "class": identity(config.class_path, "dataset"),
        "split": config.split,
        "options": config.options,
    }


def open_dataset(spec: Mapping[str, Any]) -> Any:
    """The data set of a cell's `spec["dataset"]`. Raises UserError for options that its class refuses."""
    return _open(spec["name"], spec["class"], spec["split"], json.dumps(spec["options"], sort_keys=True))


@cache
def _open(name: str, class_path: str, split: str, options: str) -> Any:
    given, made = json.loads(options), load(class_path, "dataset")
    parameters = inspect.signature(made).parameters
    known = {option for option in parameters if option != "split"}
    if inspect.Parameter.VAR_KEYWORD not in {p.kind for p in parameters.values()}:
        for option in given:
            if option not in known:
                raise unknown("option", option, known, f"in dataset.{name}.options")
    try:
        return made(split=split, **given)
    except (TypeError, ValueError, OSError) as error:
        raise UserError(f"dataset {name}: {error}") from error
