"""Training of the injective ODE: conditional regression of its velocity, with condition dropout.

Loss: E |F(z_t, t; y) - v|^2 with z_t = cos t x + sin t eps, v = cos t eps - sin t x (equivalent to the loss on eps, see
field.py), over images, measurements and `draws` of (t, eps) an image that share its conditioner, plus
`mean_weight` |mu - x|^2, the flow's own answer at k = 0. Times are those of `methods.training`.

The regulariser bounds the learned part g = k N of the field in the gauge (proposal, section 2.6), by paired differences
|g(u1) - g(u2)|^2 / |u1 - u2|^2 of two draws at one time, or by a random probe of the Jacobian, |J p|^2 / |p|^2.
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
        regulariser: Regulariser = "none",
        regulariser_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimisation, seed)
        self.network = network
        self.observe = observe
        self.draws, self.caption_dropout, self.mean_weight = draws, caption_dropout, mean_weight
        self.regulariser, self.regulariser_weight = regulariser, regulariser_weight

    def loss(self, images: Tensor, targets: Tensor, rng: torch.Generator, training: bool) -> Tensor:
        """Of a batch; the held-out loss is the regression alone, with all captions."""
        seen = self.observe(images, rng)
        drop = torch.rand(len(images), generator=rng, device=images.device) < self.caption_dropout * training
        null = torch.as_tensor(self.network.vocabulary.tokens(""), device=images.device)
        tokens = torch.where(drop[:, None], null, targets)
        told = self.network.describe(tokens, seen.y, seen.known, seen.kind)
        features = told.repeat(self.draws)
        data = seen.data.repeat(self.draws, 1, 1, 1)
        s = rectified_times(len(data), rng, images.device)
        t = torch.atan2(s, 1 - s)
        noise = torch.randn(data.shape, generator=rng, device=images.device)
        cos, sin = t.cos()[:, None, None, None], t.sin()[:, None, None, None]
        z = cos * data + sin * noise
        loss = (self.network.velocity(z, t, features) - (cos * noise - sin * data)).square().mean()
        if not training:
            return loss
        loss = loss + self.mean_weight * (told.mean - seen.data).square().mean()
        if self.regulariser_weight:
            u = self.network.to_gauge(z, t, features).detach()
            loss = loss + self.regulariser_weight * self.penalty(u, t, features, rng)
        return loss

    def penalty(self, u: Tensor, t: Tensor, features: Features, rng: torch.Generator) -> Tensor:
        """The regulariser's estimate at gauge points u [B, C, H, W] and angles t [B], averaged."""
        step = torch.randn(u.shape, generator=rng, device=u.device)
        if self.regulariser == "jacobian":
            change = torch.func.jvp(lambda u: self.network.gauge_velocity(u, t, features), (u,), (step,))[1]
        else:  # pairs: u is about white under every condition, so that another draw of it is about as far as u itself
            first = self.network.gauge_velocity(u, t, features)
            change = self.network.gauge_velocity(u + step, t, features) - first
        return (change.square().flatten(1).sum(1) / step.square().flatten(1).sum(1)).mean()
