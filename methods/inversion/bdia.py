"""BDIA-DDIM: bi-directional integration approximation (Zhang, Lewis & Kleijn, ECCV 2024, arXiv 2307.10829).

With D(z, e; i->j) = a z + b e of `Path.step` and e_k the network's direction at z_k and its own level k,

    decoding    z_{k-1} = gamma (z_{k+1} - D(z_k, e_k; k->k+1)) + D(z_k, e_k; k->k-1)
    inversion   z_{k+1} = (z_{k-1} - D(z_k, e_k; k->k-1)) / gamma + D(z_k, e_k; k->k+1)

which is a 2-step BELM (`methods.inversion.belm`): one evaluation per step, the pair (z_N, z_{N-1}) is kept, and the
start is one current-time DDIM step. gamma = 1 is the leapfrog where the steps are even and the path is straight.

Inversion multiplies the parasitic part of the pair by 1/gamma a step: gamma^-N, 22 at N = 50, gamma = 0.94, and 1e15 at
gamma = 0.5, which the authors advise for generating in 10 steps. A good round trip hides it: see `Latent.std`.
"""

from __future__ import annotations

from methods.inversion import options
from methods.inversion.belm import TwoStep


class BDIA(TwoStep):
    Options = options.BDIA

    def coefficients(self, k: int) -> tuple[float, float, float]:
        gamma = self.options.gamma
        a_up, b_up = self.step(k, k + 1)
        a_down, b_down = self.step(k, k - 1)
        return gamma, a_down - gamma * a_up, b_down - gamma * b_up
