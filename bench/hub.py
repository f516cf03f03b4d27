"""Pretrained pipelines on this disk: local folders and the Hugging Face cache, read without its library. No torch.

The cache holds models--ORG--NAME/refs/REVISION, which names a commit, and snapshots/COMMIT, the files of that commit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

PACKAGES = ("diffusers", "transformers")
"""What loads a pipeline: the extra `large`."""
NEVER_LOADED = ("safety_checker", "feature_extractor", "image_encoder")


def cache() -> Path:
    """The hub's cache folder, as its library finds it."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def snapshot(pretrained: str, revision: str | None = None) -> Path | None:
    """The folder of a pipeline's files: `pretrained` itself, or its snapshot in the cache; None if there is neither."""
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        return folder
    repository = cache() / f"models--{pretrained.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    found = repository / "snapshots" / commit if commit else None
    return found if found and found.is_dir() else None


def commit(pretrained: str, revision: str | None = None) -> str | None:
    """The commit of a cached snapshot, which fixes every file; None for a local folder or what is not there."""
    found = snapshot(pretrained, revision)
    return found.name if found and re.fullmatch(r"[0-9a-f]{40}", found.name) else None


def missing(pretrained: str, revision: str | None = None) -> str | None:
    """Why a pipeline cannot be loaded here, in a few words, or None."""
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
        return f"{str(folder)!r} has no model_index.json: it is not a pipeline's folder"
    parts = {name for name, part in json.loads(index.read_text()).items() if isinstance(part, list) and part[0]}
    broken = sorted(part for part in parts - {*NEVER_LOADED} if not _complete(folder / part))
    return f"{pretrained} lacks {', '.join(broken)} in {str(folder)!r}" if broken else None


def _complete(part: Path) -> bool:
    """Whether one part of a pipeline has its weights; schedulers and tokenizers have none, and no config.json."""
    if not (part / "config.json").is_file():
        return part.is_dir()
    shards = [set(json.loads(index.read_text())["weight_map"].values()) for index in part.glob("*.index*.json")]
    if shards:
        return any(all((part / shard).is_file() for shard in files) for files in shards)
    return any(file.suffix in (".safetensors", ".bin") for file in part.iterdir())
