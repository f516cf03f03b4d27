"""Checks of content with pydantic. A UserError names the field, what was given and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from bench.errors import UserError, nearest, unknown


def validate(model: type[Any], content: Any, where: str = "") -> Any:
    """Return content as a checked model. `where` names it in an error.

    Raises UserError that names the field, what was given, what is allowed and the nearest name.
    """
    _check_values(content, where)
    try:
        made = model.model_validate(content)
    except ValidationError as error:
        raise _explain(error, model, content, where) from error
    _check_kinds(made, content, where)
    return made


def _parts(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of a mapping, or the indices and values of a list."""
    if isinstance(content, Mapping):
        yield from content.items()
    elif isinstance(content, (list, tuple)):
        yield from enumerate(content)


def _check_values(content: Any, place: str) -> None:
    """Raise UserError for numbers that a cell cannot hold, and for text that a file cannot hold."""
    for key, value in _parts(content):
        _check_values(value, f"{place}.{key}" if place else str(key))
    if isinstance(content, float) and not math.isfinite(content):
        raise UserError(f"{place}={content!r}: must be a number, not infinite or undefined")
    if isinstance(content, int) and abs(content) >= 2**63:
        raise UserError(f"{place}={_shown(content)}: must be a number within 64 bits")
    if isinstance(content, str) and ("\0" in content or content != content.encode(errors="replace").decode()):
        raise UserError(f"{place}={content!r}: must be UTF-8 text without null characters")


def _check_kinds(made: Any, content: Any, place: str) -> None:
    """Refuse what pydantic guesses: true as the number 1, text as a number, a number as true or false."""
    inner: dict[Any, Any] = {}
    if isinstance(made, BaseModel):
        inner = {field.alias or name: getattr(made, name) for name, field in type(made).model_fields.items()}
    elif isinstance(made, (Mapping, list, tuple)):
        inner = dict(made if isinstance(made, Mapping) else enumerate(made))
    for key, value in _parts(content):
        if key in inner:
            _check_kinds(inner[key], value, f"{place}.{key}" if place else str(key))
    guessed = isinstance(content, str) or content == made  # else another value was laid over this one
    if isinstance(made, bool) and not isinstance(content, bool) and guessed:
        raise UserError(f"{place}={content!r}: must be true or false")
    if isinstance(made, (int, float)) and not isinstance(made, bool) and isinstance(content, (bool, str)) and guessed:
        raise UserError(
            f"{place}={content!r}: must be a number{', without quotes' if isinstance(content, str) else ''}"
        )


def _shown(given: Any) -> str:
    """Return the given value as short text. Python refuses to write integers of thousands of digits."""
    if isinstance(given, int) and abs(given) >= 10**40:
        return "a number of more than 40 digits"
    text = repr(given)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _explain(error: ValidationError, model: type[BaseModel], content: Any, where: str) -> UserError:
    first = min(error.errors(include_url=False), key=lambda one: one["type"] == "missing")
    location, given, message = first["loc"], first["input"], _message(first)
    place = ".".join([where] * bool(where) + [str(part) for part in location])
    if first["type"] == "extra_forbidden":
        prefix = place.rpartition(".")[0]
        return unknown("key", str(location[-1]), _names(_owner(model, location[:-1])), f"in {prefix}" if prefix else "")
    if first["type"] == "missing" and location[-1] == "class" and len(location) == 3:
        # Often the override sets an option of a component that is misspelt or not chosen. Then it makes a new component
        # that has no class.
        group, name, _ = location
        chosen = [other for other, parts in content[group].items() if "class" in parts]
        hint = nearest(str(name), chosen)
        return UserError(f"{place} is missing: {name} is not one of the chosen {', '.join(chosen) or 'none'}{hint}")
    if first["type"] == "missing":
        return UserError(f"{place} is missing")
    if first["type"] == "too_short":
        return UserError(f"{place} is empty")
    if location and location[-1] == "[key]":
        return UserError(f"{'.'.join(map(str, location[:-2]))}: key {location[-2]!r}: {message}")
    if where.startswith("method.") and isinstance(given, (list, tuple)):
        message += f"; for an axis of several values write matrix.method.{location[0]}=A,B"
    shown = "" if isinstance(given, (Mapping, BaseModel)) else f"={_shown(given)}"
    return UserError(f"{place}{shown}: {message}")


WORDS = {
    "int": "must be a whole number", "float": "must be a number", "bool": "must be true or false",
    "string": "must be text", "tuple": "must be a list", "list": "must be a list", "dict": "must be a mapping",
    "model": "must be a mapping", "mapping": "must be a mapping",
}  # fmt: skip
"""Our messages for pydantic's errors of type TYPE_type, TYPE_parsing and TYPE_from_float."""


def _message(error: Any) -> str:
    """Return what is allowed, from one of pydantic's errors."""
    kind, _, about = error["type"].partition("_")
    if kind in WORDS and about in ("type", "parsing", "from_float", "attributes_type"):
        return WORDS[kind]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "literal_error":
        message += nearest(str(error["input"]), re.findall(r"'([^']*)'", message))
    return re.sub("^(Input|String|Value|Tuple|List) should", "must", message)


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _owner(model: type[BaseModel], location: Sequence[Any]) -> type[BaseModel]:
    """Return the model at a location inside `model`. The location goes through fields, mappings and lists of models."""
    parts = iter(location)
    for part in parts:
        field = next(field for name, field in model.model_fields.items() if part in (name, field.alias))
        inner = get_args(field.annotation)
        if get_origin(field.annotation) in (dict, tuple):
            next(parts, None)
        model = next(c for c in (field.annotation, *inner) if isinstance(c, type) and issubclass(c, BaseModel))
    return model
