"""Tests of one cell: third-party restorers, rows as a pure function, gradients in methods, resuming after a stop."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_imports import ROOT, imported, inside

from bench import plan, run
from bench.cell.execute import build_method, execute
from bench.cell.posing import Cases, pose
from bench.cell.rows import Finished, rows_of
from bench.spec.cells import Cell, Skip, expand
from bench.spec.compose import compose_config
from bench.store import Store
from methods.base import InversionMethod, LatentMeasurement, Method, Restorer, only_inside, with_known
from methods.inversion.flowedit import FlowEdit
from methods.options import MethodOptions

LATENT_COLUMNS = {"latent_std", "latent_kurtosis", "latent_w2", "latent_mse", "state_bytes", "walked"}
PLUGIN = """
import torch

from methods.base import Restorer
from methods.options import RestorerOptions


class Clamp(Restorer):
    def restore(self, measurement, cond, generators):
        return measurement.y.clamp(-1, 1)

    def columns(self, problem, solution):
        return {"clamped": (problem.measurement.y.abs() > 1).flatten(1).sum(1).tolist()}


class GuidedOptions(RestorerOptions):
    rate: float = 0.1


class Guided(Restorer):
    '''A step down the gradient of |A x0(x) - y|^2, through the network and the operator.'''

    Options = GuidedOptions

    def restore(self, measurement, cond, generators):
        with torch.enable_grad():
            x = measurement.y.clone().requires_grad_()
            x0, _ = self.denoiser.views(x, self.grid[1], cond)
            error = (measurement.forward(x0) * measurement.y - measurement.y).square().sum()
            (gradient,) = torch.autograd.grad(error, x)
        return (x - self.options.rate * gradient).detach()
"""
SMALL = ["profile=digits", "images=3", "batch_size=2", "steps=2", "samples=1", "tracker=none", "launcher=debug"]
MEASURED = ["sweep=corruptions", "severity=3", *SMALL]


@pytest.fixture(scope="module")
def config_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder of a third party, with two restorers."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "method").mkdir()
    for name in ("Clamp", "Guided"):
        yaml = f"# @package method.{name.lower()}\nclass: restorers_of_others.{name}\ntitle: {name}\n"
        (folder / "method" / f"{name.lower()}.yaml").write_text(yaml)
    (folder / "restorers_of_others.py").write_text(PLUGIN)
    return folder


@pytest.fixture
def plugins(config_dir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(config_dir))
    return f"config_dir={config_dir}"


def cells(*chosen: str) -> tuple[Cell, ...]:
    return expand(compose_config(list(chosen))).cells


# --- restorers of a third party ----------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", ["clamp", "clamp,guided,ddim"])
def test_a_restorer_has_rows_without_latents_and_a_report(plugins: str, tmp_path: Path, methods: str) -> None:
    chosen = [*MEASURED, f"method={methods}", "corruption=gaussian_blur,random_mask", f"results={tmp_path}", plugins]
    assert run.main(chosen) == 0
    store = Store(tmp_path)
    for cell in store.done():
        rows, own = store.rows([cell]), not cell.startswith("ddim")
        assert (rows.outcome == "ok").all() and rows.psnr.notna().all() and len(rows) == 3
        assert LATENT_COLUMNS.isdisjoint(rows.columns) if own else "latent_std" in rows
        assert ("clamped" in rows) == cell.startswith("clamp")
    table = (tmp_path / "reports" / "corruptions" / "table.md").read_text()
    assert "Clamp" in table and "nan" not in table
    assert (tmp_path / "reports" / "corruptions" / "index.html").is_file()


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("reconstruct", ["sweep=reconstruction", *SMALL]),
        ("edit", ["sweep=editing", "images=2"]),
        ("guarantee", ["sweep=guarantees", "images=2"]),
    ],
)
def test_a_plan_skips_what_a_restorer_cannot_do(
    plugins: str, task: str, changes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [*changes, "method=clamp,flow_ode", "exclude=[]", "reference=[]", plugins]
    expansion = expand(compose_config(chosen))
    assert expansion.cells and {cell.axes["method"] for cell in expansion.cells} == {"flow_ode"}
    skipped = [skip for skip in expansion.skipped if skip.axes["method"] == "clamp"]
    assert skipped and all(isinstance(skip, Skip) and "only restores" in skip.reason for skip in skipped)
    assert all(skip.axes["task"] == task for skip in skipped)
    plan.main(chosen)
    assert "the method only restores measurements" in capsys.readouterr().out.replace("\n", " ")


def test_a_restorer_says_by_its_options_what_it_cannot_do(plugins: str) -> None:
    with pytest.raises(TypeError, match="RestorerOptions"):
        type("Wrong", (Restorer,), {"Options": MethodOptions})
    (cell,) = cells(*MEASURED, "method=clamp", "corruption=random_mask", plugins)
    method = build_method(cell)
    problem = pose(cell, method, [Cases(cell)[0]])
    with pytest.raises(ValueError, match="only restores"):
        method.solve(replace(problem, task="edit"))
    with pytest.raises(ValueError, match="needs a measurement"):
        method.solve(replace(problem, measurement=None))


@pytest.mark.parametrize("corruption", ["gaussian_blur", "random_mask", "block_mask", "gaussian_noise"])
def test_measurements_take_part_in_gradients(plugins: str, corruption: str) -> None:
    """This also holds for measurements made inside the Trainer's loop."""
    (cell,) = cells(*MEASURED, "method=guided", f"corruption={corruption}", plugins)
    assert all(row["outcome"] == "ok" and row["nfe_grad"] == 1 for row in execute(cell, 2, 0).rows)


