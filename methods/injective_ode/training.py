"""Training of the injective ODE: conditional regression of its velocity, with condition dropout.

Loss: E |F(z_t, t; y) - v|^2 with z_t = cos t x + sin t eps, v = cos t eps - sin t x (equivalent to the loss on eps, see
field.py), over images, measurements and `draws` of (t, eps) an image that share its conditioner, plus
`mean_weight` |mu - x|^2, the flow's own answer at k = 0. Times are those of `methods.training`.

`likelihood_weight` adds the likelihood of N(mu, diag c), the flow at k = 0, fitted so that easy measurements count as
much as hard ones: |mu - x|^2 over an image's mean variance, and (r^2 / c + log c) / 2 of the residuals r for c, neither
with a gradient for the other's part. Both are proper: their minimum is the conditional mean and variance, since the
weights depend on the condition alone (a pixel's own 1 / c as its weight starves the uncertain ones: Seitzer et al.,
ICLR 2022).

The regulariser penalises how steep the learned part g = k N of the field is in the gauge (proposal, section 2.6), on
average and at the points of training: it bounds nothing. `pairs` takes |g(u + p) - g(u)|^2 / |p|^2 for p ~ N(0, I), the
slope between points as far apart as two draws of u; `jacobian` takes |J p|^2 / |p|^2, of mean |J|_F^2 / D over p.
`python -m bench.regularisers` measures their noise and cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.injective_ode.field import Features, InjectiveField
from methods.training import Optimisation, Training, rectified_times

Regulariser = Literal["none", "pairs", "jacobian"]


@dataclass(frozen=True)
class Observation:
    """What a batch is trained on: data [B, C, H, W], y the same, known [B, 1, H, W], kind int [B] of `KINDS`."""

    data: Tensor
    y: Tensor
    known: Tensor
    kind: Tensor


Observe = Callable[[Tensor, torch.Generator], Observation]
"""Images in [-1, 1] -> what is observed of them. The corruptions belong to the caller."""


@dataclass(frozen=True)
class Points:
    """Where the field is regressed: data [B, C, H, W] and their conditions; for each of their draws the condition,
    angle t [B'], z and v [B', C, H, W]."""

    data: Tensor
    told: Features
    features: Features
    t: Tensor
    z: Tensor
    v: Tensor


class InjectiveTraining(Training):
    """Batches are (images uint8 [B, C, H, W], caption tokens [B, slots])."""

    def __init__(
        self,
        network: InjectiveField,
        optimisation: Optimisation,
        observe: Observe,
        draws: int = 4,
        caption_dropout: float = 0.3,
        mean_weight: float = 0.1,
        likelihood_weight: float = 0.0,
        regulariser: Regulariser = "none",
        regulariser_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimisation, seed)
        self.network = network
        self.observe = observe
        self.draws, self.caption_dropout = draws, caption_dropout
        self.mean_weight, self.likelihood_weight = mean_weight, likelihood_weight
        self.regulariser, self.regulariser_weight = regulariser, regulariser_weight

    def draw(self, images: Tensor, tokens: Tensor, rng: torch.Generator, dropout: float = 0.0) -> Points:
        """`draws` points of the path for each image [B, C, H, W], with the conditions that they are met under."""
        seen = self.observe(images, rng)
        drop = torch.rand(len(images), generator=rng, device=images.device) < dropout
        null = torch.as_tensor(self.network.vocabulary.tokens(""), device=images.device)
        told = self.network.describe(torch.where(drop[:, None], null, tokens), seen.y, seen.known, seen.kind)
        data = seen.data.repeat(self.draws, 1, 1, 1)
        s = rectified_times(len(data), rng, images.device)
        t = torch.atan2(s, 1 - s)
        noise = torch.randn(data.shape, generator=rng, device=images.device)
        cos, sin = t.cos()[:, None, None, None], t.sin()[:, None, None, None]
        return Points(seen.data, told, told.repeat(self.draws), t, cos * data + sin * noise, cos * noise - sin * data)

    def loss(self, images: Tensor, targets: Tensor, rng: torch.Generator, training: bool) -> Tensor:
        """Of a batch; the held-out loss is the regression alone, with all captions."""
        at = self.draw(images, targets, rng, self.caption_dropout * training)
        loss = (self.network.velocity(at.z, at.t, at.features) - at.v).square().mean()
        if not training:
            return loss
        loss = loss + self.mean_weight * (at.told.mean - at.data).square().mean()
        if self.likelihood_weight:
            loss = loss + self.likelihood_weight * negative_likelihood(at.told, at.data)
        if self.regulariser_weight:
            u = self.network.to_gauge(at.z, at.t, at.features).detach()
            loss = loss + self.regulariser_weight * self.penalty(u, at.t, at.features, rng).mean()
        return loss

    def penalty(self, u: Tensor, t: Tensor, features: Features, rng: torch.Generator) -> Tensor:
        """The regulariser's estimate [B] at each gauge point u [B, C, H, W] and angle t [B]."""
        step = torch.randn(u.shape, generator=rng, device=u.device)
        if self.regulariser == "jacobian":
            change = torch.func.jvp(lambda u: self.network.gauge_velocity(u, t, features), (u,), (step,))[1]
        else:  # pairs: u is about white under every condition, so that another draw of it is about as far as u itself
            first = self.network.gauge_velocity(u, t, features)
            change = self.network.gauge_velocity(u + step, t, features) - first
        return change.square().flatten(1).sum(1) / step.square().flatten(1).sum(1)


def negative_likelihood(told: Features, data: Tensor) -> Tensor:
    """Of data [B, C, H, W] under N(mean, diag variance), a scalar; see above for what has a gradient where."""
    residuals = (told.mean - data).square()
    hardness = told.variance.detach().flatten(1).mean(1)
    fit = (residuals.flatten(1).mean(1) / hardness).mean()
    return fit + (residuals.detach() / told.variance + told.variance.log()).mean() / 2
