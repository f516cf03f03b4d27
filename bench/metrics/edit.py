"""Metrics of an edit: is the requested change present, and is the rest of the image unchanged?

`outside_*` and `inside_*` average over the pixels of their region only. Outside the mask the output is compared with
the image that was edited; inside it is compared with the counterfactual, if one is known. `pie_*` are PIE-Bench's
metrics (Ju et al. 2024, its evaluation code): both images are black inside the mask and are compared over the full
frame. So every black pixel counts as equal, and a larger mask gives a better score. PIE-Bench's masks always contain
the image's border.

`verdict` and `kept` use the scene classifier. `verdict` is 1 if every attribute that differs between the two captions
is as in the target caption. `kept` is 1 if every other attribute is as in both captions. A table shows the share of
ones.

`clip` is 100 times the cosine between the embeddings of the image and of the target caption. `pie_clip` is the same
for the image with black pixels outside the mask.
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
    """Return the mean squared error [B] over the pixels of a region, bool [B, 1, H, W]; nan for an empty region."""
    error = (x.clamp(0, 1).double() - truth.clamp(0, 1).double()).square().mean(1, keepdim=True)
    return _mean(error, region)


def _mean(values: Tensor, region: Tensor) -> Tensor:
    return torch.where(region, values, 0.0).flatten(1).sum(1) / region.flatten(1).sum(1)


def region_psnr(x: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Return the PSNR in dB [B] over the pixels of a region."""
    return decibels(region_mse(x, truth, region))


def region_ssim(x: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Return the mean of the SSIM map [B] over the pixels of a region. Windows that cross its border are included."""
    return _mean(ssim_map(x, truth).mean(1, keepdim=True), region)


def pie_mask(mask: Tensor) -> Tensor:
    """Return PIE-Bench's mask: the given mask and the image's border."""
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
    """A comparison with the image that was edited, over the full frame. Both are black inside the mask."""

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
    """Return the shipped attribute classifier, frozen and in evaluation mode."""
    from safetensors.torch import load_file

    from methods.backbones.attributes import AttributeClassifier

    network = AttributeClassifier()
    network.load_state_dict(load_file(weights.JUDGE.path))
    return network.eval().requires_grad_(False)


def _attributes(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attributes (in the output, in the source caption, in the target caption): bool [B, attributes].

    The classifier gets one image at a time, so that the batch does not change its result.
    """
    from methods.backbones.attributes import HEADS, attributes

    stated = [
        torch.stack([torch.cat([attributes(caption)[head] for head in HEADS]) for caption in captions]).bool()
        for captions in (batch.source, batch.target)
    ]
    images = batch.output.clamp(0, 1).float() * 2 - 1
    logits = [torch.cat(list(judge()(image[None].cpu()).values()), dim=1) for image in images]
    return torch.cat(logits) > 0, stated[0], stated[1]


def verdict(batch: Batch) -> Tensor:
    """Return 1 where every attribute that the edit changes is as in the target caption, else 0: [B].

    It is nan where both captions have the same attributes (one of two red circles is removed), because the classifier
    does not count objects.
    """
    present, source, target = _attributes(batch)
    unchanged = source == target
    return torch.where(unchanged.all(1), torch.nan, ((present == target) | unchanged).all(1).double())


def kept(batch: Batch) -> Tensor:
    """Return 1 where every attribute that the edit does not change is unchanged, else 0: [B]."""
    present, source, target = _attributes(batch)
    return ((present == source) | (source != target)).all(1).double()


# --- CLIP --------------------------------------------------------------------------------------------------------


@cache
def _clip(folder: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder, use_safetensors=True)
    return model.eval().requires_grad_(False), CLIPProcessor.from_pretrained(folder)


def clip_similarity(images: Tensor, captions: Sequence[str]) -> Tensor:
    """Return 100 times the cosine of image and caption [B] (Hessel et al. 2021, unscaled and not clipped at 0)."""
    network, processor = _clip(str(hub.snapshot(weights.CLIP.name)))
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    inputs = processor(
        images=list(pixels.cpu()), text=list(captions), return_tensors="pt", padding=True, truncation=True
    )
    outputs = network(**inputs)
    cosine = (outputs.image_embeds * outputs.text_embeds).sum(1)
    return 100 * (cosine / outputs.image_embeds.norm(dim=1) / outputs.text_embeds.norm(dim=1)).double()


def clip(batch: Batch) -> Tensor:
    """Return the CLIP similarity of the output and the target caption [B]."""
    return clip_similarity(batch.output, batch.target)


def pie_clip(batch: Batch) -> Tensor:
    """Return the CLIP similarity of the output inside the mask and the target caption [B]."""
    return clip_similarity(batch.output * pie_mask(batch.region), batch.target)
