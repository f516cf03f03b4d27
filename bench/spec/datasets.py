"""From a data set's name in a cell to the data set itself, its options and its files checked. No torch.

A data set of files says what they hold (`content`, see `bench.data.base`). That is part of a cell's id, and where the
files are is not: a changed image makes another cell, a folder that has moved does not.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from bench.data.base import Dataset
from bench.errors import UserError, unknown
from bench.spec.config import DatasetConfig
from bench.spec.registry import identity, load
from methods.backbones.captions import VOCABULARIES, Vocabulary


def dataset_spec(name: str, config: DatasetConfig) -> dict[str, Any]:
    """What a cell records of its data set. `where`: the options that say where its files are, as absolute paths."""
    made = load(config.class_path, "dataset")
    places = getattr(made, "where", ()) if hasattr(made, "content") else ()
    where = {key: _absolute(value) for key, value in config.options.items() if key in places}
    return {
        "name": name,
        "class": identity(config.class_path, "dataset"),
        "split": config.split,
        "options": {key: value for key, value in config.options.items() if key not in places},
        **({"where": where} if where else {}),
    }


def _absolute(path: Any) -> Any:
    return os.path.realpath(os.path.expanduser(path)) if isinstance(path, str) and path else path


def in_id(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's specification without what its id does not depend on: where the files of its data set are."""
    return {**spec, "dataset": {key: value for key, value in spec["dataset"].items() if key != "where"}}


def open_dataset(spec: Mapping[str, Any]) -> Any:
    """The data set of a cell's `spec["dataset"]`. Raises UserError for options that its class refuses."""
    options = {**spec["options"], **spec.get("where", {})}
    return _open(spec["name"], spec["class"], spec["split"], json.dumps(options, sort_keys=True))


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


def choose(dataset: Dataset, count: int, edit: str | None) -> list[int]:
    """Indices of the first `count` items, or of the first that admit an edit. Raises UserError if too few do."""
    if edit is None:
        return list(range(count))
    admitting = (index for index in range(len(dataset)) if dataset.edit(index, edit) is not None)
    chosen = list(itertools.islice(admitting, count))
    if len(chosen) < count:
        raise UserError(f"images={count}: only {len(chosen)} images of the data set admit the edit {edit}")
    return chosen


# --- data sets of files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The items that a cell uses, in order: their ids, what their files hold, and their captions."""

    ids: tuple[str, ...]
    contents: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    """Of an item its own, and that of its edit."""

    @property
    def content(self) -> str:
        return _digest(self.contents)


def _digest(contents: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def reread() -> None:
    """Look at all files again: they may have changed since this process looked."""
    _open.cache_clear()
    _look.cache_clear()


def look(spec: Mapping[str, Any]) -> Chosen | None:
    """What a cell's specification chooses of a data set of files, every item read; None for one without files. Raises
    UserError that names the first item that cannot be read."""
    dataset = {key: value for key, value in spec["dataset"].items() if key != "content"}
    if not hasattr(open_dataset(dataset), "content"):
        return None
    return _look(json.dumps(dataset, sort_keys=True), spec["images"], spec.get("edit"))


@cache
def _look(spec: str, images: int, kind: str | None) -> Chosen:
    about = json.loads(spec)
    dataset = open_dataset(about)
    indices = choose(dataset, images, kind)
    ids, captions, unread = [], [], []
    for index in indices:
        try:
            item, edit = dataset.item(index), dataset.edit(index, kind) if kind else None
        except (ValueError, OSError) as error:
            unread.append(str(error))
        else:
            ids.append(item.id)
            captions.append((item.caption, edit.caption) if edit else (item.caption,))
    if unread:
        more = f"; {len(unread) - 1} more images cannot be read" if len(unread) > 1 else ""
        raise UserError(f"dataset {about['name']}: {unread[0]}{more}")
    return Chosen(tuple(ids), tuple(_contents(about["name"], dataset, indices)), tuple(captions))


def _contents(name: str, dataset: Any, indices: Iterable[int]) -> list[str]:
    try:
        return [dataset.content(index) for index in indices]
    except (ValueError, OSError) as error:
        raise UserError(f"dataset {name}: {error}") from error


def read_files(spec: Mapping[str, Any], vocabulary: str | None, model: str) -> dict[str, str]:
    """`content` for a cell's data set of files, empty for another. Raises UserError for what cannot be read and for a
    caption outside the model's vocabulary."""
    if (chosen := look(spec)) is None:
        return {}
    if (grammar := VOCABULARIES.get(vocabulary or "")) is not None:
        _check_captions(spec["dataset"], chosen, grammar, model)
    return {"content": chosen.content}


def _check_captions(about: Mapping[str, Any], chosen: Chosen, grammar: Vocabulary, model: str) -> None:
    for image, captions in zip(chosen.ids, chosen.captions, strict=True):
        for caption in captions:
            try:
                grammar.tokens(caption)
            except ValueError as error:
                offered = "captions" in inspect.signature(load(about["class"], "dataset")).parameters
                hint = f"; dataset.{about['name']}.options.captions=none runs it without captions" if offered else ""
                message = f"dataset {about['name']}: image {image} does not suit model {model}: {error}{hint}"
                raise UserError(message) from error


def require_content(spec: Mapping[str, Any], dataset: Any, indices: Iterable[int]) -> None:
    """Raises UserError if the files of a cell's data set are not those that it was planned with: a job may have waited
    for days."""
    about = spec["dataset"]
    if "content" in about and _digest(_contents(about["name"], dataset, indices)) != about["content"]:
        raise UserError(
            f"the images or captions of dataset {about['name']} have changed since this cell was planned: bring those "
            "back, or run the sweep again with these"
        )


def notes(specs: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the data sets of some cells leave out, in one line each."""
    datasets = {about["name"]: about for about in (spec["dataset"] for spec in specs)}
    return [
        f"dataset {name}: {note}"
        for name, about in datasets.items()
        for note in getattr(open_dataset(about), "notes", ())
    ]


def inventory(specs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files that some cells use, by data set: the split and, in order, [id, content] of every image."""
    images: dict[tuple[str, str], dict[str, str]] = {}
    for spec in specs:
        if "content" in spec["dataset"] and (chosen := look(spec)):
            place = images.setdefault((spec["dataset"]["name"], spec["dataset"]["split"]), {})
            place |= zip(chosen.ids, (content[:16] for content in chosen.contents), strict=True)
    return {name: {"split": split, "images": list(map(list, found.items()))} for (name, split), found in images.items()}


def differing(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> int:
    """How many images of an earlier `inventory` of a data set are others now; more or fewer images are no difference,
    and neither is another split."""
    if before is None or before["split"] != now["split"]:
        return 0
    count = min(len(before["images"]), len(now["images"]))
    here = {tuple(pair) for pair in now["images"][:count]}
    return sum(tuple(pair) not in here for pair in before["images"][:count])
