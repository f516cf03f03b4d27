"""Tests of figures: which lines are coloured, where names are placed, what grids enlarge, and figures of theory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.columns import METRICS
from bench.store import Store
from reports import drawing, figures, theory
from reports.build import main
from reports.drawing import BEST, Looks, choose_looks, spaced
from reports.images import ranked, window
from reports.results import Results, load
from reports.summary import entry_costs, summarise


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.001, 0.2))
def test_names_stand_apart_in_order_and_inside(wanted: list[float], gap: float) -> None:
    placed = spaced(wanted, gap)
    assert len(placed) == len(wanted)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    room = min(gap, 1 / max(1, len(wanted) - 1))
    for below, above in itertools.pairwise(order):
        assert placed[above] - placed[below] >= room - 1e-9
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
    if all(abs(a - b) >= room for i, a in enumerate(wanted) for b in wanted[:i]):
        assert placed == pytest.approx(wanted)  # no name moves without need


def store_of(root: Path, scores: dict[str, list[float]], highlight: tuple[str, ...] = ()) -> Results:
    """Make a sweep of one block, where each method has these mean scores in its columns, over four images."""
    store, cells = Store(root), []
    for method, means in scores.items():
        for severity, mean in enumerate(means, start=1):
            axes: dict[str, Any] = {
                "method": method, "model": "m", "dataset": "d", "task": "restore", "corruption": "blur",
                "severity": severity, "steps": 10, "guidance": 1.0, "seed": 0,
            }  # fmt: skip
            cells.append({"id": f"{method}-{severity}", "axes": axes})
            rows = [{"cell_id": f"{method}-{severity}", "image_id": f"{i}", "psnr": mean + i, "nfe": 10, "seconds": 0.1,
                     "outcome": "ok"} for i in range(4)]  # fmt: skip
            store.write(f"{method}-{severity}", rows, {"config": axes, "provenance": {}})
    store.write_manifest("s", {"title": "S", "task": "restore", "cells": cells, "highlight": list(highlight)})
    return load(store, store.manifest("s"))


def test_one_severity_is_drawn_as_intervals(tmp_path: Path) -> None:
    """The best method is on top, each method has its interval, and no curve of a single point is drawn."""
    results = store_of(tmp_path, {"low": [10.0], "high": [30.0], "middle": [20.0]})
    summary = summarise(results)
    (panel,) = figures.intervals(
        METRICS["psnr"], summary, results, choose_looks(results, METRICS["psnr"], summary)
    ).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["high", "middle", "low"]
    drawn = {(int(line.get_ydata()[0]), tuple(line.get_xdata())) for line in panel.lines}
    for row, name in enumerate(["high", "middle", "low"]):
        entry = summary[(summary["line"] == name) & (summary["metric"] == "psnr")].iloc[0]
        assert {(row, (entry["low"], entry["high"])), (row, (entry["mean"],))} <= drawn
    assert panel.get_ylim()[0] > panel.get_ylim()[1]
    assert main(["sweep=s", f"store={tmp_path}", "quiet=true"]) == 0
    names = {path.name for path in (tmp_path / "reports" / "s" / "figures").iterdir()}
    assert "intervals_psnr.pdf" in names and not any(name.startswith("curves") for name in names)


def test_a_crowd_colours_the_best_and_the_highlighted(tmp_path: Path) -> None:
    scores = {f"m{i:02d}": [10.0 + i, 20.0 + i] for i in range(12)}
    scores["twin"] = [20.99, 30.99]  # close behind m11
    results = store_of(tmp_path, scores, highlight=("m00",))
    looks = choose_looks(results, METRICS["psnr"], summarise(results))
    assert looks.crowded
    assert looks.highlighted == ("m00",)
    assert looks.coloured == ("m00", "m11", "m10", "m09", "m08", "m07")
    assert len(looks.coloured) == BEST + 1
    assert "best 5 by mean rank and the sweep's highlighted methods" in looks.rule
    drawn = [(look.color, look.marker, look.linestyle) for look in looks.by_line.values()]
    assert len(set(drawn)) == len(drawn)
    assert len({look.color for key, look in looks.by_line.items() if key in looks.coloured}) == len(looks.coloured)


def test_few_methods_are_all_coloured(tmp_path: Path) -> None:
    results = store_of(tmp_path, {"a": [1.0], "b": [2.0], "c": [3.0]})
    looks = choose_looks(results, METRICS["psnr"], summarise(results))
    assert set(looks.coloured) == {"a", "b", "c"}
    assert looks.rule == ""


def test_profiles_and_rivals(tmp_path: Path) -> None:
    results = store_of(tmp_path, {"best": [20.0, 10.0], "same": [20.0, 10.0], "rival": [18.0, 9.0], "bad": [1.0, 0.0]})
    summary = summarise(results)
    scores = figures.by_image(METRICS["psnr"], results)
    assert len(scores) == 4 * 2 * 4
    assert figures._rival(METRICS["psnr"], summary, "blur", "best") == "rival"
    values = scores.loc[scores["line"] == "best", "value"].to_numpy()
    assert figures._solved(values, np.array([0.0, 11.5, 99.0]), True).mean(axis=0).tolist() == [1.0, 0.75, 0.0]


def test_the_band_of_a_profile_holds_its_mean() -> None:
    images = np.repeat([f"{i}" for i in range(40)], 3)
    solved = np.random.default_rng(0).random((120, 7)) < np.linspace(1, 0, 7)
    low, high = figures._profile_band(solved, images)
    mean = solved.mean(axis=0)
    assert ((low <= mean) & (mean <= high)).all()
    assert (high - low).max() < 0.3


def test_the_inset_shows_where_images_differ() -> None:
    images = [np.full((30, 30, 3), 100, np.uint8) for _ in range(3)]
    images[1][20:26, 4:10] = 250
    part = window(images)
    assert (part[0].stop - part[0].start, part[1].stop - part[1].start) == (10, 10)
    assert part[0].start <= 20
    assert part[0].stop >= 26
    assert part[1].start <= 4
    assert part[1].stop >= 10


def test_worst_median_best() -> None:
    scores = [{"a": (3.0, 0.0), "b": (1.0, 0.0), "c": (2.0, 0.0), "d": (9.0, 0.0)}, {"a": (3.0, 0.0)}]
    assert ranked("abcd", scores, METRICS["psnr"]) == (["b", "c", "a", "d"], ["worst", "median", "", "best"])
    assert ranked("abcd", scores, METRICS["mse"])[0] == ["d", "a", "c", "b"]


def test_observed_order() -> None:
    steps = np.array([10.0, 20.0, 40.0, 80.0])
    assert theory.observed(steps, 3 / steps**2) == pytest.approx(2)
    assert theory.observed(steps, np.array([1.0, np.nan, np.nan, np.nan])) is None


# --- theory --------------------------------------------------------------------------------------------------------


def round_trips(root: Path, cells: list[dict[str, Any]]) -> Store:
    """Make a reconstruction sweep. A cell gives its axes, its method's class and options, and its rows' numbers."""
    store = Store(root)
    common = {"model": "gmm_rf", "dataset": "mixture", "task": "reconstruct", "guidance": 1.0, "seed": 0}
    listed = []
    for i, cell in enumerate(cells):
        axes = {**common, "corruption": None, "severity": None, **cell["axes"]}
        listed.append({"id": f"c{i}", "axes": axes})
        rows = [
            {"cell_id": f"c{i}", "image_id": f"{k}", **axes, "outcome": "ok", "nfe": 2 * axes["steps"], "nfe_grad": 0,
             **{name: value * (1 + k / 100) for name, value in cell["numbers"].items()}} for k in range(4)
        ]  # fmt: skip
        store.write(f"c{i}", rows, {"config": {"method": cell.get("method", {})}, "provenance": {}})
    store.write_manifest("theory", {"title": "Theory", "task": "reconstruct", "cells": listed})
    return store


def test_growth_is_measured_against_its_law(tmp_path: Path) -> None:
    methods = {
        "edict": {"class": "methods.inversion.edict.EDICT", "options": {"p": 0.9}},
        "bdia": {"class": "methods.inversion.bdia.BDIA", "options": {"gamma": 0.8}},
    }
    factor = {"edict": 0.9**-2, "bdia": 1 / 0.8}
    store = round_trips(
        tmp_path,
        [
            {"axes": {"method": m, "steps": n}, "method": methods[m],
             "numbers": {"latent_mse": 1e-25, "latent_std": factor[m] ** n / 10}}
            for m in methods for n in (10, 50, 100)
        ],
    )  # fmt: skip
    results = load(store, store.manifest("theory"))
    assert theory.growing(results) == {
        "edict": ("p⁻²ᴺ, p = 0.9", pytest.approx(factor["edict"])),
        "bdia": ("γ⁻ᴺ, γ = 0.8", pytest.approx(factor["bdia"])),
    }
    costs = entry_costs(results)
    looks = choose_looks(results, METRICS["latent_mse"], summarise(results))
    with drawing.styled():
        figure = theory.growth(costs, results, looks)
    assert figure is not None
    for panel, key in zip(figure.axes, methods, strict=True):
        assert panel.texts[0].get_text().count(f"×{factor[key]:.3f}") == 2  # the predicted and the measured line
    assert main(["sweep=theory", f"store={tmp_path}", "quiet=true"]) == 0
    names = {path.name for path in (tmp_path / "reports" / "theory" / "figures").glob("*.pdf")}
    assert names == {"curves_latent_mse.pdf", "work_latent_mse.pdf", "latent_std.pdf", "growth.pdf"}


def test_marginals_pair_odes_with_sdes(tmp_path: Path) -> None:
    def cell(forward: str, gamma: float, reverse: str, eta: float, start: float, **numbers: float) -> dict[str, Any]:
        options = {"mode_forward": forward, "gamma": gamma, "mode_reverse": reverse, "eta": eta, "start": start}
        axes = {"method": "rf_inversion", "steps": 20, **{f"method.{name}": value for name, value in options.items()}}
        return {"axes": axes, "numbers": {"latent_std": 1.0, "latent_mse": 0.01, **numbers}}

    cells = [cell(m, g, "ode", 0.0, 0.1, latent_std=(1 if m == "ode" or g != 0.5 else 0.7))
             for m in ("ode", "sde") for g in (0.0, 0.5, 1.0)]  # fmt: skip
    cells += [cell("ode", 1.0, m, e, 0.0, latent_mse=(1 - e) ** 2 + 0.1 * (m == "sde" and e == 0.5))
              for m in ("ode", "sde") for e in (0.0, 0.5, 1.0)]  # fmt: skip
    store = round_trips(tmp_path, cells)
    results = load(store, store.manifest("theory"))
    with drawing.styled():
        figure = theory.marginals(results)
    assert figure is not None
    forward, reverse = (
        [line.get_ydata() for line in panel.lines if len(line.get_ydata()) == 3] for panel in figure.axes
    )
    same = [np.isclose(forward[0], forward[3]).tolist(), np.isclose(reverse[0], reverse[3]).tolist()]
    assert same == [[True, False, True]] * 2
    assert main(["sweep=theory", f"store={tmp_path}", "quiet=true"]) == 0
    assert (tmp_path / "reports" / "theory" / "figures" / "marginals.pdf").is_file()


def test_a_sweep_without_laws_draws_none(tmp_path: Path) -> None:
    store = round_trips(
        tmp_path, [{"axes": {"method": "ddim", "steps": n}, "numbers": {"latent_mse": 1 / n, "latent_std": 1.0}}
                   for n in (10, 20, 50)],
    )  # fmt: skip
    results = load(store, store.manifest("theory"))
    looks = Looks({}, (), (), {})
    assert theory.growth(pd.DataFrame(), results, looks) is None
    assert theory.marginals(results) is None
