"""DDIM inversion (Song, Meng & Ermon 2021, eq. 12; Dhariwal & Nichol 2021): the inexact baseline.

Decoding k -> k-1:   z_{k-1} = D(z_k, e(z_k, t_k); k -> k-1),      D(z, e; i -> j) = a z + b e  (`Path.step`).
Inversion k-1 -> k:  z_k = D(z_{k-1}, e(z_{k-1}, t); k-1 -> k).

There are two conventions for t. Target-time has t = t_k (null-text inversion and diffusers), current-time has
t = t_{k-1} (BELM, eq. 8). They differ much at few steps, so every result states its convention. On the rectified path
the map is Euler's step, and target-time is the variant of Stable Flow.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.paths import Node, TimeGrid


def ddim_step(
    denoiser: Denoiser, z: Tensor, source: Node, target: Node, cond: Condition, at: Node | None = None
) -> Tensor:
    """Return D(z, e(z, t); source -> target), with t the time of `at` (default: of `source`)."""
    a, b = denoiser.path.step(source, target)
    return a * z + b * denoiser.direction(z, at or source, cond)


def pivots(denoiser: Denoiser, grid: TimeGrid, x0: Tensor, cond: Condition, target_time: bool = True) -> list[Tensor]:
    """Return the latents z_0 = x0, .., z_N of the inversion, each of the shape of x0."""
    zs = [x0]
    for k in range(1, grid.steps + 1):
        at = grid[k] if target_time else grid[k - 1]
        zs.append(ddim_step(denoiser, zs[-1], grid[k - 1], grid[k], cond, at))
    return zs


def ddim_decode(
    denoiser: Denoiser, grid: TimeGrid, x_T: Tensor, cond: Condition, constrain: Constrain | None = None
) -> Tensor:
    """Return z_0 from z_N = x_T; `constrain` is applied to every z_k after its step."""
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
