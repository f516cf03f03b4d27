"""A class that moves keeps the ids of its cells: cells that were done before the move are still done after it."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import run
from bench.plan import look
from bench.spec import registry

METHOD = '''"""A method of a third party."""

from methods.inversion.ddim import DDIM
from methods.inversion.options import DDIM as Options


class {name}(DDIM):
    Options = Options
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder with a package `moving`, which has `old.Mine`, and a YAML that names this class."""
    (tmp_path / "moving").mkdir()
    (tmp_path / "conf" / "method").mkdir(parents=True)
    for name, content in {"__init__": "", "old": METHOD.format(name="Mine")}.items():
        (tmp_path / "moving" / f"{name}.py").write_text(content)
    name_class(tmp_path, "moving.old.Mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "MOVED", {})
    yield tmp_path
    for module in [name for name in sys.modules if name.partition(".")[0] == "moving"]:
        del sys.modules[module]
    forget()


def name_class(folder: Path, path: str) -> None:
    (folder / "conf" / "method" / "mine.yaml").write_text(f"# @package method.mine\nclass: {path}\ntitle: mine\n")


def forget() -> None:
    """Clear the paths that the registry has cached."""
    importlib.invalidate_caches()
    registry.locate.cache_clear()
    registry.options_class.cache_clear()


def arguments(folder: Path) -> list[str]:
    chosen = ["sweep=corruptions", "profile=digits", "corruption=gaussian_noise", "method=mine", "severity=1,2"]
    where = [f"config_dir={folder / 'conf'}", f"results={folder / 'results'}"]
    return [*chosen, *where, "steps=2", "images=2", "launcher=debug", "tracker=none", "report=false"]


def test_a_store_written_before_a_move_is_done_after_it(package: Path) -> None:
    assert run.main(arguments(package)) == 0
    before = [cell.id for cell in look(arguments(package)).plan.done]
    assert len(before) == 2

    (package / "moving" / "old.py").unlink()
    (package / "moving" / "new.py").write_text(METHOD.format(name="Renamed"))
    name_class(package, "moving.new.Renamed")
    forget()
    assert len(look(arguments(package)).plan.missing) == 2  # without an entry in MOVED it is another class

    registry.MOVED["moving.old.Mine"] = "moving.new.Renamed"
    forget()
    assert [cell.id for cell in look(arguments(package)).plan.done] == before
    name_class(package, "moving.old.Mine")  # a YAML that was not changed
    assert [cell.id for cell in look(arguments(package)).plan.done] == before

    (package / "moving" / "new.py").unlink()  # the class moves once more
    (package / "moving" / "newer.py").write_text(METHOD.format(name="Renamed"))
    registry.MOVED["moving.new.Renamed"] = "moving.newer.Renamed"
    for path in ("moving.old.Mine", "moving.new.Renamed", "moving.newer.Renamed"):
        name_class(package, path)
        forget()
        assert [cell.id for cell in look(arguments(package)).plan.done] == before
    more = [*arguments(package), "seed=0,1"]
    assert run.main(more) == 0  # cells that record the first path find the class
    assert not look(more).plan.todo


def test_paths_from_before_ids_were_fixed_still_work() -> None:
    for old, new in registry.BEFORE_IDS.items():
        assert importlib.import_module(new)
        assert registry.resolve(f"{old}.Name", "method") == f"{new}.Name"
        assert registry.identity(f"{old}.Name", "method") == f"{new}.Name"


# --- a recorded store -------------------------------------------------------------------------------------------

RECORDED = Path(__file__).parent / "golden" / "store"
"""Two cells of `sweep=theory`, which need no weights, as bench.run wrote them when ids were last changed on purpose."""
THEIR_SWEEP = ["sweep=theory", "method=ddim,edict", "model=gmm", "steps=10", "guidance=1", "images=2"]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The arguments that plan the recorded cells, in a copy of their store."""
    shutil.copytree(RECORDED, tmp_path / "results")
    monkeypatch.setattr(registry, "MOVED", dict(registry.MOVED))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield [*THEIR_SWEEP, f"results={tmp_path / 'results'}", "launcher=debug", "tracker=none"]
    sys.modules.pop("moved_elsewhere", None)
    forget()


def test_a_recorded_store_is_done(recorded: list[str]) -> None:
    """If this fails, ids have changed: every store of every user would be computed again."""
    plan = look(recorded).plan
    assert sorted(cell.id for cell in plan.done) == sorted(path.name for path in (RECORDED / "cells").iterdir())
    assert not plan.todo


@pytest.mark.parametrize(
    "path", ["methods.inversion.ddim.DDIM", "methods.backbones.analytic.SmallMixture", "bench.data.mixture.Mixture"]
)
def test_a_recorded_store_is_done_when_a_class_of_ours_moves(recorded: list[str], tmp_path: Path, path: str) -> None:
    module, _, name = path.rpartition(".")
    lines = [f"from {module} import {name} as Moved"]
    lines += ["from methods.inversion.options import DDIM as Options", "Moved.Options = Options"] * (name == "DDIM")
    (tmp_path / "moved_elsewhere.py").write_text("\n".join(lines) + "\n")
    registry.MOVED[path] = "moved_elsewhere.Moved"
    forget()
    plan = look(recorded).plan
    assert len(plan.done) == 2 and not plan.todo
    more = [*recorded, "images=1", "report=false"]
    more.remove("images=2")
    assert run.main(more) == 0  # a cell that records the old path runs with the moved class
