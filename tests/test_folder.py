"""A user's folder of images: what is read, what is said before anything starts, and that its content is identity."""

from __future__ import annotations

import io
import json
import os
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from bench import plan, run
from bench.cell.guard import classify
from bench.data.base import EditItem, Item
from bench.data.folder import ImageFolder, read_rgb
from bench.errors import UserError
from bench.files import sha256
from bench.spec import datasets
from bench.spec.cells import Cell, expand
from bench.spec.compose import compose_config
from bench.spec.config import DatasetConfig
from bench.store import Store

SMALL = (
    "sweep=reconstruction", "model=scenes_vp", "method=ddim", "steps=2", "guidance=1", "images=2", "launcher=debug",
    "tracker=none", "report=false", "dataset=folder", "dataset.folder.split=all", "dataset.folder.options.size=32",
)  # fmt: skip


def image(seed: int, size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def save(file: Path, seed: int, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image(seed).save(file, **options)
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images without captions."""
    for i, name in enumerate("abc"):
        save(tmp_path / "images" / f"{name}.png", i)
    return tmp_path / "images"


def cell(root: Path | str, *overrides: str) -> Cell:
    keys = {override.partition("=")[0] for override in overrides}
    given = [override for override in SMALL if override.partition("=")[0] not in keys]
    (only,) = expand(compose_config([*given, f"dataset.folder.options.root={root}", *overrides])).cells
    return only


def refused(root: Path, *overrides: str) -> str:
    """The one line that a plan ends in."""
    with pytest.raises(UserError) as caught:
        cell(root, *overrides)
    return str(caught.value)


# --- a folder's content is identity ----------------------------------------------------------------------------


def overwrite(root: Path) -> None:
    save(root / "a.png", 99)


def overwrite_at_the_same_size_and_time(root: Path) -> None:
    """As `cp -p` or `rsync -t` may: uncompressed, so that all files have one size."""
    for name in "ab":
        found = (root / f"{name}.bmp").stat()
        save(root / f"{name}.bmp", 99)
        os.utime(root / f"{name}.bmp", ns=(found.st_atime_ns, found.st_mtime_ns))


def swap(root: Path) -> None:
    (root / "a.png").rename(root / "x")
    (root / "b.png").rename(root / "a.png")
    (root / "x").rename(root / "b.png")


def put_before(root: Path) -> None:
    save(root / "0.png", 99)


def rename(root: Path) -> None:
    """An id keys the noise: the same pixels under another name are another measurement."""
    (root / "a.png").rename(root / "aa.png")


def caption(root: Path) -> None:
    (root / "captions.csv").write_text("file,caption\na.png,a red circle on a plain gray background\n")


CHANGES = [overwrite, swap, put_before, rename, caption]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_images_changes_the_id(root: Path, change: Any) -> None:
    before = cell(root)
    change(root)
    assert cell(root).id != before.id


def test_another_caption_of_the_same_images_changes_the_id(root: Path) -> None:
    caption(root)
    before = cell(root).id
    (root / "captions.csv").write_text("file,caption\na.png,a blue circle on a plain gray background\n")
    changed = cell(root).id
    assert changed != before
    assert cell(root, "dataset.folder.options.captions=none").id not in (before, changed)


def test_a_file_with_the_size_and_time_of_another_is_another(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        save(tmp_path / f"{name}.bmp", i)
    before = cell(tmp_path)
    overwrite_at_the_same_size_and_time(tmp_path)
    assert cell(tmp_path).id != before.id


def test_what_no_cell_uses_changes_no_id(root: Path) -> None:
    before = cell(root).id
    save(root / "c.png", 99)  # images=2: a and b
    save(root / "later.png", 4)
    (root / "notes.md").write_text("mine")
    os.utime(root / "a.png")
    assert cell(root).id == before


def test_the_spelling_and_the_place_of_a_folder_are_not_identity(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cell(root).id
    monkeypatch.chdir(root.parent)
    assert cell("images").id == cell("./images/../images/").id == before
    shutil.copytree(root, tmp_path / "moved")
    assert cell(tmp_path / "moved").id == before
    (tmp_path / "link").symlink_to(root)
    assert cell(tmp_path / "link").id == before


def test_the_same_relative_root_elsewhere_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for i, place in enumerate("xy"):
        for name in "ab":
            save(tmp_path / place / "images" / f"{name}.png", 10 * i + ord(name))
        monkeypatch.chdir(tmp_path / place)
        found.append(cell("images").id)
    assert found[0] != found[1]


def test_a_job_elsewhere_finds_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root.parent)
    spec = json.loads(json.dumps(cell("images").spec))
    monkeypatch.chdir("/")
    dataset = datasets.open_dataset(spec["dataset"])
    assert [dataset.item(i).id for i in range(2)] == ["a.png", "b.png"]
    datasets.require_content(spec, dataset, [0, 1])


def test_data_sets_without_files_keep_their_specification() -> None:
    for name in ("scenes", "digits", "photos", "mixture"):
        config = compose_config([f"dataset={name}"], sweep_required=False).dataset[name]
        assert set(datasets.dataset_spec(name, config)) == {"name", "class", "split", "options"}


class Plain:
    """A third party's data set: a file of numbers, with edits."""

    shape = (3, 32, 32)
    edits: Sequence[str] = ("negate",)
    where = ("path",)

    def __init__(self, split: str = "test", path: str = "") -> None:
        self.numbers = json.loads(Path(path).read_text())

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, index: int) -> Item:
        return Item(str(index), np.full(self.shape, self.numbers[index], np.float32), "")

    def edit(self, index: int, kind: str) -> EditItem | None:
        return None if index % 2 else EditItem("", None, np.ones((32, 32), bool))


class Numbered(Plain):
    """The same, and it says what it holds."""

    def content(self, index: int) -> str:
        return repr(self.numbers[index])


def test_a_third_party_declares_its_content(tmp_path: Path) -> None:
    def spec(numbers: list[float], name: str, edit: str | None = None) -> dict[str, Any]:
        (tmp_path / name).write_text(json.dumps(numbers))
        config = DatasetConfig.model_validate(
            {"class": f"{__name__}.Numbered", "options": {"path": str(tmp_path / name)}}
        )
        datasets.reread()
        made: dict[str, Any] = {"images": 2, "edit": edit, "dataset": datasets.dataset_spec("mine", config)}
        made["dataset"] |= datasets.read_files(made, None, "model")
        return datasets.in_id(made)

    first = spec([0.1, 0.2, 0.3], "a")
    assert first == spec([0.1, 0.2, 0.4], "b")
    assert first != spec([0.1, 0.25, 0.3], "b")
    assert spec([0.1, 0.2, 0.3], "a", "negate") == spec([0.1, 0.9, 0.3], "a", "negate")  # of items 0 and 2
    assert spec([0.1, 0.2, 0.3], "a", "negate") != spec([0.1, 0.2, 0.4], "a", "negate")


def test_without_content_all_options_are_identity(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[0.1]")
    options = {"path": str(tmp_path / "a")}
    about = datasets.dataset_spec(
        "mine", DatasetConfig.model_validate({"class": f"{__name__}.Plain", "options": options})
    )
    assert about["options"] == options
    assert datasets.read_files({"images": 1, "dataset": about}, None, "model") == {}
    datasets.require_content({"images": 1, "dataset": about}, datasets.open_dataset(about), [0])


# --- a folder that changes between plan and job ----------------------------------------------------------------


def remove(root: Path) -> None:
    (root / "a.png").unlink()
    (root / "b.png").unlink()
    (root / "c.png").unlink()


@pytest.mark.parametrize("change", [*CHANGES, remove])
def test_a_job_refuses_files_that_have_changed(root: Path, change: Any) -> None:
    planned = cell(root)
    change(root)
    datasets.reread()  # a worker is another process

    def check() -> None:
        datasets.require_content(planned.spec, datasets.open_dataset(planned.spec["dataset"]), range(2))

    with pytest.raises(UserError) as caught:
        check()
    assert classify(caught.value) == "asset-missing"
    assert "\n" not in str(caught.value) and "dataset folder" in str(caught.value)


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_run_refuses_files_that_have_changed(root: Path, tmp_path: Path, when: str, monkeypatch: Any) -> None:
    arguments = [*SMALL, f"dataset.folder.options.root={root}", f"results={tmp_path / 'results'}"]
    if when == "before":
        monkeypatch.setattr(run, "require_assets", lambda outlook: save(root / "b.png", 99))
    else:
        read = ImageFolder.item

        def item(self: ImageFolder, index: int) -> Item:
            if index == 1 and (tmp_path / "results/sweeps").exists():  # it is planned, and runs
                save(root / "b.png", 99)
            return read(self, index)

        monkeypatch.setattr(ImageFolder, "item", item)
    assert run.main(arguments) == 1
    store = Store(tmp_path / "results")
    (failed,) = store.failed()
    assert store.done() == set() and store.failure(failed)["class"] == "asset-missing"
    assert "have changed since this cell was planned" in store.failure(failed)["message"]


def test_a_changed_folder_is_computed_again_and_said(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, f"dataset.folder.options.root={root}", f"results={tmp_path / 'results'}"]
    store = Store(tmp_path / "results")
    assert run.main(arguments) == 0 and run.main(arguments) == 0
    assert len(store.done()) == 1 and "has changed" not in capsys.readouterr().out
    save(root / "b.png", 99)
    said = (
        "dataset folder has changed since its cells were computed: 1 images or captions differ; "
        "1 cells are computed again"
    )
    assert plan.main(arguments) == 0
    assert said in capsys.readouterr().out
    assert run.main(arguments) == 0
    assert said in capsys.readouterr().out and len(store.done()) == 2
    (only,) = store.manifest("reconstruction")["cells"]
    assert only["id"] in store.done()
    assert plan.main(arguments) == 0
    assert "has changed" not in capsys.readouterr().out


def test_more_images_and_another_split_are_no_change(root: Path) -> None:
    def now(*overrides: str) -> dict[str, Any]:
        return datasets.inventory([cell(root, *overrides).spec])["folder"]

    two, three = now(), now("images=3")
    assert datasets.differing(two, three) == datasets.differing(three, two) == datasets.differing(None, two) == 0
    assert datasets.differing({**two, "split": "test"}, three) == 0
    save(root / "0.png", 99)
    assert datasets.differing(three, now("images=3")) == 1


def test_only_the_images_chosen_are_hashed_and_only_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(file: Path) -> str:
        hashed.append(file.name)
        return sha256(file)

    monkeypatch.setattr("bench.data.folder.sha256", counted)
    cell(root)
    cell(root)
    assert hashed == ["a.png", "b.png"]


# --- what is said before anything starts -----------------------------------------------------------------------


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:900])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere.png")


