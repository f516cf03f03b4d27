"""Null-text inversion (Mokady et al., CVPR 2023, arXiv 2211.09794, Algorithm 1).

The pivot z*_0 .. z*_N is DDIM's target-time inversion under the caption c alone (w = 1). Then Adam fits one null
embedding for each step, from z_N = z*_N and the noisiest step i = 0 on. Each fit starts from the embedding of the step
before:

    u_i = argmin_u  mean |D(z, e(z, t_k, u) + w (e(z, t_k, c) - e(z, t_k, u)); k -> k-1) - z*_{k-1}|^2,    k = N - i
    z  <- the same step with u_i

The learning rate is 1e-2 (1 - i/100). There are at most 10 updates, and they end when the loss is below 1e-5 + 2e-5 i.
Decoding is guided DDIM with u_i in place of the null embedding. It is valid for the w of the fit, and for c or an
edited caption.

Every image of a batch has its own loss, its own embedding and its own end. The batch runs until its slowest image has
ended, and NFE counts that image. At w = 1 the null embedding has no effect: nothing is fitted, and the method is DDIM.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.inversion.ddim import ddim_step, pivots
from methods.inversion.negative_prompt import needs_null
from methods.paths import TimeGrid


class NullText(InversionMethod):
    Options = options.NullText
    nfe_is_exact = False

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        needs_null(self)

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        """Compute the pivot at w = 1 and fit the null embeddings for decoding at w = `cond.guidance`."""
        pivot = pivots(self.denoiser, self.grid, x0, cond.at(1.0))
        return Latent({"x_T": pivot[-1], "null_embeddings": self.fit(pivot, cond)})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        z, nulls = latent.x_T, latent.tensors["null_embeddings"]
        for i, k in enumerate(range(self.grid.steps, 0, -1)):
            z = ddim_step(self.denoiser, z, self.grid[k], self.grid[k - 1], with_null(cond, nulls[:, i]))
            z = constrain(z, self.grid[k - 1]) if constrain else z
        return z

    def fit(self, pivot: list[Tensor], cond: Condition) -> Tensor:
        """Return null embeddings [B, N, L, D], noisiest step first, in float32 if the model's are half precision."""
        z, u = pivot[-1], cond.null.to(torch.promote_types(cond.null.dtype, torch.float32))
        if cond.guidance == 1.0:
            return torch.stack([u] * self.grid.steps, dim=1)
        nulls = []
        for i in range(self.grid.steps):
            u, z = self.fit_step(i, z, u, pivot[self.grid.steps - i - 1], cond)
            nulls.append(u)
        return torch.stack(nulls, dim=1)

    def fit_step(self, i: int, z: Tensor, u: Tensor, target: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """Return (u_i, the latent after its step); u is the embedding of the step before."""
        node, w = self.grid[self.grid.steps - i], cond.guidance
        a, b = self.denoiser.path.step(node, self.grid[self.grid.steps - i - 1])
        caption = w * self.denoiser.direction(z, node, cond.at(1.0)) if w else 0.0  # the same for every u

        def step(u: Tensor) -> Tensor:
            null = self.denoiser.direction(z, node, with_null(cond, u).at(0.0))
            return a * z + b * ((1 - w) * null + caption)

        u = u.detach().clone().requires_grad_()
        adam = torch.optim.Adam([u], lr=self.options.learning_rate * (1 - i / 100))
        running = torch.ones(len(z), dtype=torch.bool, device=z.device)
        for _ in range(self.options.inner_steps):
            before = u.detach().clone()
            with torch.enable_grad():
                loss = (step(u) - target).square().flatten(1).mean(1)
                (u.grad,) = torch.autograd.grad(loss.sum(), u)
            adam.step()
            with torch.no_grad():
                u[~running] = before[~running]
            running &= loss.detach() >= self.options.early_stop + 2e-5 * i
            if not running.any():
                break
        u = u.detach()
        return u, step(u)

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """Return the maximum: pivot, caption, inner steps, the step itself, and decoding."""
        w = inverting.guidance
        fitting = 0 if w == 1.0 else self.options.inner_steps + 1 + (w != 0.0)
        return self.grid.steps * (1 + fitting + decoding.evaluations)

    def _inverting(self, cond: Condition) -> Condition:
        return cond  # the fit needs its w

    def _undescribed(self, cond: Condition) -> Condition:
        """Return the empty caption at the same w: a restoration fits to it and decodes under the image's caption."""
        return replace(cond, embedding=cond.null)


def with_null(cond: Condition, u: Tensor) -> Condition:
    """Return the condition with u [B, L, D] as its null embedding, in the dtype of the old one."""
    return replace(cond, null=u.to(cond.null.dtype))
