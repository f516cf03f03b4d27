"""Checks of weights on this disk before they are loaded: pipelines in folders or the hub's cache, files. No torch."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

PACKAGES = ("diffusers", "transformers")
"""The packages that load a pipeline: the extra `large`."""
NEVER_LOADED = ("safety_checker", "feature_extractor", "image_encoder")


def cache() -> Path:
    """Return the Hugging Face cache folder, by the same rules as its library."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(os.path.expanduser(folder))
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.path.expanduser(home)) / "hub"


def snapshot(pretrained: str, revision: str | None = None) -> Path | None:
    """Return the folder of a pipeline's files: `pretrained` itself or its snapshot in the cache, else None."""
    folder = Path(os.path.expanduser(pretrained))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download  # the import takes a third of a second

    try:
        return Path(snapshot_download(pretrained, revision=revision, cache_dir=cache(), local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or not a valid repository name
        return None


def commit(pretrained: str, revision: str | None = None) -> str | None:
    """Return the commit of a cached snapshot, which fixes every file; None for a local folder or a missing one."""
    found = snapshot(pretrained, revision)
    return found.name if found and re.fullmatch(r"[0-9a-f]{40}", found.name) else None


def missing(pretrained: str, revision: str | None = None) -> str | None:
    """Return the reason why a pipeline cannot be loaded here, or None if it can."""
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if absent:
        return f"{' and '.join(absent)} not installed (pip install inversion-bench[large])"
    folder = snapshot(pretrained, revision)
    if folder is None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained):
            return f"there is no folder {pretrained!r}"
        return f"{pretrained} is not in the Hugging Face cache {str(cache())!r}"
    index = folder / "model_index.json"
    if not index.is_file():
        return f"{str(folder)!r} has no model_index.json: it is not the folder of a pipeline"
    try:
        named = json.loads(index.read_text())
        parts = sorted({name for name, part in named.items() if isinstance(part, list) and part[0]} - {*NEVER_LOADED})
    except (OSError, ValueError, AttributeError) as error:
        return f"{str(index)!r} cannot be read: {error}"
    faults = [f"{part} ({why})" for part in parts if (why := _lacking(folder / part))]
    return f"{pretrained} lacks {', '.join(faults)} in {str(folder)!r}" if faults else None


def _lacking(part: Path) -> str | None:
    """Return what one part of a pipeline lacks, or None. Schedulers and tokenizers have no weights or config.json."""
    if not (part / "config.json").is_file():
        return None if part.is_dir() else "no such folder"
    try:
        shards = [{*json.loads(file.read_text())["weight_map"].values()} for file in part.glob("*.safetensors.index*")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "its index of weights cannot be read"
    files = next((names for names in shards if all((part / name).is_file() for name in names)), None)
    if files is None:
        files = {file.name for file in part.glob("*.safetensors")} if not shards else set()
    if not files:
        pickled = not shards and any(file.suffix in (".bin", ".pt", ".ckpt") for file in part.iterdir())
        return "weights as .safetensors; other formats can run code and are not read" if pickled else "weights"
    return next((why for name in sorted(files) if (why := damage(part / name))), None)


def damage(file: Path) -> str | None:
    """Return the reason why a file is not a complete safetensors file, or None if it is.

    Reads only the header: eight bytes with its length, then JSON with the position of each tensor. The tensors follow
    without a gap (https://github.com/huggingface/safetensors).
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            start = opened.read(8)
            length = int.from_bytes(start, "little")
            header = opened.read(length) if 8 + length <= size else b""
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    try:
        tensors = [tensor for name, tensor in json.loads(header).items() if name != "__metadata__"]
        whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{file.name} {_kind(start, size)}"
    if size < whole:
        return f"{file.name} is cut: it has {size} of {whole} bytes"
    if size > whole:
        return f"{file.name} is not a safetensors file: it has {size} bytes, but its header says {whole}"
    return None


def _kind(start: bytes, size: int) -> str:
    """Describe a file that is not in the safetensors format, by its first eight bytes and its size."""
    if start == b"version ":
        return "is a Git LFS pointer, not the weights; git lfs pull fetches them"
    if start.startswith((b"PK\3\4", b"\x80\2")):
        return "was written by torch.save and can run code; write it again with safetensors.torch.save_file"
    return "is empty" if size == 0 else "is not a safetensors file, or it is cut within its header"
