"""Expansion of a configuration into cells. Pure: the same configuration gives the same cells in the same order.

A cell is method x model x dataset x task x corruption x severity x steps x guidance x seed with everything resolved.
Its id is readable words and a hash of everything that can change its numbers: resolved options with their declared
versions, the model and its weights' sha256, the data set and the content of its files, the metrics. Titles, launchers,
batch sizes and the folder of a data set's files are not part of the id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import hub
from bench.columns import EDIT_AXIS, MEASURING, NUMBER_AXES
from bench.errors import UserError, unknown
from bench.files import sha256
from bench.spec import metrics
from bench.spec.axes import _fields, check_number, points
from bench.spec.config import SAME, ModelConfig, RunConfig
from bench.spec.datasets import dataset_spec, in_id, open_dataset, read_files, reread
from bench.spec.registry import check_model, check_options, check_weights, identity, resolve

Point = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One unit of work. Tables are made from `axes`; `spec` is everything that is needed to run the cell."""

    id: str
    axes: dict[str, Any]
    spec: dict[str, Any]
    evaluations: int
    """The predicted number of network evaluations, summed over all images."""


@dataclass(frozen=True)
class Skip:
    """A combination that is not meaningful, with the reason."""

    axes: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Expansion:
    """The cells of a configuration, its skipped points and its unavailable metrics."""

    cells: tuple[Cell, ...]
    skipped: tuple[Skip, ...]
    unavailable: dict[str, str]
    """metric -> reason why it cannot be computed here."""


# --- cells -----------------------------------------------------------------------------------------------------


def expand(config: RunConfig) -> Expansion:
    """Return all cells of a configuration. Raises UserError for every mistake in the configuration."""
    _check_task(config)
    reread()
    usable, unavailable = metrics.available(metrics.chosen(config.metrics), config.task)
    if not usable:
        raise UserError(f"no metric can be computed: {'; '.join(unavailable.values())}")
    models = {name: _model_spec(name, model) for name, model in config.models.items()}
    cells: dict[str, Cell] = {}
    skipped: dict[str, Skip] = {}
    for point in points(config):
        point = _on_its_model(config, point)
        shape = config.models[point["model"]].shape
        unsuited = {metric.name: why for metric in usable.values() if (why := metrics.unsuited(metric, shape))}
        unavailable |= unsuited
        suited = {name: metric for name, metric in usable.items() if metric.name not in unsuited}
        if not suited:
            raise UserError(f"no metric can be computed: {'; '.join(unavailable.values())}")
        made = _cell(config, point, metrics.identity(suited), models[point["model"]])
        if isinstance(made, Skip):
            skipped.setdefault(json.dumps(made.axes, sort_keys=True), made)
        else:
            cells.setdefault(made.id, made)
    for reference in config.reference:
        _check_reference(reference, cells.values())
    if not cells:
        why = next((skip.reason for skip in skipped.values()), "exclude leaves nothing")
        raise UserError(f"the sweep has no cells: {why}")
    return Expansion(tuple(cells.values()), tuple(skipped.values()), unavailable)


def _check_reference(reference: Mapping[str, Any], cells: Collection[Cell]) -> None:
    known = {axis for cell in cells for axis in cell.axes}
    for axis, value in reference.items():
        if cells and axis not in known:
            raise unknown("axis", axis, known, "in reference")
        if isinstance(value, (list, tuple, Mapping)):
            raise UserError(f"reference.{axis}={value!r}: must be one value")
        if axis in NUMBER_AXES and value != SAME:
            check_number(axis, value)


_MEASURE = f"{' and '.join(f'task={task}' for task in MEASURING)} measure"


def _check_task(config: RunConfig) -> None:
    for axis in ("method", "model", "dataset"):
        if not getattr(config, axis):
            raise UserError(f"the sweep names no {axis}; write {axis}=NAME")
    measures = config.task in MEASURING
    if measures and not config.corruption:
        raise UserError(f"task={config.task} needs a corruption; write corruption=NAME")
    if not measures and config.corruption:
        raise UserError(f"corruption has no meaning for task={config.task}; only {_MEASURE}")
    axes = {axis for part in (config.matrix, *config.zip, *config.include) for axis in part}
    if measures and "severity" not in axes:
        raise UserError(f"task={config.task} needs severities; write severity=1,2,3,4,5")
    if not measures and "severity" in axes:
        raise UserError(f"severity has no meaning for task={config.task}; only {_MEASURE}")
    if (config.task == "edit") != (EDIT_AXIS in axes):
        if config.task == "edit":
            raise UserError("task=edit needs kinds of edit; write edit=recolour,remove")
        raise UserError(f"edit has no meaning for task={config.task}; only task=edit edits")
    places = {f"method.{name}.models": method.models for name, method in config.method.items()}
    for place, models in {**places, "model": config.model}.items():
        for name, model in models.items():
            if model.kind == "judge":
                raise UserError(f"model {name} is a classifier, not a denoiser; it cannot run a method")
            check_model(model, f"{place}.{name}")
            check_weights(model, f"{place}.{name}")


