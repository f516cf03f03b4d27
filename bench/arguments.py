"""A command's own `key=value` arguments, apart from those of the configuration (bench.spec.compose). No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.errors import UserError, unknown


def own_arguments(arguments: Sequence[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The arguments of these names over their defaults, and all other arguments. Raises UserError for one of these
    without a value or given twice."""
    given: dict[str, str] = {}
    others = []
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if key not in defaults:
            others.append(argument)
            continue
        if not sign or not value:
            raise UserError(f"argument {argument!r} has no value; write {key}=VALUE")
        if key in given:
            raise UserError(f"{key} is given more than once")
        given[key] = value
    return {**defaults, **given}, others


def only_arguments(arguments: Sequence[str], defaults: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """The arguments over their defaults, for a command that takes no others. `more`: what else an error allows."""
    given, others = own_arguments(arguments, defaults)
    for argument in others:
        raise unknown("argument", argument.partition("=")[0], [*defaults, *more])
    return given


def whole_number(given: Mapping[str, str], key: str, least: int) -> int:
    """The argument as a whole number, `least` or more."""
    text = given[key]
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= least):
        raise UserError(f"{key}={text}: must be a whole number, {least} or more")
    return int(text)


def one_of(given: Mapping[str, str], key: str, allowed: Sequence[str]) -> str:
    """The argument, which must be one of these words."""
    if given[key] not in allowed:
        raise unknown(key, given[key], allowed)
    return given[key]


def truth(given: Mapping[str, str], key: str) -> bool:
    """The argument as true or false."""
    return one_of({key: given[key].lower()}, key, ("true", "false")) == "true"
