"""The weights that metrics need, and their places on this disk. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench import hub
from bench.files import ZOO


def torch_home() -> Path:
    """Return the folder of torch.hub, by the same rules as torch."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser()


def weights_folder() -> Path:
    """Return the folder in which torch.hub keeps downloaded weights."""
    return torch_home() / "hub" / "checkpoints"


@dataclass(frozen=True)
class Weights:
    """A file in torch's cache. The eight digits in its name are the first of its sha256.

    `what` is its name in messages. `metric` is the name for `python -m bench.prefetch metric=NAME`.
    """

    what: str
    metric: str
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
    """A model of the Hugging Face hub, or a folder. `what` and `metric` are as in `Weights`."""

    what: str
    metric: str
    name: str

    @property
    def missing(self) -> bool:
        folder = hub.snapshot(self.name)
        return folder is None or not all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


@dataclass(frozen=True)
class Shipped:
    """A network in methods/zoo, or another file that no command fetches. It takes images of one shape only."""

    what: str
    path: Path
    shape: tuple[int, int, int]

    @property
    def missing(self) -> bool:
        return not self.path.is_file()


_TORCHVISION = "https://download.pytorch.org/models/"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
LPIPS = Weights("LPIPS weights", "lpips", f"{_TORCHVISION}alexnet-owt-7be5be79.pth")
"""torchvision's network, to which lpips adds its own linear weights (Zhang et al. 2018). The next two are the same."""
LPIPS_VGG = Weights("LPIPS weights (VGG)", "lpips_vgg", f"{_TORCHVISION}vgg16-397923af.pth")
LPIPS_SQUEEZE = Weights("LPIPS weights (SqueezeNet)", "lpips_squeeze", f"{_TORCHVISION}squeezenet1_1-b8a52dc0.pth")
INCEPTION = Weights("Inception weights", "fid", f"{_FIDELITY}weights-inception-2015-12-05-6726825d.pth")
CLIP = Pretrained("CLIP weights", "clip", "openai/clip-vit-large-patch14")
JUDGE = Shipped("weights of scenes_judge", ZOO / "scenes_judge.safetensors", (3, 32, 32))
"""The attribute classifier of scenes."""
