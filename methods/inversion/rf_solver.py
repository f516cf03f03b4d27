"""RF-Solver: Taming rectified flow for inversion and editing (Wang et al. 2024, arXiv 2411.04746), the solver alone.

One step s -> s', h = s' - s (positive when inverting):

    p = v(X, s)        m = v(X + h/2 p, s + h/2)        X += h p + h^2/2 (m - p) / (h/2) = h m

The paper's second-order Taylor step, with that finite difference, is the explicit midpoint rule. It takes two
evaluations per step and has an error of O(1/N^2). The paper's sharing of attention features is not included.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain
from methods.denoiser import Condition
from methods.inversion import options
from methods.inversion.rectified import RectifiedMethod, constrained
from methods.paths import Node


class RFSolver(RectifiedMethod):
    Options = options.RFSolver

    def step(self, x: Tensor, node: Node, target: Node, cond: Condition) -> Tensor:
        h = target.s - node.s
        p = self.velocity(x, node, cond)
        return x + h * self.velocity(x + h / 2 * p, self.between(node, target), cond)

    def ascend(self, x: Tensor, cond: Condition) -> Tensor:
        for k in range(self.grid.steps):
            x = self.step(x, self.grid[k], self.grid[k + 1], cond)
        return x

    def descend(self, x: Tensor, cond: Condition, constrain: Constrain | None) -> Tensor:
        for k in range(self.grid.steps, 0, -1):
            x = constrained(self.step(x, self.grid[k], self.grid[k - 1], cond), self.grid[k - 1], constrain)
        return x
