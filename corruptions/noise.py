"""White Gaussian noise: the operator is the identity, the noise itself belongs to the measurement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from corruptions import options
from corruptions.base import Corruption, Operator, Shape


@dataclass(frozen=True)
class Identity(Operator):
    """A x = x."""

    @property
    def norm(self) -> float:
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        # A copy, as every other operator gives: writing into the result must not reach the input.
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        return y.clone()


class GaussianNoise(Corruption[options.GaussianNoise]):
    """y = x + n with std 2 sigma01 in model range, not clipped."""

    kind = "gaussian_noise"

    def draw(self, shape: Shape, rng: np.random.Generator) -> Identity:
        return Identity()
