"""Composition of the command line and the YAMLs into a checked configuration, with Hydra's Compose API. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bench.columns import EDIT_AXIS, NAME_AXES, NUMBER_AXES
from bench.errors import UserError, unknown
from bench.files import SWEEPS
from bench.spec.config import GROUPS, SAME, RunConfig
from bench.spec.validation import validate

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)
_TEXT = re.compile(r"results|(.*\.)?(name|title|description|weights|root|pretrained)")
"""Keys whose value is text or a path. It is taken as it is, with commas, spaces and tildes."""


LISTS = ("zip", "exclude", "include", "reference")
"""Keys that hold a list of mappings, or one mapping. A list on the command line replaces the YAML's value."""
MERGING = "Error merging override "


def options_of_group(group: str, extra: Path | None = None) -> list[str]:
    """Return the names that `group=` takes."""
    folders = [SWEEPS / group] + ([extra / group] if extra else [])
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _rewrite(override: str, extra: Path | None, own: Collection[str]) -> str:
    """Check one `key=value` and translate it into Hydra's grammar: lists without brackets, axes by their short name."""
    match = _OVERRIDE.fullmatch(override)
    if override.startswith("~"):
        raise UserError(f"{override!r}: ~ is not supported; use exclude, or name the values that you want")
    if match is None:
        raise UserError(f"{override!r} is not an override; write key=value, as in severity=3 or method=ddim,edict")
    key, value = match["key"], match["value"]
    if key in GROUPS:
        return _rewrite_group(override, key, value, options_of_group(key, extra))
    if key in (*NUMBER_AXES, EDIT_AXIS):
        key = f"matrix.{key}"
    root = key.split(".")[0]
    if root not in RunConfig.model_fields:
        raise unknown("key", key, {*RunConfig.model_fields, *GROUPS, *NUMBER_AXES, EDIT_AXIS, *own})
    if _TEXT.fullmatch(key) and value != "null" and not re.fullmatch(r"(['\"]).*\1", value, re.DOTALL):
        value = _quoted(value)
    elif "," in value and not re.search(r"[\[\]{}()'\"]", value):
        value = f"[{value}]"
    return f"++{key}={value}"


def _rewrite_group(override: str, group: str, value: str, allowed: list[str]) -> str:
    if value.startswith("[") != value.endswith("]"):
        raise UserError(f"cannot read {override!r}: brackets do not balance; write {group}=NAME or {group}=[NAME,NAME]")
    if group in NAME_AXES and value == "null":
        return f"{group}=[]"
    names = [name.strip() for name in value.removeprefix("[").removesuffix("]").split(",") if name.strip()]
    if not names:
        raise UserError(f"{group}= names nothing; allowed: {', '.join(allowed)}")
    for name in names:
        if name not in allowed:
            raise unknown(group, name, allowed)
    if len(names) > 1 and group not in NAME_AXES:
        raise UserError(f"{group} takes one name, got {', '.join(names)}; allowed: {', '.join(allowed)}")
    if len(set(names)) < len(names):
        raise UserError(f"{override!r} names one {group} twice")
    return f"{group}=[{','.join(names)}]" if group in NAME_AXES else f"{group}={names[0]}"


def compose_config(overrides: list[str], sweep_required: bool = True, own: Collection[str] = ()) -> RunConfig:
    """Return the checked configuration of some overrides. Raises UserError for a mistake.

    `config_dir=PATH` adds a folder of the user's groups. `own` are the command's own arguments; an error about an
    unknown key also shows them as allowed.
    """
    extra = _config_dir([o for o in overrides if o.startswith("config_dir=")])
    given: dict[str, str] = {}
    rewritten = []
    for override in overrides:
        if override.startswith("config_dir="):
            continue
        written = _rewrite(override, extra, own)
        key = _key(written)
        if key in LISTS and written.partition("=")[2].startswith("["):
            rewritten.append(f"++{key}=null")  # Hydra merges no list into a mapping
        rewritten.append(written)
        if key in given:
            raise UserError(f"{key} is given more than once")
        given[key] = override
    if sweep_required and "sweep" not in given:
        raise UserError(f"no sweep given; write sweep=NAME, one of {', '.join(options_of_group('sweep', extra))}")
    composed = _compose(rewritten, given, extra)
    for group in NAME_AXES:
        if isinstance(composed.get(group, {}).get("class"), str):
            raise UserError(f"a YAML of {group} does not begin with the line `# @package {group}.NAME`")
    if "sweep" in given and not composed.get("name"):
        composed["name"] = given["sweep"].partition("=")[2]
    config = validate(RunConfig, composed)
    _check_named(config, extra)
    _check_hidden_by_axes(config, given)
    # A run of a part of a sweep may leave out methods that the sweep's own YAML highlights.
    methods = {*config.method, *([] if "highlight" in given else options_of_group("method", extra))}
    for name in config.highlight:
        if name not in methods:
            raise unknown("method", name, methods, "in highlight")
    return config


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def _config_dir(overrides: list[str]) -> Path | None:
    if not overrides:
        return None
    if len(overrides) > 1:
        raise UserError("config_dir is given more than once")
    given = overrides[0].removeprefix("config_dir=")
    folder = Path(os.path.expanduser(given)).resolve()
    if not given or not folder.is_dir():
        raise UserError(f"config_dir={given!r} is not a folder")
    for group in GROUPS:
        for file in sorted((folder / group).glob("*.y*ml")):
            _check_yaml(file, group)
    return folder