def test_known_pixels_are_held_only_where_asked(plugins: str) -> None:
    found = {}
    for project in ("none", "final"):
        changes = ["method=guided", f"method.guided.project={project}", "corruption=random_mask", plugins]
        (cell,) = cells(*MEASURED, *changes)
        method = build_method(cell)
        problem = pose(cell, method, [Cases(cell)[0]])
        measurement = problem.measurement
        assert measurement is not None and measurement.known is not None
        found[project] = (method.solve(problem).image == measurement.y)[measurement.known.expand_as(measurement.y)]
    assert found["final"].all() and not found["none"].all()


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [
        [*MEASURED, "method=edict", "corruption=random_mask"],
        ["sweep=reconstruction", *SMALL, "method=flow_ode_dopri5", "guidance=1"],
        ["sweep=editing", "method=ddim", "edit=recolour", "matrix.method.strength=0.5", "images=2", "steps=2"],
    ],
)
def test_rows_are_a_pure_function(chosen: list[str]) -> None:
    """Two calls give the same rows, and leave their arguments unchanged."""
    cell = cells(*chosen)[0]
    method = build_method(cell)
    cases = Cases(cell)
    problem = pose(cell, method, [cases[i] for i in range(2)])
    with torch.no_grad():
        solution = method.solve(problem)
    own = {"mine": [1, 2], "other": [None, 0.5]}
    image, before = solution.image.clone(), copy.deepcopy(own)
    rows = rows_of(cell, problem, solution, {"fact": 3.0}, own)
    assert rows == rows_of(cell, problem, solution, {"fact": 3.0}, own)
    assert torch.equal(image, solution.image) and own == before
    assert [row["mine"] for row in rows] == [1, 2] and [row["fact"] for row in rows] == [3.0, 3.0]
    assert [row["image_id"] for row in rows] == [cases[i].item.id for i in range(2)]
    assert rows[0]["walked"] == (0.5 if cell.axes["task"] == "edit" else 1.0)
    assert not {"method_title", "corruption_title"} & set(rows[0])


def test_guarantee_columns_are_the_methods_own() -> None:
    small = ["steps=2", "iterations=1", "pairs=1", "updates=1", "draws=1", "tolerances=[1e-2]", "solvers=[rk4]"]
    chosen = ["sweep=guarantees", "method=flow_ode_rk4", "model=digits_inode", "corruption=random_mask", "severity=3"]
    chosen += ["images=1", "steps=2", "exclude=[]", "reference=[]", *(f"guarantee.{option}" for option in small)]
    (row,) = execute(cells(*chosen)[0], 1, 0).rows
    assert row["violated"] is None and row["edit_bound"] is None and row["sv_min"] > 0 and row["amplification"] > 0


def test_an_interrupted_cell_goes_on_where_it_was() -> None:
    (cell,) = cells(*MEASURED, "method=ddim", "corruption=random_mask")
    whole = execute(cell, 1, 4)

    class Stop(Exception):
        pass

    kept: list[Finished] = []

    def keep(finished: Finished) -> None:
        kept.append(finished)
        if len(kept) == 2:
            raise Stop

    with pytest.raises(Stop):
        execute(cell, 1, 4, keep=keep)
    assert len(kept[-1].rows) == 2
    rest = execute(cell, 1, 4, earlier=(kept[-1].rows, kept[-1].unfinished()))
    tables = [pd.DataFrame(found.rows).drop(columns=["seconds", "peak_mib"]) for found in (whole, rest)]
    pd.testing.assert_frame_equal(*tables)
    assert {name: array.tolist() for name, array in whole.samples.items()} == {
        name: array.tolist() for name, array in rest.samples.items()
    }


# --- what knows what --------------------------------------------------------------------------------------------------


def test_the_executor_knows_no_method() -> None:
    methods = ("methods.inversion", "methods.injective_ode", "methods.restoration", "methods.guarantees")
    for file in (ROOT / "bench" / "cell").glob("*.py"):
        assert not any(inside(name, methods) for name in imported(file)), file.name
    assert not any(inside(name, methods) for name in imported(ROOT / "methods" / "guarantees.py"))


def test_corruptions_know_nothing_of_the_trainer() -> None:
    for file in (ROOT / "corruptions").glob("*.py"):
        assert not any(word in file.read_text().lower() for word in ("lightning", "inference_mode")), file.name


# --- methods.base --------------------------------------------------------------------------------------------------


def test_known_pixels_have_one_projection() -> None:
    x, y, known = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([[[[True, False], [False, True]]]])
    measurement = LatentMeasurement(y, known)
    assert torch.equal(with_known(x, measurement, "final"), known.float())
    assert with_known(x, measurement, "none") is x and with_known(x, LatentMeasurement(y, None), "final") is x
    assert torch.equal(only_inside(x, y, known), (~known).float()) and only_inside(x, y, None) is x


def test_only_methods_that_invert_are_inversion_methods() -> None:
    assert issubclass(FlowEdit, Method) and not issubclass(FlowEdit, InversionMethod)
    for cls in (FlowEdit, Restorer):
        assert not hasattr(cls, "invert") and not hasattr(cls, "decode")
