"""A user's own images: a folder of files, with captions where the user has them. No torch.

Layout: any images below `root`. Folders `root/train` and `root/test`, where there are, are the splits and images beside
them belong to none; otherwise an image's split is a hash of its id, the same whatever else is in the folder. Captions
come from `root/captions.csv` (columns file, caption) or `root/captions.json` ({file: caption}), files named by id.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps

from bench.data.base import EditItem, Item

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SPLITS = ("train", "test", "all")


def check_size(size: int, largest: int) -> int:
    """The side of an image in pixels, if it is a multiple of 8 from 16 to `largest`."""
    if isinstance(size, bool) or not isinstance(size, int) or size % 8 or not 16 <= size <= largest:
        raise ValueError(f"size must be a multiple of 8 from 16 to {largest}, got {size!r}")
    return size


def pixels(square: Image.Image, size: int) -> np.ndarray:
    """A square RGB image at `size`, antialiased: float32 [3, size, size] in [0, 1]."""
    resized = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255
    return np.ascontiguousarray(resized.transpose(2, 0, 1))


def read_rgb(file: Path) -> Image.Image:
    """An image file upright and in 8-bit RGB: EXIF orientation applied, transparency laid on white, 16 bits to 8.

    Raises ValueError that names the file if it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):  # convert() would clip at 255
                return Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError("32-bit pixels have no fixed white; save it with 8 bits")
            if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {file}: {error}") from error


def centre_square(image: Image.Image) -> Image.Image:
    """The largest centred square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def held_out(image_id: str) -> bool:
    """Whether an image is in the test split where folders do not say: one in five, by its id alone."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big") % 5 == 0


def _raise(error: OSError) -> NoReturn:
    raise error


def _images(folder: Path, recursive: bool) -> Iterator[Path]:
    """Image files of a folder; what starts with a dot (thumbnails, resource forks) is none."""
    for where, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
        yield from (Path(where, name) for name in files if name.lower().endswith(SUFFIXES) and name[0] != ".")


def _captions_csv(file: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines, strict=True)
        if not {"file", "caption"} <= set(rows.fieldnames or ()):
            raise ValueError(f"needs the columns file,caption, has {','.join(rows.fieldnames or ()) or 'none'}")
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"line {rows.line_num} has not one value a column; quote captions that have commas")
            if row["file"] in captions:
                raise ValueError(f"line {rows.line_num} names {row['file']} again")
            captions[row["file"]] = row["caption"]
    return captions


def _captions_json(file: Path) -> dict[str, str]:
    captions = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(captions, dict) or not all(isinstance(caption, str) for caption in captions.values()):
        raise ValueError("must be one object of file: caption, both text")
    return captions


def read_captions(root: Path, ids: Sequence[str]) -> dict[str, str]:
    """Captions by id; empty without a caption file. Raises ValueError, naming the file, for anything wrong in it."""
    readers = {root / "captions.csv": _captions_csv, root / "captions.json": _captions_json}
    present = [file for file in readers if file.is_file()]
    if len(present) > 1:
        raise ValueError(f"{root} has both captions.csv and captions.json; keep one")
    for file in present:
        try:
            captions = readers[file](file)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{file}: {error}") from error
        strangers = sorted(captions.keys() - set(ids))
        if strangers:
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise ValueError(f"{file} names an image that is not in the folder: {strangers[0]}{more}")
        return captions
    return {}


class ImageFolder:
    """A folder of images as a data set (`bench.data.base.Dataset`); ids are paths below `root`, such as `cats/1.png`.

    `split` is train, test or all; `size` the side in pixels, a multiple of 8 from 16 to 4096. Images are read when
    asked for, centre-cropped to a square and resized with an antialiased Lanczos filter; of files with several pages
    the first counts. `recursive=False` leaves subfolders other than `train` and `test` alone.
    """

    edits: Sequence[str] = ()
    splits = SPLITS

    def __init__(
        self, split: str = "test", root: str | Path | None = None, size: int = 256, recursive: bool = True
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if not root:
            raise ValueError("which folder? write dataset.folder.options.root=PATH")
        self.size = check_size(size, 4096)
        self.shape = (3, self.size, self.size)
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"root {self.root} is {'not a folder' if self.root.exists() else 'missing'}")
        folders = [self.root / name for name in ("train", "test") if (self.root / name).is_dir()]
        known = sorted(
            file.relative_to(self.root).as_posix()
            for folder in folders or [self.root]
            for file in _images(folder, recursive)
        )
        if not known:
            raise ValueError(f"root {self.root} has no images ({', '.join(SUFFIXES)})")
        self.captions = read_captions(self.root, known)
        if split == "all":
            self.ids = known
        elif folders:
            self.ids = [image_id for image_id in known if image_id.startswith(f"{split}/")]
        else:
            self.ids = [image_id for image_id in known if held_out(image_id) == (split == "test")]
        if not self.ids:
            raise ValueError(f"root {self.root} has {len(known)} images, none of them in split {split}; try split=all")

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"folder {self.root} has {len(self)} images, got index {index}")
        image_id = self.ids[index]
        square = centre_square(read_rgb(self.root / image_id))
        return Item(image_id, pixels(square, self.size), self.captions.get(image_id, ""))

    def edit(self, index: int, kind: str) -> EditItem | None:
        return None
