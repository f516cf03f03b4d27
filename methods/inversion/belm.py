"""BELM: bidirectional explicit linear multi-step samplers (Wang et al., NeurIPS 2024, arXiv 2410.07273), and O-BELM.

A 2-step BELM joins three neighbouring levels linearly, with f_k the network's direction at z_k and its own level k, so
the same line can be read in both directions; the pair (z_N, z_{N-1}) is kept, one evaluation a step:

    decoding   z_{k-1} = p z_{k+1} + q z_k + r f_k        inversion   z_{k+1} = (z_{k-1} - q z_k - r f_k) / p

Inversion begins with one current-time DDIM step z_1 = D(z_0, f_0; 0->1). O-BELM (eqs. 18-19) is the member with the
smallest local error, O(h^3), the variable-step leapfrog. In the paper h_k = sbar_k - sbar_{k-1}, sbar = sigma / alpha:

    z_{k-1} = rho^2 (alpha_{k-1}/alpha_{k+1}) z_{k+1} + (1 - rho^2)(alpha_{k-1}/alpha_k) z_k
              - rho (h_k + h_{k+1}) alpha_{k-1} eps_k                                         rho = h_k / h_{k+1}

and each product with alpha is a coefficient (a, b) of `Path.step`, which is how it is written here. So the rectified
path, where sbar is infinite at alpha = 0, gets the leapfrog that is natural to it: velocity for eps, h in s, alpha = 1.
Our generalisation, not the paper's; on a uniform grid it is z_{k-1} = z_{k+1} - 2 h v_k.

Inversion multiplies the parasitic part of the pair by (h_{k+1}/h_k)^2 a step, (h_N/h_1)^2 in all (in the coordinate
z / alpha on a variance-preserving path), which telescopes: it does not compound with N. Decoding shrinks it. A grid
that ends in alpha near 0 (the cosine schedule's 5e-5) has an enormous last gap, and its x_T is no noise: watch its std.

The authors' code tells the network timestep 1 at the clean level; here it is told the time of the grid's level 0.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.paths import Node, TimeGrid


class TwoStep(InversionMethod):
    """Any 2-step BELM: a subclass gives (p, q, r)."""

    exact = True

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        name = type(self).__name__
        if self.grid.steps < 2:
            raise ValueError(f"{name} needs two steps or more: the pair it keeps after one step holds the image itself")
        if denoiser.prediction == "x0" and self.grid[0].sigma == 0:
            raise ValueError(f"{name} asks for eps at level 0, which a prediction of x0 does not give at sigma = 0")

    def coefficients(self, k: int) -> tuple[float, float, float]:
        """(p, q, r) of the line through the levels k+1, k, k-1; p is not zero."""
        raise NotImplementedError

    def step(self, source: int, target: int) -> tuple[float, float]:
        return self.denoiser.path.step(self.grid[source], self.grid[target])

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """N inverting; N - 1 decoding, since the pair is two levels."""
        return self.grid.steps * inverting.evaluations + (self.grid.steps - 1) * decoding.evaluations

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        a, b = self.step(0, 1)
        below, z = x0, a * x0 + b * self.denoiser.direction(x0, self.grid[0], cond)
        for k in range(1, self.grid.steps):
            p, q, r = self.coefficients(k)
            below, z = z, (below - q * z - r * self.denoiser.direction(z, self.grid[k], cond)) / p
        return Latent({"x_T": z, "x_T_minus_1": below})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        def held(z: Tensor, node: Node) -> Tensor:
            return constrain(z, node) if constrain else z

        above, z = latent.x_T, held(latent.tensors["x_T_minus_1"], self.grid[self.grid.steps - 1])
        for k in range(self.grid.steps - 1, 0, -1):
            p, q, r = self.coefficients(k)
            step = p * above + q * z + r * self.denoiser.direction(z, self.grid[k], cond)
            above, z = z, held(step, self.grid[k - 1])
        return z


class OBELM(TwoStep):
    Options = options.OBELM

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        if any(self.step(k, k + 1)[1] == 0 for k in range(self.grid.steps)):
            raise ValueError("OBELM divides by the gap between levels, and two levels of this grid are the same")

    def coefficients(self, k: int) -> tuple[float, float, float]:
        a_up, b_up = self.step(k, k + 1)
        a_down, b_down = self.step(k, k - 1)
        a_both, b_both = self.step(k + 1, k - 1)
        rho = -b_down * a_up / (b_up * a_down)
        return rho**2 * a_both, (1 - rho**2) * a_down, rho * b_both
