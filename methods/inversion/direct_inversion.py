"""Direct inversion (Ju et al., ICLR 2024, arXiv 2310.01506; also named PnP inversion): offsets on the source branch.

With D of `Path.step` and e_w the prediction guided by w,

    pivots     z*_k = D(z*_{k-1}, e_1(z*_{k-1}, t_k); k-1->k)            target-time DDIM inversion, w = 1, z*_0 = x_0
    offsets    d_k = z*_{k-1} - D(z*_k, e_w(z*_k, t_k); k->k-1)          under the source
    source     z_{k-1} = D(z_k, e_w(z_k, t_k); k->k-1) + d_k             from z*_N: walks the pivots back, exactly
    target     z_{k-1} = D(z_k, e_w(z_k, t_k); k->k-1)                   an edit's branch, left alone

`invert` takes the source's condition with its w and always finds the pivots at w = 1; `decode` is the source branch.
The offsets reach an edit only where both branches share features (prompt-to-prompt and its kind), which is not part of
this method: alone, the target branch is DDIM from the w = 1 pivot, so `edit` neither needs nor computes the offsets.
A restoration is a source branch: its offsets are the measurement's, found under the null condition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition
from methods.inversion import options
from methods.inversion.ddim import ddim_step, pivots


class DirectInversion(InversionMethod):
    Options = options.DirectInversion
    exact = True

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """Pivots at w = 1, offsets, decoding."""
        return self.grid.steps * (1 + inverting.evaluations + decoding.evaluations)

    def step(self, z: Tensor, k: int, cond: Condition) -> Tensor:
        """D(z, e_w(z, t_k); k->k-1)."""
        return ddim_step(self.denoiser, z, self.grid[k], self.grid[k - 1], cond)

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        zs = pivots(self.denoiser, self.grid, x0, cond.at(1.0))
        offsets = {f"d_{k}": zs[k - 1] - self.step(zs[k], k, cond) for k in range(self.grid.steps, 0, -1)}
        return Latent({"x_T": zs[-1], **offsets})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        """The source branch; a latent without offsets is decoded as the target branch."""
        z = latent.x_T
        for k in range(self.grid.steps, 0, -1):
            z = self.step(z, k, cond) + latent.tensors.get(f"d_{k}", 0.0)
            z = constrain(z, self.grid[k - 1]) if constrain else z
        return z

    def edit(
        self, x0: Tensor, source: Condition, target: Condition, mask: Tensor | None = None, generators: Generators = ()
    ) -> tuple[Tensor, Latent]:
        """The target branch from the source's pivot z*_N; outside `mask` the image is kept."""
        latent = Latent({"x_T": pivots(self.denoiser, self.grid, x0, source.at(1.0))[-1]})
        edited = self.decode(latent, target)
        return (edited if mask is None else torch.where(mask, edited, x0)), latent
