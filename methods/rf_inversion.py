"""RF-Inversion: controlled rectified ODEs (Rout et al. 2024, arXiv 2410.10792, eqs. 8 and 15) in endpoint form.

With s the rectified time (0 image, 1 noise), x0_hat and eps_hat the denoiser's two views, one step each way is

    inversion  s -> s+   Y += (s+ - s)/(1 - s) ((1 - gamma) eps_hat(Y, s) + gamma y1 - Y)        y1 ~ N(0, I), fixed
    decoding   s -> s-   X += (s - s-)/s       ((1 - eta) x0_hat(X, s) + eta y0 - X)             y0 the input image

which is the paper's velocity form without its divisions by 1 - s and s near 0: gamma blends the predicted noise with
the noise target, eta the predicted image with the input. The last decoding factor is exactly 1. A
variance-preserving model is walked in the same coordinates: X = x / (alpha + sigma), s = sigma / (alpha + sigma).
"""

from __future__ import annotations

from torch import Tensor

from methods import options
from methods.base import Constrain, Generators, InversionMethod, Latent, normal
from methods.denoiser import Condition
from methods.paths import Node


class RFInversion(InversionMethod):
    Options = options.RFInversion

    def eta(self, node: Node) -> float:
        """eta_t: constant inside the window of s, 0 outside."""
        low, high = self.options.window
        return self.options.eta if low <= node.s <= high else 0.0

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        gamma = self.options.gamma
        target = gamma * normal(x0, generators) if gamma else 0.0
        y = x0 / _scale(self.grid[0])
        for k in range(self.grid.steps):
            node, later = self.grid[k], self.grid[k + 1]
            eps = self.denoiser.eps(y * _scale(node), node, cond)
            y = y + (later.s - node.s) / (1 - node.s) * ((1 - gamma) * eps + target - y)
        return Latent({"x_T": y * _scale(self.grid[self.grid.steps]), "y0": x0})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        y0 = latent.tensors["y0"]
        x = latent.x_T / _scale(self.grid[self.grid.steps])
        for k in range(self.grid.steps, 0, -1):
            node, earlier = self.grid[k], self.grid[k - 1]
            eta = self.eta(node)
            x0_hat = self.denoiser.x0(x * _scale(node), node, cond)
            x = x + (node.s - earlier.s) / node.s * ((1 - eta) * x0_hat + eta * y0 - x)
            if constrain:
                x = constrain(x * _scale(earlier), earlier) / _scale(earlier)
        return x * _scale(self.grid[0])


def _scale(node: Node) -> float:
    return node.alpha + node.sigma
