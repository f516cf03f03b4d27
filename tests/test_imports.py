"""Which rooms may import which, which modules the command line loads, and that all YAMLs compose."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.columns import NAME_AXES
from bench.data import scenes
from bench.files import SWEEPS
from bench.spec.compose import compose_config
from bench.spec.config import GROUPS
from methods.backbones import captions

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "methods", "corruptions", "reports")

# room -> modules that it must not import, anywhere in a file
FORBIDDEN = {
    "methods": ("bench", "corruptions", "reports", "hydra", "omegaconf", "submitit", "wandb", "pandas"),
    "corruptions": ("bench", "methods", "reports", "hydra", "omegaconf", "submitit", "wandb", "pandas"),
    "reports": ("methods", "corruptions", "torch", "torchvision", "pytorch_lightning", "hydra", "submitit"),
    "bench": ("reports",),
}
ADMITTED = {
    "reports": (
        "bench.store", "bench.columns", "bench.errors", "bench.terminal", "bench.arguments", "bench.files",
        "bench.mirror.records",
    )
}  # fmt: skip
"""The modules of bench that a room may import."""
GROUND = ("terminal", "errors", "arguments", "files", "store", "provenance", "hub", "weights", "columns")
FLOORS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (tuple(f"bench.{name}" for name in GROUND),),
    (("bench.data",), ("bench.metrics",)),
    (("bench.spec",),),
    (("bench.cell",),),
    (("bench.cluster",), ("bench.mirror",)),
    (("bench.training",),),
    (("bench",),),  # the commands
)
"""The rooms of bench/, from the lowest floor up. A room may import from itself and from the floors below it."""
HEAVY = ("torch", "pytorch_lightning", "torchvision", "lpips", "wandb", "sklearn", "matplotlib", "methods.base")


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Return the full names of what a file imports; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_down_only(room: str) -> None:
    assert files(room)
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files(room)
        for name in imported(file)
        if inside(name, FORBIDDEN[room])
        or (room in ADMITTED and inside(name, ("bench",)) and not inside(name, ADMITTED[room]))
    ]
    assert wrong == []


def room_of(module: str) -> tuple[int, tuple[str, ...]]:
    """Return (floor, room) of a module of bench."""
    return next((i, room) for i, floor in enumerate(FLOORS) for room in floor if inside(module, room))


def graph() -> dict[str, set[str]]:
    """Return a map from each module to our modules that it imports, anywhere in its file."""
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for room in ROOMS
        for file in files(room)
    }
    return {
        module: {
            known
            for name in imported(file)
            for known in (name, name.rpartition(".")[0])
            if known in modules and known != module and modules[known].read_text().count("\n") > 1
        }
        for module, file in modules.items()
    }


def test_arrows_point_down_inside_bench_too() -> None:
    wrong = []
    for module, others in graph().items():
        for other in others if module.startswith("bench.") else ():
            if other.startswith("bench."):
                (floor, room), (below, target) = room_of(module), room_of(other)
                if room != target and below >= floor:
                    wrong.append(f"{module} -> {other}")
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    arrows = graph()
    state: dict[str, int] = {}
    circles = []

    def walk(module: str, path: list[str]) -> None:
        state[module] = 1
        for other in sorted(arrows[module]):
            if state.get(other) == 1:
                circles.append(" -> ".join([*path[path.index(other) :], other]))
            elif other not in state:
                walk(other, [*path, other])
        state[module] = 2

    for module in arrows:
        if module not in state:
            walk(module, [module])
    assert circles == []


def test_options_need_no_torch() -> None:
    for file in (*(ROOT / "methods").rglob("options.py"), ROOT / "corruptions" / "options.py"):
        assert not any(inside(name, ("torch", "pytorch_lightning")) for name in imported(file))


def test_every_file_says_what_it_is() -> None:
    unsaid = [
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in files(room)
        if file.read_text().strip() and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert unsaid == []


def loaded_after(code: str, folder: Path) -> set[str]:
    """Return the heavy modules that a new process has loaded after it ran `code`."""
    code = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules], sep=',', end='')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return set(filter(None, ended.stdout.splitlines()[-1].split(",")))


def test_planning_and_starting_a_run_load_no_torch(tmp_path: Path) -> None:
    assert loaded_after("import bench.plan, bench.run\nprint()", tmp_path) == set()
    for sweep in ("corruptions", "reconstruction"):
        code = f"import bench.plan\nbench.plan.main(['sweep={sweep}', 'results=results'])\nprint()"
        assert loaded_after(code, tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_loads_no_torch_and_writes_nothing(tmp_path: Path) -> None:
    code = "import bench.run\nbench.run.main(['sweep=corruptions', 'dry_run=true'])\nprint()"
    assert loaded_after(code, tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


# --- the YAMLs -------------------------------------------------------------------------------------------------

YAMLS = [
    (folder.name, file.stem)
    for folder in sorted(SWEEPS.iterdir())
    if folder.is_dir()
    for file in sorted(folder.iterdir())
]


def test_sweeps_hold_yaml_only() -> None:
    assert {path.name for path in SWEEPS.iterdir()} == {"run.yaml", *GROUPS}
    assert {file.suffix for file in SWEEPS.rglob("*") if file.is_file()} == {".yaml"}


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_every_yaml_composes(group: str, name: str) -> None:
    first = "# @package _global_" if group in ("sweep", "profile") else f"# @package {group}"
    first += f".{name}" if group in NAME_AXES else ""
    assert (SWEEPS / group / f"{name}.yaml").read_text().splitlines()[0] == first
    config = compose_config([f"{group}={name}"], sweep_required=False)
    if group in NAME_AXES:
        assert list(getattr(config, group)) == [name]
        assert getattr(config, group)[name].title
    if group in ("sweep", "profile"):
        assert (config if group == "sweep" else config.profile).name == name


def test_captions_and_scenes_share_their_words() -> None:
    assert tuple(scenes.COLORS) == captions.COLOR_WORDS
    assert tuple(scenes.SHAPES) == captions.SHAPE_WORDS
    assert tuple(scenes.PATTERNS) == captions.PATTERN_WORDS
    assert tuple(scenes.TONES) == captions.TONE_WORDS
    assert tuple(scenes.LETTERS) == captions.LETTER_WORDS


def test_every_scene_has_a_caption_of_the_grammar() -> None:
    vocabulary = captions.VOCABULARIES["scenes"]
    for index in range(50):
        assert len(vocabulary.tokens(scenes.Scenes("train").item(index).caption)) == vocabulary.slots
