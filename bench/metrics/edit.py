"""Metrics of an edit: is what was asked there, and is the rest as it was?

`outside_*` and `inside_*` average over the pixels of their region alone: outside the mask against the image that was
edited, inside against the counterfactual, where one is known. `pie_*` are PIE-Bench's own (Ju et al. 2024, its
evaluation code): both images are blackened inside the mask and compared over the full frame, so every black pixel
counts as agreement and a larger mask scores better; its masks always hold the image's border.

`verdict` and `kept` are the scene classifier's: every attribute that differs between the two captions is as the
target's says, and every other one is as both say. They are 0 or 1 for each image; a table shows the share of ones.

`clip` is 100 times the cosine of the image's and the target caption's embeddings; `pie_clip` that of the image with
everything outside the mask black.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bench import hub, weights
from bench.metrics.image import decibels, lpips, mse, psnr, ssim, ssim_map
from bench.metrics.scoring import Batch


def region_mse(x: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Mean squared error [B] over the pixels of a region, bool [B, 1, H, W]; nan where it has none."""
    error = (x.clamp(0, 1).double() - truth.clamp(0, 1).double()).square().mean(1, keepdim=True)
    return _mean(error, region)


def _mean(values: Tensor, region: Tensor) -> Tensor:
    return torch.where(region, values, 0.0).flatten(1).sum(1) / region.flatten(1).sum(1)


def region_psnr(x: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """PSNR in dB [B] over the pixels of a region."""
    return decibels(region_mse(x, truth, region))


def region_ssim(x: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Mean of the similarity map [B] over the pixels of a region; windows that reach across its border count."""
    return _mean(ssim_map(x, truth).mean(1, keepdim=True), region)


def pie_mask(mask: Tensor) -> Tensor:
    """PIE-Bench's mask: the image's border belongs to it."""
    mask = mask.clone()
    mask[..., 0, :] = mask[..., -1, :] = mask[..., :, 0] = mask[..., :, -1] = True
    return mask


class Outside:
    """A comparison with the image that was edited, over the pixels outside the mask."""

    def __init__(self, compare: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self.compare = compare

    def __call__(self, batch: Batch) -> Tensor:
        return self.compare(batch.output, batch.given, ~batch.region)


class Inside(Outside):
    """A comparison with the counterfactual, over the pixels inside the mask."""

    def __call__(self, batch: Batch) -> Tensor:
        return self.compare(batch.output, batch.truth, batch.region)


class Blackened:
    """A comparison with the image that was edited over the full frame, both black inside the mask."""

    def __init__(self, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.compare = compare

    def __call__(self, batch: Batch) -> Tensor:
        keep = ~pie_mask(batch.region)
        return self.compare(batch.output.clamp(0, 1) * keep, batch.given.clamp(0, 1) * keep)


OUTSIDE_PSNR, OUTSIDE_SSIM, OUTSIDE_MSE = Outside(region_psnr), Outside(region_ssim), Outside(region_mse)
INSIDE_PSNR, INSIDE_MSE = Inside(region_psnr), Inside(region_mse)
PIE_PSNR, PIE_SSIM, PIE_MSE = Blackened(psnr), Blackened(ssim), Blackened(mse)
PIE_LPIPS = Blackened(partial(lpips, backbone="squeeze"))


# --- the scene classifier --------------------------------------------------------------------------------------------


@cache
def judge() -> Any:
    """The shipped attribute classifier, ready for use."""
    from safetensors.torch import load_file

    from methods.backbones.attributes import AttributeClassifier

    network = AttributeClassifier()
    network.load_state_dict(load_file(weights.JUDGE.path))
    return network.eval().requires_grad_(False)


def _attributes(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(present, source's, target's): bool [B, attributes]. Images are judged one by one: a batch changes nothing."""
    from methods.backbones.attributes import HEADS, attributes

    stated = [
        torch.stack([torch.cat([attributes(caption)[head] for head in HEADS]) for caption in captions]).bool()
        for captions in (batch.source, batch.target)
    ]
    images = batch.output.clamp(0, 1).float() * 2 - 1
    logits = [torch.cat(list(judge()(image[None].cpu()).values()), dim=1) for image in images]
    return torch.cat(logits) > 0, stated[0], stated[1]


def verdict(batch: Batch) -> Tensor:
    """1 where every attribute that the edit changes is as asked, else 0: [B]; nan where the captions state the same
    attributes (one of two red circles removed), since the classifier does not count."""
    present, source, target = _attributes(batch)
    unchanged = source == target
    return torch.where(unchanged.all(1), torch.nan, ((present == target) | unchanged).all(1).double())


def kept(batch: Batch) -> Tensor:
    """1 where every attribute that the edit does not change is as it was, else 0: [B]."""
    present, source, target = _attributes(batch)
    return ((present == source) | (source != target)).all(1).double()


# --- CLIP --------------------------------------------------------------------------------------------------------


@cache
def _clip(folder: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder, use_safetensors=True)
    return model.eval().requires_grad_(False), CLIPProcessor.from_pretrained(folder)


def clip_similarity(images: Tensor, captions: Sequence[str]) -> Tensor:
    """100 times the cosine between image and caption [B] (Hessel et al. 2021, unscaled and not clipped at 0)."""
    network, processor = _clip(str(hub.snapshot(weights.CLIP.name)))
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    seen = processor(images=list(pixels.cpu()), text=list(captions), return_tensors="pt", padding=True, truncation=True)
    outputs = network(**seen)
    cosine = (outputs.image_embeds * outputs.text_embeds).sum(1)
    return 100 * (cosine / outputs.image_embeds.norm(dim=1) / outputs.text_embeds.norm(dim=1)).double()


def clip(batch: Batch) -> Tensor:
    """CLIP similarity of the output and the target caption [B]."""
    return clip_similarity(batch.output, batch.target)


def pie_clip(batch: Batch) -> Tensor:
    """CLIP similarity of the output inside the mask and the target caption [B]."""
    return clip_similarity(batch.output * pie_mask(batch.region), batch.target)
