"""Construction of a cell's data set, with checks of its options and files. No torch.

A data set of files has a hash of its content (`content`, see `bench.data.base`). The hash is part of a cell's id, but
the place of the files is not: a changed image makes another cell, and a moved folder does not.
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
    """Return the data set's part of a cell's spec. `where` holds the options that are paths of its files, absolute."""
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
    """Return a cell's spec without the paths of its data set's files, on which its id does not depend."""
    return {**spec, "dataset": {key: value for key, value in spec["dataset"].items() if key != "where"}}


def open_dataset(spec: Mapping[str, Any]) -> Any:
    """Return the data set of a cell's `spec["dataset"]`. Raises UserError for options that its class refuses."""
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
    """Return the indices of the first `count` items, or of the first that the edit `edit` is possible for.

    Raises UserError if there are too few.
    """
    if edit is None:
        return list(range(count))
    possible = (index for index in range(len(dataset)) if dataset.edit(index, edit) is not None)
    chosen = list(itertools.islice(possible, count))
    if len(chosen) < count:
        raise UserError(f"images={count}: only {len(chosen)} images of the data set admit the edit {edit}")
    return chosen


# --- data sets of files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The items that a cell uses, in order: their ids, the hashes of their content, and their captions."""

    ids: tuple[str, ...]
    contents: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    """For each item its caption, followed by the caption of its edit if it has one."""

    @property
    def content(self) -> str:
        return _digest(self.contents)


def _digest(contents: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def reread() -> None:
    """Clear the caches, so that all files are read again: they may have changed."""
    _open.cache_clear()
    _look.cache_clear()


def look(spec: Mapping[str, Any]) -> Chosen | None:
    """Read the items that a cell's spec chooses from a data set of files; None for a data set without files.

    Raises UserError that names the first item that cannot be read.
    """
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
    """Return {"content": hash} for a data set of files, and {} for any other.

    Raises UserError for an item that cannot be read, and for a caption outside the model's vocabulary.
    """
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
                optional = "captions" in inspect.signature(load(about["class"], "dataset")).parameters
                hint = f"; dataset.{about['name']}.options.captions=none runs it without captions" if optional else ""
                message = f"dataset {about['name']}: image {image} does not suit model {model}: {error}{hint}"
                raise UserError(message) from error


def require_content(spec: Mapping[str, Any], dataset: Any, indices: Iterable[int]) -> None:
    """Raise UserError if the files of a cell's data set have changed since the plan: a job may have waited for days."""
    about = spec["dataset"]
    if "content" in about and _digest(_contents(about["name"], dataset, indices)) != about["content"]:
        raise UserError(
            f"the images or captions of dataset {about['name']} have changed since this cell was planned: restore the "
            "old files, or run the sweep again"
        )


def notes(specs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the notes of the data sets of some cells, such as what they leave out, one line each."""
    datasets = {about["name"]: about for about in (spec["dataset"] for spec in specs)}
    return [
        f"dataset {name}: {note}"
        for name, about in datasets.items()
        for note in getattr(open_dataset(about), "notes", ())
    ]


def inventory(specs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the images that some cells use: data set -> the split and, in order, [id, content] of every image."""
    images: dict[tuple[str, str], dict[str, str]] = {}
    for spec in specs:
        if "content" in spec["dataset"] and (chosen := look(spec)):
            place = images.setdefault((spec["dataset"]["name"], spec["dataset"]["split"]), {})
            place |= zip(chosen.ids, (content[:16] for content in chosen.contents), strict=True)
    return {name: {"split": split, "images": list(map(list, found.items()))} for (name, split), found in images.items()}


def differing(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> int:
    """Return how many images of a data set differ from an earlier `inventory`.

    Additional or missing images at the end do not count. If the split is another, the result is 0.
    """
    if before is None or before["split"] != now["split"]:
        return 0
    count = min(len(before["images"]), len(now["images"]))
    here = {tuple(pair) for pair in now["images"][:count]}
    return sum(tuple(pair) not in here for pair in before["images"][:count])
