"""The images and targets that a model is trained on, drawn from its data set by all cores."""

from __future__ import annotations

import multiprocessing
from typing import Any

from bench.errors import UserError, unknown
from bench.spec.compose import compose_config
from bench.spec.config import ModelConfig
from bench.spec.registry import load

HELD_OUT = 512
"""The number of images for the held-out loss. They are the last ones of the test split, since sweeps take the first."""


def _render(job: tuple[str, str, int]) -> tuple[Any, str]:
    class_path, split, index = job
    item = load(class_path, "dataset")(split=split).item(index)
    return (item.image * 255).round().astype("uint8"), item.caption


def pool(class_path: str, split: str, indices: range) -> tuple[Any, list[str]]:
    """Return the images (uint8 [N, C, H, W]) and captions of a range of a data set, drawn by all cores."""
    import numpy as np

    jobs = [(class_path, split, index) for index in indices]
    with multiprocessing.get_context("spawn").Pool() as workers:
        drawn = workers.map(_render, jobs, chunksize=256)
    return np.stack([image for image, _ in drawn]), [caption for _, caption in drawn]


def tensors(config: ModelConfig, images: int) -> tuple[Any, Any]:
    """Return the data sets (training, held-out), each of (uint8 images, targets). Raises UserError if there are too few
    images."""
    import torch
    from torch.utils.data import TensorDataset

    from methods.backbones.attributes import attributes
    from methods.backbones.captions import VOCABULARIES

    data = compose_config([f"dataset={config.dataset}"], sweep_required=False).dataset[str(config.dataset)]
    dataset = load(data.class_path, "dataset")
    sizes = {split: len(dataset(split=split)) for split in ("train", "test")}
    if images > sizes["train"]:
        raise UserError(
            f"train.images={images}: must be at most {sizes['train']}, the training images of {config.dataset}"
        )
    held_out = range(max(0, sizes["test"] - HELD_OUT), sizes["test"])

    def of(split: str, indices: range) -> TensorDataset:
        pictures, captions = pool(data.class_path, split, indices)
        if config.kind == "judge":
            targets = torch.stack([torch.cat(list(attributes(caption).values())) for caption in captions])
        elif config.vocabulary in VOCABULARIES:
            targets = torch.tensor([VOCABULARIES[config.vocabulary].tokens(caption) for caption in captions])
        else:
            raise unknown("vocabulary", str(config.vocabulary), VOCABULARIES)
        return TensorDataset(torch.from_numpy(pictures), targets)

    return of("train", range(images)), of("test", held_out)
