"""Tests of whole editing runs: the images, the scores of an edit, and the table of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import run
from bench.cell.execute import execute
from bench.cell.posing import edit_sha256
from bench.data.digits import Digits
from bench.data.scenes import Scenes
from bench.errors import UserError
from bench.spec.cells import expand
from bench.spec.compose import compose_config
from bench.spec.datasets import choose
from bench.store import Store
from reports.distances import kernel

SMALL = [
    "sweep=editing", "method=ddim,flowedit", "edit=recolour,remove", "matrix.method.strength=0.5,1.0", "steps=2",
    "images=3", "batch_size=2", "samples=1", "tracker=none", "launcher=debug",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("edits") / "results"
    assert run.main([*SMALL, f"results={results}"]) == 0
    return results


def test_rows_hold_what_an_edit_is_judged_by(done: Path) -> None:
    store = Store(done)
    rows = store.rows(sorted(store.done()))
    assert rows.groupby(["method", "edit", "method.strength"]).size().tolist() == [3] * 8
    columns = ["psnr", "kept", "inside_psnr", "outside_psnr", "outside_ssim", "pie_psnr", "input_psnr", "latent_w2"]
    assert rows[columns].notna().all().all() and rows["verdict"].dropna().isin([0, 1]).all()
    assert (rows.groupby(["image_id", "edit"])[["y_sha256", "input_psnr"]].nunique() == 1).all().all()
    assert rows["y_sha256"].nunique() == 6
    data = Scenes()
    admitting = [f"scenes/test/{i:06d}" for i in range(100) if data.edit(i, "remove") is not None][:3]
    assert sorted(rows.loc[rows["edit"] == "remove", "image_id"].unique()) == admitting


def test_the_input_is_scored_against_the_counterfactual(done: Path) -> None:
    rows = Store(done).rows([c for c in sorted(Store(done).done()) if "-recolour-" in c]).set_index("image_id")
    data = Scenes()
    for i in range(3):
        item, answer = data.item(i), data.edit(i, "recolour")
        assert answer is not None and answer.truth is not None
        psnr = -10 * np.log10(np.mean((item.image.astype(float) - answer.truth) ** 2))
        assert rows.loc[item.id, "input_psnr"].iloc[0] == pytest.approx(psnr, rel=1e-5)
        assert rows.loc[item.id, "y_sha256"].iloc[0] == edit_sha256(item, answer)


def test_one_changed_pixel_is_another_edit() -> None:
    data = Scenes()
    item, answer = data.item(0), data.edit(0, "restyle")
    assert answer is not None
    before = edit_sha256(item, answer)
    item.image[0, 0, 0] += 0.01
    assert edit_sha256(item, answer) != before


def test_batches_change_no_feature(done: Path) -> None:
    """A batch of three images gives the same features as batches of two and one."""
    (cell,) = [c for c in expand(compose_config([*SMALL, "results=x"])).cells if c.axes["method"] == "flowedit"
               and c.axes["edit"] == "recolour" and c.axes["method.strength"] == 0.5]  # fmt: skip
    *_, together = execute(cell, batch_size=3, samples=0)
    kept = Store(done).features(cell.id)
    assert kept["ids"].tolist() == together["ids"].tolist() and kept["scenes_output"].shape == (3, 128)
    np.testing.assert_array_equal(kept["scenes_truth"], together["scenes_truth"])
    # Images may differ in their last bits before they are rounded to 8 bits.
    scale = np.abs(kept["scenes_output"]).max()
    np.testing.assert_allclose(kept["scenes_output"], together["scenes_output"], atol=0.02 * scale)


def test_the_table_has_a_block_an_edit_and_a_column_a_strength(done: Path) -> None:
    text = (done / "reports" / "editing" / "table.md").read_text()
    for words in (
        "requested change is present, by the classifier [share]", "PSNR outside the mask [dB]", "### recolour",
        "### remove",
        "| strength | 0.5 | 1 |", "input (not edited)", "FD-scenes, lower is better, n = 3 images",
        "published, Ju et al., Direct Inversion, ICLR 2024", "PSNR with the mask black (PIE-Bench)",
    ):  # fmt: skip
        assert words in text, words
    assert (done / "reports" / "editing" / "tables" / "fd_scenes.tex").is_file()
    store = Store(done)
    cell = next(c for c in store.done() if c.startswith("ddim-recolour"))
    features = store.features(cell)
    assert f"{kernel(features['scenes_output'], features['scenes_truth']):.3g}" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["edit=recolor"], ["unknown edit 'recolor' of dataset scenes", "nearest: recolour"]),
        (["edit=1"], ["edit=1: must be the name of an edit"]),
        (["profile=digits"], ["of dataset digits", "allowed: none"]),
    ],
)
def test_mistakes_end_in_one_line(changes: list[str], words: list[str]) -> None:
    keys = {change.split("=")[0] for change in changes}
    with pytest.raises(UserError) as found:
        expand(compose_config([a for a in SMALL if a.split("=")[0] not in keys] + changes))
    for word in words:
        assert word in str(found.value)


def test_an_edit_belongs_to_the_task_of_edits() -> None:
    with pytest.raises(UserError, match="edit has no meaning for task=restore"):
        expand(compose_config(["sweep=corruptions", "method=ddim", "edit=recolour"]))
    with pytest.raises(UserError, match="task=edit needs kinds of edit"):
        expand(compose_config(["sweep=reconstruction", "method=ddim", "task=edit"]))
    with pytest.raises(UserError, match="metric verdict has no meaning for task=reconstruct"):
        expand(compose_config(["sweep=reconstruction", "method=ddim", "metrics=psnr,verdict"]))


def test_too_few_images_admit_an_edit() -> None:
    class Short(Digits):
        def edit(self, index: int, kind: str) -> object:  # type: ignore[override]
            return object() if index % 100 == 0 else None

    data = Short(split="test")
    assert choose(data, 2, "recolour") == [0, 100] and choose(data, 3, None) == [0, 1, 2]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="admit the edit recolour"):
        choose(data, len(data), "recolour")  # type: ignore[arg-type]
