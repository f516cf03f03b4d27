"""ERDDCI: exact reversible diffusion via dual-chain inversion (Dai et al. 2024, arXiv 2410.14247).

With D of `Path.step`. The original chain o is target-time DDIM inversion. The auxiliary chain q uses its predictions:

    inversion   o_k = D(o_{k-1}, e(o_{k-1}, t_k); k-1->k)    q_k = D(q_{k-1}, e(o_k, t_k); k-1->k)    o_0 = q_0 = x_0
    decoding    q_{k-1} = D(q_k, e(o_k, t_k); k->k-1)

The network never sees q: decoding evaluates it at the stored o_k. So the latent holds o_1 .. o_N beside x_T = q_N.

The method is exact if e(o_k, t_k) is the same number in both directions, that is, for the same caption and guidance.
The authors' code inverts at w = 1 (`guidance_invert=1`), and is then exact only for decoding at w = 1. The default here
is the same w in both chains and in decoding, and this is exact at any w. The paper's dynamic control of w at high
guidance is not included, since its formula is not in the public code. An edit decodes q under the target caption with
e(o_k, t_k, target), so its predictions follow the chain of the source image.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition
from methods.inversion import options
from methods.inversion.ddim import pivots


class ERDDCI(InversionMethod):
    Options = options.ERDDCI
    exact = True

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """Count two chains for the inversion and one for decoding."""
        return self.grid.steps * (2 * inverting.evaluations + decoding.evaluations)

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        o, q = pivots(self.denoiser, self.grid, x0, cond), x0
        for k in range(1, self.grid.steps + 1):
            a, b = self.denoiser.path.step(self.grid[k - 1], self.grid[k])
            q = a * q + b * self.denoiser.direction(o[k], self.grid[k], cond)
        return Latent({"x_T": q, **{f"o_{k}": o[k] for k in range(1, self.grid.steps + 1)}})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        q = latent.x_T
        for k in range(self.grid.steps, 0, -1):
            a, b = self.denoiser.path.step(self.grid[k], self.grid[k - 1])
            q = a * q + b * self.denoiser.direction(latent.tensors[f"o_{k}"], self.grid[k], cond)
            q = constrain(q, self.grid[k - 1]) if constrain else q
        return q
