"""The base class of the rectified-flow solvers. It works in coordinates where every path is a straight line.

X = x / (alpha + sigma) = (1 - s) x0 + s eps with s = sigma / (alpha + sigma). So dX/ds = E[eps - x0 | x] on any path,
and the same solvers also run on variance-preserving models, through the denoiser's velocity view.
"""

from __future__ import annotations

from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent
from methods.denoiser import Condition, Denoiser
from methods.paths import Node


def velocity(denoiser: Denoiser, x: Tensor, node: Node, cond: Condition) -> Tensor:
    """Return v(X, s) = E[eps - x0 | X], which points towards noise."""
    return denoiser.velocity(x * node.scale, node, cond)


class RectifiedMethod(InversionMethod):
    """Invert with `ascend` and decode with `descend`, which each solver defines in X."""

    def velocity(self, x: Tensor, node: Node, cond: Condition) -> Tensor:
        """Return v(X, s) = E[eps - x0 | X], which points towards noise."""
        return velocity(self.denoiser, x, node, cond)

    def between(self, node: Node, other: Node) -> Node:
        """Return the level half way between two levels, in s."""
        return self.denoiser.path.node_at((node.s + other.s) / 2)

    def ascend(self, x: Tensor, cond: Condition) -> Tensor:
        """Carry X from level 0 to level N."""
        raise NotImplementedError

    def descend(self, x: Tensor, cond: Condition, constrain: Constrain | None) -> Tensor:
        """Carry X from level N to level 0; apply `constrain` after each step."""
        raise NotImplementedError

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        return Latent({"x_T": self.ascend(x0 / self.grid[0].scale, cond) * self.grid[self.grid.steps].scale})

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        return self.descend(latent.x_T / self.grid[self.grid.steps].scale, cond, constrain) * self.grid[0].scale


def constrained(x: Tensor, node: Node, constrain: Constrain | None) -> Tensor:
    """Apply a constraint to X: it is defined on the path's own latents x."""
    return constrain(x * node.scale, node) / node.scale if constrain else x
