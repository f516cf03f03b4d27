"""FireFlow: fast inversion of rectified flow for image editing (Deng et al. 2024, arXiv 2412.07517), the solver alone.

The midpoint rule, with the midpoint velocity of the previous step in place of v(X, s). For a step s -> s', h = s' - s:

    m = v(X + h/2 p, s + h/2)        X += h m        p = m                first p = v(X, s)

v changes slowly along a nearly straight path, so the error of p is O(h) and that of the midpoint O(h^2). The method is
of second order with one evaluation per step, N + 1 in each direction. The paper's feature injection is not included.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain
from methods.denoiser import Condition
from methods.inversion import options
from methods.inversion.rectified import RectifiedMethod, constrained
from methods.paths import Node


class FireFlow(RectifiedMethod):
    Options = options.FireFlow

    def step(self, x: Tensor, p: Tensor, node: Node, target: Node, cond: Condition) -> tuple[Tensor, Tensor]:
        """Return (X, p) at the target level."""
        h = target.s - node.s
        m = self.velocity(x + h / 2 * p, self.between(node, target), cond)
        return x + h * m, m

    def ascend(self, x: Tensor, cond: Condition) -> Tensor:
        p = self.velocity(x, self.grid[0], cond)
        for k in range(self.grid.steps):
            x, p = self.step(x, p, self.grid[k], self.grid[k + 1], cond)
        return x

    def descend(self, x: Tensor, cond: Condition, constrain: Constrain | None) -> Tensor:
        p = self.velocity(x, self.grid[self.grid.steps], cond)
        for k in range(self.grid.steps, 0, -1):
            x, p = self.step(x, p, self.grid[k], self.grid[k - 1], cond)
            x = constrained(x, self.grid[k - 1], constrain)
        return x

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        return (self.grid.steps + 1) * (inverting.evaluations + decoding.evaluations)
