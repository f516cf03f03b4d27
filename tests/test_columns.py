"""Tests of columns: each is declared once and read everywhere; the metric of a third party reaches the table."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import run
from bench.columns import COLUMNS, COSTS, GUARANTEES, LATENTS, METRICS, TASKS, Metric, column, declared
from bench.errors import UserError
from bench.metrics.scoring import Batch, score
from bench.mirror import dashboard
from bench.mirror.writing import Mirror
from bench.spec import metrics
from bench.spec.cells import expand
from bench.spec.compose import compose_config
from bench.spec.config import TrackerConfig
from bench.store import Store
from methods.guarantees import AGAINST, CONSTANTS
from reports import build

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "sweep=corruptions", "profile=digits", "method=ddim,edict", "corruption=gaussian_blur", "severity=1,3", "steps=2",
    "images=2", "launcher=debug", "tracker=none",
]  # fmt: skip
MINE = '''"""A metric of a third party."""

import torch

from bench.columns import Metric


class Sharpness:
    column = Metric("sharpness", "sharpness of edges", "levels", "higher", ".4f", version=3, of_input=True)

    def __call__(self, batch):
        return batch.output.clamp(0, 1).diff(dim=-1).abs().flatten(1).mean(1) * 255


def twice(batch):
    return 2 * batch.output.flatten(1).mean(1)


twice.column = Metric("twice", "twice the mean", better="lower")


class Again(Sharpness):
    column = Metric("sharpness", "another", better="lower")


class Undeclared:
    pass


def bad(**changes):
    def judge(batch):
        return batch.output.flatten(1).mean(1)

    judge.column = Metric(**{"name": "plain", "title": "x", "better": "lower"} | changes)
    return judge


TAKEN, AXIS, PLACE, SPACED = bad(name="psnr"), bad(name="severity"), bad(name="line"), bad(name="a b")
NEITHER, FORMAT, SETS = bad(better=""), bad(digits="nope"), bad(kind="set")
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the full name of the module, in a package of its own."""
    package = tmp_path / "third_party_metrics"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("third_party_metrics")]:
        del sys.modules[name]
    return "third_party_metrics.mine"


# --- declarations ----------------------------------------------------------------------------------------------------


def test_every_column_is_declared_once_and_whole() -> None:
    groups = (METRICS, COSTS, LATENTS, GUARANTEES)
    assert sum(map(len, groups)) == len({name for group in groups for name in group})
    for name, found in COLUMNS.items():
        assert found.name == name and found.title and found.head
        assert found.digits == "bytes" or format(1.0, found.digits)
    for metric in METRICS.values():
        assert metric.better and set(metric.tasks) <= set(TASKS)
        assert bool(metric.path) == (metric.kind == "image") and bool(metric.extractor) == (metric.kind == "set")


def test_a_number_is_written_by_its_column() -> None:
    assert METRICS["psnr"].text(24.312) == "24.31 dB"
    assert METRICS["psnr"].heading == "PSNR [dB], higher is better"
    assert COSTS["state_bytes"].text(12288) == "12 KiB"
    assert COSTS["nfe"].number(12346) == "12346" and COSTS["nfe"].number(40) == "40"
    assert COSTS["seconds"].head == "s/image" and LATENTS["latent_std"].heading == "std of the latent"


def test_columns_that_are_made_by_a_rule() -> None:
    assert column("trip_dopri5_1e-03_nfe").title == "NFE of the round trip, dopri5 1e-03"
    assert column("trip_heun_bits").digits == ".1e" and column("trip_heun_bits").kind == "guarantee"
    assert column("input_psnr").title == "PSNR of the input" and column("input_psnr").unit == "dB"
    assert (column("method.p").kind, column("my_own").kind, column("my_own").title) == ("axis", "own", "my own")


def test_a_declaration_survives_json() -> None:
    metric = Metric("sharpness", "sharpness", "levels", "higher", ".4f", floor=1e-3, printed=False)
    written = json.loads(json.dumps(metric.declaration()))
    assert declared({"columns": {"sharpness": written | {"of_a_later_version": 1}}})["sharpness"] == metric
    assert list(declared({})) == list(METRICS)


