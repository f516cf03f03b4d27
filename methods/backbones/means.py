"""The means of the small Gaussian mixture, for its exact denoiser and its data set. No torch."""

from __future__ import annotations

import numpy as np

VARIANCE = 0.01
COMPONENTS = 4
SHAPE = (3, 8, 8)


def mixture_means(seed: int = 1) -> np.ndarray:
    """Return [COMPONENTS, D] float64 in (-0.8, 0.8): smooth random images, easy to tell apart in a figure."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    coarse = rng.standard_normal((COMPONENTS, SHAPE[0], SHAPE[1] // 2, SHAPE[2] // 2))
    return 0.8 * np.tanh(coarse.repeat(2, 2).repeat(2, 3)).reshape(COMPONENTS, -1)


def tilt(condition: float) -> np.ndarray:
    """Return the prior weights [COMPONENTS] under a condition: +1 for `src`, -1 for `tgt`, 0 for the empty caption."""
    weights = np.exp(3 * condition * np.linspace(-1, 1, COMPONENTS))
    return weights / weights.sum()
