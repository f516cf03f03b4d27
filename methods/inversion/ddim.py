"""DDIM inversion (Song, Meng & Ermon 2021, eq. 12; Dhariwal & Nichol 2021): the inexact baseline.

Decoding k -> k-1:   z_{k-1} = D(z_k, e(z_k, t_k); k -> k-1),      D(z, e; i -> j) = a z + b e  (`Path.step`).
Inversion k-1 -> k:  z_k = D(z_{k-1}, e(z_{k-1}, t); k-1 -> k) with t = t_k (target-time: null-text inversion and
diffusers) or t = t_{k-1} (current-time: BELM, eq. 8). The two differ much at few steps, so a result says which.
On the rectified path the same map is Euler's step, and target-time is Stable Flow's variant of it.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.paths import Node, TimeGrid


def ddim_step(
    denoiser: Denoiser, z: Tensor, source: Node, target: Node, cond: Condition, told: Node | None = None
) -> Tensor:
    """D(z, e(z, told); source -> target); the network is told the source's time unless another."""
    a, b = denoiser.path.step(source, target)
    return a * z + b * denoiser.direction(z, told or source, cond)


def pivots(denoiser: Denoiser, grid: TimeGrid, x0: Tensor, cond: Condition, target_time: bool = True) -> list[Tensor]:
    """The latents z_0 = x0, .., z_N of the inversion."""
    zs = [x0]
    for k in range(1, grid.steps + 1):
        told = grid[k] if target_time else grid[k - 1]
        zs.append(ddim_step(denoiser, zs[-1], grid[k - 1], grid[k], cond, told))
    return zs


def ddim_decode(
    denoiser: Denoiser, grid: TimeGrid, x_T: Tensor, cond: Condition, constrain: Constrain | None = None
) -> Tensor:
    """z_0 from z_N = x_T; `constrain` sees every z_k on the way."""
    z = x_T
    for k in range(grid.steps, 0, -1):
        z = ddim_step(denoiser, z, grid[k], grid[k - 1], cond)
        z = constrain(z, grid[k - 1]) if constrain else z
    return z


class DDIM(InversionMethod):
    Options = options.DDIM

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        zs = pivots(self.denoiser, self.grid, x0, cond, self.options.convention == "target_time")
        return Latent({"x_T": zs[-1]})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        return ddim_decode(self.denoiser, self.grid, latent.x_T, cond, constrain)
