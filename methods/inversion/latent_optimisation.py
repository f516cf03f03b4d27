"""Inversion as optimisation: gradient descent on x_T through the whole decoding, the costly baseline.

    x_T <- Adam(x_T, d/dx_T |DDIM(x_T) - x0|^2)

after the inversion of GANs (Zhu et al. 2016), for diffusion and flow models D-Flow (Ben-Hamu et al., ICML 2024,
arXiv 2402.14017), which differentiates through the solver and keeps one step's graph in memory at a time. So does
this: the decoding keeps its N + 1 latents, and the discrete adjoint lambda is carried back over them,

    z_{k-1} = D(z_k, e(z_k, t_k); k -> k-1)
    lambda_k = (d z_{k-1} / d z_k)^T lambda_{k-1},      lambda_0 = 2 (z_0 - x0)

with each step evaluated once more, now with its graph: 2 N evaluations and N backward passes an iteration. x_T starts
from the forward noising alpha x0 + sigma n of the image at the noisiest level, or from DDIM's inversion. It matches
the image and nothing else: look at the latent's statistics for what it does to the prior.
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
        if self.options.init == "ddim":
            return pivots(self.denoiser, self.grid, x0, cond)[-1]
        top = self.grid[self.grid.steps]
        return top.alpha * x0 + top.sigma * normal(x0, generators)

    def gradient(self, x_T: Tensor, x0: Tensor, cond: Condition) -> Tensor:
        """d/dx_T of each image's squared error after decoding."""
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
