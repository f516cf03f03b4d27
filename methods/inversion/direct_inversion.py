"""Direct inversion (Ju et al., ICLR 2024, arXiv 2310.01506; also called PnP inversion): offsets on the source branch.

With D of `Path.step` and e_w the prediction at guidance w:

    pivots     z*_k = D(z*_{k-1}, e_1(z*_{k-1}, t_k); k-1->k)            target-time DDIM inversion, w = 1, z*_0 = x_0
    offsets    d_k = z*_{k-1} - D(z*_k, e_w(z*_k, t_k); k->k-1)          under the source caption
    source     z_{k-1} = D(z_k, e_w(z_k, t_k); k->k-1) + d_k             from z*_N: returns to every pivot exactly
    target     z_{k-1} = D(z_k, e_w(z_k, t_k); k->k-1)                   the branch of an edit, without offsets

`invert` takes the source condition with its w. It computes the pivots at w = 1 and the offsets at that w. `decode` is
the source branch.

The offsets change an edit only if both branches share features (as in prompt-to-prompt), which this method does not
include. So `edit` is DDIM from the pivot of w = 1, and it does not compute the offsets. A restoration decodes as a
source branch, with the offsets of the measurement under the null condition.
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
        """Count the pivots at w = 1, the offsets and the decoding."""
        return self.grid.steps * (1 + inverting.evaluations + decoding.evaluations)

    def step(self, z: Tensor, k: int, cond: Condition) -> Tensor:
        """Return D(z, e_w(z, t_k); k->k-1)."""
        return ddim_step(self.denoiser, z, self.grid[k], self.grid[k - 1], cond)

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        zs = pivots(self.denoiser, self.grid, x0, cond.at(1.0))
        offsets = {f"d_{k}": zs[k - 1] - self.step(zs[k], k, cond) for k in range(self.grid.steps, 0, -1)}
        return Latent({"x_T": zs[-1], **offsets})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        """Decode by the source branch; a latent without offsets is decoded by the target branch."""
        z = latent.x_T
        for k in range(self.grid.steps, 0, -1):
            z = self.step(z, k, cond) + latent.tensors.get(f"d_{k}", 0.0)
            z = constrain(z, self.grid[k - 1]) if constrain else z
        return z

    def edit(
        self, x0: Tensor, source: Condition, target: Condition, mask: Tensor | None = None, generators: Generators = ()
    ) -> tuple[Tensor, Latent]:
        """Decode the source's pivot z*_N by the target branch; outside `mask` return the pixels of x0."""
        latent = Latent({"x_T": pivots(self.denoiser, self.grid, x0, source.at(1.0))[-1]})
        edited = self.decode(latent, target)
        return (edited if mask is None else torch.where(mask, edited, x0)), latent
