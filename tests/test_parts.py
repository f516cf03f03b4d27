"""A run of a part of a sweep leaves the report of the whole sweep unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import run, status
from bench.store import Store

WHOLE = [
    "sweep=corruptions",
    "profile=digits",
    "method=ddim,edict",
    "corruption=block_mask",
    "severity=1,2",
    "steps=2",
    "images=2",
    "samples=0",
    "launcher=debug",
    "tracker=none",
    "report=false",
]


def start(results: Path, *changes: str) -> None:
    keys = {change.split("=")[0] for change in changes}
    kept = [argument for argument in WHOLE if argument.split("=")[0] not in keys]
    assert run.main([*kept, *changes, f"results={results}"]) == 0


def ids(results: Path, name: str = "corruptions") -> list[str]:
    return [cell["id"] for cell in Store(results).manifest(name)["cells"]]


@pytest.fixture
def whole(tmp_path: Path) -> list[str]:
    start(tmp_path)
    assert len(ids(tmp_path)) == 4
    return ids(tmp_path)


def test_a_part_leaves_the_manifest_and_says_so(
    tmp_path: Path, whole: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    start(tmp_path, "method=ddim", "severity=2")
    assert ids(tmp_path) == whole and Store(tmp_path).manifests() == ["corruptions"]
    assert "1 of the 4 cells of corruptions: its report shows all of them" in capsys.readouterr().out


def test_a_part_of_a_report_leaves_the_whole_table(tmp_path: Path) -> None:
    start(tmp_path, "report=true")
    report = tmp_path / "reports" / "corruptions"
    table = (report / "table.csv").read_bytes()
    start(tmp_path, "report=true", "method=ddim", "severity=2")
    assert (report / "table.csv").read_bytes() == table


def test_a_part_with_another_option_has_a_name_of_its_own(
    tmp_path: Path, whole: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    part = ("method=edict", "severity=2", "method.edict.p=0.9")
    start(tmp_path, *part)
    (own,) = set(Store(tmp_path).manifests()) - {"corruptions"}
    assert ids(tmp_path) == whole and len(ids(tmp_path, own)) == 1 and not set(ids(tmp_path, own)) & set(whole)
    assert f"this run's name is {own}" in capsys.readouterr().out
    assert [one.name for one in status.look(Store(tmp_path), own)] == [own]
    start(tmp_path, *part)
    assert set(Store(tmp_path).manifests()) == {"corruptions", own}, "the same part has the same name"


def test_another_part_has_a_name_of_its_own(tmp_path: Path) -> None:
    start(tmp_path, "method=ddim")
    first = ids(tmp_path)
    start(tmp_path, "method=edict")
    assert ids(tmp_path) == first and len(Store(tmp_path).manifests()) == 2


@pytest.mark.parametrize("changes", [(), ("images=1",), ("method=ddim,edict,rf_inversion",)])
def test_all_that_was_there_and_more_replaces_it(tmp_path: Path, whole: list[str], changes: tuple[str, ...]) -> None:
    start(tmp_path, *changes)
    assert Store(tmp_path).manifests() == ["corruptions"]
    assert (set(ids(tmp_path)) & set(whole) == set()) == ("images=1" in changes), "stale cells do not come back"


def test_the_same_command_replaces_what_its_yaml_gave_before(tmp_path: Path, whole: list[str]) -> None:
    """A method that was removed from the YAML of the sweep also leaves the table."""
    file = tmp_path / "sweeps" / "corruptions.json"
    manifest = json.loads(file.read_text())
    gone = {"id": "gone", "axes": {**manifest["cells"][0]["axes"], "method": "gone"}, "evaluations": 1}
    file.write_text(json.dumps({**manifest, "cells": [*manifest["cells"], gone]}))
    start(tmp_path)
    assert ids(tmp_path) == whole


def test_a_damaged_manifest_is_replaced(tmp_path: Path, whole: list[str]) -> None:
    (tmp_path / "sweeps" / "corruptions.json").write_text("{")
    start(tmp_path, "method=ddim")
    assert ids(tmp_path) == [cell for cell in whole if cell.startswith("ddim")]
