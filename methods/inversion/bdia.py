"""BDIA-DDIM: bi-directional integration approximation (Zhang, Lewis & Kleijn, ECCV 2024, arXiv 2307.10829).

D(z, e; i->j) = a z + b e is the step of `Path.step`. e_k is the network's direction at z_k, evaluated at level k:

    decoding    z_{k-1} = gamma (z_{k+1} - D(z_k, e_k; k->k+1)) + D(z_k, e_k; k->k-1)
    inversion   z_{k+1} = (z_{k-1} - D(z_k, e_k; k->k-1)) / gamma + D(z_k, e_k; k->k+1)

This is a 2-step BELM (`methods.inversion.belm`): it takes one evaluation per step, keeps the pair (z_N, z_{N-1}) and
starts with one current-time DDIM step. With gamma = 1, even steps and a straight path it is the leapfrog.

Each step of the inversion multiplies the parasitic part of the pair by 1/gamma, so N steps multiply it by gamma^-N.
That is 22 at N = 50, gamma = 0.94. It is 1e15 at gamma = 0.5, which the authors advise for generating in 10 steps. The
round trip can still look good, so read `Latent.std` too.
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
