"""Look-up of classes by their names in a YAML, and checks of their options.

A name is a dotted path (`mypkg.mymethod.MyMethod`) or an entry point of the groups `inversion_bench.methods`,
`.corruptions`, `.datasets`, `.models` and `.metrics`. Options are checked without importing torch if the package
follows our convention: the options of `pkg.module.Name` are `pkg.options.Name`. If it does not, the class has an
attribute `Options`. Arguments of a model's class are checked here if they are declared by that convention; if not, they
are checked when the model is made.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench import hub
from bench.errors import UserError, unknown
from bench.spec.config import ModelConfig
from bench.spec.validation import validate
from methods.options import CommonOptions

MOVED: dict[str, str] = {}
"""Old class path -> new one. When you move a class, add a line here. The ids of its cells keep the old path, so that
finished cells stay valid, and YAMLs with the old path still work. If the class moves again, add another line and keep
the old ones."""
BEFORE_IDS = {
    f"methods.{module}": f"methods.inversion.{module}"
    for module in (
        "bdia", "belm", "ddim", "ddpm_inversion", "direct_inversion", "edict", "erddci", "fireflow", "fixed_point",
        "flow_ode", "flowedit", "latent_optimisation", "negative_prompt", "null_text", "rf_inversion", "rf_solver",
        "uni_inv",
    )
}  # fmt: skip
"""Modules that moved before ids kept old paths. The old path still works in a YAML, but ids hold the new path."""


def _current(path: str) -> str:
    """Return the present path of a class, given its old or new path."""
    module, _, name = path.rpartition(".")
    path = f"{BEFORE_IDS.get(module, module)}.{name}"
    while path in MOVED:
        path = MOVED[path]
    return path


def identity(path: str, kind: str) -> str:
    """Return the name of a class in the ids of cells: its first path, or for an entry point the entry point's name."""
    if "." not in path:
        resolve(path, kind)  # raises UserError if it does not exist
        return path
    first = {new: old for old, new in MOVED.items()}
    path = resolve(path, kind)
    while path in first:
        path = first[path]
    return path


def resolve(path: str, kind: str) -> str:
    """Return the dotted path of a name: the present path of a dotted path, or the path of an entry point."""
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", path):
        return _current(path)
    if "." in path:
        raise UserError(f"{kind} class {path!r} is not a dotted path such as package.module.Class")
    found = {point.name: point.value for point in entry_points(group=f"inversion_bench.{kind}s")}
    if path not in found:
        raise unknown(f"{kind} class", path, found, "(neither a dotted path nor an entry point)")
    return found[path].replace(":", ".")


@cache
def locate(path: str, kind: str) -> tuple[str, str]:
    """Return (module, class) of a path. Raises UserError if it does not exist.

    The source is parsed and not run, because it may need torch.
    """
    module_name, _, name = resolve(path, kind).rpartition(".")
    with _import_errors(path, kind, module_name):
        spec = importlib.util.find_spec(module_name)
    if spec is None:
        raise UserError(f"{kind} class {path!r}: there is no module {module_name!r}")
    if spec.origin and spec.origin.endswith(".py"):
        try:
            nodes = list(ast.walk(ast.parse(Path(spec.origin).read_bytes())))
        except SyntaxError as error:
            raise UserError(f"{kind} class {path!r}: {spec.origin}, line {error.lineno}: {error.msg}") from error
        if not {word for node in nodes for word in _bound(node)} & {name, "*", "__getattr__"}:
            raise unknown("class", name, {n.name for n in nodes if isinstance(n, ast.ClassDef)}, f"in {module_name}")
    return module_name, name


def _bound(node: ast.AST) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in node.names]
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


