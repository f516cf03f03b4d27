"""Inversion as optimisation: gradient descent on x_T through the whole decoding, an expensive baseline.

    x_T <- Adam(x_T, d/dx_T |DDIM(x_T) - x0|^2)

The idea is that of GAN inversion (Zhu et al. 2016). For diffusion and flow models it is D-Flow (Ben-Hamu et al., ICML
2024, arXiv 2402.14017), which differentiates through the solver and keeps the graph of one step in memory at a time.
This code does the same: decoding keeps its N + 1 latents, and the discrete adjoint lambda is carried back over them,

    z_{k-1} = D(z_k, e(z_k, t_k); k -> k-1)
    lambda_k = (d z_{k-1} / d z_k)^T lambda_{k-1},      lambda_0 = 2 (z_0 - x0)

Each step is evaluated a second time to build its graph, so an iteration costs 2 N evaluations and N backward passes.
x_T starts from the noised image alpha x0 + sigma n at the noisiest level, or from DDIM's inversion. The loss compares
images only. The statistics of the latent show how far it has left the prior.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent, normal
from methods.denoiser import Condition
from methods.inversion import options
from methods.inversion.ddim import ddim_decode, ddim_step, pivots


class LatentOptimisation(InversionMethod):
    Options = options.LatentOptimisation

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        x_T = self.start(x0, cond, generators).detach().clone()
        adam = torch.optim.Adam([x_T], lr=self.options.learning_rate)
        for _ in range(self.options.iterations):
            x_T.grad = self.gradient(x_T, x0, cond)
            adam.step()
        return Latent({"x_T": x_T.detach()})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        return ddim_decode(self.denoiser, self.grid, latent.x_T, cond, constrain)

    def start(self, x0: Tensor, cond: Condition, generators: Generators) -> Tensor:
        """Return the first x_T of the descent."""
        if self.options.init == "ddim":
            return pivots(self.denoiser, self.grid, x0, cond)[-1]
        top = self.grid[self.grid.steps]
        return top.alpha * x0 + top.sigma * normal(x0, generators)

    def gradient(self, x_T: Tensor, x0: Tensor, cond: Condition) -> Tensor:
        """Return d/dx_T of the squared error of each image after decoding, in the shape of x_T."""
        zs = [x_T.detach()]
        with torch.no_grad():
            for k in range(self.grid.steps, 0, -1):
                zs.append(ddim_step(self.denoiser, zs[-1], self.grid[k], self.grid[k - 1], cond))
        adjoint = 2 * (zs.pop() - x0)
        for k in range(1, self.grid.steps + 1):
            z = zs.pop().requires_grad_()
            with torch.enable_grad():
                earlier = ddim_step(self.denoiser, z, self.grid[k], self.grid[k - 1], cond)
            (adjoint,) = torch.autograd.grad(earlier, z, adjoint)
        return adjoint

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        start = inverting.evaluations if self.options.init == "ddim" else 0
        descent = 2 * self.options.iterations * inverting.evaluations
        return self.grid.steps * (start + descent + decoding.evaluations)
