"""Content -> a checked pydantic model, or a UserError that names the field, what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from bench.errors import UserError, nearest, unknown


def validate(model: type[Any], content: Any, where: str = "") -> Any:
    """content -> model, or a UserError that names the field, what was given, what is allowed and the nearest name."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _explain(error, model, content, where) from error


def _explain(error: ValidationError, model: type[BaseModel], content: Any, where: str) -> UserError:
    first = error.errors(include_url=False)[0]
    location, given, message = first["loc"], first["input"], first["msg"].removeprefix("Value error, ")
    place = ".".join([where] * bool(where) + [str(part) for part in location])
    if first["type"] == "extra_forbidden":
        prefix = place.rpartition(".")[0]
        return unknown("key", str(location[-1]), _names(_owner(model, location[:-1])), f"in {prefix}" if prefix else "")
    if first["type"] == "missing" and location[-1] == "class" and len(location) == 3:
        # Most often an option of a component that is misspelt or not chosen, which the override then began to make.
        group, name, _ = location
        chosen = [other for other, parts in content[group].items() if "class" in parts]
        hint = nearest(str(name), chosen)
        return UserError(f"{place} is missing: {name} is not one of the chosen {', '.join(chosen) or 'none'}{hint}")
    if first["type"] == "missing":
        return UserError(f"{place} is missing")
    if first["type"] == "too_short":
        return UserError(f"{place} is empty")
    if first["type"] == "literal_error":
        message += nearest(str(given), re.findall(r"'([^']*)'", message))
    message = message.replace("valid tuple", "list").replace("valid dictionary", "mapping")
    message = re.sub("^(Input|String|Value) ", lambda word: word[0].lower(), message)
    if where.startswith("method.") and isinstance(given, (list, tuple)):
        message += f"; for an axis of several values write matrix.method.{location[0]}=A,B"
    shown = "" if isinstance(given, (Mapping, BaseModel)) else f"={given!r}"
    return UserError(f"{place}{shown}: {message}")


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _owner(model: type[BaseModel], location: Sequence[Any]) -> type[BaseModel]:
    """The model at a location inside `model`: through fields, and through mappings and lists of models."""
    parts = iter(location)
    for part in parts:
        field = next(field for name, field in model.model_fields.items() if part in (name, field.alias))
        inner = get_args(field.annotation)
        if get_origin(field.annotation) in (dict, tuple):
            next(parts, None)
        model = next(c for c in (field.annotation, *inner) if isinstance(c, type) and issubclass(c, BaseModel))
    return model
