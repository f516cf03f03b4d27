"""Features of single images, for distances between sets of images (`reports.distances`).

Extractors are torch-fidelity's: Inception's pool (2048 features, for FID and KID), and the shipped scene classifier,
registered there as `scenes-judge` (128 features, for FD-scenes and KD-scenes). Both get images rounded to 8 bits, as in
a file, and one at a time, so that the batch does not change a feature.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from bench import weights
from bench.metrics.edit import judge


class SceneFeatures(FeatureExtractorBase):
    """The attribute classifier's last hidden layer as torch-fidelity's extractor: uint8 [B, 3, 32, 32] -> [B, 128]."""

    NAME = "scenes-judge"

    def __init__(self, name: str = NAME, features_list: tuple[str, ...] = ("128",), **kwargs: Any) -> None:
        super().__init__(name, list(features_list))
        self.judge = judge()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("128",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "128"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros([1, 3, 32, 32], dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.judge.features(images.float() / 127.5 - 1),)


register_feature_extractor(SceneFeatures.NAME, SceneFeatures)


@cache
def extractor(name: str) -> FeatureExtractorBase:
    """Return the extractor `inception` or `scenes`, on the CPU."""
    if name == "scenes":
        return SceneFeatures()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = str(weights.INCEPTION.path)
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)


@torch.no_grad()
def features(name: str, images: Tensor) -> np.ndarray:
    """Return the features of images [B, C, H, W] in [0, 1]: float32 [B, D], nan where an image is not finite."""
    network = extractor(name)
    finite = images.flatten(1).isfinite().all(1)
    pixels = (images.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    found = torch.cat([network(image[None])[0].float().flatten(1) for image in pixels.cpu()])
    return torch.where(finite[:, None].cpu(), found, torch.nan).numpy()
