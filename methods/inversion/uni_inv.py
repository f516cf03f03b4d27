"""Uni-Inv, the inversion of UniEdit-Flow (Jiao et al. 2025, arXiv 2504.13109).

The sampler is Euler's X_{s-} = X_s + (s- - s) v(X_s, s). So the inverse of a step needs v at the level that it is
looking for. Uni-Inv predicts that level with the previous velocity and corrects with one evaluation there. For a step
s -> s', h = s' - s:

    c = v(X + h p, s')        X += h c        p = c                first p = v(X, 0)

The error of the prediction is O(h^2), so the local error of a round trip is O(h^3). The inversion takes N + 1
evaluations and decoding N. The paper's Uni-Edit, a region-adaptive guidance of the sampler, is not included.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain
from methods.denoiser import Condition
from methods.inversion import options
from methods.inversion.rectified import RectifiedMethod, constrained


class UniInv(RectifiedMethod):
    Options = options.UniInv

    def ascend(self, x: Tensor, cond: Condition) -> Tensor:
        c = self.velocity(x, self.grid[0], cond)
        for k in range(self.grid.steps):
            h = self.grid[k + 1].s - self.grid[k].s
            c = self.velocity(x + h * c, self.grid[k + 1], cond)
            x = x + h * c
        return x

    def descend(self, x: Tensor, cond: Condition, constrain: Constrain | None) -> Tensor:
        for k in range(self.grid.steps, 0, -1):
            node, earlier = self.grid[k], self.grid[k - 1]
            x = x + (earlier.s - node.s) * self.velocity(x, node, cond)
            x = constrained(x, earlier, constrain)
        return x

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        return (self.grid.steps + 1) * inverting.evaluations + self.grid.steps * decoding.evaluations