def test_guarantees_are_those_that_a_flow_is_measured_by() -> None:
    assert {*AGAINST, *CONSTANTS} <= set(GUARANTEES)


def test_names_of_metrics_stand_in_no_other_table() -> None:
    """No other file lists metrics, costs or latents. Three of their names in one literal would be a second table."""
    names = {*METRICS, *COSTS, *LATENTS} - {"kept", "clip", "seconds"}
    repeated = []
    for room in ("bench", "reports"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else []
                parts = [*node.keys] if isinstance(node, ast.Dict) else parts
                said = {part.value for part in parts if isinstance(part, ast.Constant)} & names
                if len(said) > 3 and file.name not in ("columns.py", "execute.py"):
                    repeated.append((str(file.relative_to(ROOT)), sorted(said)))
    assert repeated == [("reports/tables.py", ["nfe", "nfe_grad", "peak_mib", "state_bytes"])]  # an order of columns


# --- scores ----------------------------------------------------------------------------------------------------------


def test_a_metric_gives_one_number_for_each_image() -> None:
    images = torch.rand(3, 1, 4, 4)
    batch = Batch(images, images, images)
    values = torch.tensor([1.0, torch.inf, 2.0])
    assert score({"mine": lambda _: values}, batch) == {"mine": [1.0, None, 2.0]}
    broken = images.clone()
    broken[2, 0, 0, 0] = torch.nan
    assert score({"mine": lambda b: b.output.flatten(1).sum(1)}, Batch(broken, images, images))["mine"][2] is None
    with pytest.raises(ValueError, match=r"metric mine gave \[\] numbers for 3 images"):
        score({"mine": lambda _: torch.tensor(1.0)}, batch)


# --- a third party's metric -------------------------------------------------------------------------------------------


def test_a_third_partys_metric_goes_from_its_class_to_the_table(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    command = [*SMALL, f"metrics=psnr,{mine}.Sharpness,{mine}.twice", f"results={results}", "report=false"]
    assert run.main(command) == 0
    store = Store(results)
    rows = store.rows(sorted(store.done()))
    assert rows[["psnr", "input_psnr", "sharpness", "input_sharpness", "twice"]].notna().all().all()
    assert "input_twice" not in rows
    record = store.record(min(store.done()))
    assert record["config"]["metrics"] == {"psnr": 1, f"{mine}.Sharpness": 3, f"{mine}.twice": 1}
    # The reports may not import the module of the third party, so they run in a process that cannot find it.
    ended = subprocess.run(
        [sys.executable, "-m", "reports.build", "sweep=corruptions", f"store={results}", "metric=sharpness"],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    heading = "sharpness of edges [levels], higher is better"
    assert heading in ended.stdout and "input y (no restoration)" in ended.stdout
    out = results / "reports" / "corruptions"
    text = (out / "table.md").read_text()
    assert heading in text and "twice the mean, lower is better" in text
    mean = rows[(rows["method"] == "ddim") & (rows["severity"] == 3)]["sharpness"].mean()
    assert f"{mean:.4f} ±" in text
    assert (out / "tables" / "sharpness.tex").is_file() and heading in (out / "index.html").read_text()
    names = {path.stem for path in (out / "figures").iterdir()}
    assert {"curves_sharpness", "curves_twice", "pareto_sharpness"} <= names
    manifest = store.manifest("corruptions")
    assert list(manifest["columns"]) == ["sharpness", "twice"]
    with pytest.raises(UserError, match=r"unknown metric 'sharpnes'.*nearest: sharpness"):
        build.main(["sweep=corruptions", f"store={results}", "metric=sharpnes"])
    shown = dashboard.shown(Mirror(store, "corruptions", TrackerConfig(), "offline"), "me")
    assert [quality.heading for quality in shown.quality if quality.name == "sharpness"] == [heading]
    assert {cost.name for cost in shown.costs} == set(COSTS) and {*LATENTS} <= {s.name for s in shown.latents}
    assert "walked" not in {quality.name for quality in shown.quality}
    assert run.main(command) == 0
    assert "4 cells: 4 done" in capsys.readouterr().out


def test_its_version_is_part_of_a_cells_identity(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config([*SMALL, f"metrics={mine}.Sharpness"])
    before = {cell.id for cell in expand(config).cells}
    judge = sys.modules[mine].Sharpness
    monkeypatch.setattr(judge, "column", Metric("sharpness", "sharper", better="higher", version=4))
    assert not before & {cell.id for cell in expand(config).cells}
    monkeypatch.setattr(judge, "column", Metric("sharpness", "sharper", better="higher", version=3))
    assert before == {cell.id for cell in expand(config).cells}  # a title does not change a number


def entry_point(name: str, value: str) -> Callable[..., list[Any]]:
    return lambda group: [SimpleNamespace(name=name, value=value)] if group == "inversion_bench.metrics" else []


def test_an_entry_point_is_a_name(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("bench.spec.metrics.entry_points", "bench.spec.registry.entry_points"):
        monkeypatch.setattr(place, entry_point("sharp", f"{mine}:Sharpness"))
    found = metrics.chosen(("psnr", "sharp"))
    assert metrics.identity(found) == {"psnr": 1, "sharp": 3} and list(metrics.scores(found)) == ["psnr", "sharpness"]
    with pytest.raises(UserError, match=r"unknown metric 'shrap'.* sharp, .*nearest: sharp"):
        metrics.declared("shrap")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["psn"], ["unknown metric 'psn'", "allowed: clip,", "nearest: psnr"]),
        (["latent_mse"], ["unknown metric 'latent_mse'"]),
        (["@.Sharpnes"], ["unknown class 'Sharpnes'", "nearest: Sharpness"]),
        (["no_such_package.mine.Sharpness"], ["there is no module 'no_such_package'"]),
        (["@.Undeclared"], ["has no declaration", "column = bench.columns.Metric("]),
        (["@.Sharpness", "@.Again"], ["both fill the column sharpness"]),
        (["@.TAKEN"], ["cannot be named 'psnr'"]),
        (["@.AXIS"], ["cannot be named 'severity'"]),
        (["@.PLACE"], ["cannot be named 'line'"]),
        (["@.SPACED"], ["cannot be named 'a b'"]),
        (["@.NEITHER"], ["better is ''", "'higher' or 'lower'"]),
        (["@.FORMAT"], ["digits 'nope'", "'.3f'"]),
        (["@.SETS"], ["kind 'set'", "single images"]),
    ],
)
def test_mistakes_end_in_one_line(names: list[str], words: list[str], mine: str) -> None:
    asked = ",".join(name.replace("@", mine) for name in names)
    with pytest.raises(UserError) as found:
        expand(compose_config([*SMALL, f"metrics={asked}"]))
    for word in words:
        assert word in str(found.value)
    assert "\n" not in str(found.value)


# --- titles -----------------------------------------------------------------------------------------------------------


def test_axes_hold_values_and_titles_stand_beside_them(tmp_path: Path) -> None:
    command = [*SMALL, "method=edict", "method.edict.title=a title", f"results={tmp_path}", "report=false"]
    assert run.main([c for c in command if c != "method=ddim,edict"]) == 0
    manifest = Store(tmp_path).manifest("corruptions")
    assert manifest["titles"]["method"] == {"edict": "a title"}
    assert manifest["titles"]["corruption"] == {"gaussian_blur": "Gaussian blur"}
    assert set(manifest["titles"]) == {"method", "model", "dataset", "corruption"}
    recorded = [cell["axes"] for cell in manifest["cells"]] + [
        Store(tmp_path).record(i)["axes"] for i in Store(tmp_path).done()
    ]
    assert all(not key.endswith("_title") for axes in recorded for key in axes)
    assert build.main(["sweep=corruptions", f"store={tmp_path}", "quiet=true"]) == 0
    text = (tmp_path / "reports" / "corruptions" / "table.md").read_text()
    assert "| a title |" in text and "### Gaussian blur" in text
