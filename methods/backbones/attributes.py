"""An attribute classifier for scenes. It judges generated images and edits, and extracts features.

For every colour, shape, (colour, shape) pair, pattern, tone and letter it predicts if the image has it. It is trained
on clean renderings with noise, blur and contrast changes, so that it also works on imperfect images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones.captions import COLOR_WORDS, LETTER_WORDS, PATTERN_WORDS, SHAPE_WORDS, TONE_WORDS, VOCABULARIES

PAIRS = tuple((color, shape) for color in COLOR_WORDS for shape in SHAPE_WORDS)
HEADS: dict[str, tuple[object, ...]] = {
    "color": COLOR_WORDS,
    "shape": SHAPE_WORDS,
    "pair": PAIRS,
    "pattern": PATTERN_WORDS,
    "tone": TONE_WORDS,
    "letter": LETTER_WORDS,
}


def attributes(caption: str) -> dict[str, Tensor]:
    """Return the attributes in a caption: head -> float [classes] of zeros and ones."""
    match = VOCABULARIES["scenes"].pattern.fullmatch(caption)
    if match is None:
        raise ValueError(f"not a caption of a scene: {caption!r}")
    color1, shape1, color2, shape2, pattern, tone, letter = match.groups()
    stated: dict[str, set[object]] = {
        "color": {color1, color2},
        "shape": {shape1, shape2},
        "pair": {(color1, shape1), (color2, shape2)},
        "pattern": {pattern},
        "tone": {tone},
        "letter": {letter},
    }
    return {head: torch.tensor([float(c in stated[head]) for c in classes]) for head, classes in HEADS.items()}


class AttributeClassifier(nn.Module):
    """The classifier: images [B, 3, 32, 32] in [-1, 1] -> logits of every attribute; a positive logit means present."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        widths = (width, width, 2 * width, 2 * width, 4 * width)
        strides = (2, 1, 2, 1, 2)
        layers: list[nn.Module] = []
        before = 3
        for after, stride in zip(widths, strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(2 * before, 128), nn.SiLU())
        self.logits = nn.Linear(128, sum(len(classes) for classes in HEADS.values()))

    def features(self, x: Tensor) -> Tensor:
        """Return the features before the logits, [B, 128]."""
        maps = self.body(x).flatten(2)
        return self.head(torch.cat([maps.mean(2), maps.amax(2)], dim=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the logits: head -> [B, classes]."""
        parts = self.logits(self.features(x)).split([len(classes) for classes in HEADS.values()], dim=1)
        return dict(zip(HEADS, parts, strict=True))

    def loss(self, x: Tensor, truth: dict[str, Tensor]) -> Tensor:
        """Return the mean binary cross-entropy; every head has the same weight."""
        logits = self(x)
        return torch.stack([F.binary_cross_entropy_with_logits(logits[h], truth[h]) for h in HEADS]).mean()


@torch.no_grad()
def agreement(judge: AttributeClassifier, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Return for each head the share of images [B, 3, 32, 32] that have all attributes in their captions.

    For pattern, tone and letter, where only one can be right, the image must also have no other.
    """
    logits = judge(images)
    truth = [attributes(caption) for caption in captions]
    result = {}
    for head in HEADS:
        stated = torch.stack([t[head] for t in truth]).bool()
        present = logits[head] > 0
        right = (present | ~stated).all(1) if head in ("color", "shape", "pair") else (present == stated).all(1)
        result[head] = right.float().mean().item()
    return result
