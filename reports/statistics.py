"""The statistics of the tables: the unit is the image, and seeds are nested in images.

A mean carries a percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13) that draws images, each with all
its seeds; two methods are compared on the same images (Wilcoxon 1945, signed ranks), and the p-values of one family
of comparisons are adjusted by Holm's step-down procedure (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

EXACT = 50  # differences up to which the signed-rank distribution is enumerated
BLOCK = 2_000_000  # resampled values held at once: 16 MB, whatever the number of images


@dataclass(frozen=True)
class Interval:
    """A mean over `n` images and the ends of its interval (nan where n < 2: one image shows no spread)."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2 if math.isfinite(self.high - self.low) else math.nan


@dataclass(frozen=True)
class Difference:
    """Mean of the per-image differences a - b, and the two-sided p-value of the signed-rank test."""

    interval: Interval
    p: float


def cluster_means(values: npt.ArrayLike, clusters: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Mean of each cluster, in the order of the sorted cluster names; nan values are left out first."""
    x = np.asarray(values, dtype=np.float64)
    names = np.asarray(clusters)
    if x.shape != names.shape or x.ndim != 1:
        raise ValueError(f"values and clusters must be vectors of one length, got {x.shape} and {names.shape}")
    known = ~np.isnan(x)
    _, index = np.unique(names[known], return_inverse=True)
    return np.bincount(index, weights=x[known]) / np.bincount(index)


def _resamples(n: int, draws: int, seed: int) -> Iterable[npt.NDArray[np.int64]]:
    """Indices of the drawn clusters, [chunk, n] at a time; a table asks for the same few hundred times over."""
    return _kept_resamples(n, draws, seed) if n * draws <= BLOCK else _draw_resamples(n, draws, seed)


@lru_cache(maxsize=4)
def _kept_resamples(n: int, draws: int, seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    return tuple(_draw_resamples(n, draws, seed))


def _draw_resamples(n: int, draws: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    chunk = max(1, BLOCK // n)
    for start in range(0, draws, chunk):
        yield rng.integers(n, size=(min(chunk, draws - start), n))


def bootstrap(
    values: npt.ArrayLike, clusters: npt.ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean over clusters with its percentile bootstrap interval.

    `values` [N] and `clusters` [N] (the image of each value). Values are averaged within their cluster, and clusters
    are drawn with replacement, so a seed adds precision to its image but never counts as another image.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    means = cluster_means(values, clusters)
    n = len(means)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(means.mean())
    if n == 1 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, n)
    resampled = np.concatenate([means[chosen].mean(axis=1) for chosen in _resamples(n, draws, seed)])
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n)


def paired_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Difference:
    """a - b over the same images: `a` and `b` [n] hold one value an image, in one order; pairs with a nan are left out.

    Equal values differ by 0 even where both are infinite (the PSNR of two perfect reconstructions).
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"paired values must be vectors of one length, got {x.shape} and {y.shape}")
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    equal = x == y
    difference = np.where(equal, 0.0, x - np.where(equal, 0.0, y))
    interval = bootstrap(difference, np.arange(len(difference)), level, draws, seed)
    return Difference(interval, signed_rank(difference))


def signed_rank(differences: npt.ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test that the differences [n] are symmetric about 0.

    Zeros are left out (Wilcoxon's own treatment) and ties share their mean rank. Up to 50 differences the distribution
    is exact, given the ties; beyond it is normal with the ties' correction. scipy.stats.wilcoxon gives the same
    numbers (a test holds it so), but a report makes hundreds of comparisons and scipy's import alone takes a second.
    """
    x = np.asarray(differences, dtype=np.float64)
    x = x[x != 0]
    n = len(x)
    if n == 0:
        return 1.0
    _, index, ties = np.unique(np.abs(x), return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(ties) - ties + 1)[index]  # twice the mean rank: an integer, ties or not
    statistic, total = int(doubled[x > 0].sum()), n * (n + 1)
    if n > EXACT:
        variance = n * (n + 1) * (2 * n + 1) / 24 - float((ties.astype(float) ** 3 - ties).sum()) / 48
        return math.erfc(abs(statistic - total / 2) / 2 / math.sqrt(2 * variance))
    # Chance of each sum where every rank is in it or not with probability 1/2.
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for rank in doubled.tolist():
        chance[rank:] = (chance[rank:] + chance[: total + 1 - rank]) / 2
        chance[:rank] /= 2
    return float(min(1.0, 2 * chance[: min(statistic, total - statistic) + 1].sum()))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjusted p-values of one family, in the order given: reject at level q where the adjusted value is below q."""
    p = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()
