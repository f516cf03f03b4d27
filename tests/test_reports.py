"""Reports from a synthetic store: every file exists, rebuilds give the same bytes, and all gaps are shown."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.columns import METRICS
from bench.errors import UserError
from bench.store import Store
from reports.build import main
from reports.distances import frechet, kernel
from reports.latex import document, escape, latex
from reports.results import MixedMeasurements, arrange, check_measurements, load
from reports.statistics import hedges_g
from reports.summary import costs, effects, summarise
from reports.tables import (
    Entry,
    Group,
    Row,
    Table,
    comparison,
    cost_table,
    effect_table,
    markdown,
    paper,
    print_table,
    published,
)

ROOT = Path(__file__).parents[1]
METHODS = {"ddim": "DDIM inversion", "edict": "EDICT", "injective": "Injective ODE"}
CORRUPTIONS = {"random_mask": "random mask", "block_mask": "block mask", "blur": "Gaussian blur", "noise": "noise"}
TITLES = {"method": METHODS}
GAIN = {"ddim": 0.0, "edict": 1.0, "injective": 4.0}


def shape_image(seed: int, size: int = 32) -> np.ndarray:
    """Return a coloured disc or square on a gradient, uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    low, high, colour = rng.uniform(0.1, 0.9, (3, 3))
    image = low + (high - low) * (x if seed % 2 else y)[..., None]
    cx, cy, r = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.28)
    inside = np.hypot(x - cx, y - cy) < r if seed % 3 else np.maximum(abs(x - cx), abs(y - cy)) < r
    return (np.where(inside[..., None], colour, image) * 255).astype(np.uint8)


