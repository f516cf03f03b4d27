"""From a class's name in a YAML to the class and its options.

A name is a dotted path (`mypkg.mymethod.MyMethod`) or an entry point of the groups `inversion_bench.methods`,
`.corruptions`, `.datasets` and `.models`. Options are checked without importing torch where the package follows our
own convention: the options of `pkg.module.Name` are `pkg.options.Name`. Otherwise the class says `Options`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from bench.config import validate
from bench.errors import UserError, unknown


def resolve(path: str, kind: str) -> str:
    """The dotted path that a name stands for: itself, or that of an entry point of `kind`."""
    if "." in path:
        return path
    found = {point.name: point.value for point in entry_points(group=f"inversion_bench.{kind}s")}
    if path not in found:
        raise unknown(f"{kind} class (neither a dotted path nor an entry point)", path, found)
    return found[path].replace(":", ".")


def load(path: str, kind: str) -> Any:
    """The class itself. Raises UserError if its module or name does not exist."""
    module_name, _, name = resolve(path, kind).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(f"{kind} class {path!r}: there is no module {error.name!r}") from error
        raise
    if not hasattr(module, name):
        classes = [n for n, value in vars(module).items() if isinstance(value, type)]
        raise unknown(f"class in {module_name}", name, classes)
    return getattr(module, name)


def options_class(path: str, kind: str) -> Any:
    """The pydantic model of a class's options."""
    module_name, _, name = resolve(path, kind).rpartition(".")
    package = module_name.rpartition(".")[0]
    try:
        sibling = importlib.util.find_spec(f"{package}.options") if package else None
        if sibling is not None and importlib.util.find_spec(module_name) is None:
            raise UserError(f"{kind} class {path!r}: there is no module {module_name!r}")
    except ModuleNotFoundError as error:
        raise UserError(f"{kind} class {path!r}: there is no module {error.name!r}") from error
    if sibling is not None:
        declared = vars(importlib.import_module(f"{package}.options"))
        if name in declared:
            return declared[name]
    loaded = load(path, kind)
    if not hasattr(loaded, "Options"):
        raise UserError(f"{kind} class {path!r} declares no Options")
    return loaded.Options


def check_options(path: str, kind: str, options: Mapping[str, Any], where: str) -> Any:
    """Options as the frozen model of their class; `where` names them in an error."""
    return validate(options_class(path, kind), dict(options), where)
