"""Look-up of metrics by their names in a YAML: declaration, callable, and part of a cell's identity.

A name is one of ours (`bench.columns`), a dotted path (`mypkg.mine.Sharpness`) or an entry point of the group
`inversion_bench.metrics`. A third party's metric is a class without arguments, or any callable, whose attribute
`column` is a `bench.columns.Metric`. A plan imports no torch for our metrics; for a third party's metric it imports the
metric's module.

A metric whose weights are not on disk is unavailable, with the reason. No other metric replaces it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from bench.columns import ASKED, METRICS, PLACE, Metric, column
from bench.errors import UserError, unknown
from bench.files import sha256
from bench.spec import registry
from bench.weights import Pretrained, Shipped, Weights

if TYPE_CHECKING:
    from bench.metrics.scoring import Score


def declared(name: str) -> Metric:
    """Return the declaration of a metric. Raises UserError for an unknown name and for a wrong declaration."""
    if name in ASKED:
        return METRICS[name]
    if "." not in name:
        offered = {point.name for point in entry_points(group="inversion_bench.metrics")}
        if name not in offered:
            raise unknown("metric", name, {*ASKED, *offered}, "(or write the dotted path of your own)")
    found = getattr(registry.load(name, "metric"), "column", None)
    if not isinstance(found, Metric):
        raise UserError(f"metric {name!r} has no declaration; give it column = bench.columns.Metric(NAME, TITLE, ...)")
    _check(name, found)
    return found


def _check(name: str, found: Metric) -> None:
    """Raise UserError for a declaration that a table could not show."""
    if found.kind != "image":
        raise UserError(f"metric {name!r}: kind {found.kind!r}; your own metric must be of single images, kind 'image'")
    free = column(found.name).kind == "own" and found.name not in PLACE
    if not free or not re.fullmatch(r"[A-Za-z]\w*", found.name):
        raise UserError(
            f"metric {name!r}: its column cannot be named {found.name!r}: it is not a plain word, or it is taken"
        )
    if found.better not in ("higher", "lower"):
        raise UserError(f"metric {name!r}: better is {found.better!r}; write 'higher' or 'lower'")
    try:
        format(1.0, found.digits)
    except ValueError:
        raise UserError(f"metric {name!r}: digits {found.digits!r} is not a format; write one such as '.3f'") from None


def chosen(names: Iterable[str]) -> dict[str, Metric]:
    """Return name in the ids of cells -> declaration. Raises UserError if two metrics would fill one column."""
    found: dict[str, Metric] = {}
    for name in names:
        metric = declared(name)
        key = name if name in ASKED else registry.identity(name, "metric")
        taken = [other for other, known in found.items() if known.name == metric.name and other != key]
        if taken:
            raise UserError(f"metrics {taken[0]} and {key} both fill the column {metric.name}; rename one of them")
        found[key] = metric
    return found


def foreign(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return column -> declaration as JSON, for the metrics of third parties: reports may not import them."""
    found = chosen(names).values()
    return {metric.name: metric.declaration() for metric in found if metric.name not in METRICS}


def scores(names: Iterable[str], of_input: bool = False) -> dict[str, Score]:
    """Return column -> callable, for the metrics of single images; with `of_input`, only those for inputs too."""
    found = {name: declared(name) for name in names}
    wanted = {n: m for n, m in found.items() if m.kind == "image" and (m.of_input or not of_input)}
    return {metric.name: _callable(metric.path or name) for name, metric in wanted.items()}


@cache
def _callable(path: str) -> Any:
    """Return the callable of a metric, made once per process, because it may hold weights."""
    loaded = registry.load(path, "metric")
    return loaded() if isinstance(loaded, type) else loaded


def available(metrics: Mapping[str, Metric], task: str) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the metrics that can be computed here, and column -> reason for the others.

    Raises UserError for a metric that has no meaning for the task.
    """
    missing = {}
    for metric in metrics.values():
        if task not in metric.tasks:
            raise UserError(f"metric {metric.name} has no meaning for task={task}; only for {', '.join(metric.tasks)}")
        if isinstance(metric.needs, Pretrained) and importlib.util.find_spec("transformers") is None:
            missing[metric.name] = f"{metric.name} needs transformers (pip install inversion-bench[large])"
        elif isinstance(metric.needs, (Weights, Pretrained)) and metric.needs.missing:
            missing[metric.name] = f"{metric.needs.what}, run bench.prefetch metric={metric.needs.metric}"
        elif isinstance(metric.needs, Shipped) and metric.needs.missing:
            missing[metric.name] = f"{metric.needs.what} are not in {metric.needs.path.parent}"
    return {name: metric for name, metric in metrics.items() if metric.name not in missing}, missing


def unsuited(metric: Metric, shape: Sequence[int]) -> str | None:
    """Return the reason if a metric cannot score images of a shape (channels, height, width); else None."""
    needs = metric.needs
    if isinstance(needs, Shipped) and tuple(shape) != needs.shape:
        takes, given = "x".join(map(str, needs.shape)), "x".join(map(str, shape))
        return f"{metric.name}: {needs.path.stem} takes {takes} images, not {given}"
    return None


def identity(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return name -> version, a part of a cell's identity. A shipped network adds its sha256 to the version."""
    return {
        name: f"{metric.version}+{_sha256(metric.needs.path)[:8]}"
        if isinstance(metric.needs, Shipped)
        else metric.version
        for name, metric in metrics.items()
    }


def extractors(names: Iterable[str]) -> tuple[str, ...]:
    """Return the feature extractors that metrics of sets need, each once."""
    found = [declared(name).extractor for name in names]
    return tuple(dict.fromkeys(extractor for extractor in found if extractor))


_sha256 = cache(sha256)
