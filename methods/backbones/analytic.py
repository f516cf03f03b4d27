"""A Gaussian mixture whose noise prediction is known exactly on any path: the exact denoiser of the theory checks.

x0 ~ sum_k pi_k(c) N(mu_k, var I). At x = alpha x0 + sigma eps, with v = alpha^2 var + sigma^2 and d_k = x - alpha mu_k:

    w_k = softmax_k(-|d_k|^2 / 2v + 3 c linspace(-1, 1, K)_k)         E[eps | x] = sigma sum_k w_k d_k / v

The condition is one number c: +1 for the caption `src`, -1 for `tgt`, 0 for the empty caption. `wiggle` adds
wiggle sin(3 x + t / 100), which makes the field as rough as that of a network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.backbones.means import VARIANCE, mixture_means
from methods.paths import Direction, Path

CAPTIONS = {"": 0.0, "src": 1.0, "tgt": -1.0}


class GaussianMixture(nn.Module):
    """The exact denoiser of a mixture with means mu [K, D] float64, D = C * H * W.

    It predicts the direction of its path: eps, or velocity = eps - x0. The velocity takes
    E[x0 | x] = sum_k w_k (mu_k + alpha var d_k / v), which is finite at alpha = 0, where x0 does not follow from eps.
    """

    mu: Tensor

    def __init__(self, mu: Tensor, variance: float, path: Path, wiggle: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mu", mu.double())
        self.variance, self.path, self.wiggle = variance, path, wiggle

    @property
    def prediction(self) -> Direction:
        return self.path.direction

    def encode(self, captions: list[str]) -> Tensor:
        """Return c, float64 [B, 1, 1]. Raises ValueError for a caption other than src, tgt and the empty one."""
        for caption in captions:
            if caption not in CAPTIONS:
                raise ValueError(f"caption must be src, tgt or empty, got {caption!r}")
        return torch.tensor([CAPTIONS[caption] for caption in captions], dtype=torch.float64)[:, None, None]

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        alpha, sigma = (c.to(torch.float64)[:, None] for c in self.path.coefficients(t))
        flat = x.double().flatten(1)
        v = alpha**2 * self.variance + sigma**2
        d = flat[:, None] - alpha[:, :, None] * self.mu
        tilt = 3 * embedding.flatten(1) * torch.linspace(-1, 1, len(self.mu), dtype=torch.float64)
        w = torch.softmax(-d.square().sum(2) / (2 * v) + tilt, dim=1)
        pull = (w[:, :, None] * d).sum(1) / v
        answer = sigma * pull
        if self.wiggle:
            answer = answer + self.wiggle * torch.sin(3 * flat + t.double()[:, None] / 100)
        if self.prediction == "velocity":
            answer = answer - w @ self.mu - alpha * self.variance * pull
        return answer.reshape(x.shape).to(x.dtype)


class SmallMixture(GaussianMixture):
    """The mixture behind `model=gmm` and `dataset=mixture`: four smooth 3x8x8 images with a little noise."""

    def __init__(self, path: Path) -> None:
        super().__init__(torch.from_numpy(mixture_means()), VARIANCE, path)
