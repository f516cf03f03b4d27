"""The code that jobs run: a copy of the tree, taken when they are submitted and named by its hash. No torch.

A queued job must not run what was edited meanwhile. ROOT/code/HASH holds the packages, the YAMLs and the shipped
weights, and modules of third parties that the sweep names and that no package manager guards, with what these import
from their own folder. It is made once a hash.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "methods", "corruptions", "sweeps")
CARD = "snapshot.json"
LEFT_OUT = (".pyc", ".png", ".md")


def files(folder: Path) -> Iterator[Path]:
    """What a job may read of a package, in a fixed order."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.endswith(LEFT_OUT))


def foreign(class_paths: Iterable[str]) -> list[Path]:
    """Packages and modules that classes come from, where they are neither ours nor installed for good, and what these
    import from beside themselves."""
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
    """A module's file, a package's folder, or the folders of one without __init__.py; none of ours or installed."""
    spec = None if top in ROOMS else importlib.util.find_spec(top)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        places = [Path(place) for place in spec.submodule_search_locations]
    else:
        places = [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
    return [place for place in places if place.exists() and not _installed(place.resolve())]


def _installed(place: Path) -> bool:
    """By a package manager: of this Python, or of one whose folder is on the path."""
    folders = [Path(sysconfig.get_paths()[kind]).resolve() for kind in ("stdlib", "platlib", "purelib")]
    return any(map(place.is_relative_to, folders)) or not {"site-packages", "dist-packages"}.isdisjoint(place.parts)


def _imports(part: Path) -> set[str]:
    """The top-level names that a module or the modules of a package import."""
    names = set()
    for file in _members([part]).values():
        if file.suffix == ".py":
            with contextlib.suppress(SyntaxError, ValueError):  # who runs it will say so
                for node in ast.walk(ast.parse(file.read_bytes())):
                    if isinstance(node, ast.Import):
                        names |= {alias.name.partition(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                        names.add(node.module.partition(".")[0])
    return names


def _members(parts: Iterable[Path]) -> dict[str, Path]:
    """Name in the copy -> file. Of folders of one name the first wins, as when Python imports."""
    found: dict[str, Path] = {}
    for part in parts:
        for file in files(part) if part.is_dir() else [part]:
            found.setdefault(file.relative_to(part.parent).as_posix(), file)
    return found


def _hash(members: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, file in sorted(members.items()):
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def identity() -> dict[str, Any]:
    """Which code this is: git_sha, dirty (hash of the changes or None) and code (hash of the files that count)."""
    if (ROOT / CARD).is_file():
        return json.loads((ROOT / CARD).read_text())
    difference = _git("diff", "HEAD")
    return {
        "git_sha": (_git("rev-parse", "HEAD") or "unknown").strip(),
        "dirty": hashlib.sha256(difference.encode()).hexdigest()[:12] if difference else None,
        "code": _hash(_members(ROOT / room for room in ROOMS)),
    }


def _code(class_paths: Iterable[str]) -> dict[str, Path]:
    return _members([*(ROOT / room for room in ROOMS), *foreign(class_paths)])


def place(store: Path, class_paths: Iterable[str]) -> Path:
    """Where the copy of the code as it is now belongs."""
    return store / "code" / _hash(_code(class_paths))


def take(store: Path, class_paths: Collection[str]) -> Path:
    """Make the copy if it is not there. Returns its folder, which goes in front of a job's PYTHONPATH."""
    members = _code(class_paths)
    final = store / "code" / _hash(members)
    if final.is_dir():
        return final
    draft = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        for name, file in members.items():
            copy = draft / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        if _hash({name: draft / name for name in members}) != final.name:
            return take(store, class_paths)  # the tree was edited meanwhile
        (draft / CARD).write_text(json.dumps({**identity(), "code": final.name}))
        try:
            os.rename(draft, final)
        except OSError:
            if not final.is_dir():  # else another driver has made the same copy
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final
