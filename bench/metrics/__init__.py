"""Metrics by name: which exist, for which tasks, and which can be computed here. No torch: a plan asks this.

A metric of an image is a column of its row. A metric of a set of images (a Fréchet or kernel distance) is made in the
report from features that a cell keeps of each of its images, so that cells, seeds and shards combine.

A metric whose weights are not on disk is unavailable, with the reason; no other takes its name.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench import hub
from bench.errors import UserError
from bench.files import ZOO, sha256

TASKS = ("reconstruct", "restore", "edit", "guarantee")


@dataclass(frozen=True)
class Weights:
    """A file in torch's cache; the eight digits in its name begin its sha256."""

    what: str
    url: str

    @property
    def path(self) -> Path:
        return weights_folder() / self.url.rpartition("/")[2]

    @property
    def sha256(self) -> str:
        return self.path.stem.rpartition("-")[2]

    @property
    def missing(self) -> bool:
        return not self.path.is_file()


@dataclass(frozen=True)
class Pretrained:
    """A model of the Hugging Face hub, or a folder."""

    what: str
    name: str

    @property
    def missing(self) -> bool:
        folder = hub.snapshot(self.name)
        return folder is None or not all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


@dataclass(frozen=True)
class Shipped:
    """The attribute classifier in methods/zoo, which sees 3x32x32 scenes."""

    what: str = "weights of scenes_judge"
    path: Path = ZOO / "scenes_judge.safetensors"
    shape: tuple[int, int, int] = (3, 32, 32)

    @property
    def missing(self) -> bool:
        return not self.path.is_file()


@dataclass(frozen=True)
class Metric:
    """`version` is raised when the numbers change: it is part of a cell's identity, as are the judge's weights.

    `extractor` names the features of a set-level metric, `needs` what must be on disk, `prefetch` the word that
    `python -m bench.prefetch metric=` takes.
    """

    version: int = 1
    tasks: tuple[str, ...] = TASKS
    extractor: str = ""
    needs: Weights | Pretrained | Shipped | None = None
    prefetch: str = ""


_TORCHVISION = "https://download.pytorch.org/models/"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
INCEPTION = Weights("Inception weights", f"{_FIDELITY}weights-inception-2015-12-05-6726825d.pth")
CLIP = Pretrained("CLIP weights", "openai/clip-vit-large-patch14")
JUDGE = Shipped()
LPIPS = {
    "lpips": Weights("LPIPS weights", f"{_TORCHVISION}alexnet-owt-7be5be79.pth"),
    "lpips_vgg": Weights("LPIPS weights (VGG)", f"{_TORCHVISION}vgg16-397923af.pth"),
    "lpips_squeeze": Weights("LPIPS weights (SqueezeNet)", f"{_TORCHVISION}squeezenet1_1-b8a52dc0.pth"),
}
"""torchvision's networks, over which lpips lays its own linear weights (Zhang et al. 2018)."""

CATALOGUE: dict[str, Metric] = {
    **{name: Metric() for name in ("psnr", "ssim", "mse", "l2")},
    **{name: Metric(needs=weights, prefetch=name) for name, weights in LPIPS.items()},
    "fid": Metric(extractor="inception", needs=INCEPTION, prefetch="fid"),
    "kid": Metric(extractor="inception", needs=INCEPTION, prefetch="fid"),
    "fd_scenes": Metric(extractor="scenes", needs=JUDGE),
    "kd_scenes": Metric(extractor="scenes", needs=JUDGE),
    **{
        name: Metric(tasks=("edit",))
        for name in (
            "outside_psnr", "outside_ssim", "outside_mse", "inside_psnr", "inside_mse",
            "pie_psnr", "pie_ssim", "pie_mse",
        )
    },
    "pie_lpips": Metric(tasks=("edit",), needs=LPIPS["lpips_squeeze"], prefetch="lpips_squeeze"),
    "verdict": Metric(tasks=("edit",), needs=JUDGE),
    "kept": Metric(tasks=("edit",), needs=JUDGE),
    "clip": Metric(tasks=("edit",), needs=CLIP, prefetch="clip"),
    "pie_clip": Metric(tasks=("edit",), needs=CLIP, prefetch="clip", version=2),  # 2: the border is of the mask
}  # fmt: skip


def torch_home() -> Path:
    """The folder of torch.hub, as it finds it."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser()


def weights_folder() -> Path:
    """Where torch.hub keeps downloaded weights."""
    return torch_home() / "hub" / "checkpoints"


def available(names: Sequence[str], task: str = "restore") -> tuple[tuple[str, ...], dict[str, str]]:
    """(the metrics that can be computed here, {the others: why not}). Raises UserError for another task's metric."""
    missing = {}
    for name in names:
        metric = CATALOGUE[name]
        if task not in metric.tasks:
            raise UserError(f"metric {name} has no meaning for task={task}; only for {', '.join(metric.tasks)}")
        if isinstance(metric.needs, Pretrained) and importlib.util.find_spec("transformers") is None:
            missing[name] = f"{name} needs transformers (pip install inversion-bench[large])"
        elif metric.needs is not None and metric.needs.missing:
            remedy = f", run bench.prefetch metric={metric.prefetch}" if metric.prefetch else " are not in methods/zoo"
            missing[name] = f"{metric.needs.what}{remedy}"
    return tuple(name for name in names if name not in missing), missing


def unsuited(name: str, shape: Sequence[int]) -> str | None:
    """Why a metric cannot judge images of a shape (channels, height, width), if it cannot."""
    needs = CATALOGUE[name].needs
    if isinstance(needs, Shipped) and tuple(shape) != needs.shape:
        return f"{name}: scenes_judge sees {'x'.join(map(str, needs.shape))} images, not {'x'.join(map(str, shape))}"
    return None


def identity(names: Iterable[str]) -> dict[str, Any]:
    """name -> version, with the classifier's weights where it judges: part of a cell's identity."""
    judged = {name for name in names if CATALOGUE[name].needs is JUDGE}
    return {
        name: f"{CATALOGUE[name].version}+{_sha256(JUDGE.path)[:8]}" if name in judged else CATALOGUE[name].version
        for name in names
    }


def extractors(names: Iterable[str]) -> tuple[str, ...]:
    """The feature extractors that set-level metrics need, each once."""
    return tuple(dict.fromkeys(CATALOGUE[name].extractor for name in names if CATALOGUE[name].extractor))


_sha256 = cache(sha256)