def pipe(file: Path) -> None:
    """Opening it would wait for ever."""
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("spoil", [truncated, empty, dangling, pipe])
def test_an_image_that_cannot_be_read_is_named_before_the_start(root: Path, spoil: Any) -> None:
    spoil(root / "b.png")
    assert "b.png" in refused(root)
    assert cell(root, "images=1")  # only what is chosen matters


def test_a_truncated_jpeg_is_noticed(tmp_path: Path) -> None:
    for i in range(3):
        truncated(save(tmp_path / f"{i}.jpg", i))
    message = refused(tmp_path)
    assert "0.jpg" in message and message.endswith("1 more images cannot be read")


def test_a_name_that_is_not_utf8_is_said(root: Path) -> None:
    os.rename(root / "b.png", os.fsencode(root) + b"/caf\xe9.png")
    assert refused(root) == r"dataset folder: the file name b'caf\xe9.png' is not UTF-8; rename the file"


def test_a_caption_outside_the_grammar_of_a_model_is_said(root: Path) -> None:
    (root / "captions.json").write_text('{"b.png": "a red dog", "c.png": "never chosen"}')
    message = refused(root)
    assert "image b.png" in message and "model scenes_vp" in message and "unknown word 'dog'" in message
    assert "dataset.folder.options.captions=none" in message
    assert cell(root, "dataset.folder.options.captions=none")
    assert cell(root, "images=1")
    assert "captions must be one of auto, none" in refused(root, "dataset.folder.options.captions=all")


