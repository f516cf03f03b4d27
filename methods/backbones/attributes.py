"""An attribute classifier for scenes: the judge of generated images and edits, and a feature extractor.

It answers for every colour, shape, (colour, shape) pair, pattern, tone and letter whether the image carries it. It is
trained on clean renderings with noise, blur and colour jitter, so that it judges imperfect images as a person would.
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
    """The truth that a caption states: head -> float [classes] of zeros and ones."""
    match = VOCABULARIES["scenes"].pattern.fullmatch(caption)
    if match is None:
        raise ValueError(f"not a scene's caption: {caption!r}")
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
    """Images [B, 3, 32, 32] in [-1, 1] -> logits of every attribute; sigmoid above one half means present."""

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
        """[B, 128]: the features before the logits."""
        maps = self.body(x).flatten(2)
        return self.head(torch.cat([maps.mean(2), maps.amax(2)], dim=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Head -> logits [B, classes]."""
        parts = self.logits(self.features(x)).split([len(classes) for classes in HEADS.values()], dim=1)
        return dict(zip(HEADS, parts, strict=True))

    def loss(self, x: Tensor, truth: dict[str, Tensor]) -> Tensor:
        """Mean binary cross-entropy over all attributes, each head weighing the same."""
        logits = self(x)
        return torch.stack([F.binary_cross_entropy_with_logits(logits[h], truth[h]) for h in HEADS]).mean()


@torch.no_grad()
def agreement(judge: AttributeClassifier, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Share of images [B, 3, 32, 32] that carry all that their captions ask, by head; without extra attributes for
    pattern, tone and letter, where only one can be."""
    logits = judge(images)
    truth = [attributes(caption) for caption in captions]
    result = {}
    for head in HEADS:
        asked = torch.stack([t[head] for t in truth]).bool()
        present = logits[head] > 0
        right = (present | ~asked).all(1) if head in ("color", "shape", "pair") else (present == asked).all(1)
        result[head] = right.float().mean().item()
    return result
