"""Expansion, identity, reconciliation and chunking of cells: rules for every sweep, and what YAMLs may contain."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from safetensors.torch import save_file

from bench.columns import METRICS
from bench.errors import UserError
from bench.spec.cells import Cell, canonical, expand
from bench.spec.chunks import Clock, chunk
from bench.spec.compose import compose_config
from bench.spec.config import SPACINGS, RunConfig
from bench.spec.reconcile import reconcile
from bench.spec.registry import options_class
from bench.spec.validation import validate
from methods.options import CommonOptions

METHODS = ("ddim", "edict", "rf_inversion")
CORRUPTIONS = ("random_mask", "block_mask", "gaussian_blur", "gaussian_noise")
CHOSEN = {"method": f"method={','.join(METHODS)}", "corruption": f"corruption={','.join(CORRUPTIONS)}"}
"""Methods and corruptions of the sweeps in these tests. They do not change when the shipped sweeps change."""


def composed(*arguments: str) -> RunConfig:
    """Compose `sweep=corruptions` over the methods and corruptions of these tests, unless arguments choose others."""
    chosen = [text for group, text in CHOSEN.items() if not any(a.startswith(f"{group}=") for a in arguments)]
    return compose_config(["sweep=corruptions", "metrics=psnr,mse", *chosen, *arguments])


RESTORE = composed()
CLEAN = compose_config(
    ["sweep=reconstruction", "metrics=psnr,mse", "model=scenes_vp", "dataset=scenes", "method=ddim,edict,rf_inversion"]
)


def changed(config: RunConfig, **parts: Any) -> RunConfig:
    """Return the configuration with parts replaced; `a__b=value` replaces b of a."""
    content = config.model_dump(by_alias=True)
    for path, value in parts.items():
        *parents, last = path.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    return RunConfig.model_validate(content)


def ids(config: RunConfig) -> list[str]:
    return [cell.id for cell in expand(config).cells]


def one_cell(config: RunConfig = RESTORE, method: str = "edict", **parts: Any) -> RunConfig:
    """Return a configuration of a single cell."""
    matrix = {"steps": [10], "guidance": [1.0], "seed": [0]}
    if config.task == "restore":
        matrix |= {"severity": [1], "corruption": ["random_mask"]}
    return changed(config, matrix={**matrix, "method": [method]}, **parts)


# --- expansion -------------------------------------------------------------------------------------------------

AXES = st.fixed_dictionaries(
    {
        "method": st.lists(st.sampled_from(METHODS), min_size=1, unique=True),
        "corruption": st.lists(st.sampled_from(CORRUPTIONS), min_size=1, unique=True),
        "severity": st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True),
        "steps": st.lists(st.integers(1, 1000), min_size=1, max_size=2, unique=True),
        "guidance": st.lists(st.sampled_from([0.0, 1.0, 2.5, 50.0]), min_size=1, max_size=2, unique=True),
        "seed": st.lists(st.integers(0, 2**40), min_size=1, max_size=2, unique=True),
    }
)
PATTERN = st.fixed_dictionaries(
    {},
    optional={
        "method": st.one_of(st.sampled_from(METHODS), st.lists(st.sampled_from(METHODS), max_size=2)),
        "corruption": st.sampled_from(CORRUPTIONS),
        "severity": st.one_of(st.integers(1, 5), st.lists(st.integers(1, 5), max_size=3)),
    },
)


def matches(point: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    return all(point[k] in v if isinstance(v, list) else point[k] == v for k, v in pattern.items())


@settings(max_examples=60, deadline=None)
@given(matrix=AXES, exclude=st.lists(PATTERN, max_size=3))
def test_cells_are_the_product_less_what_is_excluded(
    matrix: dict[str, list[Any]], exclude: list[dict[str, Any]]
) -> None:
    product = [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())]
    expected = [point for point in product if not any(matches(point, pattern) for pattern in exclude)]
    config = changed(RESTORE, matrix=matrix, exclude=exclude)
    if not expected:
        with pytest.raises(UserError, match="no cells"):
            expand(config)
        return
    found = expand(config).cells
    points = [{axis: cell.axes[axis] for axis in matrix} for cell in found]
    assert sorted(map(canonical, points)) == sorted(map(canonical, expected))
    assert len({cell.id for cell in found}) == len(found)
    assert ids(config) == [cell.id for cell in found]


@settings(max_examples=30, deadline=None)
@given(matrix=AXES, seed=st.integers(0, 1000))
def test_ids_do_not_depend_on_any_order(matrix: dict[str, list[Any]], seed: int) -> None:
    def shuffled(content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {k: shuffled(v) for k, v in random.Random(seed).sample(list(content.items()), len(content))}

    config = changed(RESTORE, matrix=matrix)
    mixed = {axis: random.Random(seed).sample(values, len(values)) for axis, values in matrix.items()}
    content = shuffled({**config.model_dump(by_alias=True), "matrix": mixed})
    assert set(ids(RunConfig.model_validate(content))) == set(ids(config))


def test_a_zip_advances_together() -> None:
    config = changed(RESTORE, matrix={"severity": [1, 2]}, zip=[{"steps": [10, 20, 50], "guidance": [1.0, 2.0, 3.0]}])
    found = expand(config).cells
    assert {(c.axes["steps"], c.axes["guidance"]) for c in found} == {(10, 1.0), (20, 2.0), (50, 3.0)}
    assert len(found) == len(METHODS) * len(CORRUPTIONS) * 2 * 3
    named = changed(RESTORE, zip=[{"method": ["ddim", "edict"], "corruption": ["block_mask", "gaussian_blur"]}])
    assert {(c.axes["method"], c.axes["corruption"]) for c in expand(named).cells} == {
        ("ddim", "block_mask"), ("edict", "gaussian_blur"),
    }  # fmt: skip


def test_include_adds_a_cell_and_repeats_nothing() -> None:
    before = ids(RESTORE)
    more = ids(changed(RESTORE, include=[{"method": "edict", "severity": 2, "steps": 77}]))
    assert more[:-1] == before
    assert more[-1].startswith("edict-random_mask-s2-scenes_vp-scenes-n77-")
    assert ids(changed(RESTORE, include=[{"method": "ddim"}, {"severity": 3}])) == before


def test_include_leaves_out_what_the_run_has_left_out() -> None:
    whole, part = (compose_config(["sweep=procedures", *arguments]) for arguments in ([], ["corruption=random_mask"]))
    kept = [cell.id for cell in expand(whole).cells if cell.axes["corruption"] == "random_mask"]
    assert ids(part) == kept and len(kept) == 6
    assert ids(changed(RESTORE, include=[{"method": "bdia", "severity": 2}])) == ids(RESTORE)


def test_duplicates_are_one_cell() -> None:
    assert ids(changed(RESTORE, matrix__severity=[1, 2, 1, 1])) == ids(changed(RESTORE, matrix__severity=[1, 2]))
    assert ids(changed(one_cell(), matrix__guidance=[1, 1.0])) == ids(one_cell())


def test_an_option_as_an_axis_varies_only_the_methods_that_have_it() -> None:
    found = expand(changed(RESTORE, matrix={"severity": [1], "method.p": [0.9, 0.93]})).cells
    counts = {m: sum(c.axes["method"] == m for c in found) for m in METHODS}
    assert counts == {m: len(CORRUPTIONS) * (2 if m == "edict" else 1) for m in METHODS}
    assert {c.axes["method.p"] for c in found if c.axes["method"] == "edict"} == {0.9, 0.93}
    assert {c.spec["method"]["options"]["p"] for c in found if c.axes["method"] == "edict"} == {0.9, 0.93}


def test_what_a_model_cannot_see_is_skipped_with_the_reason() -> None:
    config = composed("model=scenes_vp,digits_vp")
    expansion = expand(config)
    assert len(expansion.cells) == len(expansion.skipped) == 60
    assert {skip.reason for skip in expansion.skipped} == {
        "model digits_vp takes 1x16x16 images, dataset scenes has 3x32x32"
    }


def test_ten_thousand_cells(capsys: pytest.CaptureFixture[str]) -> None:
    config = changed(RESTORE, matrix={"severity": [1, 2, 3, 4, 5], "seed": list(range(167))})
    start = time.perf_counter()
    count = len(expand(config).cells)
    with capsys.disabled():
        print(f"\n{count:,} cells in {time.perf_counter() - start:.1f} s")
    assert count == 167 * 60


# --- identity --------------------------------------------------------------------------------------------------


def other_value(options: type[BaseModel], name: str) -> Any:
    """Return another valid value of an option, while all other options keep their defaults."""
    field = options.model_fields[name]
    numbers = [field.default + 1, field.default / 2] if isinstance(field.default, (int, float)) else []
    for value in (*get_args(field.annotation), False, *numbers, 0.5, 2, 2.0, [1, 2], [0.25, 1.0]):
        try:
            if getattr(validate(options, {name: value}), name) != field.default:
                return value
        except UserError:
            continue
    raise AssertionError(f"give this test another value of {name}")


METHOD_OPTIONS = [
    (method, name)
    for method, component in CLEAN.method.items()
    for name in options_class(component.class_path, "method").model_fields
    if name not in ("steps", "guidance")
]


@pytest.mark.parametrize(("method", "option"), METHOD_OPTIONS)
def test_every_option_of_a_method_is_part_of_a_cells_id(method: str, option: str) -> None:
    options = options_class(CLEAN.method[method].class_path, "method")
    before, path = ids(one_cell(CLEAN, method)), f"method__{method}__options__{option}"
    assert ids(one_cell(CLEAN, method, **{path: other_value(options, option)})) != before
    assert ids(one_cell(CLEAN, method, **{path: options.model_fields[option].default})) == before


@pytest.mark.parametrize(
    "part",
    [
        {"images": 13},
        {"metrics": ["psnr"]},
        {"matrix__severity": [2]},
        {"matrix__steps": [11]},
        {"matrix__guidance": [1.5]},
        {"matrix__seed": [1]},
        {"matrix__corruption": ["block_mask"]},
        {"corruption__random_mask__options__version": 2},
        {"corruption__random_mask__options__sigma01": 0.1},
        {"corruption__random_mask__severities": {1: {"missing": 0.31}}},
        {"dataset__scenes__split": "train"},
        {"model__scenes_vp__version": 2},
        {"model__scenes_vp__prediction": "eps"},
        {"model__scenes_vp__path": {"kind": "vp", "schedule": "cosine"}},
        {"model__scenes_vp__grid__spacing": "linspace"},
        {"model__scenes_vp__grid__level0": "first"},
        {"model__scenes_vp__backbone__patch": 4},
        {"method__edict__class": "methods.inversion.ddim.DDIM"},
    ],
    ids=lambda part: next(iter(part)),
)
def test_what_changes_the_numbers_changes_the_id(part: dict[str, Any], tmp_path: Path) -> None:
    """The weights are the user's own, without a card: a card would fix the arguments of their network."""
    weights = tmp_path / "mine.safetensors"
    save_file({}, weights)
    cell = changed(one_cell(), model__scenes_vp__weights=str(weights))
    assert ids(cell) != ids(changed(cell, **part))


