"""The common part of the adapters of large pretrained models: the diffusers pipeline, its autoencoder, its texts.

An adapter is a backbone over latents z = (E(image) - shift) scale. E is the mode of the posterior of the autoencoder,
since a sample would add noise to every comparison. A pipeline is a local folder, or a repository of the Hugging Face
hub that is already in the local cache: a job never downloads.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.denoiser import Prediction
from methods.paths import Path as NoisingPath

EXTRA = "inversion-bench[large]"


def diffusers() -> Any:
    """Return the library diffusers. Raises ImportError with the command that installs it."""
    try:
        import diffusers
        import transformers  # noqa: F401 - diffusers imports without it, but then it has no pipelines
    except ImportError as error:
        raise ImportError(f"pretrained models need diffusers and transformers: pip install {EXTRA}") from error
    return diffusers


def load_pipeline(
    kind: str, network: str, pretrained: str, dtype: torch.dtype, absent: tuple[str, ...], **hub: str | None
) -> Any:
    """Load the diffusers pipeline of class `kind`, with `network` and text encoders in `dtype`.

    The autoencoder is at least float32: half precision overflows in some autoencoders, and raises the smallest possible
    error. Parts named in `absent` (safety checker, image encoders) are not loaded. Raises FileNotFoundError if neither
    the folder nor the cache of the hub has such a pipeline.
    """
    library = diffusers()
    wide = torch.promote_types(dtype, torch.float32)
    source = Path(os.path.expanduser(pretrained))
    try:
        pipeline = getattr(library, kind).from_pretrained(
            str(source) if source.is_dir() else pretrained,
            dtype={"default": dtype, network: dtype, "vae": wide},
            local_files_only=True,
            use_safetensors=True,  # other formats can run code while they are read
            **dict.fromkeys(absent),
            **{key: value for key, value in hub.items() if value is not None},
        )
    except OSError as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise FileNotFoundError(
            f"{pretrained} is neither the folder of a pipeline nor in the cache of the hub: {reason}"
        ) from error
    pipeline.vae.enable_slicing()  # one image at a time: less memory, and the same result in a batch as alone
    return pipeline


class Pretrained(nn.Module):
    """Base of the adapters. A subclass names its pipeline and defines `encode` and `forward`.

    `path` and `prediction` are those of the weights; a configuration with other values is an error. Arguments:
    `pretrained` is a folder or an id of the hub, `dtype` that of the network, and `revision` and `variant` (fp16, ...)
    those of the hub.
    """

    pipeline_class: ClassVar[str]
    network: ClassVar[str] = "transformer"
    """The attribute of the pipeline that holds the predicting network."""
    absent: ClassVar[tuple[str, ...]] = ()
    multiple: int = 1
    """The sides of a latent must be multiples of this number."""
    distilled: bool = False
    """True if guidance is distilled into the network, as an input of `forward`."""
    path: NoisingPath
    prediction: Prediction

    def __init__(
        self, pretrained: str, dtype: str = "float32", revision: str | None = None, variant: str | None = None
    ) -> None:
        super().__init__()
        allowed = ("float16", "bfloat16", "float32", "float64")
        if dtype not in allowed:
            raise ValueError(f"dtype must be one of {', '.join(allowed)}, got {dtype!r}")
        self.pipeline = load_pipeline(
            self.pipeline_class, self.network, pretrained, getattr(torch, dtype), self.absent,
            revision=revision, variant=variant,
        )  # fmt: skip
        self.net: Any = getattr(self.pipeline, self.network)  # first, so that its dtype is the backbone's
        self.vae = self.pipeline.vae
        parts = {name: part for name, part in self.pipeline.components.items() if re.match("text_encoder", name)}
        self.texts = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def factor(self) -> int:
        """The number of image pixels along one side of a latent position."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def encode(self, captions: list[str]) -> Tensor:
        """Map captions to one tensor [B, L, D]: the whole text input of the network."""
        raise NotImplementedError

    def to_latent(self, image: Tensor) -> Tensor:
        """Map images [B, 3, H, W] in [-1, 1] to latents [B, C, H/f, W/f]. Raises ValueError for sides that do not
        fit."""
        side = self.factor * self.multiple
        if image.shape[2] % side or image.shape[3] % side:
            raise ValueError(f"image sides must be multiples of {side}, got {image.shape[2]}x{image.shape[3]}")
        mode = self.vae.encode(image.to(self.vae.dtype)).latent_dist.mode()
        return (mode - self._shift) * self.vae.config.scaling_factor

    def to_image(self, latent: Tensor) -> Tensor:
        """Map latents to images, about [-1, 1] (not clipped)."""
        scaled = latent.to(self.vae.dtype) / self.vae.config.scaling_factor + self._shift
        return self.vae.decode(scaled, return_dict=False)[0]

    @property
    def _shift(self) -> float:
        return self.vae.config.shift_factor or 0.0


def pack_text(sequence: Tensor, pooled: Tensor) -> Tensor:
    """Join token embeddings [B, L, D] and a pooled one [B, P] into [B, 1 + L, max(D, P)]: pooled first, padded with
    zeros."""
    width = max(sequence.shape[2], pooled.shape[1])
    rows = [F.pad(part, (0, width - part.shape[2])) for part in (pooled[:, None].to(sequence), sequence)]
    return torch.cat(rows, dim=1)


def unpack_text(embedding: Tensor, width: int, pooled: int) -> tuple[Tensor, Tensor]:
    """Undo `pack_text`: return (sequence [B, L, width], pooled [B, pooled])."""
    return embedding[:, 1:, :width], embedding[:, 0, :pooled]