def degrade(image: np.ndarray, corruption: str, severity: int) -> np.ndarray:
    rng = np.random.default_rng(severity)
    x = image.astype(float)
    if corruption == "random_mask":
        x = x * (rng.random(image.shape[:2]) > 0.17 * severity)[..., None]
    elif corruption == "block_mask":
        side = 4 + 4 * severity
        x[16 - side // 2 : 16 + side // 2, 16 - side // 2 : 16 + side // 2] = 0
    elif corruption == "blur":
        for _ in range(2 * severity):
            x = (x + np.roll(x, 1, 0) + np.roll(x, -1, 0) + np.roll(x, 1, 1) + np.roll(x, -1, 1)) / 5
    else:
        x = x + rng.normal(size=x.shape) * 8 * severity
    return np.clip(x, 0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


def cell_name(method: str, corruption: str, severity: int, seed: int = 0) -> str:
    return f"{method}-{corruption}-{severity}-s{seed}"


def write_cell(
    store: Store, cell: dict[str, Any], images: int, sha: str = "", finite: bool = True,
    changed: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    axes = cell["axes"]
    method, corruption, severity, seed = (axes[k] for k in ("method", "corruption", "severity", "seed"))
    rng = np.random.default_rng(sum(map(ord, cell["id"])))
    truth = np.stack([shape_image(i) for i in range(images)])
    y = np.stack([degrade(image, corruption, severity) for image in truth])
    keep = 0.55 - 0.1 * GAIN[method] / 2
    noise = rng.normal(size=truth.shape) * 6
    output = np.clip(truth + keep * (y.astype(float) - truth) + noise, 0, 255).astype(np.uint8)
    rows = []
    for i in range(images):
        bad = not finite and i == 0
        score = psnr(output[i], truth[i]) + seed * 0.1
        rows.append(
            {
                "cell_id": cell["id"],
                "image_id": f"scene-{i:04d}",
                **{k: axes[k] for k in ("method", "model", "dataset", "task", "corruption", "severity", "steps")},
                "guidance": axes["guidance"],
                "seed": seed,
                "outcome": "numerical" if bad else "ok",
                "psnr": None if bad else score,
                "ssim": None if bad else min(0.99, score / 45),
                "mse": None if bad else 10 ** (-score / 10),
                "input_psnr": psnr(y[i], truth[i]),
                "input_ssim": min(0.99, psnr(y[i], truth[i]) / 45),
                "latent_std": 5.5 if method == "edict" else 1.0,
                "latent_kurtosis": 3.0 + rng.normal() * 0.1,
                "state_bytes": 24576 if method == "edict" else 12288,
                "nfe": {"ddim": 40, "edict": 80, "injective": 12}[method],
                "nfe_grad": 0,
                "seconds": {"ddim": 0.05, "edict": 0.1, "injective": 0.02}[method] * (1 + 0.01 * rng.random()),
                "peak_mib": 230.0,
                "y_sha256": hashlib.sha256(f"{i} {corruption} {severity} {seed}{sha}".encode()).hexdigest(),
                "sigma01": 0.0,
                "snr_db": None,
                "details": "{}",
                **changed,
            }
        )
    record = {
        "config": axes,
        "provenance": {
            "git_sha": "0123abc",
            "dirty": False,
            "packages": {"torch": "2.8.0", "numpy": "2.2.0"},
            "host": "laptop",
            "gpu": None,
            "torch_threads": 4,
            "weights": {"scenes_vp.safetensors": "ab" * 32},
            "started": "2025-01-01T00:00:00",
        },
    }
    names = np.asarray([f"scene-{i:04d}" for i in range(4)])
    store.write(cell["id"], rows, record, {"ids": names, "truth": truth[:4], "input": y[:4], "output": output[:4]})


def make_store(
    root: Path,
    images: int = 8,
    missing: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    seeds: int = 1,
    small: bool = False,
    change: Callable[[str], dict[str, Any]] = lambda _: {},
) -> Store:
    store = Store(root)
    cells: list[dict[str, Any]] = [
        {
            "id": cell_name(method, corruption, severity, seed),
            "axes": {
                "method": method,
                "model": "scenes_vp",
                "dataset": "scenes",
                "task": "restore",
                "corruption": corruption,
                "severity": severity,
                "steps": 20,
                "guidance": 1.0,
                "seed": seed,
            },
        }
        for method in METHODS
        for corruption in (list(CORRUPTIONS)[2:3] if small else CORRUPTIONS)
        for severity in ((3, 4) if small else range(1, 6))
        for seed in range(seeds)
    ]
    store.write_manifest(
        "corruptions",
        {
            "title": "Restoration under corruption",
            "description": "Three inversion methods restore small scenes from masked, blurred and noisy measurements.",
            "task": "restore",
            "titles": {"method": METHODS, "corruption": CORRUPTIONS},
            "cells": cells,
            "unavailable": {"lpips": "weights not on disk"},
            "skipped": [{"axes": {"method": "null_text", "corruption": "blur"}, "reason": "needs a text condition"}],
        },
    )
    for cell in cells:
        if cell["id"] in failed:
            trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nMemoryError: <no room>'
            store.write_failure(cell["id"], {"class": "oom", "message": "out of memory", "traceback": trace})
        elif cell["id"] not in missing:
            write_cell(store, cell, images, **change(cell["id"]))
    return store


def build(store: Store, *arguments: str) -> int:
    return main(["sweep=corruptions", f"store={store.root}", *arguments])


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = make_store(tmp_path_factory.mktemp("whole"))
    assert build(store, "quiet=true") == 0
    return store


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Store:
    missing = (cell_name("ddim", "blur", 2), cell_name("ddim", "blur", 3, 1))
    failed = (cell_name("edict", "noise", 5), cell_name("edict", "noise", 5, 1), cell_name("edict", "noise", 4))
    store = make_store(tmp_path_factory.mktemp("gaps"), missing=(*missing, cell_name("ddim", "blur", 2, 1)),
                       failed=failed, seeds=2)  # fmt: skip
    assert build(store, "quiet=true") == 0
    return store


def test_all_files(whole: Store) -> None:
    out = whole.root / "reports" / "corruptions"
    stems = ["curves_psnr", "curves_ssim", "pareto_psnr", "profiles_psnr", "scatter_psnr"]
    figures = {f"figures/{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")}
    figures |= {f"figures/grid_{i}_{name}.png" for i, name in enumerate(CORRUPTIONS, start=1)}
    tables = {"table.md", "table.csv", "table.tex", *(f"tables/{name}.tex" for name in ("psnr", "ssim", "mse"))}
    assert set(hashes(out)) == tables | {"costs.md", "costs.csv", "index.html", ".inputs"} | figures


def test_rebuild_is_byte_identical_and_needs_no_torch(whole: Store, tmp_path: Path) -> None:
    """The rebuild runs in another process, with another hash seed, another folder and another clock."""
    script = (
        "import sys, reports.build; code = reports.build.main(sys.argv[1:]);"
        "sys.exit(code or [m for m in sys.modules if m.split('.')[0] in {'torch', 'methods', 'corruptions'}] or 0)"
    )
    arguments = ("sweep=corruptions", f"store={whole.root}", f"out={tmp_path / 'out'}", "quiet=true")
    done = python("-c", script, *arguments, PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out" / "index.html")
    assert hashes(tmp_path / "out") == hashes(whole.root / "reports" / "corruptions")


def test_numbers_of_the_csv(whole: Store) -> None:
    table = pd.read_csv(whole.root / "reports" / "corruptions" / "table.csv")
    rows = whole.rows([cell_name("edict", "blur", 3)])
    one = table[
        (table.metric == "psnr") & (table.line == "edict") & (table.corruption == "blur") & (table.severity == 3)
    ]
    assert one["mean"].item() == pytest.approx(rows["psnr"].mean(), abs=1e-12)
    assert one["low"].item() < one["mean"].item() < one["high"].item()
    assert one["n"].item() == 8
    assert len(table[table.metric == "psnr"]) == (3 + 1) * 4 * 5
    assert set(table.loc[table.line == "input", "metric"]) == {"psnr", "ssim"}


def test_marks_need_the_paired_test(tmp_path: Path) -> None:
    """The clear winner is bold. With three images no difference can be significant, so nothing is bold."""
    store = make_store(tmp_path / "many")
    marks = summarise(load(store, store.manifest("corruptions")))
    strong = marks[(marks.metric == "psnr") & (marks.block == "block_mask") & (marks.column == "5")].set_index("line")
    assert strong.loc["injective", "mark"] == "best"
    assert strong.loc["edict", "mark"] == "second"
    assert strong.loc["input", "mark"] == ""
    assert strong.loc["ddim", "p_holm"] == pytest.approx(2 * 2 / 2**8)
    few = make_store(tmp_path / "few", images=4)
    assert set(summarise(load(few, few.manifest("corruptions")))["mark"]) == {""}


def test_missing_and_failed_cells_are_visible(gaps: Store) -> None:
    out = gaps.root / "reports" / "corruptions"
    text = (out / "table.md").read_text()
    assert "3 of 120 cells are missing" in text
    assert "3 of 120 cells failed" in text
    blur, noise = text.split("### Gaussian blur")[1], text.split("### noise")[1]
    ddim = re.split(r" \| ", next(line for line in blur.splitlines() if "DDIM" in line))
    assert ddim[2] == "–"
    assert ddim[3].endswith("†")
    edict = next(line for line in noise.splitlines() if "EDICT" in line)
    assert "failed (oom)" in edict
    assert "†" in edict
    page = (out / "index.html").read_text()
    assert "MemoryError: &lt;no room&gt;" in page
    assert "weights not on disk" in page
    assert "needs a text condition" in page
    assert cell_name("ddim", "blur", 2) in page


def test_partial_entries_are_not_ranked(gaps: Store) -> None:
    table = pd.read_csv(gaps.root / "reports" / "corruptions" / "table.csv", keep_default_na=False)
    partial = table[table.partial]
    assert len(partial) == 3 * 2
    assert set(partial["mark"]) == {""}
    assert set(table.loc[table.corruption == "block_mask", "mark"]) >= {"best", ""}


def test_images_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    name = cell_name("injective", "blur", 4)
    store = make_store(tmp_path, small=True, change=lambda cell: {"finite": cell != name})
    assert build(store, "quiet=true") == 0
    text = (tmp_path / "reports" / "corruptions" / "table.md").read_text()
    assert "1 restored images were not finite" in text
    table = summarise(load(store, store.manifest("corruptions")))
    entry = table[
        (table.metric == "psnr") & (table.line == "injective") & (table.block == "blur") & (table.column == "4")
    ]
    assert (entry["n"].item(), entry["partial"].item(), entry["mark"].item()) == (7, True, "")


def test_one_changed_pixel_is_named(tmp_path: Path) -> None:
    """Each image with differing measurements is named with its cells. After a few, the rest are only counted."""
    store = make_store(tmp_path, small=True)
    name = cell_name("edict", "blur", 3)
    results = load(store, store.manifest("corruptions"))
    results.rows["y_sha256"] = results.rows["y_sha256"].astype(str)
    changed = results.rows["cell_id"].eq(name) & results.rows["image_id"].isin(["scene-0002", "scene-0005"])
    results.rows.loc[changed, "y_sha256"] = "0" * 64
    with pytest.raises(MixedMeasurements) as found:
        check_measurements(results)
    message = str(found.value)
    assert message.startswith("2 measurement(s) differ")
    assert "image scene-0002, Gaussian blur, severity 3, seed 0" in message and "scene-0005" in message
    assert f"000000000000… in {name}" in message and cell_name("ddim", "blur", 3) in message
    results.rows.loc[results.rows["cell_id"].eq(name), "y_sha256"] = "0" * 64
    with pytest.raises(MixedMeasurements, match="and 3 more"):
        check_measurements(results)


def test_mixed_measurements_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = cell_name("edict", "blur", 3)
    store = make_store(tmp_path, small=True, change=lambda cell: {"sha": "old" if cell == name else ""})
    with pytest.raises(MixedMeasurements, match=name):
        check_measurements(load(store, store.manifest("corruptions")))
    for _ in range(2):  # built, and recalled
        assert build(store) == 1
        assert "mixed measurements" in capsys.readouterr().err
    out = tmp_path / "reports" / "corruptions"
    assert "No comparison: mixed measurements" in (out / "index.html").read_text()
    assert set(hashes(out)) == {"index.html", "table.md", ".inputs"}


def test_a_cell_computed_again_is_a_new_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cell keeps its id. Its measurements are compared again, and refused."""
    store = make_store(tmp_path, small=True)
    assert build(store, "quiet=true") == 0
    page = tmp_path / "reports" / "corruptions" / "index.html"
    before = page.stat().st_mtime_ns
    assert build(store, "quiet=true") == 0 and page.stat().st_mtime_ns == before
    cell = next(c for c in store.manifest("corruptions")["cells"] if c["id"] == cell_name("edict", "blur", 3))
    shutil.rmtree(tmp_path / "cells" / cell["id"])
    write_cell(store, cell, 8, sha="other")
    assert build(store, "quiet=true") == 1
    assert "mixed measurements" in capsys.readouterr().err


def test_a_table_says_how_its_methods_were_set(tmp_path: Path) -> None:
    store = make_store(tmp_path, small=True)
    manifest = {**store.manifest("corruptions"), "options": {"edict": {"p": 0.9, "mixing": True}}}
    results = load(store, manifest)
    notes = comparison(METRICS["psnr"], summarise(results), results).notes
    assert "All cells: steps 20, guidance 1." in notes
    assert "Method options that were set: EDICT (p 0.9, mixing true)." in notes
    plain = load(store, store.manifest("corruptions"))
    assert not any("were set" in note for note in comparison(METRICS["psnr"], summarise(plain), plain).notes)


def test_one_severity_is_one_table_with_a_column_a_corruption(tmp_path: Path) -> None:
    store = make_store(tmp_path, images=4)
    manifest = store.manifest("corruptions")
    cells = [cell for cell in manifest["cells"] if cell["axes"]["severity"] == 3]
    store.write_manifest("one", {**manifest, "cells": cells})
    assert main(["sweep=one", f"store={tmp_path}", "quiet=true"]) == 0
    out, titles = tmp_path / "reports" / "one", CORRUPTIONS.values()
    assert f"| method | {' | '.join(titles)} |" in (out / "table.md").read_text()
    page = (out / "index.html").read_text()
    assert all(f'<th scope="col" data-block="{title}">' in page for title in titles)
    assert "The columns show severity 3." in page


def test_no_images_kept_is_no_gallery(tmp_path: Path) -> None:
    store = make_store(tmp_path, small=True)
    for file in tmp_path.glob("cells/*/samples.npz"):
        np.savez(file, ids=np.array([], dtype=str))
        record = json.loads((file.parent / "cell.json").read_text())
        record["files"][file.name] = file.stat().st_size
        (file.parent / "cell.json").write_text(json.dumps(record))
    assert build(store, "quiet=true") == 0
    assert not list((tmp_path / "reports" / "corruptions" / "figures").glob("grid*"))


def test_costs_are_of_the_median_cell_and_of_whole_inversions(tmp_path: Path) -> None:
    """A cell that shared its machine changes no cost, but a note says so. Half an inversion has no latent to score."""

    def measured(cell: str) -> dict[str, Any]:
        slow = {"seconds": 3.0} if cell == cell_name("ddim", "blur", 4) else {}
        return {
            "changed": {**slow, **({"walked": 0.6, "latent_std": 0.1} if cell.startswith("edict") else {"walked": 1.0})}
        }

    store = make_store(tmp_path, small=True, seeds=3, change=measured)
    results = load(store, store.manifest("corruptions"))
    found = costs(results).set_index("line")
    assert found.loc["ddim", "seconds"] == pytest.approx(0.05, rel=0.02) and found.loc["ddim", "unsteady"] > 20
    assert math.isnan(found.loc["edict", "latent_std"]) and found.loc["edict", "flag"] == ""
    assert found.loc["injective", "latent_std"] == 1.0 and found.loc["injective", "unsteady"] < 1.1
    notes = " ".join(cost_table(costs(results), results).notes)
    assert "Timings are unsteady" in notes and "(DDIM inversion)" in notes


def test_a_method_with_lost_images_is_not_drawn_first(tmp_path: Path) -> None:
    """The finite images of EDICT alone would be the best. It is neither ranked nor drawn first, and its lost image
    counts as not solved."""
    from reports import figures
    from reports.drawing import ranked_lines

    lost = {cell_name("edict", "blur", severity) for severity in (3, 4)}
    store = make_store(tmp_path, small=True, change=lambda cell: {"finite": cell not in lost})
    results = load(store, {**store.manifest("corruptions"), "reference": {"method": "ddim"}})
    summary, psnr = summarise(results), METRICS["psnr"]
    assert set(ranked_lines(psnr, summary)) == {"ddim", "injective"}
    shared, columns, places = figures.shared_columns(psnr, summary)
    assert (columns, places) == (2, 2) and set(shared["line"]) == {"ddim", "injective"}
    scores = figures.by_image(psnr, results)
    edict = scores[scores["line"] == "edict"]["value"]
    assert len(edict) == 2 * 8 and np.isneginf(edict).sum() == 2
    table = effect_table(psnr, effects(results), results)
    shown = {row.title: [entry.text[-1] for entry in row.entries] for row in table.groups[0].rows}
    assert shown["EDICT"] == ["†", "†"] and "†" not in shown["Injective ODE"]
    assert any(note.startswith("†: Only some of the images") for note in table.notes)


def test_an_error_replaces_an_older_report(whole: Store, tmp_path: Path) -> None:
    store = make_store(tmp_path, small=True, missing=(cell_name("edict", "blur", 3),))
    assert build(store, "quiet=true") == 0
    out = tmp_path / "reports" / "corruptions"
    (out / "mine.txt").write_text("kept")
    cell = next(c for c in store.manifest("corruptions")["cells"] if c["id"] == cell_name("edict", "blur", 3))
    write_cell(store, cell, 8, sha="other")
    assert build(store, "quiet=true") == 1
    assert set(hashes(out)) == {"index.html", "table.md", ".inputs", "mine.txt"}


def test_the_terminal_table(whole: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(whole) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    for words in ("PSNR [dB]", "SSIM", "random mask", "input y (no restoration)", "EDICT", "latent exploded", "±"):
        assert words in printed
    assert "MSE" not in printed
    assert printed.splitlines()[-1] == str(whole.root / "reports" / "corruptions" / "index.html")


def test_metric_and_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(make_store(tmp_path / "store", small=True), "metric=mse", f"out={tmp_path}") == 0
    printed = capsys.readouterr().out
    assert "MSE, lower is better" in printed
    assert "PSNR" not in printed
    assert (tmp_path / "figures" / "pareto_mse.pdf").is_file()


def test_second_build_is_quick(whole: Store) -> None:
    out = whole.root / "reports" / "corruptions"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    script = (
        "import sys, reports.build; code = reports.build.main(sys.argv[1:]);"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'jinja2', 'pyarrow'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    started = time.perf_counter()
    done = python("-c", script, "sweep=corruptions", f"store={whole.root}")
    assert done.returncode == 0, done.stderr
    assert "PSNR" in done.stdout
    assert time.perf_counter() - started < 10  # usually about .4 s, but the machine may be busy
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_lost_file_is_rebuilt(tmp_path: Path) -> None:
    store = make_store(tmp_path, images=4, small=True)
    assert build(store, "quiet=true") == 0
    page = tmp_path / "reports" / "corruptions" / "index.html"
    page.unlink()
    assert build(store, "quiet=true") == 0
    assert page.is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["swep=corruptions"], ["swep", "nearest: sweep"]),
        (["sweep=corruption"], ["corruption", "nearest: corruptions"]),
        (["sweep=corruptions", "metric=pnsr"], ["pnsr", "lpips", "nearest: psnr"]),
        (["sweep=corruptions", "metric=lpips"], ["weights not on disk", "psnr, ssim, mse"]),
        (["sweep=corruptions", "quiet=maybe"], ["maybe", "false, true"]),
        (["sweep="], ["sweep=VALUE"]),
        (["sweep=corruptions", "store=STOREx"], ["STOREx", "nearest: STORE"]),
        ([], ["no sweep given", "corruptions"]),
    ],
)
def test_bad_arguments_end_in_one_line(whole: Store, arguments: list[str], words: list[str]) -> None:
    arguments = [argument.replace("STORE", str(whole.root)) for argument in arguments]
    if not any(argument.startswith("store=") for argument in arguments):
        arguments.append(f"store={whole.root}")
    with pytest.raises(UserError) as raised:
        main(arguments)
    error = str(raised.value)
    assert "\n" not in error
    for word in words:
        assert word.replace("STORE", str(whole.root)) in error


def test_page_is_self_contained(whole: Store) -> None:
    page = (whole.root / "reports" / "corruptions" / "index.html").read_text()
    assert len(page) < 10_000_000
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    figures = re.findall(r'<img src="data:image/png[^>]*>', page)
    assert len(figures) == 5
    assert all(re.search(r'alt="[^"]+"', figure) for figure in figures)
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[0])
    panels = [panel for block in data["blocks"] for panel in block["panels"]]
    assert [panel["column"] for panel in panels] == list("12345") * 4
    assert all(panel["heads"] == ["truth", "input y", *METHODS.values()] for panel in panels)
    shown = [cell[0] for panel in panels for strip in panel["cells"] for cell in strip]
    assert set(shown) == set(range(len(data["images"])))
    assert len(shown) == 4 * 5 * 5 * 4
    assert len(data["images"]) <= len(shown) - 19 * 4, "the page contains the truth once"


@pytest.mark.parametrize("budget", [1_000_000, 6_000_000])
def test_large_images_stay_within_the_budget(budget: int) -> None:
    from reports.html import gallery_data
    from reports.images import Gallery, Picture
    from reports.results import Block

    rng = np.random.default_rng(0)
    block = Block("blur", "blur", "corruption", "severity", tuple("12"))
    rows = tuple(
        tuple(Picture(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), "") for _ in range(9)) for _ in range(4)
    )
    shown = [Gallery(block, c, tuple("abcdefghi"), tuple("wxyz"), ("",) * 4, rows, "") for c in block.columns]
    assert 10_000 < len(gallery_data(shown, budget)) < 1.05 * budget


def test_cost_flags(whole: Store) -> None:
    table = costs(load(whole, whole.manifest("corruptions"))).set_index("line")
    assert table.loc["edict", "flag"] == "latent exploded"
    assert table.loc["ddim", "flag"] == ""
    assert table.loc["injective", "nfe"] == 12


def test_a_flag_is_seen_beside_long_names() -> None:
    """A column that does not fit would disappear without a message."""
    columns = ("NFE", "grad", "s/image", "peak MiB", "state", "latent std", "kurtosis", "W2", "flag")
    entries = (*(Entry("0.12345") for _ in columns[:-1]), Entry("latent collapsed", mark="failed"))
    group = Group("", columns, (Row("Null-text inversion · guidance 3", entries),), "method")
    table = Table("costs", "Costs", (group,))
    out = StringIO()
    print_table(table, Console(file=out, width=120))
    assert {"flag", "latent", "collapsed"} <= set(out.getvalue().split())


def test_a_line_is_named_after_what_varies_within_its_method() -> None:
    axes = [{"method": m, "method.p_rule": p, "steps": 1} for m, p in (("a", 1), ("a", None), ("b", None))]
    cells = [{"id": str(i), "axes": a} for i, a in enumerate(axes)]
    _, lines, _ = arrange({"cells": cells}, {})
    assert [line.title for line in lines] == ["a · p rule 1", "a · p rule none", "b"]
    axes = [{"method": m, "model": model, "steps": 1} for m, model in (("a", "vp"), ("a", "rf"), ("b", "rf"))]
    _, lines, _ = arrange({"cells": [{"id": str(i), "axes": a} for i, a in enumerate(axes)]}, {})
    assert [line.title for line in lines] == ["a · vp", "a · rf", "b · rf"]


def test_reconstruction_sweep_and_an_empty_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without corruptions, columns are steps and each guidance scale has a block. An empty sweep reports too."""
    store = Store(tmp_path)
    cells: list[dict[str, Any]] = [
        {
            "id": f"{method}-{steps}-{guidance}",
            "axes": {
                "method": method, "model": "scenes_vp", "dataset": "scenes",
                "task": "reconstruct", "corruption": None, "severity": None, "steps": steps, "guidance": guidance,
                "seed": 0,
            },
        }
        for method in METHODS for steps in (10, 20, 100) for guidance in (1.0, 3.0)
    ]  # fmt: skip
    manifest = {"title": "Round trip", "task": "reconstruct", "titles": TITLES, "cells": cells}
    store.write_manifest("reconstruction", manifest)
    assert main(["sweep=reconstruction", f"store={tmp_path}"]) == 0
    assert "18 of 18 cells are missing" in capsys.readouterr().out
    for cell in cells:
        axes = cell["axes"]
        rows = [
            {
                "cell_id": cell["id"], "image_id": f"{i}", "method": axes["method"], "seed": 0, "outcome": "ok",
                "psnr": float("inf") if axes["method"] == "edict" else 20 + i + axes["steps"] / 10,
                "ssim": 0.9, "mse": 0.01, "latent_mse": 1e-3 / axes["steps"] * (1 + i), "y_sha256": None,
                "latent_std": 1.0, "nfe": 2 * axes["steps"], "seconds": 0.1 * axes["steps"],
            }
            for i in range(8)
        ]  # fmt: skip
        store.write(cell["id"], rows, {"config": axes, "provenance": {}})
    assert main(["sweep=reconstruction", f"store={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"steps +10 +20 +100", printed)
    assert "guidance 3" in printed
    assert "∞" in printed
    assert (tmp_path / "reports" / "reconstruction" / "figures" / "curves_latent_mse.png").is_file()
    assert not list((tmp_path / "reports" / "reconstruction" / "figures").glob("grid*"))


def test_round_trips_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model has one block, an exploded latent is flagged beside its perfect error, and skips have one line."""
    store = Store(tmp_path)
    cells: list[dict[str, Any]] = [
        {
            "id": f"{method}-{model}-{steps}",
            "axes": {
                "method": method, "model": model, "dataset": dataset,
                "task": "reconstruct", "corruption": None, "severity": None, "steps": steps, "guidance": 1.0, "seed": 0,
            },
        }
        for method in METHODS for model, dataset in (("gmm", "mixture"), ("scenes_vp", "scenes")) for steps in (10, 100)
    ]  # fmt: skip
    skipped = [{"axes": {"method": m, "dataset": "scenes"}, "reason": "model gmm takes 3x8x8"} for m in METHODS]
    manifest = {"title": "Round trip", "task": "reconstruct", "titles": TITLES, "cells": cells, "skipped": skipped}
    store.write_manifest("reconstruction", manifest)
    for cell in cells:
        axes = cell["axes"]
        exploded = axes["method"] == "edict" and axes["steps"] == 100
        error = {"ddim": 1 / axes["steps"], "edict": 1e-14, "injective": axes["steps"] ** -2.0}[axes["method"]]
        rows = [
            {
                "cell_id": cell["id"], "image_id": f"{i}", "seed": 0, "outcome": "ok", "psnr": 40.0, "ssim": 0.9,
                "mse": 0.0, "latent_mse": error**2 * (1 + i / 10), "y_sha256": None, "nfe": 2 * axes["steps"],
                "nfe_grad": 0, "latent_std": 250.0 if exploded else 1.0, "latent_kurtosis": 3.0, "state_bytes": 768,
                "seconds": 0.1, "peak_mib": 1.0,
            }
            for i in range(8)
        ]  # fmt: skip
        store.write(cell["id"], rows, {"config": axes, "provenance": {}})
    assert main(["sweep=reconstruction", f"store={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    assert "gmm · mixture · guidance 1" in printed
    assert "EDICT · gmm" not in printed
    assert re.search(r"1\.[34]e-28 ±\S+‡", printed)
    assert re.search(r"EDICT +100 +250 +3 +768 B +200 .*exploded", printed)
    out = tmp_path / "reports" / "reconstruction"
    science = (out / "table.md").read_text()
    assert "exploded" in science
    assert "s/image" not in science
    assert "s/image" in (out / "costs.md").read_text()
    table = pd.read_csv(out / "costs.csv").set_index(["method", "model", "dataset", "steps"]).sort_index()
    assert table.loc[("edict", "gmm", "mixture", 100), "flag"] == "exploded"
    assert set(pd.read_csv(out / "table.csv").columns) >= {"model", "dataset", "guidance", "steps"}
    assert (out / "index.html").read_text().count("model gmm takes 3x8x8 (3 combinations)") == 1
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names == {"curves_latent_mse", "work_latent_mse", "latent_std"}  # no growth figure: no known law


def test_rounding_does_not_decide_ranks(tmp_path: Path) -> None:
    """Two round trips that are exact in float64 are equally good, whatever their rounding errors."""
    from reports.summary import _above_floor

    assert _above_floor(METRICS["latent_mse"], 1e-30) == _above_floor(METRICS["latent_mse"], 1e-26)
    assert _above_floor(METRICS["psnr"], -3.0) == -3.0


def test_effects_are_paired_differences_to_the_reference(tmp_path: Path) -> None:
    store = make_store(tmp_path, small=True)
    manifest = {**store.manifest("corruptions"), "reference": {"method": "ddim", "steps": 20}}
    results = load(store, manifest)
    found = effects(results)
    assert set(found["line"]) == {"edict", "injective"} and set(found["reference"]) == {"DDIM inversion"}
    one = found[(found.metric == "psnr") & (found.line == "injective") & (found.column == "3")].iloc[0]
    rows = {method: store.rows([cell_name(method, "blur", 3)])["psnr"] for method in METHODS}
    gaps = rows["injective"].to_numpy() - rows["ddim"].to_numpy()
    assert one["mean"] == pytest.approx(gaps.mean()) and one["low"] < one["mean"] < one["high"]
    assert one["hedges_g"] == pytest.approx(hedges_g(gaps)) and one["n"] == 8
    table = effect_table(METRICS["psnr"], found, results)
    assert [row.title for row in table.groups[0].rows] == ["EDICT", "Injective ODE"]
    assert table.groups[0].rows[1].entries[0].text.startswith(f"{gaps.mean():+.2f} ±")
    assert effects(load(store, store.manifest("corruptions"))).empty


# --- LaTeX, short tables, published numbers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Make a store of one corruption at two severities, with a missing, a failed and a partial entry; no report."""
    missing, failed = (cell_name("ddim", "blur", 3), cell_name("ddim", "blur", 4, 1)), (cell_name("edict", "blur", 4),)
    missing, failed = (*missing, cell_name("ddim", "blur", 3, 1)), (*failed, cell_name("edict", "blur", 4, 1))
    return make_store(tmp_path_factory.mktemp("flawed"), missing=missing, failed=failed, seeds=2, small=True)


def tables_of(store: Store, style: str = "full") -> tuple[Any, ...]:
    results = load(store, store.manifest("corruptions"))
    made = tuple(comparison(metric, summarise(results), results) for metric in results.metrics)
    return tuple(paper(table) for table in made) if style == "paper" else made


def test_latex_compiles_as_it_is(flawed: Store, tmp_path: Path) -> None:
    """The table has all that a table may have: gaps, failures, daggers, marks, names with special characters."""
    engine = shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no pdflatex on this machine")
    awkward = Group(
        "50 % of #1 & more_or_less", ("a_b", "x^2", "{c}"),
        (Row("~?", (Entry("-1.2e-05 ±3e-06"), Entry("∞", mark="best"), Entry("– ‡†", mark="second"))),
         Row("σ of J, λ₂ ≥ Λ⁻¹, é, 中", (Entry(""), Entry(""), Entry("")))),
        "corner \\ $",
    )  # fmt: skip
    tables = (*tables_of(flawed), Table("odd", "|<·×²≤≥→…>|", (awkward,), ("A note: 5 %.",)))
    (tmp_path / "tables").mkdir()
    for table in tables:
        (tmp_path / "tables" / f"{table.key}.tex").write_text(latex(table))
    (tmp_path / "table.tex").write_text(document([f"tables/{table.key}" for table in tables], "Fifty % & more"))
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 10_000
    assert "Overfull \\hbox" not in done.stdout


def test_latex_sets_greek_and_names_what_it_cannot_set() -> None:
    assert escape("σ of Λ, x₂⁻") == r"$\sigma$ of $\Lambda$, x$_{2}$$^{-}$"
    assert escape("中 Ж é") == r"\texttt{U+4E2D} \texttt{U+0416} é"


def test_latex_says_what_markdown_says(flawed: Store) -> None:
    psnr = tables_of(flawed)[0]
    text = latex(psnr)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    assert text.count(r"\textbf{") == markdown([psnr], "").count("**") / 2 > 0
    assert text.count(r"\underline{") == len(re.findall(r"\| \*(?!\*)", markdown([psnr], "")))
    assert "failed (oom)" in text and r"$^\dagger$" in text and "3 of 12 cells are missing" in text
    assert escape("-0.5 ±1e-3, a-1") == r"$-$0.5 $\pm$1e-3, a-1"


def test_the_short_form_stands_at_severity_three(tmp_path: Path) -> None:
    store = make_store(tmp_path, images=4)
    full, short = tables_of(store)[0], tables_of(store, "paper")[0]
    assert [group.columns for group in short.groups] == [tuple(CORRUPTIONS.values())]
    assert short.notes[0] == "The columns show severity 3."
    for group, entry in zip(full.groups, short.groups[0].rows[-1].entries, strict=True):
        assert entry == group.rows[-1].entries[2]
    assert short.groups[0].rows[0].reference


def test_a_best_that_is_not_significant_is_said_to_be_none(tmp_path: Path) -> None:
    few = make_store(tmp_path, images=4, small=True)
    table = tables_of(few)[0]
    missing = (
        "PSNR: In 2 of 2 columns, the best method is not significantly better than all others, so no method is bold."
    )
    assert missing in table.notes
    assert "Unavailable metric: weights not on disk" in table.notes


@pytest.mark.parametrize("task", ["reconstruct", "edit", "stroke"])
def test_published_numbers_have_a_citation_and_a_setting(task: str) -> None:
    lines = pd.read_csv(ROOT / "reports" / "published" / f"{task}.csv", dtype=str, keep_default_na=False)
    assert set(lines.metric) <= set(METRICS)
    assert (lines.citation.str.contains(r"20\d\d") & lines.setting.str.startswith("Table ")).all()
    assert not lines.duplicated(["metric", "citation", "setting", "method", "column"]).any()
    assert lines.value.astype(float).gt(0).sum() >= len(lines) - 12  # BELM prints exact round trips as .000
    for metric in lines.metric.unique():
        for group in published(metric, task):
            assert group.title.startswith("published, ") and not group.shown
            assert all(row.reference and not row.printed for row in group.rows)


def test_published_numbers_stand_beside_ours_unranked(tmp_path: Path) -> None:
    store = make_store(tmp_path, small=True)
    manifest = {**store.manifest("corruptions"), "task": "edit"}
    results = load(store, manifest)
    results.rows["pie_psnr"] = results.rows["psnr"]
    metric = METRICS["pie_psnr"]
    table = comparison(metric, summarise(results), results)
    theirs = [group for group in table.groups if group.title.startswith("published")]
    assert len(theirs) == 2 and "Direct Inversion" in theirs[0].title and "PIE-Bench" in theirs[0].title
    assert "27.22" in markdown([table], "") and "27.22" in latex(table)
    assert Table.from_dict(table.as_dict()) == table
    assert paper(table).groups == table.groups, "one block stays as it is"


# --- sets ------------------------------------------------------------------------------------------------------------


def featured_store(root: Path, shards: int) -> Store:
    """Make a store of one method and 24 images, with one cell per shard, and features of outputs and truths."""
    store = Store(root)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(24, 6)).astype(np.float32)
    output = (truth + rng.normal(0.3, 0.5, size=truth.shape)).astype(np.float32)
    names = np.array([f"image-{i:02d}" for i in range(24)])
    axes = {"method": "ddim", "model": "m", "dataset": "d", "task": "restore", "corruption": "blur", "severity": 3}
    cells = []
    for shard, places in enumerate(np.array_split(rng.permutation(24), shards)):
        cells.append({"id": f"cell-{shard}", "axes": {**axes, "seed": shard}})
        rows = [
            {"cell_id": f"cell-{shard}", "image_id": names[i], "psnr": 20.0 + i, "outcome": "ok", "y_sha256": None}
            for i in places
        ]
        features = {"ids": names[places], "scenes_output": output[places], "scenes_truth": truth[places]}
        record = {"config": {"metrics": {"psnr": 1, "fd_scenes": 1, "kd_scenes": 1}}, "provenance": {}}
        store.write(f"cell-{shard}", rows, record, None, features)
    store.write_manifest("sets", {"task": "restore", "cells": cells})
    return store


def test_shards_and_seeds_combine_to_the_whole(tmp_path: Path) -> None:
    """One cell of 24 images and five cells that share these images give the same distances, to the last bit."""
    found = []
    for shards in (1, 5):
        store = featured_store(tmp_path / str(shards), shards)
        table = summarise(load(store, store.manifest("sets"))).set_index("metric")
        found.append(table.loc[["fd_scenes", "kd_scenes"], ["mean", "n"]].to_numpy().tolist())
        assert table.loc["fd_scenes", "mark"] == "" and np.isnan(table.loc["fd_scenes", "low"])
    assert found[0] == found[1]
    features = featured_store(tmp_path / "again", 1).features("cell-0")
    order = np.argsort(features["ids"])
    x, y = features["scenes_output"][order], features["scenes_truth"][order]
    assert found[0] == [[frechet(x, y), 24.0], [kernel(x, y), 24.0]]


def test_distances_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = featured_store(tmp_path, 3)
    results = load(store, store.manifest("sets"))
    tables = {metric.name: comparison(metric, summarise(results), results) for metric in results.metrics}
    assert tables["fd_scenes"].title == "FD-scenes, lower is better, n = 24 images"
    assert "biased upwards" in tables["fd_scenes"].notes[0] and "no rank" in tables["kd_scenes"].notes[0]
    assert tables["fd_scenes"].groups[0].rows[0].entries[0].n == 24
