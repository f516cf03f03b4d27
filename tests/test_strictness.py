"""Quality against strictness, and references that have the line's own value of an axis; results are made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.columns import METRICS
from reports.results import Results, arrange
from reports.strictness import strict_lines, strictness_figure, strictness_table
from reports.summary import effects, summarise
from reports.tables import effect_table

BOUNDS = {"inode": 1.5, "inode_k05": 0.25, "inode_k1": 0.5, "inode_free": 1.4}
GAIN = {"inode": 3.0, "inode_k05": 1.0, "inode_k1": 2.0, "inode_free": 4.0, "zero": 10.0, "sample": 0.0}


def made(models: Mapping[str, float] = BOUNDS, images: int = 6, **manifest: Any) -> Results:
    """Make restorations by each model and procedure. Their PSNR is the sum of both gains and a spread over images."""
    cells, rows = [], []
    for model in models:
        for procedure in ("zero", "sample"):
            axes = {
                "method": "ode", "method.procedure": procedure, "model": model,
                "dataset": "digits", "task": "restore", "corruption": "blur", "severity": 3, "steps": 32, "seed": 0,
            }  # fmt: skip
            cells.append({"id": f"{model}-{procedure}", "axes": axes})
    content = {"name": "x", "titles": {"method": {"ode": "ODE"}}, "task": "restore", "cells": cells, **manifest}
    placed, lines, blocks = arrange(content, {cell["id"]: "done" for cell in cells})
    for cell in placed:
        model, procedure = str(cell.axes["model"]), str(cell.axes["method.procedure"])
        for image in range(images):
            line, block, column = cell.key
            rows.append(
                {
                    "cell_id": cell.id, "image_id": str(image), "line": line, "block": block, "column": column,
                    "seed": 0, "outcome": "ok", "psnr": 10 + GAIN[model] + GAIN[procedure] + 0.1 * image * GAIN[model],
                    "K": models[model], "certified": float(not model.endswith("free")),
                }
            )  # fmt: skip
    return Results(content, placed, lines, blocks, pd.DataFrame(rows), {}, {})


def test_the_curve_is_of_certified_models_by_their_bound() -> None:
    found = strict_lines(made())
    assert [strict.model for strict in found if strict.rest == "zero"] == [
        "inode k05", "inode k1", "inode", "inode free",
    ]  # fmt: skip
    assert {strict.rest for strict in found} == {"zero", "sample"}
    assert [strict.bound for strict in found if strict.rest == "zero"] == [0.5, 1.0, 3.0, 2.8]
    assert strict_lines(made({name: BOUNDS[name] for name in ("inode", "inode_k1", "inode_free")})) == []


def test_its_table_and_figure() -> None:
    results = made()
    lines, summary, metric = strict_lines(results), summarise(results), METRICS["psnr"]
    table = strictness_table(metric, lines, summary, results)
    assert [group.title for group in table.groups] == ["zero", "sample"]
    rows = {row.title: row.entries for row in table.groups[0].rows}
    assert rows["inode"][0].text == "3.00" and rows["inode free"][0].text == "(2.80)"
    assert rows["inode k1"][1].value == pytest.approx(10 + 2 + 10 + 0.1 * 2.5 * 2)
    figure = strictness_figure(metric, lines, summary, results)
    (panel,) = figure.axes
    curves = [bars.lines[0] for bars in panel.containers]
    certified = [curve for curve in curves if len(curve.get_xdata()) == 3]
    assert [list(curve.get_xdata()) for curve in certified] == [[0.5, 1.0, 3.0]] * 2
    assert all(np.diff(curve.get_ydata()).min() > 0 for curve in certified)
    open_ones = [curve for curve in curves if len(curve.get_xdata()) == 1]
    assert len(open_ones) == 2 and all(curve.get_xdata()[0] > 3.0 for curve in open_ones)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0.5", "1.0", "3.0", "free"]


def test_a_reference_at_the_lines_own_procedure() -> None:
    results = made(reference={"model": "inode", "method.procedure": "same"})
    found = effects(results).set_index("line")
    assert set(found["reference"]) == {"zero · inode", "sample · inode"}
    for line, record in found.iterrows():
        assert record["reference"].split(" · ")[0] == str(line).split(" · ")[1]
        gain = GAIN[str(line).split(" · ")[2]] - GAIN["inode"]
        assert record["mean"] == pytest.approx(gain * (1 + 0.1 * 2.5))


def test_several_references_make_a_table_each() -> None:
    same, best = {"model": "inode", "method.procedure": "same"}, {"model": "inode", "method.procedure": "zero"}
    results = made(reference=[same, best])
    found = effects(results)
    assert found["comparison"].unique().tolist() == [0, 1]
    pd.testing.assert_frame_equal(found[found["comparison"] == 0], effects(made(reference=same)))
    second = found[found["comparison"] == 1]
    assert set(second["reference"]) == {"zero · inode"}
    (metric,) = results.metrics
    tables = [effect_table(metric, found, results, number) for number in (0, 1)]
    assert [table.key for table in tables] == ["psnr_effects", "psnr_effects_2"]
    assert "zero · inode or" in tables[0].notes[0] and tables[1].notes[0].count("· inode") == 1
