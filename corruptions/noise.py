"""White Gaussian noise. The operator is the identity; the measurement adds the noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from corruptions import options
from corruptions.base import Corruption, Operator, Shape


@dataclass(frozen=True)
class Identity(Operator):
    """The identity operator: A x = x."""

    @property
    def norm(self) -> float:
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        # A copy, as in every other operator: writing to the result must not change the input.
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        return y.clone()


class GaussianNoise(Corruption[options.GaussianNoise]):
    """Additive noise: y = x + n, where n has the std 2 sigma01 in model range. y is not clipped."""

    kind = "gaussian_noise"

    def draw(self, shape: Shape, rng: np.random.Generator) -> Identity:
        return Identity()