def _check_yaml(file: Path, group: str) -> None:
    """Raise UserError for a YAML that Hydra would not find or could not read as it is meant."""
    name = file.name.removesuffix(file.suffix)
    if file.suffix != ".yaml":
        raise UserError(f"{str(file)!r} is not read: name it {name}.yaml")
    if not re.fullmatch(r"[A-Za-z_][\w-]*", name):
        fitting = re.sub(r"\W", "_", name)
        raise UserError(
            f"{str(file)!r}: {name!r} cannot be written as {group}=NAME; begin with a letter, then letters, digits, _ "
            f"and -, such as {fitting if fitting[0].isalpha() else f'my_{fitting}'}.yaml"
        )
    try:
        text = file.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{str(file)!r} is not UTF-8 text: {getattr(error, 'reason', error)}") from error
    if text.startswith("\ufeff"):
        raise UserError(f"{str(file)!r} begins with a byte order mark (BOM): save it as UTF-8 without one")


def _compose(rewritten: list[str], given: Mapping[str, str], extra: Path | None) -> dict[str, Any]:
    """Compose with Hydra, and turn its errors into a UserError. `given`: key -> the override as it was written."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverrideParseException
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if extra:
        rewritten = [*rewritten, f"hydra.searchpath=[{_quoted(f'file://{extra}')}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(SWEEPS), version_base="1.3"):
            composed: Any = OmegaConf.to_container(compose("run", rewritten), resolve=True)
    except OverrideParseException as error:
        written = given.get(_key(error.override), error.override)
        raise UserError(
            f"cannot read {written!r}; write 1,2 or [1,2] or {{key: 1}}, and put other text in quotes"
        ) from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}: " if mark else ""
        raise UserError(f"{place}not YAML: {getattr(error, 'problem', None) or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"a YAML is not UTF-8 text: {error}") from error
    except (HydraException, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        if text.startswith(MERGING):
            written = given.get(_key(text.removeprefix(MERGING)), text)
            kind = "mapping" if written.partition("=")[2].startswith("{") else "list"
            raise UserError(f"{written}: it takes no {kind}") from error
        key = getattr(error, "full_key", None) or "the configuration cannot be read"
        text = re.sub(r"^\w+Error raised while resolving interpolation: ", "", text)
        raise UserError(f"{key}: {text}") from error
    return composed


def _check_named(config: RunConfig, extra: Path | None) -> None:
    """Raise UserError if `exclude`, `include` or `reference` names something that does not exist.

    They may name things that this run has not chosen.
    """
    for where in ("exclude", "include", "reference"):
        for pattern in getattr(config, where):
            for axis in set(pattern) & set(NAME_AXES):
                known = {*getattr(config, axis), *options_of_group(axis, extra)}
                for name in pattern[axis] if isinstance(pattern[axis], (list, tuple)) else [pattern[axis]]:
                    if str(name) not in known and not (where == "reference" and name == SAME):
                        raise unknown(axis, str(name), known, f"in {where}")


def _check_hidden_by_axes(config: RunConfig, given: Mapping[str, str]) -> None:
    """Raise UserError for an option on the command line that has no effect, since an axis sets it in every cell."""
    axes = {*config.matrix, *(axis for group in config.zip for axis in group)}
    for key, written in given.items():
        _, _, option = key.rpartition(".")
        hiding = {option} & set(NUMBER_AXES) & axes or {f"method.{option}"} & axes
        if re.fullmatch(r"method\.\w+\.\w+", key) and hiding:
            raise UserError(f"{written} has no effect: {hiding.pop()} is an axis of the sweep; write {option}=VALUE")
