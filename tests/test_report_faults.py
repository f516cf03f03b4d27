"""A report where things go wrong: hostile titles, options of two types, damaged files, full disks, kills."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_reports import CORRUPTIONS, METHODS, ROOT, build, cell_name, hashes, make_store, write_cell

from bench.errors import StoreError, UserError
from bench.store import Store
from reports import build as building
from reports.damage import DamagedFile
from reports.drawing import literal, power, save, styled
from reports.folder import Built, replacing
from reports.latex import escape
from reports.results import load, plain
from reports.tables import csv, md

HOSTILE = (
    "$x_1",
    "a $\\frac{1}$ b",
    "_hidden^2_ ~ # & % \\",
    "{[/red]} [bold]<b>bold</b><!-- </script>",
    "a | b `code` *c* ``''--",
    "two\nlines\r\n\r\nand\ttabs \x00\x1b[31m \ud83d",
    "emoji 😀 café naïve þ ŋ €",
    "قياس عربي",
    "=SUM(A1)",
    "@gallery-data@",
    "long " + "word" * 100,
    "same",
    "same",
)


def out_of(store: Store) -> Path:
    return store.root / "reports" / "corruptions"


def entitled(store: Store, methods: Mapping[str, str], corruptions: Mapping[str, str], **options: Any) -> None:
    """Other titles in the manifest, wherever it keeps them."""
    manifest = store.manifest("corruptions")
    if "titles" in manifest:
        manifest["titles"] = {**manifest["titles"], "method": methods, "corruption": corruptions}
    else:
        for cell in manifest["cells"]:
            axes = cell["axes"]
            axes["method_title"] = methods[axes["method"]]
            axes["corruption_title"] = corruptions[axes["corruption"]]
    store.write_manifest("corruptions", {**manifest, **options})


def retitled(store: Store) -> None:
    """Hostile names for everything in the manifest that a report shows."""
    every = " ".join(HOSTILE)
    changed = {
        "title": every, "description": every, "unavailable": {every: every}, "options": {"ddim": {"p": every}},
        "skipped": [{"axes": {"method": every}, "reason": every}], "reference": {"method": "ddim"},
    }  # fmt: skip
    methods = dict(zip(METHODS, HOSTILE, strict=False))
    entitled(store, methods, dict(zip(CORRUPTIONS, reversed(HOSTILE), strict=False)), **changed)


# --- titles --------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Names of the elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_titles_are_literal_in_a_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, message = cell_name("edict", "blur", 4), " ".join(HOSTILE)
    store = make_store(tmp_path, images=6, failed=(failed,))
    store.write_failure(failed, {"class": "bug", "message": message, "traceback": message})
    calm = Elements((_calm(tmp_path / "calm") / "index.html").read_text()).names
    retitled(store)
    assert build(store) == 0
    printed, out = capsys.readouterr().out, out_of(store)
    page, table = (out / "index.html").read_text(), (out / "table.md").read_text()
    shown = Elements(page)
    assert shown.names == calm, "a title made an element"
    for title in HOSTILE[:3]:
        assert title in shown.text and plain(title) in printed
    data = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(data) == 1 and len(json.loads(data[0])["blocks"]) == len(CORRUPTIONS)
    assert not re.search(r"(?<!\\)[<>$]", table), "HTML or mathematics in Markdown"
    assert "\\_hidden^2\\_ \\~ \\# \\& % \\\\" in table
    tex = (out / "tables" / "psnr.tex").read_text()
    assert r"a \$\textbackslash{}frac\{1\}\$ b" in tex and "\n\n" not in tex
    assert {path.suffix for path in (out / "figures").iterdir()} == {".png", ".pdf"}
    read = pd.read_csv(out / "table.csv")
    assert HOSTILE[0] in set(read["title"]) and read["mean"].dtype == float


def _calm(root: Path) -> Path:
    """The folder of a report of the same parts."""
    failed = (cell_name("edict", "blur", 4),)
    store = make_store(root, images=6, failed=failed)
    manifest = store.manifest("corruptions")
    store.write_manifest("corruptions", {**manifest, "reference": {"method": "ddim"}})
    assert build(store, "quiet=true") == 0
    return out_of(store)


@pytest.mark.parametrize("title", HOSTILE)
def test_a_figure_draws_any_title_as_it_is(title: str, tmp_path: Path) -> None:
    """No mathematics, and the label reaches the legend whatever it begins with."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure()
        panel = figure.subplots()
        panel.plot([1, 10], [1e-5, 2], label=literal(title))
        text = panel.set_title(literal(title))
        assert not text.get_parse_math()
        assert panel.get_legend_handles_labels()[1] == [text.get_text()]
        assert text.get_text().strip("\u200b…") in plain(title)
        panel.legend()
        figure.savefig(tmp_path / "x.png")
        figure.savefig(tmp_path / "x.pdf")


