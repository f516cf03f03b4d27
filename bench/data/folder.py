"""A user's own images as a data set: a folder of files, with optional captions. No torch.

Images are all image files below `root`; links to folders are followed. If there are folders `root/train`, `root/val`
(or `root/validation`) or `root/test`, these are the splits, and images outside them belong to no split. If there are
none, a hash of an image's id gives its split, so that other images do not change it.

Captions come from one of these sources:

    root/captions.csv                   columns file, caption
    root/captions.json                  {file: caption}
    metadata.csv or metadata.jsonl      in any folder: file_name, and text or caption (Hugging Face's imagefolder)
    text files next to the images       a.txt for a.png; only if there is none of the files above

Names are compared in Unicode NFC, so that they are the same on every file system.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from bench.data.base import EditItem, Item
from bench.files import sha256

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".jfif", ".gif", ".avif", ".ppm", ".pgm",
)  # fmt: skip
UNREAD = (
    ".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw", ".tga", ".ico",
)  # fmt: skip
"""Image formats that are not read. The plan shows the number of such files."""
SPLITS = ("train", "val", "test", "all")
FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
"""Folder of `root` -> split."""
CAPTIONS = ("auto", "none")
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
"""The TIFF tag that says if white is 0 or the largest value, and its value for white = 0."""


def check_size(size: int, largest: int) -> int:
    """Return the side of an image in pixels. Raises ValueError if it is not a multiple of 8 from 16 to `largest`."""
    if isinstance(size, bool) or not isinstance(size, int) or size % 8 or not 16 <= size <= largest:
        raise ValueError(f"size must be a multiple of 8 from 16 to {largest}, got {size!r}")
    return size


# --- pixels ----------------------------------------------------------------------------------------------------


def pixels(square: Image.Image, size: int) -> np.ndarray:
    """Resize a square RGB image with antialiasing: float32 [3, size, size] in [0, 1]."""
    resized = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255
    return np.ascontiguousarray(resized.transpose(2, 0, 1))


def read_rgb(file: Path) -> Image.Image:
    """Read an image file as upright 8-bit sRGB.

    EXIF orientation and colour profile are applied, transparent pixels are blended with white, and 16 bits become 8. If
    a file has several pages, the first is read. Raises ValueError that names the file if it cannot be read.
    """
    try:
        _stat(file)
        with Image.open(file) as opened:
            image, profile = ImageOps.exif_transpose(opened), opened.info.get("icc_profile")
            if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PPM"):
                levels = np.asarray(image, np.float32) / 257  # convert() would clip at 255
                if getattr(opened, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
                    levels = 255 - levels
                image = Image.fromarray(levels.round().astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError("32-bit pixels have no fixed value for white; save it with 8 bits")
            if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                colours = _in_srgb(rgba.convert("RGB"), image.mode, profile)
                colours.putalpha(rgba.getchannel("A"))
                return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), colours).convert("RGB")
            return _in_srgb(image, image.mode, profile)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {file}: {error}") from error


def _in_srgb(image: Image.Image, mode: str, profile: bytes | None) -> Image.Image:
    """Convert an image without transparency to 8-bit sRGB. `mode` is its file's mode, `profile` its ICC profile."""
    rgb = image.convert("RGB")
    if not profile:
        return rgb
    space, transform = _to_srgb(profile)
    gray = mode in ("1", "L", "LA", "La") or mode.startswith("I")
    if (space == "L" and not gray) or ((space == "CMYK") != (mode == "CMYK")):
        raise ValueError(f"its colour profile is for {space} pixels and it has {mode}; save it without a profile")
    if transform is None:
        return rgb
    return _applied(transform, {"RGB": rgb, "L": rgb.getchannel("R"), "CMYK": image}[space])


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is returned only for a conversion in place
    return converted


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return the pixel mode of an ICC profile (RGB, L or CMYK) and its transform to sRGB.

    The transform is None if it changes no colour by more than one level, as for sRGB itself.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(source.profile.xcolor_space.strip())
        if space is None:
            raise ValueError(f"its colour profile is for {source.profile.xcolor_space} pixels; save it as RGB")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), space, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError(f"its colour profile is broken ({error}); save it without a profile") from error
    if space == "CMYK":
        return space, transform
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    given = np.stack(np.meshgrid(*[levels] * 3), 3).reshape(18, -1, 3) if space == "RGB" else np.arange(256)[None]
    probe = Image.fromarray(given.astype(np.uint8))
    moved = np.asarray(_applied(transform, probe), int) - np.asarray(probe.convert("RGB"), int)
    return space, transform if np.abs(moved).max() > 1 else None


def centre_square(image: Image.Image) -> Image.Image:
    """Return the largest centred square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def held_out(image_id: str) -> bool:
    """Return True if an image is in the test split when there are no split folders: one in five, by its id alone."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big") % 5 == 0


# --- files -----------------------------------------------------------------------------------------------------


