"""Tests of the documents: links work, the table of methods is complete, named tests exist, the example runs."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import bench.plan
from methods.backbones.analytic import GaussianMixture
from methods.denoiser import Denoiser
from methods.paths import Rectified

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md", "docs/VERIFIED.md", "docs/INJECTIVE_ODE.md", "docs/WANDB.md", "docs/GLOSSARY.md", "docs/EXTEND.md",
    "bench/CLUSTER.md", "methods/README.md", "methods/FOOTGUNS.md",
)  # fmt: skip
NAMING_TESTS = ("docs/VERIFIED.md", "bench/CLUSTER.md", "methods/README.md", "methods/FOOTGUNS.md")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(document: Path) -> str:
    """Return the text without its code blocks."""
    return FENCE.sub("", document.read_text())


def section(document: Path, heading: str) -> str:
    """Return the text under a heading of the second level."""
    return document.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes from headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_lead_somewhere(name: str) -> None:
    document, broken = ROOT / name, []
    found = [link for link in LINK.findall(prose(document)) if not re.match(r"https?:", link)]
    assert found
    for link in found:
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_table_of_methods_is_complete() -> None:
    rows = section(ROOT / "methods" / "README.md", "All methods").splitlines()
    listed = [match[1] for row in rows if (match := re.match(r"\| `(\w+)` \|", row))]
    assert sorted(listed) == sorted(file.stem for file in (ROOT / "sweeps" / "method").glob("*.yaml"))
    for row in rows:
        if match := re.match(r"\| `(\w+)` \| \[(\w+)\.py\]", row):
            shipped = (ROOT / "sweeps" / "method" / f"{match[1]}.yaml").read_text()
            assert f"class: methods.inversion.{match[2]}." in shipped, row


@cache
def defined_tests() -> frozenset[str]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    functions = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
    return frozenset(functions | {file.stem for file in files})


@pytest.mark.parametrize("name", NAMING_TESTS)
def test_the_tests_that_are_named_exist(name: str) -> None:
    named = set(re.findall(r"\b(test_\w+)\b", prose(ROOT / name))) - {"test_step"}
    assert named
    assert not named - defined_tests()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_whole(name: str) -> None:
    """Every row of a table has as many cells as its header."""
    columns, ragged = 0, []
    for line in prose(ROOT / name).splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1 if line.startswith("|") else 0
        if cells and columns and cells != columns:
            ragged.append(line)
        columns = (columns or cells) if cells else 0
    assert not ragged


# --- the example of the README ---------------------------------------------------------------------------------


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Write its files unchanged to a new folder, under the names that their comments give; return its command."""
    text = section(ROOT / "README.md", "Add a method")
    for _, code in FENCE.findall(text):
        (named,) = re.findall(r"^# (\S+\.(?:py|yaml))$", code, re.MULTILINE)
        file = tmp_path / named
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    (command,) = re.findall(r"^    python -m bench\.run (.+)$", text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield shlex.split(command)
    for module in [name for name in sys.modules if name.split(".")[0] == "mypkg"]:
        del sys.modules[module]


def test_the_readmes_method_is_planned(example: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert {"sweep=corruptions", "method=ddim,mine"} <= set(example)
    assert bench.plan.main([*example, "results=results"]) == 0
    assert "mine" in capsys.readouterr().out
    todo = bench.plan.look([*example, "results=results"]).plan.todo
    counts = [sum(cell.axes["method"] == name for cell in todo) for name in ("ddim", "mine")]
    assert counts[0] == counts[1] == len(todo) / 2 > 0


def test_the_readmes_method_inverts(example: list[str]) -> None:
    mine = importlib.import_module("mypkg.mine").Mine
    path = Rectified()
    means = torch.zeros(1, 12, dtype=torch.float64)
    method = mine(Denoiser(GaussianMixture(means, 0.1, path), path, "velocity"), mine.Options(shrink=0.5), path.grid(4))
    x0 = torch.ones(2, 3, 2, 2, dtype=torch.float64)
    x_hat, latent = method.reconstruct(x0, method.denoiser.condition(["", ""]))
    assert torch.equal(x_hat, x0)
    assert torch.equal(latent.x_T, 0.5 * x0)
