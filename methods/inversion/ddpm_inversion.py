"""Edit-friendly DDPM inversion (Huberman-Spiegelglas, Kulikov & Michaeli, CVPR 2024, arXiv 2304.06140, Algorithm 1).

Every level gets its own independent noise on the image. The noise map of a step is then the noise with which a
stochastic step leads exactly to the next level:

    x_k = alpha_k x_0 + sigma_k n_k,  n_k ~ N(0, I) independent
    z_k = (x_{k-1} - mu_k(x_k)) / s_k           decoding: x_{k-1} = mu_k(x_k) + s_k z_k
    mu_k = alpha_{k-1} x0_hat + sqrt(sigma_{k-1}^2 - s_k^2) eps_hat
    s_k^2 = eta^2 (sigma_{k-1}^2 / sigma_k^2) (sigma_k^2 - (alpha_k / alpha_{k-1})^2 sigma_{k-1}^2)

s_k is that of the DDIM paper (eq. 16), written for any path. The latent holds s_k z_k, not z_k: a division by s_k and a
multiplication by it lose digits. At a clean level without noise s_1 = 0, where only s_1 z_1 is defined.

The authors edit at N = 100, eta = 1, guidance 3.5 on the source and 15 on the target, and skip the 36 noisiest steps:
`steps=100 guidance_invert=3.5 guidance=15 strength=0.64`. Their code sets z_1 to zero (`zero_last_noise`), and then the
round trip is not exact. By default this code keeps z_1.
"""

from __future__ import annotations

import math

from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent, normal
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.paths import TimeGrid


class DDPMInversion(InversionMethod):
    Options = options.DDPMInversion
    exact = True

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        self.exact = not self.options.zero_last_noise

    def noise_std(self, k: int) -> float:
        """Return s_k, the standard deviation of the noise that the step k -> k-1 adds."""
        node, clean = self.grid[k], self.grid[k - 1]
        transition = node.sigma**2 - (node.alpha / clean.alpha * clean.sigma) ** 2
        return self.options.eta * clean.sigma / node.sigma * math.sqrt(max(transition, 0.0))

    def mu(self, x: Tensor, k: int, cond: Condition) -> Tensor:
        """Return mu_k, the mean of the step k -> k-1."""
        clean = self.grid[k - 1]
        x0, eps = self.denoiser.views(x, self.grid[k], cond)
        return clean.alpha * x0 + math.sqrt(max(clean.sigma**2 - self.noise_std(k) ** 2, 0.0)) * eps

    def noised(self, x0: Tensor, generators: Generators) -> list[Tensor]:
        """Return x_0 .. x_N. Noise is drawn from the clean end up, so a level's noise does not depend on `strength`."""
        levels = self.grid.nodes[1:]
        return [x0, *(node.alpha * x0 + node.sigma * normal(x0, generators) for node in levels)]

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        return self.noise_maps(self.noised(x0, generators), cond)

    def noise_maps(self, xs: list[Tensor], cond: Condition) -> Latent:
        """Return the latent (x_T and all s_k z_k) of the given x_0 .. x_N."""
        x, maps = xs[-1], {}
        for k in range(self.grid.steps, 0, -1):
            mu = self.mu(x, k, cond)
            maps[f"sz_{k}"] = xs[k - 1] - mu
            x = mu + maps[f"sz_{k}"]  # x_{k-1} as decoding will round it: rounding errors do not add up
        if self.options.zero_last_noise:
            del maps["sz_1"]
        return Latent({"x_T": xs[-1], **maps})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        x = latent.x_T
        for k in range(self.grid.steps, 0, -1):
            x = self.mu(x, k, cond) + latent.tensors.get(f"sz_{k}", 0.0)
            x = constrain(x, self.grid[k - 1]) if constrain else x
        return x