def _cell(config: RunConfig, point: Point, judged_by: dict[str, Any], model_spec: dict[str, Any]) -> Cell | Skip:
    method, model, dataset = config.method[point["method"]], config.models[point["model"]], _data(config, point)
    changes = _changes(point, method.class_path)
    options, recorded = _options(
        method.class_path, "method", {**method.options, **changes}, f"method.{point['method']}"
    )
    spec: dict[str, Any] = {
        "task": config.task,
        "images": config.images,
        "seed": point.get("seed", 0),
        "metrics": judged_by,
        "method": {"class": identity(method.class_path, "method"), "options": recorded},
        "model": model_spec,
        "dataset": dataset_spec(point["dataset"], config.dataset[point["dataset"]]),
        **_task_spec(config, point, dataset),
    }
    axes = _axes(config, point, options, changes)
    reason = (
        _mismatch(point, model, dataset, config.images, config.dataset[point["dataset"]].split)
        or _other_models_only(point, model, getattr(options, "runs_on", ()))
        or (_unmade(point, model) if point["model"] not in config.model else None)
        or getattr(options, "refuses", {}).get(config.task)
        or _too_few(point, options)
    )
    if reason:
        return Skip(axes, reason)
    spec["dataset"] |= read_files(spec, model.backbone.get("vocabulary") or model.vocabulary, point["model"])
    evaluations = options.evaluations + (config.guarantee.evaluations if config.task == "guarantee" else 0)
    return Cell(_identify(axes, spec), axes, spec, evaluations * config.images)


def _changes(point: Point, class_path: str) -> dict[str, Any]:
    """Return the options of the method that the axes of a point set. Options that the method lacks are left out."""
    changes = {axis.removeprefix("method."): value for axis, value in point.items() if axis.startswith("method.")}
    changes = {option: value for option, value in changes.items() if option in _fields(class_path)}
    return changes | {axis: point[axis] for axis in ("steps", "guidance") if axis in point}


def _task_spec(config: RunConfig, point: Point, dataset: Any) -> dict[str, Any]:
    """Return the part of a cell's spec that depends on its task: corruption, options of a guarantee, kind of edit."""
    spec: dict[str, Any] = {}
    if config.task in MEASURING:
        spec["corruption"] = _corruption_spec(config, point)
    if config.task == "guarantee":
        spec["guarantee"] = config.guarantee.model_dump(mode="json")
    if config.task == "edit":
        if point[EDIT_AXIS] not in dataset.edits:
            raise unknown("edit", point[EDIT_AXIS], dataset.edits, f"of dataset {point['dataset']}")
        spec[EDIT_AXIS] = point[EDIT_AXIS]
    return spec


def _corruption_spec(config: RunConfig, point: Point) -> dict[str, Any]:
    name, severity = point["corruption"], point["severity"]
    corruption = config.corruption[name]
    if severity not in corruption.severities:
        raise unknown("severity", str(severity), map(str, corruption.severities), f"of {name}")
    merged = {**corruption.options, **corruption.severities[severity]}
    _, recorded = _options(corruption.class_path, "corruption", merged, f"corruption.{name}.severities.{severity}")
    kind = identity(corruption.class_path, "corruption")
    return {"name": name, "severity": severity, "class": kind, "options": recorded}


