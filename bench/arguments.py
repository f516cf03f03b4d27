"""Parsing of a command's own `key=value` arguments; bench.spec.compose parses those of the configuration. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.errors import UserError, unknown


def own_arguments(arguments: Sequence[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the arguments named in `defaults`, with their defaults, and the list of all other arguments.

    Raises UserError if one of the named arguments has no value or is given twice.
    """
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
    """Return the arguments with their defaults, for a command that takes no others.

    `more` are names that the error also shows as allowed.
    """
    given, others = own_arguments(arguments, defaults)
    for argument in others:
        raise unknown("argument", argument.partition("=")[0], [*defaults, *more])
    return given


def whole_number(given: Mapping[str, str], key: str, least: int) -> int:
    """Return the argument as a whole number. Raises UserError if it is below `least`."""
    text = given[key]
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= least):
        raise UserError(f"{key}={text}: must be a whole number, {least} or more")
    return int(text)


def one_of(given: Mapping[str, str], key: str, allowed: Sequence[str]) -> str:
    """Return the argument. Raises UserError if it is not one of the allowed words."""
    if given[key] not in allowed:
        raise unknown(key, given[key], allowed)
    return given[key]


def truth(given: Mapping[str, str], key: str) -> bool:
    """Return the argument as a bool. Raises UserError if it is not `true` or `false`."""
    return one_of({key: given[key].lower()}, key, ("true", "false")) == "true"