@pytest.mark.parametrize(
    "part",
    [
        {"title": "another"},
        {"description": "another"},
        {"name": "another"},
        {"batch_size": 3},
        {"samples": 0},
        {"results": "elsewhere"},
        {"report": False},
        {"retry": ["all"]},
        {"metrics": ["mse", "psnr"]},
        {"method__edict__title": "another"},
        {"model__scenes_vp__title": "another"},
        {"model__scenes_vp__guidance": 5.0},
        {"model__scenes_vp__train": None},
        {"dataset__scenes__title": "another"},
        {"corruption__random_mask__title": "another"},
        {"launcher": {"kind": "debug", "threads": 3, "workers": 2}},
        {"tracker": {"kind": "none"}},
        {"profile__name": "another"},
    ],
    ids=lambda part: next(iter(part)),
)
def test_what_leaves_the_numbers_leaves_the_id(part: dict[str, Any]) -> None:
    assert ids(one_cell()) == ids(changed(one_cell(), **part))


def test_the_weights_are_part_of_the_id(tmp_path: Path) -> None:
    def with_weights(content: str) -> list[str]:
        save_file({}, tmp_path / "w.safetensors", metadata={"content": content})
        return ids(one_cell(model__scenes_vp__weights=str(tmp_path / "w.safetensors")))

    assert with_weights("one") != with_weights("two")
    assert with_weights("one") == with_weights("one")