def nfc(name: str) -> str:
    """Return a name in Unicode NFC, the form of ids. Raises ValueError for a name that is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the file name {os.fsencode(name)!r} is not UTF-8; rename the file") from error
    return unicodedata.normalize("NFC", name)


def _walk(folder: Path, into: Iterable[str] | None, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the files of a folder and of its subfolders, sorted by name.

    Names that start with a dot (thumbnails, resource forks) are left out. Links are followed, but not to a folder that
    contains them. `into` limits the subfolders of the first folder by name; None: all subfolders.
    """
    found = os.stat(folder)
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield Path(entry.path)
            elif into is None or entry.name in into:
                yield from _walk(Path(entry.path), into if into is None else (), above | {here})


def file_sha256(file: Path) -> str:
    """Return the sha256 of a file. It is cached until the file's size or time changes. Raises OSError."""
    found = _stat(file)
    return _sha256(file, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _stat(file: Path) -> os.stat_result:
    """Return the status of a regular file. Raises OSError for anything else: opening a pipe would never return."""
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{file} is not a file")
    return found


@cache
def _sha256(file: Path, size: int, *times: int) -> str:
    return sha256(file)


def _unread(files: Sequence[Path]) -> Iterator[str]:
    """Yield a note about files that may be meant as images or captions but are not read."""
    kinds = Counter(file.suffix.lower() for file in files if file.suffix.lower() in UNREAD)
    kinds["metadata.parquet"] = sum(file.name == "metadata.parquet" for file in files)
    kinds["broken links"] = sum(
        not file.name.lower().endswith(SUFFIXES) and file.is_symlink() and not file.exists() for file in files
    )
    if any(kinds.values()):
        yield f"files that are not read: {', '.join(f'{count} {kind}' for kind, count in kinds.items() if count)}"


# --- captions --------------------------------------------------------------------------------------------------

Captions = Iterator[tuple[str, str, str]]
"""Tuples of the place in a caption file, the name of an image, and the caption."""


def _column(names: Iterable[Any]) -> str | None:
    """Return the column of a metadata file that holds captions, or None. Raises ValueError if there are two."""
    present = [name for name in ("text", "caption") if name in names]
    if len(present) > 1:
        raise ValueError("has both text and caption; keep one")
    return present[0] if present else None


def _csv(file: Path) -> Captions:
    key = "file" if file.name == "captions.csv" else "file_name"
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines, strict=True)
        names = rows.fieldnames or ()
        caption = "caption" if key == "file" else _column(names)
        if not {key, caption} - {None} <= set(names):
            wanted = ",".join(name for name in (key, caption) if name)
            raise ValueError(f"needs the columns {wanted}, has {','.join(names) or 'none'}")
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(
                    f"line {rows.line_num} does not have one value for each column; quote captions that have commas"
                )
            yield f"line {rows.line_num}", row[key], row[caption] if caption else ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError for a duplicate key, because JSON would silently keep the last one."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"names {key} again")
    return dict(pairs)


def _json(file: Path) -> Captions:
    captions = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    if not isinstance(captions, dict) or not all(isinstance(caption, str) for caption in captions.values()):
        raise ValueError("must be one object of file: caption, both text")
    yield from ((repr(name), name, caption) for name, caption in captions.items())


def _jsonl(file: Path) -> Captions:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_unique)
                name, caption = row["file_name"], row.get(_column(row))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = "needs an object with a file_name" if not isinstance(error, ValueError) else error
                raise ValueError(f"line {number}: {why}") from error
            if not isinstance(name, str) or not isinstance(caption, str | None):
                raise ValueError(f"line {number}: file_name and caption must be text")
            yield f"line {number}", name, caption or ""


READERS = {"captions.csv": _csv, "captions.json": _json, "metadata.csv": _csv, "metadata.jsonl": _jsonl}


def read_captions(root: Path, files: Sequence[Path], ids: Iterable[str]) -> dict[str, str]:
    """Return captions by id, from caption files below root. These name images relative to their own folder.

    Raises ValueError that names the file for anything wrong in it.
    """
    known, captions = set(ids), dict[str, str]()
    for file in files:
        where = file.parent.relative_to(root).as_posix()
        missing = []
        try:
            for place, name, caption in READERS[file.name](file):
                image_id = nfc(posixpath.normpath(posixpath.join(where, name)))
                if image_id in captions:
                    raise ValueError(f"{place} names {name} again")
                captions[image_id] = caption
                if image_id not in known and not (file.parent / name).is_file():
                    missing.append(name)
        except (ValueError, OSError, csv.Error) as error:
            raise ValueError(f"{file}: {error}") from error
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{file} names an image that is not in the folder: {sorted(missing)[0]}{more}")
    return captions


# --- the data set ----------------------------------------------------------------------------------------------


