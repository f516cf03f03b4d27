"""DDIM inversion (Song, Meng & Ermon 2021, eq. 12; Dhariwal & Nichol 2021): the inexact baseline.

Decoding k -> k-1:   z_{k-1} = D(z_k, e(z_k, t_k); k -> k-1),      D(z, e; i -> j) = a z + b e  (`Path.step`).
Inversion k-1 -> k:  z_k = D(z_{k-1}, e(z_{k-1}, t); k-1 -> k) with t = t_k (target-time: null-text inversion and
diffusers) or t = t_{k-1} (current-time: BELM, eq. 8). The two differ much at few steps, so a result says which.
On the rectified path the same map is Euler's step, and target-time is Stable Flow's variant of it.
"""

from __future__ import annotations

from torch import Tensor

from methods import options
from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition


class DDIM(InversionMethod):
    Options = options.DDIM

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        target_time = self.options.convention == "target_time"
        z = x0
        for k in range(1, self.grid.steps + 1):
            told = self.grid[k] if target_time else self.grid[k - 1]
            a, b = self.denoiser.path.step(self.grid[k - 1], self.grid[k])
            z = a * z + b * self.denoiser.direction(z, told, cond)
        return Latent({"x_T": z})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        z = latent.x_T
        for k in range(self.grid.steps, 0, -1):
            a, b = self.denoiser.path.step(self.grid[k], self.grid[k - 1])
            z = a * z + b * self.denoiser.direction(z, self.grid[k], cond)
            z = constrain(z, self.grid[k - 1]) if constrain else z
        return z