def test_a_metrics_version_is_part_of_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids(one_cell())
    monkeypatch.setitem(METRICS, "psnr", replace(METRICS["psnr"], version=2))
    assert ids(one_cell()) != before


def test_an_id_is_readable_and_a_file_name() -> None:
    (cell_id,) = ids(one_cell())
    words, _, digest = cell_id.rpartition("-")
    assert words == "edict-random_mask-s1-scenes_vp-scenes-n10-g1-seed0"
    assert len(digest) == 12
    assert set(digest) <= set("0123456789abcdef")
    (clean,) = ids(one_cell(CLEAN, "ddim"))
    assert clean.startswith("ddim-reconstruct-scenes_vp-scenes-n10-g1-seed0-")


def test_a_spec_survives_json_and_is_enough_to_check_the_options_again() -> None:
    for cell in expand(one_cell(CLEAN, "rf_inversion")).cells:
        assert json.loads(canonical(cell.spec)) == cell.spec
        method = cell.spec["method"]
        assert options_class(method["class"], "method")(**method["options"]).steps == cell.axes["steps"]


# --- reconcile -------------------------------------------------------------------------------------------------


def fake(name: str, model: str = "m", dataset: str = "d", evaluations: int = 1) -> Cell:
    return Cell(
        name, {"model": model, "method": "any", "dataset": dataset}, {"model": {"shape": (3, 32, 32)}}, evaluations
    )


