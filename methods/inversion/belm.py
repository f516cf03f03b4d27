"""BELM: bidirectional explicit linear multi-step samplers (Wang et al., NeurIPS 2024, arXiv 2410.07273), and O-BELM.

A 2-step BELM is a linear equation between three neighbouring levels, so it can be solved in both directions. f_k is the
network's direction at z_k, evaluated at level k. A step takes one evaluation, and the pair (z_N, z_{N-1}) is kept:

    decoding   z_{k-1} = p z_{k+1} + q z_k + r f_k        inversion   z_{k+1} = (z_{k-1} - q z_k - r f_k) / p

The inversion begins with one current-time DDIM step z_1 = D(z_0, f_0; 0->1). O-BELM (eqs. 18-19) is the 2-step BELM
with the smallest local error, O(h^3): the leapfrog with variable steps. In the paper h_k = sbar_k - sbar_{k-1} with
sbar = sigma / alpha:

    z_{k-1} = rho^2 (alpha_{k-1}/alpha_{k+1}) z_{k+1} + (1 - rho^2)(alpha_{k-1}/alpha_k) z_k
              - rho (h_k + h_{k+1}) alpha_{k-1} eps_k                                         rho = h_k / h_{k+1}

Each product with alpha is a coefficient (a, b) of `Path.step`, and the code uses these. They also exist on the
rectified path, where sbar is infinite at alpha = 0. There the method is the leapfrog of that path: velocity for eps,
h in s, alpha = 1. This generalisation is ours, not the paper's. On a uniform grid it is z_{k-1} = z_{k+1} - 2 h v_k.

Each step of the inversion multiplies the parasitic part of the pair by (h_{k+1}/h_k)^2 (on a variance-preserving path
in the coordinate z / alpha). The product over all steps is (h_N/h_1)^2, so it does not grow with N. Decoding shrinks it
again. A grid that ends near alpha = 0 (the cosine schedule's 5e-5) has a very large last gap, and its x_T is not
noise: read its standard deviation.

The authors' code gives the network timestep 1 at the clean level. This code gives it the time of the grid's level 0.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.paths import Node, TimeGrid


class TwoStep(InversionMethod):
    """The base class of 2-step BELMs: a subclass gives (p, q, r)."""

    exact = True

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        name = type(self).__name__
        if self.grid.steps < 2:
            raise ValueError(
                f"{name} needs at least two steps: after one step the pair that it keeps holds the image itself"
            )
        if denoiser.prediction == "x0" and self.grid[0].sigma == 0:
            raise ValueError(f"{name} needs eps at level 0, and a prediction of x0 does not give it at sigma = 0")

    def coefficients(self, k: int) -> tuple[float, float, float]:
        """Return (p, q, r) of the equation between the levels k+1, k, k-1; p is not zero."""
        raise NotImplementedError

    def step(self, source: int, target: int) -> tuple[float, float]:
        """Return (a, b) of `Path.step` between two levels of the grid."""
        return self.denoiser.path.step(self.grid[source], self.grid[target])

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """N calls for the inversion and N - 1 for decoding, since the pair holds two levels."""
        return self.grid.steps * inverting.evaluations + (self.grid.steps - 1) * decoding.evaluations

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        a, b = self.step(0, 1)
        below, z = x0, a * x0 + b * self.denoiser.direction(x0, self.grid[0], cond)
        for k in range(1, self.grid.steps):
            p, q, r = self.coefficients(k)
            below, z = z, (below - q * z - r * self.denoiser.direction(z, self.grid[k], cond)) / p
        return Latent({"x_T": z, "x_T_minus_1": below})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        def constrained(z: Tensor, node: Node) -> Tensor:
            return constrain(z, node) if constrain else z

        above, z = latent.x_T, constrained(latent.tensors["x_T_minus_1"], self.grid[self.grid.steps - 1])
        for k in range(self.grid.steps - 1, 0, -1):
            p, q, r = self.coefficients(k)
            step = p * above + q * z + r * self.denoiser.direction(z, self.grid[k], cond)
            above, z = z, constrained(step, self.grid[k - 1])
        return z


class OBELM(TwoStep):
    Options = options.OBELM

    def __init__(self, denoiser: Denoiser, options: options.MethodOptions, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        if any(self.step(k, k + 1)[1] == 0 for k in range(self.grid.steps)):
            raise ValueError(
                "OBELM divides by the gap between levels, and two neighbouring levels of this grid are the same"
            )

    def coefficients(self, k: int) -> tuple[float, float, float]:
        a_up, b_up = self.step(k, k + 1)
        a_down, b_down = self.step(k, k - 1)
        a_both, b_both = self.step(k + 1, k - 1)
        rho = -b_down * a_up / (b_up * a_down)
        return rho**2 * a_both, (1 - rho**2) * a_down, rho * b_both