@contextmanager
def _import_errors(path: str, kind: str, module_name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if f"{module_name}.".startswith(f"{missing}."):
            raise UserError(f"{kind} class {path!r}: there is no module {missing!r}") from error
        raise UserError(f"{kind} class {path!r} needs {missing!r}, which is not installed") from error


def load(path: str, kind: str) -> Any:
    """Import and return the class. Raises UserError if it does not exist, or needs a package that is not installed."""
    module_name, name = locate(path, kind)
    with _import_errors(path, kind, module_name):
        module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise UserError(f"{kind} class {path!r}: {module_name} has no {name}")
    return getattr(module, name)


@cache
def options_class(path: str, kind: str) -> Any:
    """Return the pydantic model of a class's options. Raises UserError if the class has none."""
    if (declared := _declared(path, kind)) is not None:
        return declared
    loaded = load(path, kind)
    if not hasattr(loaded, "Options"):
        raise UserError(f"{kind} class {path!r} declares no Options")
    if kind == "method" and not issubclass(loaded.Options, CommonOptions):
        raise UserError(
            f"method class {path!r}: its Options must derive from MethodOptions or RestorerOptions of methods.options"
        )
    return loaded.Options


def _declared(path: str, kind: str) -> type[BaseModel] | None:
    """Return the model with the class's name in the package's module `options`; None if there is none."""
    module_name, name = locate(path, kind)
    package = module_name.rpartition(".")[0]
    if not package or not importlib.util.find_spec(f"{package}.options"):
        return None
    declared = getattr(importlib.import_module(f"{package}.options"), name, None)
    return declared if isinstance(declared, type) and issubclass(declared, BaseModel) else None


def check_model(model: ModelConfig, where: str) -> None:
    """Check a model's class and its arguments. `where` names the model in an error.

    Raises UserError for a class that does not exist, for an argument that its declaration refuses, and for a key of the
    model that contradicts an argument.
    """
    declared = _declared(model.class_path, "model")
    if declared is None:
        return
    made = validate(declared, model.backbone, f"{where}.backbone")
    stated = {"shape": model.shape, "channels": model.shape[0], "vocabulary": model.vocabulary}
    for key, value in (stated | {"prediction": model.prediction, "path": model.path.kind}).items():
        expected = getattr(made, key, value)
        if expected != value:
            raise UserError(f"{where}: {key} {value} does not fit its backbone, which has {key} {expected}")


def check_weights(model: ModelConfig, where: str) -> None:
    """Check a model's weights. `where` names the model in an error.

    Raises UserError for a trainable model without weights, for a damaged file, and for a model that differs from the
    one on the card of its weights.
    """
    if model.train is not None and model.weights is None:
        raise UserError(f"{where}.weights: it would run untrained; name weights, or train some (python -m bench.train)")
    if model.weights_file is None or not model.weights_file.exists():
        return
    if why := hub.damage(model.weights_file):
        raise UserError(f"{where}.weights={model.weights}: {why}")
    trained, stated = _network(model.weights_file.with_suffix(".json")), model.network
    for part in ("path", "backbone"):
        kept = trained.pop(part, {})
        trained |= {f"{part}.{key}": value for key, value in kept.items()}
        stated |= {f"{part}.{key}": value for key, value in stated.pop(part, {}).items()}
    for key, value in stated.items():
        if key in trained and value != trained[key]:
            raise UserError(
                f"{where}: {key}={_shown(value)} does not fit its weights {model.weights}, trained with {key}="
                f"{_shown(trained[key])}; name other weights ({where}.weights), or train some (python -m bench.train)"
            )


def _network(card: Path) -> dict[str, Any]:
    """Return the model that weights were trained as, from the card in their folder; empty if there is no card."""
    if not card.is_file():
        return {}
    try:
        network = json.loads(card.read_text(encoding="utf-8"), object_pairs_hook=_each_once).get("network", {})
        return {key: dict(value) if key in ("path", "backbone") else value for key, value in network.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{str(card)!r}, the card of weights, cannot be read: {error}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError for a duplicate key, because JSON would use only the last one."""
    if len(dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return dict(pairs)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def check_options(path: str, kind: str, options: Mapping[str, Any], where: str) -> Any:
    """Return options as the frozen model of their class. `where` names them in an error."""
    return validate(options_class(path, kind), dict(options), where)