CLASSES = ("oom", "timeout", "bug")


@given(
    states=st.lists(st.sampled_from(["done", "missing", *CLASSES, "done after oom"]), max_size=20),
    retry=st.lists(st.sampled_from([*CLASSES, "all"]), unique=True),
)
def test_reconcile_puts_every_cell_in_one_place(states: list[str], retry: list[str]) -> None:
    cells = [fake(str(i)) for i in range(len(states))]
    done = {c.id for c, state in zip(cells, states, strict=True) if state.startswith("done")}
    failures = {
        c.id: state.split()[-1] for c, state in zip(cells, states, strict=True) if state not in ("done", "missing")
    }
    plan = reconcile(cells, done | {"a cell of another sweep"}, set(failures), retry, failures.__getitem__)
    for cell, state in zip(cells, states, strict=True):
        retried = state in CLASSES and ("all" in retry or state in retry)
        expected = "retried" if retried else "failed" if state in CLASSES else state.split()[0]
        assert [kind for kind in ("done", "missing", "failed", "retried") if cell in getattr(plan, kind)] == [expected]
    assert plan.todo == plan.missing + plan.retried


# --- chunks ----------------------------------------------------------------------------------------------------


@given(
    drawn=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.floats(0.01, 5)), max_size=30),
    limit=st.one_of(st.floats(0.1, 10), st.just(float("inf"))),
)
def test_chunks_hold_every_cell_once_within_the_limit(drawn: list[tuple[str, str, float]], limit: float) -> None:
    cells = [fake(str(i), model, dataset) for i, (model, dataset, _) in enumerate(drawn)]
    minutes = {str(i): length for i, (_, _, length) in enumerate(drawn)}
    chunks = chunk(cells, lambda cell: minutes[cell.id], limit)
    groups = {(model, dataset) for model, dataset, _ in drawn}
    for group in groups:
        members = [c for c in cells if (c.axes["model"], c.axes["dataset"]) == group]
        chunked = [c for part in chunks for c in part.cells if (c.axes["model"], c.axes["dataset"]) == group]
        assert chunked == members
    assert sum(len(part.cells) for part in chunks) == len(cells)
    for part in chunks:
        assert part.cells
        assert len({(c.axes["model"], c.axes["dataset"]) for c in part.cells}) == 1
        assert part.minutes == pytest.approx(sum(minutes[c.id] for c in part.cells))
        assert part.minutes <= limit or len(part.cells) == 1
    if limit == float("inf"):
        assert len(chunks) == len(groups)


def test_the_clock_learns_from_finished_cells() -> None:
    cell = fake("a", model="known", evaluations=600)
    assert Clock([("known", "any", 100, 10.0), ("known", "any", 300, 30.0)]).minutes(cell) == pytest.approx(
        (60 + 0.2) / 60
    )
    assert Clock([("other", "any", 100, 1e6)]).minutes(cell) == Clock().minutes(cell) > 0


# --- the command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "count", "values"),
    [
        ([], 60, {"severity": {1, 2, 3, 4, 5}}),
        (["method=ddim,edict"], 40, {"method": {"ddim", "edict"}}),
        (["method=[ddim,edict]"], 40, {"method": {"ddim", "edict"}}),
        (["method=edict"], 20, {"method": {"edict"}}),
        (["severity=3"], 12, {"severity": {3}}),
        (["severity=1,3"], 24, {"severity": {1, 3}}),
        (["severity=[1,3]"], 24, {"severity": {1, 3}}),
        (["matrix.severity=[1,2]"], 24, {"severity": {1, 2}}),
        (["steps=10"], 60, {"steps": {10}}),
        (
            ["steps=10,50", "guidance=1,2.5", "seed=0,1"],
            480,
            {"steps": {10, 50}, "guidance": {1.0, 2.5}, "seed": {0, 1}},
        ),
        (["corruption=gaussian_blur"], 15, {"corruption": {"gaussian_blur"}}),
        (["method=edict", "matrix.method.p=[0.9,0.93]"], 40, {"method.p": {0.9, 0.93}}),
        (["method=edict", "matrix.method.p=0.9,0.93"], 40, {"method.p": {0.9, 0.93}}),
        (["method=edict", "matrix.method.p=0.9"], 20, {"method.p": {0.9}}),
        (["exclude=[{method:ddim,severity:[4,5]}]"], 52, {}),
        (["exclude={method:ddim}"], 40, {"method": {"edict", "rf_inversion"}}),
        (["include=[{method:edict,steps:99}]"], 61, {"steps": {10, 99}}),
        (["method=ddim", "exclude={method:edict}"], 20, {"method": {"ddim"}}),
        (["profile=digits"], 60, {"model": {"digits_vp"}, "dataset": {"digits"}}),
        (["model=scenes_vp,scenes_rf"], 120, {"model": {"scenes_vp", "scenes_rf"}}),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else None,
)
def test_the_command_line(arguments: list[str], count: int, values: dict[str, set[Any]]) -> None:
    found = expand(composed(*arguments)).cells
    assert len(found) == count
    for axis, expected in values.items():
        assert {cell.axes[axis] for cell in found} == expected


