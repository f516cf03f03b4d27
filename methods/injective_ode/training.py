"""Training of the injective ODE: conditional regression of its velocity, with condition dropout.

Loss: E |F(z_t, t; y) - v|^2 with z_t = cos t x + sin t eps, v = cos t eps - sin t x. It is equivalent to the loss on
eps (field.py). The mean is over images, measurements and `draws` pairs (t, eps) per image, which share one pass of the
conditioner. Times are those of `methods.training`. Further terms:

`mean_weight` adds |mu - x|^2, the error of the flow at k = 0.

`likelihood_weight` adds the negative log-likelihood under N(mu, diag c), the flow at k = 0, such that easy measurements
count as much as hard ones. mu is fitted by |mu - x|^2 divided by the image's mean variance, c by (r^2 / c + log c) / 2
of the residuals r. Neither part has a gradient for the other's parameters. Both are proper: the weights depend on the
condition alone, so the minimum is the conditional mean and variance. (With each pixel's own 1 / c as its weight,
uncertain pixels are hardly fitted: Seitzer et al., ICLR 2022.)

`regulariser` penalises how steep the learned part g = k N of the field is in the gauge (proposal, section 2.6). It acts
on average and at the points of training, so it bounds nothing. `pairs` is |g(u + p) - g(u)|^2 / |p|^2 for p ~ N(0, I):
the slope between points as far apart as two draws of u. `jacobian` is |J p|^2 / |p|^2, whose mean over p is |J|_F^2 /
D.
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
    """A training batch: data [B, C, H, W], y [B, C, H, W], known [B, 1, H, W], kind int [B] (index of `KINDS`)."""

    data: Tensor
    y: Tensor
    known: Tensor
    kind: Tensor


Observe = Callable[[Tensor, torch.Generator], Observation]
"""A function from images in [-1, 1] to their observation. The caller supplies it, with its corruptions."""


@dataclass(frozen=True)
class Points:
    """The points of a batch at which the field is regressed.

    data [B, C, H, W] and `condition` have one entry per image; features, t [B'], z and v [B', C, H, W] one per draw.
    """

    data: Tensor
    condition: Features
    features: Features
    t: Tensor
    z: Tensor
    v: Tensor


class InjectiveTraining(Training):
    """The training module. Batches are (images uint8 [B, C, H, W], caption tokens [B, slots])."""

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
        """Return `draws` points of the path per image [B, C, H, W], with their conditions."""
        seen = self.observe(images, rng)
        drop = torch.rand(len(images), generator=rng, device=images.device) < dropout
        null = torch.as_tensor(self.network.vocabulary.tokens(""), device=images.device)
        condition = self.network.describe(torch.where(drop[:, None], null, tokens), seen.y, seen.known, seen.kind)
        data = seen.data.repeat(self.draws, 1, 1, 1)
        s = rectified_times(len(data), rng, images.device)
        t = torch.atan2(s, 1 - s)
        noise = torch.randn(data.shape, generator=rng, device=images.device)
        cos, sin = t.cos()[:, None, None, None], t.sin()[:, None, None, None]
        z, v = cos * data + sin * noise, cos * noise - sin * data
        return Points(seen.data, condition, condition.repeat(self.draws), t, z, v)

    def loss(self, images: Tensor, targets: Tensor, rng: torch.Generator, training: bool) -> Tensor:
        """Return the loss of a batch, a scalar. The held-out loss is the regression alone, without caption dropout."""
        at = self.draw(images, targets, rng, self.caption_dropout * training)
        loss = (self.network.velocity(at.z, at.t, at.features) - at.v).square().mean()
        if not training:
            return loss
        loss = loss + self.mean_weight * (at.condition.mean - at.data).square().mean()
        if self.likelihood_weight:
            loss = loss + self.likelihood_weight * negative_likelihood(at.condition, at.data)
        if self.regulariser_weight:
            u = self.network.to_gauge(at.z, at.t, at.features).detach()
            loss = loss + self.regulariser_weight * self.penalty(u, at.t, at.features, rng).mean()
        return loss

    def penalty(self, u: Tensor, t: Tensor, features: Features, rng: torch.Generator) -> Tensor:
        """Return the regulariser's estimate [B] at each gauge point u [B, C, H, W] and angle t [B]."""
        step = torch.randn(u.shape, generator=rng, device=u.device)
        if self.regulariser == "jacobian":
            change = torch.func.jvp(lambda u: self.network.gauge_velocity(u, t, features), (u,), (step,))[1]
        else:  # pairs: u is about white under every condition, so p ~ N(0, I) has the size of a typical difference
            first = self.network.gauge_velocity(u, t, features)
            change = self.network.gauge_velocity(u + step, t, features) - first
        return change.square().flatten(1).sum(1) / step.square().flatten(1).sum(1)


def negative_likelihood(condition: Features, data: Tensor) -> Tensor:
    """Return the likelihood term of the loss, a scalar, for data [B, C, H, W] under N(mean, diag variance)."""
    residuals = (condition.mean - data).square()
    hardness = condition.variance.detach().flatten(1).mean(1)
    fit = (residuals.flatten(1).mean(1) / hardness).mean()
    return fit + (residuals.detach() / condition.variance + condition.variance.log()).mean() / 2
