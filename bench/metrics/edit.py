"""Metrics of an edit: is what was asked there, and is the rest as it was?

`outside_*` and `inside_*` average over the pixels of their region alone: outside the mask against the image that was
edited, inside against the counterfactual, where one is known. `pie_*` are PIE-Bench's own (Ju et al. 2024, its
evaluation code): both images are blackened inside the mask and compared over the full frame, so every black pixel
counts as agreement and a larger mask scores better; its masks always hold the image's border.

`verdict` and `kept` are the scene classifier's: every attribute that differs between the two captions is as the
target's says, and every other one is as both say. They are 0 or 1 an image, and a table's is the share.

`clip` is 100 times the cosine of the image's and the target caption's embeddings; `pie_clip` that of the image with
everything outside the mask black.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench import hub, metrics
from bench.metrics.image import compare, decibels, ssim_map


@dataclass(frozen=True)
class Edited:
    """A batch: images [B, C, H, W] in [0, 1] (truth is nan where no counterfactual is known), mask bool [B, 1, H, W],
    the captions of the image that was edited and of what was asked."""

    output: Tensor
    image: Tensor
    truth: Tensor
    mask: Tensor
    source: list[str]
    target: list[str]


def region_mse(x: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Mean squared error [B] over the pixels of a region, bool [B, 1, H, W]; nan where it has none."""
    error = (x.clamp(0, 1).double() - truth.clamp(0, 1).double()).square().mean(1, keepdim=True)
    return _mean(error, region)


def _mean(values: Tensor, region: Tensor) -> Tensor:
    return torch.where(region, values, 0.0).flatten(1).sum(1) / region.flatten(1).sum(1)


def region_ssim(x: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Mean of the similarity map [B] over the pixels of a region; windows that reach across its border count."""
    return _mean(ssim_map(x, truth).mean(1, keepdim=True), region)


def pie_mask(mask: Tensor) -> Tensor:
    """PIE-Bench's mask: the image's border belongs to it."""
    mask = mask.clone()
    mask[..., 0, :] = mask[..., -1, :] = mask[..., :, 0] = mask[..., :, -1] = True
    return mask


def _pie(name: str) -> Callable[[Edited], Tensor]:
    def masked(e: Edited) -> Tensor:
        keep = ~pie_mask(e.mask)
        return compare(name, e.output.clamp(0, 1) * keep, e.image.clamp(0, 1) * keep)

    return masked


# --- the scene classifier --------------------------------------------------------------------------------------------


@cache
def judge() -> Any:
    """The shipped attribute classifier, ready for use."""
    from safetensors.torch import load_file

    from methods.backbones.attributes import AttributeClassifier

    network = AttributeClassifier()
    network.load_state_dict(load_file(metrics.JUDGE.path))
    return network.eval().requires_grad_(False)


def _attributes(e: Edited) -> tuple[Tensor, Tensor, Tensor]:
    """(present, source's, target's): bool [B, attributes]. Images are judged one by one: a batch changes nothing."""
    from methods.backbones.attributes import HEADS, attributes

    stated = [
        torch.stack([torch.cat([attributes(caption)[head] for head in HEADS]) for caption in captions]).bool()
        for captions in (e.source, e.target)
    ]
    images = e.output.clamp(0, 1).float() * 2 - 1
    logits = [torch.cat(list(judge()(image[None].cpu()).values()), dim=1) for image in images]
    return torch.cat(logits) > 0, stated[0], stated[1]


def verdict(e: Edited) -> Tensor:
    """1 where every attribute that the edit changes is as asked, else 0: [B]; nan where the captions state the same
    attributes (one of two red circles removed), since the classifier does not count."""
    present, source, target = _attributes(e)
    unchanged = source == target
    return torch.where(unchanged.all(1), torch.nan, ((present == target) | unchanged).all(1).double())


def kept(e: Edited) -> Tensor:
    """1 where every attribute that the edit does not change is as it was, else 0: [B]."""
    present, source, target = _attributes(e)
    return ((present == source) | (source != target)).all(1).double()


# --- CLIP --------------------------------------------------------------------------------------------------------


@cache
def _clip(folder: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder, use_safetensors=True)
    return model.eval().requires_grad_(False), CLIPProcessor.from_pretrained(folder)


def clip_similarity(images: Tensor, captions: list[str]) -> Tensor:
    """100 times the cosine between image and caption [B] (Hessel et al. 2021, unscaled and not clipped at 0)."""
    network, processor = _clip(str(hub.snapshot(metrics.CLIP.name)))
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    seen = processor(images=list(pixels.cpu()), text=captions, return_tensors="pt", padding=True, truncation=True)
    outputs = network(**seen)
    cosine = (outputs.image_embeds * outputs.text_embeds).sum(1)
    return 100 * (cosine / outputs.image_embeds.norm(dim=1) / outputs.text_embeds.norm(dim=1)).double()


FUNCTIONS: dict[str, Callable[[Edited], Tensor]] = {
    "outside_psnr": lambda e: decibels(region_mse(e.output, e.image, ~e.mask)),
    "outside_ssim": lambda e: region_ssim(e.output, e.image, ~e.mask),
    "outside_mse": lambda e: region_mse(e.output, e.image, ~e.mask),
    "inside_psnr": lambda e: decibels(region_mse(e.output, e.truth, e.mask)),
    "inside_mse": lambda e: region_mse(e.output, e.truth, e.mask),
    "pie_psnr": _pie("psnr"),
    "pie_ssim": _pie("ssim"),
    "pie_mse": _pie("mse"),
    "pie_lpips": _pie("lpips_squeeze"),
    "verdict": verdict,
    "kept": kept,
    "clip": lambda e: clip_similarity(e.output, e.target),
    "pie_clip": lambda e: clip_similarity(e.output * pie_mask(e.mask), e.target),
}


@torch.no_grad()
def score_edits(names: tuple[str, ...], e: Edited) -> dict[str, list[float | None]]:
    """Every named metric of this file for every image; None where it is not finite or its region has no pixels."""
    finite = e.output.flatten(1).isfinite().all(1).tolist()
    safe = Edited(e.output.nan_to_num(0.0), e.image, e.truth, e.mask, e.source, e.target)
    return {
        name: [v if ok and v == v else None for v, ok in zip(FUNCTIONS[name](safe).tolist(), finite, strict=True)]
        for name in names
        if name in FUNCTIONS
    }
