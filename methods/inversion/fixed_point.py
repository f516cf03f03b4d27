"""Fixed-point inversion: FPI (Meiri et al. 2023, arXiv 2312.12540v1) and AIDI (Pan et al., ICCV 2023, 2309.04907).

The exact inverse of a DDIM decoding step is the solution of an implicit equation, with (a, b) of k-1 -> k:

    z_k = f(z_k),      f(y) = D(z_{k-1}, e(y, t_k); k-1 -> k) = a z_{k-1} + b e(y, t_k)

It is solved from y_0 = z_{k-1} by K evaluations of f. K = 1 is DDIM's target-time inversion. With f_j = f(y_j):

    none       y_{j+1} = f_j                                                                        (FPI)
    averaged   y_{j+1} = (f_j + f_{j-1}) / 2                                                        (AIDI_E)
    anderson   y_{j+1} = sum_i alpha_i f_i over the last m + 1 iterates, alpha = argmin |sum_i alpha_i (f_i - y_i)|
               with sum_i alpha_i = 1                                                               (AIDI_A, m = 3)

The inversion is exact up to the residual of the solver, if f is a contraction. At few steps or large w it may not be.
With a tolerance, each image stops by itself. The batch runs until its slowest image has stopped, and NFE counts that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.inversion.ddim import ddim_decode
from methods.paths import TimeGrid

Iterate = tuple[Tensor, Tensor]
"""One iterate: (y_j, f(y_j))."""


class FixedPoint(InversionMethod):
    Options = options.FixedPoint

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        self.nfe_is_exact = self.options.tolerance == 0.0

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        z = x0
        for k in range(1, self.grid.steps + 1):
            z = self.solve_step(z, k, cond)
        return Latent({"x_T": z})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        return ddim_decode(self.denoiser, self.grid, latent.x_T, cond, constrain)

    def solve_step(self, z: Tensor, k: int, cond: Condition) -> Tensor:
        """Return z_k from z = z_{k-1}."""
        a, b = self.denoiser.path.step(self.grid[k - 1], self.grid[k])
        y, history = z, list[Iterate]()
        running = torch.ones(len(z), dtype=torch.bool, device=z.device)
        for _ in range(self.options.iterations):
            f = a * z + b * self.denoiser.direction(y, self.grid[k], cond)
            history = [*history[-self.options.window :], (y, f)]
            still = running.reshape(-1, *[1] * (z.dim() - 1))
            running = running & ((f - y).square().flatten(1).mean(1).sqrt() >= self.options.tolerance)
            y = torch.where(still, self.next_iterate(history), y)
            if not running.any():
                break
        return y

    def next_iterate(self, history: list[Iterate]) -> Tensor:
        """Return y_{j+1} from the iterates up to j."""
        if self.options.acceleration == "anderson":
            return anderson(history)
        if self.options.acceleration == "averaged":
            return (history[-1][1] + history[max(len(history) - 2, 0)][1]) / 2
        return history[-1][1]

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        return self.grid.steps * (self.options.iterations * inverting.evaluations + decoding.evaluations)


def anderson(history: list[Iterate]) -> Tensor:
    """Return Anderson's next iterate f_j - gamma dF, gamma = argmin |g_j - gamma dG|, g = f - y (Walker & Ni 2011).

    Differences of successive f and g replace the constraint on alpha. Near convergence they are nearly dependent, so
    the normal equations are solved in float64 with a ridge of 1e-10.
    """
    f = history[-1][1]
    if len(history) == 1:
        return f
    values = torch.stack([f.double().flatten(1) for _, f in history], dim=1)
    residuals = torch.stack([(f.double() - y.double()).flatten(1) for y, f in history], dim=1)
    dF, dG = values.diff(dim=1), residuals.diff(dim=1)
    gram = dG @ dG.mT
    scale = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-280)[:, None, None]
    ridge = 1e-10 * scale * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    gamma = torch.linalg.solve(gram + ridge, dG @ residuals[:, -1:].mT)
    return f - (gamma.mT @ dF).reshape(f.shape).to(f.dtype)
