"""Tests of data sets: one list of invariants for all, the exact answers of the scenes' edits, a user's folder."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.data import folder as folders
from bench.data import photos
from bench.data import scenes as drawn
from bench.data.digits import Digits
from bench.data.folder import ImageFolder
from bench.data.photos import Photos
from bench.data.scenes import Scenes
from bench.errors import UserError
from bench.spec.cells import expand
from bench.spec.compose import compose_config
from methods.backbones.captions import VOCABULARIES

REPOSITORY = Path(__file__).parents[1]


def save(file: Path, seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    """Write a file of random pixels; `size` is (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) + ((len(mode),) if len(mode) > 1 else ())
    content = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(content).save(file)
    return file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make forty images of every file type, some in subfolders, without train and test folders."""
    where = tmp_path_factory.mktemp("images")
    for i in range(40):
        save(where / ("" if i % 3 else f"deep/er{i % 2}") / f"{i:02d}{folders.SUFFIXES[i % 7]}", i)
    return where


# --- invariants of every data set --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A data set: how to build it, the shape of its images, and the number of images that a test checks."""

    name: str
    build: Callable[[str, Path], Any]
    shape: tuple[int, int, int]
    looks: int
    splits: tuple[str, ...] = ("train", "test")


CASES = [
    Case("scenes", lambda split, _: Scenes(split), (3, 32, 32), 200),
    Case("digits", lambda split, _: Digits(split), (1, 16, 16), 1797),
    Case("photos-32", lambda split, _: Photos(split), (3, 32, 32), 99),
    Case("photos-64", lambda split, _: Photos(split, size=64), (3, 64, 64), 99),
    Case("folder", lambda split, root: ImageFolder(split, root, size=16), (3, 16, 16), 99, ("train", "test", "all")),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def look(case: Case, split: str, root: Path) -> list[Any]:
    dataset = case.build(split, root)
    return [dataset.item(index) for index in range(min(case.looks, len(dataset)))]


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


@each_case
def test_images_are_float32_in_the_unit_range(case: Case, root: Path) -> None:
    for split in case.splits:
        assert tuple(case.build(split, root).shape) == case.shape
        items = look(case, split, root)
        assert items
        for item in items:
            assert item.image.shape == case.shape
            assert item.image.dtype == np.float32
            assert item.image.min() >= 0
            assert item.image.max() <= 1
            assert item.image.std() > 0.005  # not a uniform image
            assert isinstance(item.caption, str)


@each_case
def test_ids_are_unique_and_instances_agree(case: Case, root: Path) -> None:
    for split in case.splits:
        once, again = look(case, split, root), look(case, split, root)
        assert len({item.id for item in once}) == len(once)
        assert [(i.id, i.caption, digest(i.image)) for i in once] == [(i.id, i.caption, digest(i.image)) for i in again]


@each_case
def test_order_of_access_does_not_matter(case: Case, root: Path) -> None:
    forth, back = case.build("test", root), case.build("test", root)
    indices = range(min(5, len(forth)))
    first = [digest(forth.item(i).image) for i in indices]
    assert first == [digest(back.item(i).image) for i in reversed(indices)][::-1]


@each_case
def test_train_and_test_share_nothing(case: Case, root: Path) -> None:
    train, test = look(case, "train", root), look(case, "test", root)
    assert not {item.id for item in train} & {item.id for item in test}
    assert not {digest(item.image) for item in train} & {digest(item.image) for item in test}


@each_case
def test_beyond_the_end_is_an_index_error(case: Case, root: Path) -> None:
    for split in case.splits:
        dataset = case.build(split, root)
        dataset.item(len(dataset) - 1)
        with pytest.raises(IndexError):
            dataset.item(len(dataset))


@each_case
def test_an_unknown_split_is_a_value_error(case: Case, root: Path) -> None:
    with pytest.raises(ValueError, match="'validation'"):
        case.build("validation", root)


@each_case
def test_edits_are_declared(case: Case, root: Path) -> None:
    dataset = case.build("test", root)
    assert bool(dataset.edits) == (case.name == "scenes")
    if not dataset.edits:
        assert dataset.edit(0, "recolour") is None


def test_no_data_set_needs_torch(root: Path) -> None:
    code = f"""
import sys
from bench.data.digits import Digits
from bench.data.folder import ImageFolder
from bench.data.photos import Photos
from bench.data.scenes import Scenes
from bench.errors import UserError
for dataset in (Scenes(), Digits(), Photos(), ImageFolder(root={str(root)!r})):
    dataset.item(0)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("name", ["scenes", "digits"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_follow_their_grammar(name: str, split: str, root: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    vocabulary = VOCABULARIES[name]
    seen: dict[str, tuple[int, ...]] = {}
    for item in look(case, split, root):
        tokens = vocabulary.tokens(item.caption)
        assert len(tokens) == vocabulary.slots
        assert all(0 <= token < vocabulary.size for token in tokens)
        seen[item.caption] = tuple(tokens)
    assert len(set(seen.values())) == len(seen)  # lossless


# --- scenes --------------------------------------------------------------------------------------------------------

indices = st.integers(0, 999_999)
splits = st.sampled_from(drawn.SPLITS)
kinds = st.sampled_from(drawn.EDITS)
SLOTS = {"recolour": {0, 2}, "replace": {1, 3}, "remove": {0, 1, 2, 3}, "restyle": {4}}
"""Slots of the caption that each kind of edit may change. All other kinds may change slot 6, the letter."""


@given(splits, indices, kinds)
@settings(max_examples=300, deadline=None)
def test_an_edit_changes_what_it_says_and_nothing_else(split: str, index: int, kind: str) -> None:
    dataset = Scenes(split)
    source, edit = dataset.item(index), dataset.edit(index, kind)
    if edit is None:
        return
    assert edit.truth is not None
    assert edit.truth.dtype == np.float32
    assert edit.mask.dtype == bool
    assert edit.mask.shape == (32, 32)
    assert np.array_equal(source.image[:, ~edit.mask], edit.truth[:, ~edit.mask])
    assert np.abs(source.image - edit.truth)[:, edit.mask].max() > 0.05  # visible, not rounding
    assert edit.caption != source.caption
    before, after = (VOCABULARIES["scenes"].tokens(caption) for caption in (source.caption, edit.caption))
    changed = {slot for slot, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
    assert changed <= SLOTS.get(kind, {6})


@given(splits, indices, kinds)
@settings(max_examples=300, deadline=None)
def test_object_masks_cover_every_difference(split: str, index: int, kind: str) -> None:
    scene = drawn.scene(split, index)
    masks = drawn.object_masks(scene)
    empty = drawn.Scene((), scene.background, None, scene.spot, scene.ink)
    changed = (drawn.render(scene) != drawn.render(empty)).any(0)
    assert masks.dtype == bool
    assert masks.shape == (len(scene.things) + 1, 32, 32)
    assert not (changed & ~masks.any(0)).any()
    assert masks[-1].any() == (scene.letter is not None)
    edit = drawn.edit(scene, kind, drawn.generator(split, index, kind))
    if edit is not None and kind != "restyle":
        either = masks.any(0) | drawn.object_masks(edit.target).any(0)
        assert not ((drawn.render(scene) != edit.truth).any(0) & ~either).any()
        assert not (edit.mask & ~either).any()


@given(splits, indices)
@settings(max_examples=200, deadline=None)
def test_any_scene_is_a_valid_image(split: str, index: int) -> None:
    item = Scenes(split).item(index)
    assert item.id == f"scenes/{split}/{index:06d}"
    assert item.image.min() >= 0
    assert item.image.max() <= 1
    assert np.array_equal(item.image, Scenes(split).item(index).image)


def test_every_kind_of_edit_occurs() -> None:
    dataset = Scenes("test")
    found = {kind: sum(dataset.edit(i, kind) is not None for i in range(200)) for kind in dataset.edits}
    assert set(found) == {"recolour", "remove", "replace", "restyle", "insert_text", "change_text"}
    assert min(found.values()) >= 40
    assert found["insert_text"] + found["change_text"] == 200  # some scenes have a letter, others do not


def test_an_unknown_edit_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="recolor"):
        Scenes().edit(0, "recolor")


# --- photographs ---------------------------------------------------------------------------------------------------


def test_no_photograph_is_in_both_splits() -> None:
    names = [name for split in photos.SPLITS.values() for name in split]
    assert sorted(names) == sorted(photos.FILES)


def test_the_first_photographs_are_different_ones() -> None:
    dataset = Photos()
    assert [dataset.item(i).id for i in range(6)] == [
        "photos/astronaut/centre", "photos/chelsea/centre", "photos/china/centre", "photos/coffee/centre",
        "photos/motorcycle/centre", "photos/astronaut/nw",
    ]  # fmt: skip


@given(st.integers(8, 600), st.integers(8, 600), st.sampled_from(photos.CROPS))
def test_crops_are_squares_inside(width: int, height: int, crop: str) -> None:
    left, top, right, bottom = photos.box(crop, width, height)
    assert right - left == bottom - top > 0
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_photographs_at_two_sizes_show_the_same() -> None:
    small, large = Photos(size=16), Photos(size=256)
    tiny = np.stack([small.item(i).image for i in range(len(small))])
    for i in range(len(large)):
        averaged = large.item(i).image.reshape(3, 16, 16, 16, 16).mean((2, 4))
        distance = np.abs(tiny - averaged).mean((1, 2, 3))
        assert distance[i] < 0.04  # the two filters differ at edges
        assert distance.argmin() == i


def test_a_changed_or_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    package, path, _ = photos.FILES["coffee"]
    for entry, message in (
        ((package, path, "0" * 64), "photograph coffee: .* is not the published file"),
        ((package, "data/gone.png", ""), "photograph coffee: skimage/data/gone.png is not installed"),
        (("no_such_package", path, ""), "photograph coffee: no_such_package/data/coffee.png is not installed"),
    ):
        photos._file.cache_clear()
        monkeypatch.setitem(photos.FILES, "coffee", entry)
        with pytest.raises(ValueError, match=message):
            Photos()
    photos._file.cache_clear()


@pytest.mark.parametrize("size", [0, 8, 20, 33, 520, -32, 32.0, "32", True])
def test_photographs_refuse_a_size(size: Any) -> None:
    with pytest.raises(ValueError, match="multiple of 8 from 16 to 512"):
        Photos(size=size)


# --- a user's folder -----------------------------------------------------------------------------------------------


def test_ids_are_sorted_paths_below_root(root: Path) -> None:
    ids = ImageFolder("all", root).ids
    assert ids == sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    assert len(ids) == 40
    assert sorted(ImageFolder("train", root).ids + ImageFolder("test", root).ids) == ids
    assert 3 <= len(ImageFolder("test", root)) <= 15
    assert all("/" not in image_id for image_id in ImageFolder("all", root, recursive=False).ids)


def test_an_image_keeps_its_id_and_split_whatever_joins_it(tmp_path: Path) -> None:
    for i in range(20):
        save(tmp_path / f"{i}.png", i)
    before = ImageFolder("test", tmp_path).ids
    for i in range(20):
        save(tmp_path / f"more/{i}.png", 100 + i)
    save(tmp_path / "0.jpg", 7)  # another image than 0.png
    originals = {f"{i}.png" for i in range(20)}
    assert before == [image_id for image_id in ImageFolder("test", tmp_path).ids if image_id in originals]
    assert {"0.png", "0.jpg", "more/0.png"} <= set(ImageFolder("all", tmp_path).ids)


def test_a_fifth_is_held_out() -> None:
    held = sum(folders.held_out(f"some/image_{i}.jpg") for i in range(5000))
    assert held / 5000 == pytest.approx(0.2, abs=0.02)
    recorded = {"0.png": False, "1.png": False, "a/b.png": True, "é.png": True}  # a changed split would leak
    assert {name: folders.held_out(name) for name in recorded} == recorded


def test_train_and_test_folders_are_the_split(tmp_path: Path) -> None:
    save(tmp_path / "train/a.png", 0)
    save(tmp_path / "train/deep/b.png", 1)
    save(tmp_path / "beside.png", 3)
    with pytest.raises(ValueError, match="none of them in split test"):
        ImageFolder("test", tmp_path)
    save(tmp_path / "test/c.png", 2)
    assert ImageFolder("train", tmp_path).ids == ["train/a.png", "train/deep/b.png"]
    assert ImageFolder("train", tmp_path, recursive=False).ids == ["train/a.png"]
    assert ImageFolder("test", tmp_path).ids == ["test/c.png"]
    assert ImageFolder("all", tmp_path).ids == ["test/c.png", "train/a.png", "train/deep/b.png"]


def test_hidden_and_other_files_are_no_images(tmp_path: Path) -> None:
    save(tmp_path / "a.PNG", 0)
    save(tmp_path / ".thumbnails/a.png", 0)
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("no image")
    assert ImageFolder("all", tmp_path).ids == ["a.PNG"]


def test_images_are_centre_cropped(tmp_path: Path) -> None:
    content = np.zeros((32, 64, 3), np.uint8)
    content[:, 16:48] = (255, 128, 0)
    Image.fromarray(content).save(tmp_path / "wide.png")
    Image.fromarray(content.transpose(1, 0, 2).copy()).save(tmp_path / "tall.png")
    dataset = ImageFolder("all", tmp_path, size=16)
    for i in range(2):
        expected = np.broadcast_to(np.array([255, 128, 0], np.float32)[:, None, None] / 255, (3, 16, 16))
        np.testing.assert_array_equal(dataset.item(i).image, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(tmp_path: Path, orientation: int) -> None:
    """All eight orientations are read as the same image: stored rotated or flipped, with a tag that undoes it."""
    upright = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    read = ImageFolder("all", tmp_path, size=16).item(0).image
    np.testing.assert_array_equal((read * 255).round().astype(np.uint8), upright.transpose(2, 0, 1))


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(gray).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.stack([gray, gray, gray, np.full_like(gray, 255)], 2)).save(tmp_path / "opaque.png")
    dataset = ImageFolder("all", tmp_path, size=16)
    for i in range(4):
        np.testing.assert_array_equal(
            dataset.item(i).image, np.broadcast_to(gray.astype(np.float32) / 255, (3, 16, 16))
        )
    Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(tmp_path / "clear.png")
    assert folders.read_rgb(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_captions(tmp_path: Path, form: str) -> None:
    for name in ("a.png", "b/c.png", "d.png"):
        save(tmp_path / name, 0)
    captions = {"a.png": 'a cat, "sitting"', "b/c.png": "une clé"}
    if form == "csv":
        lines = ["\ufefffile,caption", '"a.png","a cat, ""sitting"""', "b/c.png,une clé", ""]
        (tmp_path / "captions.csv").write_text("\r\n".join(lines), encoding="utf-8")
    else:
        (tmp_path / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    dataset = ImageFolder("all", tmp_path, size=16)
    assert {dataset.item(i).id: dataset.item(i).caption for i in range(3)} == captions | {"d.png": ""}


def test_captions_may_name_images_of_the_other_split(tmp_path: Path) -> None:
    save(tmp_path / "train/a.png", 0)
    save(tmp_path / "test/b.png", 1)
    (tmp_path / "captions.json").write_text('{"train/a.png": "a", "test/b.png": "b"}')
    assert ImageFolder("test", tmp_path, size=16).item(0).caption == "b"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "file,caption\na.png,x\nb.png,y\nc.png,z\n", r"not in the folder: b\.png and 1 more"),
        ("captions.json", '{"A.png": "x"}', r"not in the folder: A\.png$"),
        ("captions.csv", "image,text\na.png,x\n", "needs the columns file,caption, has image,text"),
        ("captions.csv", "", "needs the columns file,caption, has none"),
        ("captions.csv", "file,caption\na.png,a cat, sitting\n", "line 2 .* quote captions"),
        ("captions.csv", "file,caption\na.png\n", "line 2 does not have one value for each column"),
        ("captions.csv", "file,caption\na.png,x\na.png,y\n", r"line 3 names a\.png again"),
        ("captions.csv", 'file,caption\na.png,"x', "unexpected end of data"),
        ("captions.csv", b"file,caption\na.png,\xff\n", "captions.csv: .*utf-8"),
        ("captions.json", '["a.png"]', "must be one object"),
        ("captions.json", '{"a.png": 3}', "must be one object"),
        ("captions.json", '{"a.png": ', r"captions\.json: Expecting value"),
    ],
)
def test_a_wrong_caption_file_is_one_clear_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    save(tmp_path / "a.png", 0)
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message) as caught:
        ImageFolder("all", tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_caption_files_are_one_too_many(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    (tmp_path / "captions.csv").write_text("file,caption\n")
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(ValueError, match=r"both captions\.csv and captions\.json"):
        ImageFolder("all", tmp_path)


def test_a_wrong_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset\.folder\.options\.root=PATH"):
        ImageFolder()
    with pytest.raises(ValueError, match=r"root .*nowhere is missing"):
        ImageFolder(root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"root .*a\.png is not a folder"):
        ImageFolder(root=save(tmp_path / "x/a.png", 0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"root .*empty has no images"):
        ImageFolder(root=tmp_path / "empty")


@pytest.mark.parametrize("size", [0, 8, 100, 4104, 64.0, None])
def test_a_folder_refuses_a_size(root: Path, size: Any) -> None:
    with pytest.raises(ValueError, match="multiple of 8 from 16 to 4096"):
        ImageFolder(root=root, size=size)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", None])
def test_an_unreadable_image_is_named_when_read(tmp_path: Path, content: bytes | None) -> None:
    file = save(tmp_path / "sub/broken.png", 0)
    file.write_bytes(file.read_bytes()[:900] if content is None else content)
    dataset = ImageFolder("all", tmp_path)  # images are not opened before they are needed
    with pytest.raises(ValueError, match=r"cannot read image .*sub/broken\.png"):
        dataset.item(0)


def test_32_bit_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((16, 16), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: 32-bit pixels"):
        ImageFolder("all", tmp_path).item(0)


# --- from the command line ------------------------------------------------------------------------------------------


def plan(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "bench.plan",
        "sweep=reconstruction",
        "model=scenes_vp",
        "tracker=none",
        *overrides,
    ]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_planning_a_folder(root: Path, tmp_path: Path) -> None:
    common = ("dataset=folder", f"results={tmp_path}")
    without = plan(*common)
    assert without.returncode == 2
    assert without.stderr.count("\n") == 1
    assert "dataset.folder.options.root=PATH" in without.stderr
    options = (*common, f"dataset.folder.options.root={root}", "dataset.folder.split=all", "images=3")
    mismatch = plan(*options)
    assert mismatch.returncode == 2
    assert "3x256x256" in mismatch.stderr
    assert plan(*options, "dataset.folder.options.size=32").returncode == 0


def test_a_folder_with_too_few_images_names_its_split(root: Path) -> None:
    held, all_of_them = (len(ImageFolder(split, root)) for split in ("test", "all"))
    few = ["sweep=reconstruction", "dataset=folder", f"dataset.folder.options.root={root}", "images=99"]
    hint = "write images={held}, or dataset.folder.split=all for those of every split"
    with pytest.raises(
        UserError, match=rf"^images=99: dataset folder has {held} images in split test; {hint.format(held=held)}$"
    ):
        expand(compose_config(few))
    with pytest.raises(
        UserError,
        match=rf"^images=99: dataset folder has {all_of_them} images in split all; write images={all_of_them}$",
    ):
        expand(compose_config([*few, "dataset.folder.split=all"]))


def test_planning_photographs(tmp_path: Path) -> None:
    assert plan("dataset=photos", f"results={tmp_path}").returncode == 0
