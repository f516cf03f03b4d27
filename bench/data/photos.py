"""Square crops of the colour photographs in the wheels of scikit-image and scikit-learn. No download, no torch.

There are seven photographs with five squares each. `centre` is the largest centred square; `nw`, `ne`, `sw` and `se`
are the corner squares with two thirds of the shorter side. Crops of one photograph overlap, so they are one cluster and
belong to one split. The packages' grayscale, medical, astronomical, texture and synthetic images are left out. The
right view of the motorcycle is also left out, because it is almost the same as the left one. The sha256 of each file is
fixed, so that an id means the same pixels on every machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from bench.data.base import EditItem, Item
from bench.data.folder import check_size, pixels

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("flower", "rocket"),
    "test": ("astronaut", "chelsea", "china", "coffee", "motorcycle"),
}
FILES: dict[str, tuple[str, str, str]] = {
    "astronaut": (
        "skimage", "data/astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    "chelsea": (
        "skimage", "data/chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    "china": (
        "sklearn", "datasets/images/china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    ),
    "coffee": (
        "skimage", "data/coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
    "flower": (
        "sklearn", "datasets/images/flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    ),
    "motorcycle": (
        "skimage", "data/motorcycle_left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    ),
    "rocket": (
        "skimage", "data/rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
}  # fmt: skip
"""photograph -> package, file in the package, sha256 of the file."""
CROPS = ("centre", "nw", "ne", "sw", "se")


@cache
def _file(name: str) -> Path:
    """Return the photograph's file after a check of its sha256. The packages are found without importing them."""
    package, path, sha256 = FILES[name]
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder, path)
        if file.is_file():
            if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
                raise ValueError(f"photograph {name}: {file} is not the published file; reinstall {package}")
            return file
    raise ValueError(f"photograph {name}: {package}/{path} is not installed; install scikit-image and scikit-learn")


@cache
def _photograph(name: str) -> Image.Image:
    with Image.open(_file(name)) as image:
        return image.convert("RGB")


def box(crop: str, width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a square crop, in pixels."""
    if crop == "centre":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
    else:
        side = 2 * min(width, height) // 3
        left, top = (width - side) * crop.endswith("e"), (height - side) * crop.startswith("s")
    return left, top, left + side, top + side


class Photos:
    """The photographs of a split as a data set (`bench.data.base.Dataset`). Ids are `photos/NAME/CROP`.

    `size` is the side in pixels, a multiple of 8 from 16 to 512. Crops are resized with an antialiased Lanczos filter.
    They have a side of 200 to 512 pixels, so large sizes enlarge some of them. The centre crops of all photographs come
    first. Captions are empty.
    """

    edits: Sequence[str] = ()

    def __init__(self, split: str = "test", size: int = 32) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.size = check_size(size, 512)
        self.shape = (3, self.size, self.size)
        self.parts = [(name, crop) for crop in CROPS for name in SPLITS[split]]
        for name in SPLITS[split]:
            _file(name)

    def __len__(self) -> int:
        return len(self.parts)

    def item(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"photos has {len(self)} images, got index {index}")
        name, crop = self.parts[index]
        image = _photograph(name)
        return Item(f"photos/{name}/{crop}", pixels(image.crop(box(crop, *image.size)), self.size), "")

    def edit(self, index: int, kind: str) -> EditItem | None:
        return None