def _axes(config: RunConfig, point: Point, options: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the axes of a cell, from which tables are made."""
    measures = config.task in MEASURING
    return {
        "method": point["method"],
        "model": point["model"],
        "dataset": point["dataset"],
        "task": config.task,
        "corruption": point["corruption"] if measures else None,
        "severity": point["severity"] if measures else None,
        **({EDIT_AXIS: point[EDIT_AXIS]} if config.task == "edit" else {}),
        "steps": options.steps,
        "guidance": options.guidance,
        "seed": point.get("seed", 0),
        **{f"method.{option}": value for option, value in changes.items() if option not in ("steps", "guidance")},
    }


def _on_its_model(config: RunConfig, point: Point) -> Point:
    """Return the point with the method's own model, if it needs one.

    That is so if the run's model has another class than the method's models. The own model is then the first that takes
    the images of the data set.
    """
    own, chosen = config.method[point["method"]].models, config.model[point["model"]]
    if not own or _class(chosen) in {_class(model) for model in own.values()}:
        return point
    shape = tuple(_data(config, point).shape)
    if tuple(chosen.shape) != shape:  # a mistake of the run, reported as for every other method
        return point
    return point | {"model": next((name for name, m in own.items() if tuple(m.shape) == shape), point["model"])}


def _data(config: RunConfig, point: Point) -> Any:
    return open_dataset(dataset_spec(point["dataset"], config.dataset[point["dataset"]]))


def _class(model: ModelConfig) -> str:
    return resolve(model.class_path, "model")


def _other_models_only(point: Point, model: ModelConfig, runs_on: Sequence[str]) -> str | None:
    """Return the reason if a method cannot run on a model because it needs another class of models; else None."""
    if not runs_on or _class(model) in {resolve(path, "model") for path in runs_on}:
        return None
    kinds = " or ".join(path.rpartition(".")[2] for path in runs_on)
    return f"{point['method']} runs only on models of class {kinds}; {point['model']} is of another class"


def _unmade(point: Point, model: ModelConfig) -> str | None:
    """Return the reason if a method's own model cannot run because its weights are not on disk; else None."""
    if model.weights_file is None or model.weights_file.is_file():
        return None
    return (
        f"weights of {point['model']}, which {point['method']} runs on, are not on disk "
        f"(python -m bench.train model={point['model']} makes them)"
    )


def _too_few(point: Point, options: Any) -> str | None:
    """Return the reason if the number of steps is too small for a method; else None."""
    least = getattr(options, "least_steps", 1)
    if options.walked >= least:
        return None
    cut = f" at strength {options.strength:g}" if options.strength < 1 else ""
    return f"{point['method']} needs {least} steps or more, got {options.steps}{cut}"


def _options(class_path: str, kind: str, options: dict[str, Any], where: str) -> tuple[Any, dict[str, Any]]:
    """Return the checked options, and their JSON form for the cell.

    They are cached, because thousands of cells share a few sets of options.
    """
    key = (class_path, kind, where, repr(options))
    if key not in _CHECKED:
        checked = check_options(class_path, kind, json.loads(json.dumps(options, default=list)), where)
        _CHECKED[key] = checked, checked.model_dump(mode="json")
    return _CHECKED[key]


_CHECKED: dict[tuple[str, str, str, str], tuple[Any, dict[str, Any]]] = {}


def _mismatch(point: Point, model: ModelConfig, dataset: Any, images: int, split: str) -> str | None:
    """Return the reason if a data set's images do not have the model's shape; else None.

    Raises UserError if the data set has too few images.
    """
    if images > len(dataset):
        name = point["dataset"]
        more = split != "all" and "all" in getattr(dataset, "splits", ())
        hint = f", or dataset.{name}.split=all for those of every split" if more else ""
        there = f"dataset {name} has {len(dataset)} images in split {split}"
        raise UserError(f"images={images}: {there}; write images={len(dataset)}{hint}")
    if tuple(dataset.shape) != tuple(model.shape):
        wants, has = "x".join(map(str, model.shape)), "x".join(map(str, dataset.shape))
        return f"model {point['model']} takes {wants} images, dataset {point['dataset']} has {has}"
    return None


def _model_spec(name: str, model: ModelConfig) -> dict[str, Any]:
    content = model.model_dump(mode="json", by_alias=True, exclude={"title", "train", "guidance", "dataset"})
    content["class"] = identity(model.class_path, "model")
    return {"name": name, **content, "weights_sha256": weights_sha256(model)}


def weights_sha256(model: ModelConfig) -> str | None:
    """Return the sha256 of the weights on disk, or the commit of a hub's snapshot; None if they are missing."""
    if model.pretrained is not None:
        return hub.commit(model.pretrained, model.revision)
    file = model.weights_file
    return sha256(file) if file is not None and file.is_file() else None


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(content: Any) -> str:
    """Return canonical JSON, so that equal content gives equal text: sorted keys, no spaces, no NaN."""
    return _ENCODER.encode(content)


def _identify(axes: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    words = [str(axes["method"]), axes["corruption"] or axes.get(EDIT_AXIS) or axes["task"]]
    words += [f"s{axes['severity']}"] * (axes["severity"] is not None)
    words += [axes["model"], axes["dataset"], f"n{axes['steps']}", f"g{axes['guidance']:g}", f"seed{axes['seed']}"]
    digest = hashlib.blake2b(canonical(in_id(spec)).encode(), digest_size=6).hexdigest()
    return "-".join([*words, digest])