def test_options_on_the_command_line() -> None:
    arguments = [
        "method.edict.p=0.9", "method.rf_inversion.window=[0.5,1.0]",
        "corruption.random_mask.severities.2.missing=0.6", "corruption.gaussian_blur.options.reference_side=256",
        "launcher.workers=3", "results=~/my results, v=2", "title=Fast, and {loose}",
    ]  # fmt: skip
    config = composed(*arguments)
    assert config.method["edict"].options == {"p": 0.9}
    assert config.corruption["random_mask"].severities[2] == {"missing": 0.6}
    assert config.corruption["random_mask"].severities[1] == {"missing": 0.3}
    assert config.launcher.workers == 3
    assert config.results == str(Path("~/my results, v=2").expanduser())
    assert config.title == "Fast, and {loose}"
    found = {(c.axes["method"], c.axes["corruption"], c.axes["severity"]): c.spec for c in expand(config).cells}
    assert found["rf_inversion", "random_mask", 1]["method"]["options"]["window"] == [0.5, 1.0]
    assert found["edict", "random_mask", 2]["corruption"]["options"]["missing"] == 0.6
    assert found["edict", "gaussian_blur", 1]["corruption"]["options"]["reference_side"] == 256


SWEEP = """# @package _global_
defaults:
  - override /method: [ddim, edict, mine]
task: reconstruct
images: 2
metrics: [mse]
highlight: [mine]
matrix: {method.p: [0.9, 0.93], steps: 5}
"""
METHOD = """# @package method.mine
class: third_party_inversion.mine.Mine
strong: true
"""
PLUGIN = """from methods.options import CommonOptions


class Options(CommonOptions):
    strong: bool = False


class Mine:
    Options = Options
"""


def test_a_third_party_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs, package = tmp_path / "it's mine = ok, yes", tmp_path / "third_party_inversion"
    for file, text in {
        configs / "sweep" / "small.yaml": SWEEP,
        configs / "method" / "mine.yaml": METHOD,
        package / "__init__.py": "",
        package / "mine.py": PLUGIN,
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = compose_config(["sweep=small", f"config_dir={configs}"])
    assert config.name == "small"
    found = expand(config).cells
    assert [(c.axes["method"], c.axes.get("method.p")) for c in found] == [
        ("ddim", None), ("edict", 0.9), ("edict", 0.93), ("mine", None),
    ]  # fmt: skip
    assert found[-1].spec["method"] == {
        "class": "third_party_inversion.mine.Mine",
        "options": CommonOptions(steps=5).model_dump(mode="json") | {"strong": True},
    }
    part = compose_config(["sweep=small", f"config_dir={configs}", "method=edict"])
    assert part.highlight == ("mine",) and len(ids(part)) == 2
    arguments = ["sweep=reconstruction", "metrics=mse", "+method.mine.class=third_party_inversion.mine.Mine"]
    added = expand(compose_config(arguments)).cells
    assert {cell.axes["method"] for cell in added} >= {*CLEAN.method, "mine"}
    with pytest.raises(UserError, match=r"unknown key 'weak' in method\.mine"):
        expand(compose_config([*arguments, "+method.mine.weak=1"]))


@pytest.mark.parametrize("kind", SPACINGS)
def test_spacings_that_a_plan_admits_are_those_that_paths_know(kind: str) -> None:
    from methods.paths import make_path

    for spacing in {name for names in SPACINGS.values() for name in names}:
        if spacing in SPACINGS[kind]:
            assert make_path(kind).grid(10, spacing, mu=0.5).steps == 10
        else:
            with pytest.raises(ValueError, match="spacing"):
                make_path(kind).grid(10, spacing, mu=0.5)