class ImageFolder:
    """A folder of images as a data set (`bench.data.base.Dataset`). Ids are paths below `root`, such as `cats/1.png`.

    `split` is train, val, test or all. `size` is the side in pixels, a multiple of 8 from 16 to 4096. An image is read
    when it is used, cropped to the centred square and resized with an antialiased Lanczos filter. With
    `recursive=False`, only the subfolders of the splits are read. With `captions=none`, no captions are read. `notes`
    says what is left out.
    """

    edits: Sequence[str] = ()
    splits = SPLITS
    where: Sequence[str] = ("root",)

    def __init__(
        self, split: str = "test", root: str | Path | None = None, size: int = 256, recursive: bool = True,
        captions: str = "auto",
    ) -> None:  # fmt: skip
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if captions not in CAPTIONS:
            raise ValueError(f"captions must be one of {', '.join(CAPTIONS)}, got {captions!r}")
        if not root:
            raise ValueError("root is missing; write dataset.folder.options.root=PATH")
        self.size = check_size(size, 4096)
        self.shape = (3, self.size, self.size)
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"root {self.root} is {'not a folder' if self.root.exists() else 'missing'}")
        self.folders = [name for name in FOLDERS if (self.root / name).is_dir()]
        files = list(_walk(self.root, None if recursive else self.folders))
        images = [file for file in files if file.name.lower().endswith(SUFFIXES)]
        self.files: dict[str, Path] = {}
        for file in filter(self._in_a_split, images):
            image_id = nfc(file.relative_to(self.root).as_posix())
            if image_id in self.files:
                raise ValueError(f"root {self.root} has two files that are named {image_id}; rename one")
            self.files[image_id] = file
        if not self.files:
            raise ValueError(f"root {self.root} has no images ({', '.join(SUFFIXES)})")
        self.notes = list(_unread(files))
        if beside := len(images) - len(self.files):
            self.notes.append(f"{beside} images outside the folders {', '.join(self.folders)} are in no split")
        self.captions, self.texts = dict[str, str](), dict[str, Path]()
        if captions == "auto":
            self._find_captions(files)
        splits = {image_id: self._split(image_id) for image_id in self.files}
        self.ids = sorted(image_id for image_id in self.files if split in ("all", splits[image_id]))
        if not self.ids:
            there = ", ".join(f"{count} in {name}" for name, count in Counter(splits.values()).items())
            raise ValueError(
                f"root {self.root} has {len(splits)} images, none of them in split {split} ({there}); try split=all"
            )

    def _in_a_split(self, file: Path) -> bool:
        """Return True for a file in a folder of a split; always True if there are no such folders."""
        return not self.folders or file.relative_to(self.root).parts[0] in self.folders

    def _split(self, image_id: str) -> str:
        if self.folders:
            return FOLDERS[image_id.partition("/")[0]]
        return "test" if held_out(image_id) else "train"

    def _find_captions(self, files: Sequence[Path]) -> None:
        """Read the caption files. If there are none, use the text files with the same names as images."""
        here = {file for file in files if file.parent == self.root and file.name in READERS}
        below = {file for file in files if file.name in ("metadata.csv", "metadata.jsonl") and self._in_a_split(file)}
        tables = sorted(here | below)
        kinds = {file.stem if file.stem == "metadata" else file.name: file.name for file in tables}
        if len(kinds) > 1:
            raise ValueError(f"{self.root} has both {' and '.join(sorted(kinds.values()))}; keep one")
        self.captions = read_captions(self.root, tables, self.files)
        there = {unicodedata.normalize("NFC", str(file)): file for file in files if file.suffix == ".txt"}
        named = {i: unicodedata.normalize("NFC", str(file.with_suffix(".txt"))) for i, file in self.files.items()}
        texts = {image_id: there[name] for image_id, name in named.items() if name in there}
        if tables:
            source = ", ".join(sorted({file.name for file in tables}))
            source += f"; {len(texts)} .txt files of images are left out" * bool(texts)
        else:
            source, self.texts = ".txt files next to the images", texts
        if tables or texts:
            count = sum(map(bool, self.captions.values())) or len(self.texts)
            self.notes.append(f"{count} of {len(self.files)} images have captions, from {source}")

    def __len__(self) -> int:
        return len(self.ids)

    def _id(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"folder {self.root} has {len(self)} images, got index {index}")
        return self.ids[index]

    def _caption(self, image_id: str) -> str:
        if image_id not in self.texts:
            return self.captions.get(image_id, "")
        file = self.texts[image_id]
        try:
            return " ".join(file.read_text(encoding="utf-8-sig").split())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def item(self, index: int) -> Item:
        image_id = self._id(index)
        square = centre_square(read_rgb(self.files[image_id]))
        return Item(image_id, pixels(square, self.size), self._caption(image_id))

    def content(self, index: int) -> str:
        """Return the sha256 of an item's id, file and caption."""
        image_id = self._id(index)
        content = [image_id, file_sha256(self.files[image_id]), self._caption(image_id)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def edit(self, index: int, kind: str) -> EditItem | None:
        return None