def test_a_key_that_stands_twice_is_refused(root: Path) -> None:
    (root / "captions.json").write_text('{"b.png": "", "b.png": ""}')
    assert refused(root).endswith("captions.json: names b.png again")
    (root / "captions.json").unlink()
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "", "text": "x"}')
    assert refused(root).endswith("metadata.jsonl: line 1: names text again")


def test_too_few_images_say_what_to_write(root: Path) -> None:
    assert refused(root, "images=4").endswith("has 3 images in split all; write images=3")


# --- nothing is dropped silently -------------------------------------------------------------------------------


def captions(folder: Path) -> dict[str, str]:
    dataset = ImageFolder("all", folder, size=16)
    return {item.id: item.caption for item in map(dataset.item, range(len(dataset)))}


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_layout_of_hugging_face_is_read(tmp_path: Path, form: str, column: str) -> None:
    """A metadata file in each folder of a split, files named relative to it; other columns are as they are."""
    for place in ("train/a.png", "train/deep/b.png", "test/c.png"):
        save(tmp_path / place, len(place))
    rows = {"train": {"a.png": "a cat, sitting", "deep/b.png": "une clé"}, "test": {"./c.png": "a dog"}}
    for folder, content in rows.items():
        lines = [f'{{"file_name": "{name}", "{column}": "{text}", "label": 3}}' for name, text in content.items()]
        if form == "csv":
            lines = [f"label,file_name,{column}"] + [f'3,{name},"{text}"' for name, text in content.items()]
        (tmp_path / folder / f"metadata.{form}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = {"train/a.png": "a cat, sitting", "train/deep/b.png": "une clé", "test/c.png": "a dog"}
    assert captions(tmp_path) == expected
    assert ImageFolder("test", tmp_path).notes == [f"3 of 3 images have captions, from metadata.{form}"]
    whole = [{"file_name": name, "text": text} for name, text in expected.items()]
    for folder in rows:
        (tmp_path / folder / f"metadata.{form}").unlink()
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, whole)))
    assert captions(tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '{"text": "x"}', "line 1: needs an object with a file_name"),
        ("metadata.jsonl", '\n["a.png"]', "line 2: needs an object with a file_name"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "line 1: file_name and caption must be text"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "", "caption": ""}', "line 1: has both text and caption"),
        ("metadata.jsonl", '{"file_name": "z.png"}', r"not in the folder: z\.png"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": "./a.png"}', r"line 2 names \./a\.png again"),
        ("metadata.jsonl", "{", "line 1: Expecting property name"),
        ("metadata.csv", "file,text\na.png,x\n", "needs the columns file_name,text, has file,text"),
        ("metadata.csv", "file_name,text,caption\na.png,x,y\n", "has both text and caption"),
        ("a.txt", b"\xff", "utf-8"),
    ],
)
def test_a_wrong_metadata_file_is_one_clear_line(root: Path, name: str, content: str | bytes, message: str) -> None:
    (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message) as caught:
        captions(root)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_metadata_without_captions_is_no_mistake(root: Path) -> None:
    (root / "metadata.csv").write_text("file_name,label\na.png,3\n")
    assert set(captions(root).values()) == {""}
    assert ImageFolder("all", root).notes == ["0 of 3 images have captions, from metadata.csv"]


