"""Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807) and proximal guidance (Han et al. 2023, 2306.05414).

The inversion is the pivot of null-text inversion: target-time DDIM under the source caption c alone (w = 1). Decoding
under a caption c' is DDIM with the embedding of c in place of the null embedding:

    delta = e(z, t, c') - e(z, t, c)          e_w = e(z, t, c) + w prox(delta)

For c' = c this is e(z, t, c) at every w. So a reconstruction equals that of DDIM at w = 1, and cannot be better.

prox is the identity, or it shrinks delta by th, a quantile of |delta| of the same image. l0 (hard threshold) keeps the
entries above th, l1 (soft threshold) also moves them towards zero by th. Since th is a quantile, prox gives the same
result in every view of the network. This follows the paper: in the authors' code the soft threshold has the name l0,
and l1 shrinks by th twice.

In restoration the source is the empty caption, so the negative prompt is the null condition.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.inversion.ddim import pivots
from methods.paths import Node, TimeGrid


class NegativePrompt(InversionMethod):
    Options = options.NegativePrompt

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        needs_null(self)

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        """Invert at w = 1; `cond.guidance` is not used."""
        z = pivots(self.denoiser, self.grid, x0, cond.at(1.0))[-1]
        return Latent({"x_T": z, "negative_prompt": cond.embedding})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        z, against = latent.x_T, replace(cond, null=latent.tensors["negative_prompt"])
        for k in range(self.grid.steps, 0, -1):
            a, b = self.denoiser.path.step(self.grid[k], self.grid[k - 1])
            z = a * z + b * self.guided(z, self.grid[k], against)
            z = constrain(z, self.grid[k - 1]) if constrain else z
        return z

    def guided(self, z: Tensor, node: Node, cond: Condition) -> Tensor:
        """Return e_w, with the proximal operator on the difference that w multiplies."""
        if self._evaluations(cond) == cond.evaluations == 1 or self.options.prox == "none":
            return self.denoiser.direction(z, node, cond)
        source = self.denoiser.direction(z, node, cond.at(0.0))
        delta = self.denoiser.direction(z, node, cond.at(1.0)) - source
        return source + cond.guidance * shrink(delta, self.options.prox, self.options.quantile)

    def _evaluations(self, cond: Condition) -> int:
        """Return the evaluations of one step. With a proximal operator a step needs both captions also at w = 1."""
        return 2 if self.options.prox != "none" and cond.guidance else cond.evaluations

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        return self.grid.steps * (1 + self._evaluations(decoding))


def shrink(delta: Tensor, prox: str, quantile: float) -> Tensor:
    """Return prox(delta): a hard (l0) or soft (l1) threshold at a quantile of |delta| of each image; delta [B, ...]."""
    size = delta.abs()
    th = torch.quantile(size.flatten(1), quantile, dim=1).reshape(-1, *[1] * (delta.dim() - 1))
    return torch.where(size > th, delta, 0.0) if prox == "l0" else delta.sign() * (size - th).clamp(min=0)


def needs_null(method: InversionMethod) -> None:
    """Raise ValueError if the model's guidance is distilled: such a model takes no null embedding."""
    if method.denoiser.distilled:
        raise ValueError(
            f"{type(method).__name__} replaces the null embedding of classifier-free guidance, "
            "but guidance is distilled into this model, so it takes none: choose another model or method"
        )