def test_ticks_of_a_logarithmic_axis_are_plain_text(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    with styled():
        figure = Figure()
        panel = figure.subplots()
        panel.plot([1, 2], [1e-5, 2])
        panel.set_yscale("log")
        save(figure, tmp_path / "x")
        labels = [label.get_text() for label in panel.get_yticklabels()]
    assert "10⁻³" in labels and not any("$" in label or "\\" in label for label in labels)
    assert power(1e-3) == "10⁻³"


def test_equal_titles_are_told_apart(tmp_path: Path) -> None:
    store = make_store(tmp_path, images=2, small=True)
    entitled(store, {"ddim": "same", "edict": "same", "injective": "A · B"}, CORRUPTIONS)
    manifest = store.manifest("corruptions")
    titles = [line.title for line in load(store, manifest).lines]
    assert titles == ["same (ddim)", "same (edict)", "A · B"]
    alone = [cell for cell in manifest["cells"] if cell["axes"]["method"] == "injective"]
    assert [line.title for line in load(store, {**manifest, "cells": alone}).lines] == ["A · B"]


def test_each_format_escapes_its_own_signs() -> None:
    assert md("<b> $x$ a_b |") == r"\<b\> \$x\$ a\_b \|"
    assert md("1.0", "second") == "*1.0*" and md("1.0", "best") == "**1.0**"
    assert escape("`a--b''") == r"\textasciigrave{}a-{}-b'{}'"
    assert escape("é þ\n\nŋ") == r"é \texttt{U+00FE} \texttt{U+014B}"


def test_csv_fields_are_no_formulas() -> None:
    frame = pd.DataFrame({"=a": ["=1+1", "-1.5", "@x", "+a", " =b", "-", None, "a=b"], "x": [-1.0] * 8})
    lines = csv(frame).splitlines()
    assert lines == [
        "'=a,x",
        "'=1+1,-1.0",
        "-1.5,-1.0",
        "'@x,-1.0",
        "'+a,-1.0",
        "' =b,-1.0",
        "'-,-1.0",
        ",-1.0",
        "a=b,-1.0",
    ]


# --- options of two types -------------------------------------------------------------------------------------------

OPTIONS = {"ddim": [0.9, 0.5], "edict": ["auto", None], "injective": [[1, 2], [0.5]]}
"""Values of one option's name: numbers, text and null, lists."""


def test_one_option_may_have_two_types(tmp_path: Path) -> None:
    store = make_store(tmp_path, images=6, small=True)
    manifest = store.manifest("corruptions")
    cells = []
    for cell in manifest["cells"]:
        for number, value in enumerate(OPTIONS[cell["axes"]["method"]]):
            made = {"id": f"{cell['id']}-{number}", "axes": {**cell["axes"], "method.p": value}}
            cells.append(made)
            write_cell(store, made, 6, changed={"method.p": value})
    store.write_manifest("corruptions", {**manifest, "cells": cells})
    assert build(store, "quiet=true") == 0
    titles = set(pd.read_csv(out_of(store) / "table.csv")["title"])
    assert {"DDIM inversion · p 0.9", "EDICT · p auto", "EDICT · p none", "Injective ODE · p [1, 2]"} <= titles
    rows = store.rows([cell["id"] for cell in cells])
    assert len(rows) == 6 * len(cells) and set(rows["method.p"].dropna()) == {"0.9", "0.5", "auto", "[1, 2]", "[0.5]"}


# --- the last good report -------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> tuple[Store, dict[str, str]]:
    """A store with a report, whose manifest has changed since; and the report's files."""
    store = make_store(tmp_path, images=4, small=True)
    assert build(store, "quiet=true") == 0
    (out_of(store) / "mine.txt").write_text("kept")
    before = hashes(out_of(store))
    store.write_manifest("corruptions", {**store.manifest("corruptions"), "title": "Another"})
    return store, before


def test_an_exception_leaves_the_last_report(
    good: tuple[Store, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, before = good

    def fail(*_: Any) -> str:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("reports.html.page", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        build(store, "quiet=true")
    assert hashes(out_of(store)) == before
    monkeypatch.undo()
    assert build(store, "quiet=true") == 0
    assert "Another" in (out_of(store) / "index.html").read_text() and (out_of(store) / "mine.txt").is_file()


def test_a_full_disk_leaves_the_last_report(good: tuple[Store, dict[str, str]]) -> None:
    """No file may grow beyond a size that the page exceeds; the system refuses as a full disk does."""
    store, before = good
    page = (out_of(store) / "index.html").stat().st_size

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (page // 2, page // 2))

    command = [sys.executable, "-m", "reports.build", "sweep=corruptions", f"store={store.root}", "quiet=true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and done.stderr.startswith("error: the report in ") and done.stderr.count("\n") == 1
    assert hashes(out_of(store)) == before


@pytest.mark.parametrize("last", range(8))
def test_a_kill_between_two_files_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Every file is an old one or a new one, whole, and the next build tidies up. A kill is an error that nothing
    handles."""

    def write(names: str, content: str) -> None:
        with replacing(tmp_path) as draft:
            for name in names:
                (draft / name).write_text(content)
            Built(content, tuple(names), ()).write(draft)

    write("abcd", "old")
    (tmp_path / "mine").write_text("mine")
    real, count = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count > last:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with contextlib.suppress(KeyboardInterrupt):
        write("bcef", "new")
    monkeypatch.undo()
    kept = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != ".inputs"}
    assert set("bc") <= kept.keys() and set(kept.values()) <= {"old", "new", "mine"}
    assert set("ad") <= kept.keys() or {kept.get(name) for name in "bcef"} == {"new"}
    built = Built.read(tmp_path)
    assert built is None or built.digest == ("old" if last < 2 else "new")
    write("bcef", "new")
    assert {path.name for path in tmp_path.iterdir()} == {*"bcef", "mine", ".inputs"}


def test_a_killed_build_leaves_the_last_report(good: tuple[Store, dict[str, str]]) -> None:
    store, before = good
    command = [sys.executable, "-m", "reports.build", "sweep=corruptions", f"store={store.root}", "quiet=true"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not list(out_of(store).glob(".draft.*/figures/*.png")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    left = list(out_of(store).glob(".draft.*"))
    assert left, "the build ended before it was killed"
    assert {name: sha for name, sha in hashes(out_of(store)).items() if not name.startswith(".draft")} == before
    os.utime(left[0], (0, 0))
    assert build(store, "quiet=true") == 0
    assert not list(out_of(store).glob(".draft.*"))


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", images=4, small=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figures").write_text("mine")
    with pytest.raises(StoreError, match="cannot be written"):
        build(store, "quiet=true", f"out={tmp_path / 'out'}")
    assert hashes(tmp_path / "out").keys() == {"figures"}


# --- damaged files --------------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "garbage": lambda file: file.write_bytes(np.random.default_rng(0).bytes(999)),
    "missing": lambda file: file.unlink(),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "inside": lambda file: _overwritten(file),
}


def _overwritten(file: Path) -> None:
    """The middle changed, both ends as they were."""
    content = bytearray(file.read_bytes())
    for place in range(len(content) // 4, len(content) // 2):
        content[place] ^= 255
    file.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"), images=4, small=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["rows.parquet", "cell.json", "samples.npz"])
def test_a_damaged_cell_has_no_rows_and_says_why(whole: Store, tmp_path: Path, name: str, way: str) -> None:
    """Damage in the middle of an archive shows only when the archive is read."""
    shutil.copytree(whole.root, tmp_path / "store")
    store, cell = Store(tmp_path / "store"), cell_name("edict", "blur", 3)
    WAYS[way](store.root / "cells" / cell / name)
    results = load(store, store.manifest("corruptions"))
    if name == "samples.npz" and way == "inside":
        with pytest.raises(DamagedFile, match=cell):
            results.samples(cell)
    else:
        assert (results.count("damaged"), results.count("done")) == (1, 5)
        assert name in results.failures[cell]["message"] and cell not in set(results.rows["cell_id"])


@pytest.mark.parametrize(("name", "way"), [("rows.parquet", "halved"), ("samples.npz", "inside")])
def test_a_damaged_cell_is_shown_and_named(
    whole: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, way: str
) -> None:
    shutil.copytree(whole.root, tmp_path / "store")
    store, cell = Store(tmp_path / "store"), cell_name("edict", "blur", 3)
    WAYS[way](store.root / "cells" / cell / name)
    for _ in range(2):  # built, and recalled
        assert build(store) == 1
        captured = capsys.readouterr()
        assert "damaged" in captured.out and "1 of 6 cells are damaged" in " ".join(captured.out.split())
        assert cell in captured.err and captured.err.count("\n") == 1
    page = (out_of(store) / "index.html").read_text()
    assert f"<code>{cell}</code>" in page and ">1 damaged</a>" in page
    row = next(line for line in (out_of(store) / "table.md").read_text().splitlines() if "EDICT" in line)
    assert row.split(" | ")[1] == "damaged" and "±" in row.split(" | ")[2]


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_failure_is_named(tmp_path: Path, way: str) -> None:
    cell = cell_name("edict", "blur", 3)
    store = make_store(tmp_path, images=2, small=True, failed=(cell,))
    WAYS[way](store.root / "failures" / f"{cell}.json")
    results = load(store, store.manifest("corruptions"))
    if way == "missing":
        assert results.count("missing") == 1
    else:
        assert results.count("damaged") == 1 and cell in results.failures[cell]["message"]


@pytest.mark.parametrize("content", ["", "[]", '{"cells": [1]}', '{"cells": [{"id": "a"}]}', '{"cells": [{"id', "\xff"])
def test_a_damaged_manifest_is_said_in_one_line(whole: Store, tmp_path: Path, content: str) -> None:
    shutil.copytree(whole.root, tmp_path / "store")
    (tmp_path / "store" / "sweeps" / "corruptions.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"corruptions\.json .*damaged.*run"):
        build(Store(tmp_path / "store"))


def test_rows_of_another_cell_are_damage(whole: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole.root, tmp_path / "store")
    store = Store(tmp_path / "store")
    source, target = (store.root / "cells" / cell_name("edict", "blur", s) / "rows.parquet" for s in (3, 4))
    shutil.copyfile(source, target)
    assert build(store, "quiet=true") == 1
    assert cell_name("edict", "blur", 4) in capsys.readouterr().err


def test_every_file_that_is_read_is_in_the_digest(whole: Store, tmp_path: Path) -> None:
    shutil.copytree(whole.root, tmp_path / "store")
    store = Store(tmp_path / "store")
    cell, place = cell_name("edict", "blur", 3), store.root / "cells" / cell_name("edict", "blur", 3)

    def digest(**manifest: Any) -> str:
        return building.digest(store, {**store.manifest("corruptions"), **manifest}, None)

    seen = [digest(), digest(title="x")]
    samples = {**store.samples(cell)}
    np.savez_compressed(place / "samples.npz", **{**samples, "output": 255 - samples["output"]})
    seen.append(digest())
    np.savez_compressed(place / "features.npz", ids=samples["ids"])
    seen.append(digest())
    record = json.loads((place / "cell.json").read_text())
    (place / "cell.json").write_text(json.dumps({**record, "provenance": {"host": "another"}}))
    seen.append(digest())
    store.rows([cell]).assign(psnr=1.0).to_parquet(place / "rows.parquet")
    seen.append(digest())
    shutil.rmtree(place)
    store.write_failure(cell, {"class": "oom", "message": "a", "traceback": ""})
    seen.append(digest())
    store.write_failure(cell, {"class": "oom", "message": "b", "traceback": ""})
    seen.append(digest())
    assert len(set(seen)) == len(seen)
    assert digest() == seen[-1]


@pytest.mark.parametrize("name", ["tables.py", "report.mplstyle", "templates/report.css", "published/edit.csv"])
def test_a_report_is_built_again_by_other_code(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(ROOT / "reports", tmp_path / "reports")
    monkeypatch.setattr(building, "ROOT", tmp_path)
    before = building.digest(whole, whole.manifest("corruptions"), None)
    with open(tmp_path / "reports" / name, "a") as file:
        file.write("\n")
    assert building.digest(whole, whole.manifest("corruptions"), None) != before


# --- mixed measurements ---------------------------------------------------------------------------------------------


def test_the_remedy_of_mixed_measurements_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It removes the cells that do not agree with the youngest, and no other."""
    old = {cell_name(method, "blur", 3) for method in ("ddim", "edict")}
    store = make_store(tmp_path / "a store", images=4, small=True,
                       change=lambda cell: {"sha": "old" if cell in old else ""})  # fmt: skip
    youngest = store.root / "cells" / cell_name("injective", "blur", 3) / "cell.json"
    record = json.loads(youngest.read_text())
    record["provenance"]["started"] = "2026-01-01T00:00:00"
    youngest.write_text(json.dumps(record))
    assert build(store) == 1
    what, remedy, _ = capsys.readouterr().err.split("\n")
    assert "scene-0000" in what and all(f"{cell} (" in what for cell in old) and "EDICT" in what
    assert "bench.run" in remedy and "Remedy: rm \\-r" not in remedy
    command = remedy.removeprefix("Remedy: ").split(" (cells")[0]
    assert remedy.split(": ", 1)[1] in (out_of(store) / "index.html").read_text().replace("&#39;", "'")
    assert {Path(path).name for path in shlex.split(command)[2:]} == old
    assert subprocess.run(command, shell=True).returncode == 0
    for cell in store.manifest("corruptions")["cells"]:
        if cell["id"] in old:
            write_cell(store, cell, 4)
    assert build(store, "quiet=true") == 0
    assert load(store, store.manifest("corruptions")).count("done") == 6