def test_text_files_beside_images_are_captions(root: Path) -> None:
    save(root / "deep/d.jpg", 3)
    (root / "a.txt").write_text("\ufeffa cat,\r\n  sitting\n", encoding="utf-8")
    (root / "deep/d.txt").write_text("a dog")
    (root / "readme.txt").write_text("no caption")
    assert captions(root) == {"a.png": "a cat, sitting", "b.png": "", "c.png": "", "deep/d.jpg": "a dog"}
    assert ImageFolder("all", root).notes == ["2 of 4 images have captions, from .txt files next to the images"]
    before = cell(root, "dataset.folder.options.captions=none").id
    (root / "a.txt").write_text("a bird")
    assert cell(root, "dataset.folder.options.captions=none").id == before
    (root / "captions.csv").write_text("file,caption\nb.png,b\n")
    assert captions(root) == {"a.png": "", "b.png": "b", "c.png": "", "deep/d.jpg": ""}
    note = "1 of 4 images have captions, from captions.csv; 2 .txt files of images are left out"
    assert ImageFolder("all", root).notes == [note]


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".ppm", ".pgm", ".avif"])
def test_more_kinds_of_files_are_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    smooth = Image.linear_gradient("L").resize((32, 32))
    (smooth if suffix == ".pgm" else smooth.convert("RGB")).save(tmp_path / f"a{suffix}")
    read = ImageFolder("all", tmp_path, size=32).item(0).image
    assert np.abs(read - np.asarray(smooth, np.float32) / 255).max() < 0.03


