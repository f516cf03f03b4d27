"""The code that jobs run: a copy of the tree, made when they are submitted, and named by its hash. No torch.

An edit must not change the code of a job that is already in the queue. ROOT/code/HASH holds the packages, the YAMLs and
the shipped weights. It also holds the modules of third parties that the sweep names and that were not installed by a
package manager, with the modules that they import from their own folder. A copy is made once per hash, and again if it
is damaged.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import shutil
import sysconfig
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from bench.files import ROOT, remove_folder, whole_folder
from bench.provenance import CARD, ROOMS, identity, members, tree_hash


def foreign(class_paths: Iterable[str]) -> list[Path]:
    """Return the packages and modules of these classes that are neither ours nor installed, and the modules that they
    import from their own folder."""
    found: list[Path] = []
    todo = [part for top in sorted({path.partition(".")[0] for path in class_paths}) for part in _source(top)]
    while todo:
        part = todo.pop(0)
        if part not in found:
            found.append(part)
            beside = (other for name in sorted(_imports(part)) for other in _source(name))
            todo += [other for other in beside if other.parent == part.parent]
    return found


def _source(top: str) -> list[Path]:
    """Return the file of a module, or the folder of a package (several without __init__.py). Returns nothing for a
    module that is ours or installed."""
    spec = None if top in ROOMS else importlib.util.find_spec(top)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        places = [Path(place) for place in spec.submodule_search_locations]
    else:
        places = [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
    return [place for place in places if place.exists() and not _installed(place.resolve())]


def _installed(place: Path) -> bool:
    """Return True if a package manager installed this place, for this Python or for another one on the path."""
    folders = [Path(sysconfig.get_paths()[kind]).resolve() for kind in ("stdlib", "platlib", "purelib")]
    return any(map(place.is_relative_to, folders)) or not {"site-packages", "dist-packages"}.isdisjoint(place.parts)


def _imports(part: Path) -> set[str]:
    """Return the top-level names that a module, or the modules of a package, import."""
    names = set()
    for file in members([part]).values():
        if file.suffix == ".py":
            with contextlib.suppress(SyntaxError, ValueError):  # the job that runs this file reports it
                for node in ast.walk(ast.parse(file.read_bytes())):
                    if isinstance(node, ast.Import):
                        names |= {alias.name.partition(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                        names.add(node.module.partition(".")[0])
    return names


def _code(class_paths: Iterable[str]) -> dict[str, Path]:
    return members([*(ROOT / room for room in ROOMS), *foreign(class_paths)])


def place(store: Path, class_paths: Iterable[str]) -> Path:
    """Return the folder for a copy of the code as it is now. It may not exist yet."""
    return store / "code" / tree_hash(_code(class_paths))


def take(store: Path, class_paths: Collection[str]) -> Path:
    """Make the copy if there is none. Returns its folder, which comes first in the PYTHONPATH of a job."""
    tree = _code(class_paths)
    final = store / "code" / tree_hash(tree)
    if final.is_dir():
        if _whole(final, tree):
            return final
        remove_folder(final)
    try:
        with whole_folder(final) as draft:
            for name, file in tree.items():
                copy = draft / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            if tree_hash({name: draft / name for name in tree}) != final.name:
                raise _Edited
            (draft / CARD).write_text(json.dumps({**identity(), "code": final.name}))
    except _Edited:
        return take(store, class_paths)
    except FileExistsError:
        pass  # another driver has made the same copy
    return final


def _whole(copy: Path, tree: Mapping[str, Path]) -> bool:
    """Return True if a copy still has the content that it was made with."""
    try:
        noted = json.loads((copy / CARD).read_text())["code"]
        return noted == copy.name == tree_hash({name: copy / name for name in tree})
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Edited(Exception):
    """Raised if the tree was edited while it was copied."""