def test_16_bits_of_a_pgm_are_read(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 65535\n" + (levels * 257).astype(">u2").tobytes())
    read = ImageFolder("all", tmp_path, size=16).item(0).image
    np.testing.assert_array_equal((read[0] * 255).round(), levels)


def test_what_is_not_read_is_counted(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.heic", "y.HEIC", "z.svg", "metadata.parquet"):
        (root / name).write_bytes(b"")
    (root / "pictures").symlink_to("gone")
    note = "files that are not read: 2 .heic, 1 .svg, 1 metadata.parquet, 1 broken links"
    assert ImageFolder("all", root).notes == [note]
    assert plan.main([*SMALL, f"dataset.folder.options.root={root}", f"results={tmp_path / 'results'}"]) == 0
    assert f"dataset folder: {note}" in capsys.readouterr().out.splitlines()


def test_linked_folders_are_followed_without_end(root: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/deep/d.png", 3)
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "elsewhere")
    (root / "self").symlink_to(root)
    assert ImageFolder("all", root).ids == ["a.png", "b.png", "c.png", "more/deep/d.png"]
    assert cell(root, "images=4")


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_validation_folder_is_a_split(tmp_path: Path, name: str) -> None:
    save(tmp_path / "train/a.png", 0)
    save(tmp_path / name / "b.png", 1)
    save(tmp_path / "c.png", 2)
    assert ImageFolder("val", tmp_path).ids == [f"{name}/b.png"]
    assert ImageFolder("train", tmp_path).ids == ["train/a.png"]
    assert set(ImageFolder("all", tmp_path).ids) == {"train/a.png", f"{name}/b.png"}
    assert ImageFolder("val", tmp_path, recursive=False).ids == [f"{name}/b.png"]
    assert ImageFolder("val", tmp_path).notes == [f"1 images outside the folders train, {name} are in no split"]
    with pytest.raises(ValueError, match=r"none of them in split test \(1 in train, 1 in val\); try split=all"):
        ImageFolder("test", tmp_path)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("form", ["captions.csv", "metadata.jsonl", "clé.txt"])
def test_names_are_compared_in_one_form(tmp_path: Path, on_disk: Any, written: Any, form: str) -> None:
    save(tmp_path / unicodedata.normalize(on_disk, "clé.png"), 0)
    name = unicodedata.normalize(written, "clé.png")
    text = {
        "captions.csv": f"file,caption\n{name},a key\n",
        "metadata.jsonl": json.dumps({"file_name": name, "text": "a key"}),
        "clé.txt": "a key",
    }[form]
    (tmp_path / unicodedata.normalize(written, form)).write_text(text, encoding="utf-8")
    assert captions(tmp_path) == {unicodedata.normalize("NFC", "clé.png"): "a key"}


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        save(tmp_path / unicodedata.normalize(form, "clé.png"), 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"two files that are named clé\.png; rename one"):
        ImageFolder("all", tmp_path)


# --- pixels ----------------------------------------------------------------------------------------------------


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """A profile whose red is sRGB's green, and its green sRGB's red."""
    return srgb().replace(b"rXYZ", b"XYZr").replace(b"gXYZ", b"rXYZ").replace(b"XYZr", b"gXYZ")


def gray() -> bytes:
    """A profile of gray pixels that are linear in light: its curve is of type 0, value ** 1.0."""
    content = srgb().replace(b"RGB XYZ ", b"GRAYXYZ ", 1).replace(b"rTRC", b"kTRC", 1)
    curve = content.index(b"para") + 8
    return content[:curve] + bytes([0, 0, 0, 0, 0, 1, 0, 0]) + content[curve + 8 :]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_colour_profile_is_applied(tmp_path: Path, suffix: str, mode: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    lossless = {"lossless": True} if suffix == ".webp" else {}
    file = tmp_path / f"a{suffix}"
    Image.fromarray(colours).convert(mode).save(file, icc_profile=swapped(), **lossless)
    read = np.asarray(read_rgb(file), int)
    assert np.abs(read - colours[..., [1, 0, 2]]).max() <= 1
    Image.fromarray(colours).convert(mode).save(file, icc_profile=srgb(), **lossless)
    np.testing.assert_array_equal(np.asarray(read_rgb(file)), colours)


def test_profiles_of_gray_pixels(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    light = np.asarray(ramp) / 255.0
    shown = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    for mode in ("L", "LA"):
        for profile, expected in ((swapped(), np.asarray(ramp, float)), (gray(), shown)):
            ramp.convert(mode).save(tmp_path / "a.png", icc_profile=profile)
            assert np.abs(np.asarray(read_rgb(tmp_path / "a.png")) - expected[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("profile", "message"), [(b"no profile at all", "is broken"), (gray(), "is for L pixels and it has RGB")]
)
def test_a_profile_that_does_not_fit_is_named(tmp_path: Path, profile: bytes, message: str) -> None:
    image(0).save(tmp_path / "a.png", icc_profile=profile)
    with pytest.raises(ValueError, match=rf"a\.png: its colour profile {message}"):
        read_rgb(tmp_path / "a.png")


def test_16_bits_with_white_as_zero_are_upright(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for photometric in (0, 1):
        stored = levels if photometric else 255 - levels
        content = io.BytesIO()
        Image.fromarray(stored * 257).save(content, "TIFF", tiffinfo={262: photometric})
        (tmp_path / f"{photometric}.tif").write_bytes(content.getvalue())
        with Image.open(tmp_path / f"{photometric}.tif") as opened:
            assert opened.tag_v2[262] == photometric  # type: ignore[attr-defined]
            assert np.asarray(opened)[0, 0] == stored[0, 0] * 257  # Pillow leaves it to the reader
        np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / f"{photometric}.tif"))[..., 0], levels)
