"""The statistics of the tables: the unit is the image, and seeds are nested in images.

A mean has a studentised bootstrap interval (Efron & Tibshirani 1993, section 12.5). The bootstrap draws images, each
with all its seeds, and is smoothed (Polansky 2000): it adds a little noise to the drawn values. Without noise, samples
of a few images or of ties can have almost no variance, which would make an interval ten times too wide. Two methods are
compared on the same images (Wilcoxon 1945, signed ranks), and the p-values of one family of comparisons are adjusted by
Holm's step-down procedure (Holm 1979). `python -m reports.calibration` simulates how often the intervals hold the true
mean and how often equal methods are called different (STATISTICS.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

EXACT = 50  # up to this number of differences the signed-rank distribution is exact
DRAWS = 2000  # bootstrap samples of an interval
FEW, LARGE = 5, 200  # with fewer or more images, a closed form replaces the bootstrap
SMOOTH = 0.3  # standard deviation of the noise, in units of that of the values

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` images and the ends of its interval (nan if n < 2)."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """The per-image differences a - b: mean, two-sided p-value of the signed-rank test, and effect sizes.

    `wins` is the probability of improvement: the share of images with a > b, where a tie counts one half. `effect` is
    Hedges' g of the differences: their mean in units of their own standard deviation.
    """

    interval: Interval
    p: float
    wins: float
    effect: float


def cluster_means(values: npt.ArrayLike, clusters: npt.ArrayLike) -> Array:
    """Return the mean of each cluster without nan values, in the order of the sorted cluster names."""
    x = np.asarray(values, dtype=np.float64)
    names = np.asarray(clusters)
    if x.shape != names.shape or x.ndim != 1:
        raise ValueError(f"values and clusters must be vectors of one length, got {x.shape} and {names.shape}")
    known = ~np.isnan(x)
    _, index = np.unique(names[known], return_inverse=True)
    return np.bincount(index, weights=x[known]) / np.bincount(index)


def bootstrap(values: npt.ArrayLike, clusters: npt.ArrayLike, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean over clusters with its interval.

    `values` [N] and `clusters` [N] (the image of each value). Values are averaged within their cluster, and clusters
    are drawn with replacement. So a seed adds precision to its image but does not count as another image.
    """
    return interval(cluster_means(values, clusters), level, seed)


def interval(means: npt.ArrayLike, level: float = 0.95, seed: int = 0, share: bool = False) -> Interval:
    """Return the mean of `means` [n], one value per image, with its studentised bootstrap interval.

    Closed forms replace the bootstrap in three cases. A `share`, whose values are all 0 or 1, has Wilson's interval
    (1927). Student's interval is taken for fewer than 5 images, whose bootstrap samples say too little about the
    variance, and for more than 200, where both agree.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    x = np.asarray(means, dtype=np.float64)
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if n == 1 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, n)
    if share and np.all((x == 0) | (x == 1)):
        return Interval(mean, *_wilson(mean, n, level), n)
    error = float(x.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return Interval(mean, mean, mean, n)
    if FEW <= n <= LARGE:
        low, high = _studentised((x - mean) / (error * math.sqrt(n)), level, seed)
    else:
        high = _student(n - 1, (1 + level) / 2)
        low = -high
    return Interval(mean, mean - high * error, mean - low * error, n)


def _studentised(z: Array, level: float, seed: int) -> tuple[float, float]:
    """Return quantiles of t = (mean* - mean) / error* over smoothed bootstrap samples of values z [n] with mean 0.

    A sample has the values z_i + SMOOTH e_i. `first` and `second` are their mean and the mean of their squares.
    """
    n = len(z)
    weights, noise, noise_first, noise_second = _samples(n, DRAWS, seed)
    first = weights @ z + SMOOTH * noise_first
    second = weights @ (z * z) + 2 * SMOOTH * (noise @ z) + SMOOTH**2 * noise_second
    t = first / np.sqrt((second - first * first) / (n - 1))
    t.sort()
    return _quantile(t, (1 - level) / 2), _quantile(t, (1 + level) / 2)


def _quantile(ordered: Array, probability: float) -> float:
    """Return a quantile, linear between order statistics like numpy's, which takes ten times as long."""
    place = probability * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


@lru_cache(maxsize=8)
def _samples(n: int, draws: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """Draw bootstrap samples of n images, the same for every entry.

    Returns how often each image is in each sample and the sum of its noise, both divided by n [draws, n], and the means
    of each sample's noise and of its square [draws].
    """
    rng = np.random.default_rng(seed)
    chosen = (rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]).ravel()
    noise = rng.normal(size=(draws, n))
    weights, weighted = (np.bincount(chosen, w, draws * n).reshape(draws, n) / n for w in (None, noise.ravel()))
    return weights, weighted, noise.mean(1), (noise * noise).mean(1)


def _student(freedom: int, probability: float) -> float:
    from scipy.special import stdtrit  # scipy is slow to import, and most tables do not need it

    return float(stdtrit(freedom, probability))


def _wilson(share: float, n: int, level: float) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(round(share * n), n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95, seed: int = 0) -> Difference:
    """Return the difference a - b over the same images, without pairs that have a nan.

    `a` and `b` [n] hold one value per image, in the same order. Equal values differ by 0 even if both are infinite (the
    PSNR of two perfect reconstructions).
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"paired values must be vectors of one length, got {x.shape} and {y.shape}")
    difference = _differences(x, y)
    wins = probability_of_improvement(difference, np.zeros(len(difference)))
    return Difference(interval(difference, level, seed), signed_rank(difference), wins, hedges_g(difference))


def _differences(x: Array, y: Array) -> Array:
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    equal = x == y
    return np.where(equal, 0.0, x - np.where(equal, 0.0, y))


def probability_of_improvement(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the share of images with a > b (a tie counts one half), or nan without images. `a`, `b`: [n]."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(((x > y) + 0.5 * (x == y)).mean()) if len(x) else math.nan


def hedges_g(differences: npt.ArrayLike) -> float:
    """Return the mean of paired differences [n] over their standard deviation, with Hedges' small-n correction (1981).

    It is 0 if all differences are 0, infinite if all are the same other number, and nan for n < 2.
    """
    x = np.asarray(differences, dtype=np.float64)
    if len(x) < 2 or not np.isfinite(x).all():
        return math.nan
    mean, deviation = float(x.mean()), float(x.std(ddof=1))
    if deviation == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    # The gamma function's form of J(n - 1); 1 - 3 / (4 (n - 1) - 1) approximates it.
    half = (len(x) - 1) / 2
    correction = math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half) if len(x) > 2 else 0.0
    return correction * mean / deviation


def performance_profile(values: npt.ArrayLike, thresholds: npt.ArrayLike, higher_is_better: bool = True) -> Array:
    """Return the share of images for which a method reaches each threshold: at least, or at most if lower is better.

    `values` [methods, n] over the same images; nan (no value) counts as not reached. `thresholds` [m]. Returns
    [methods, m]. These are the score distributions of Agarwal et al. (2021), with images as their runs.
    """
    x, at = np.asarray(values, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    sign = 1.0 if higher_is_better else -1.0
    worst = np.sort(np.where(np.isnan(x), -np.inf, sign * x), axis=1)
    below = np.stack([np.searchsorted(row, sign * at, side="left") for row in worst])
    return 1 - below / x.shape[1]


def _doubled_ranks(x: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return twice the mean ranks of |x| (always integers), and the sizes of the ties."""
    _, index, ties = np.unique(np.abs(x), return_inverse=True, return_counts=True)
    return (2 * np.cumsum(ties) - ties + 1)[index], ties


def signed_rank(differences: npt.ArrayLike) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test that the differences [n] are symmetric about 0.

    Zeros are left out (Wilcoxon's own treatment), and ties share their mean rank. Up to 50 differences the distribution
    is exact, given the ties. Beyond, it is normal with the correction for ties. scipy.stats.wilcoxon gives the same
    numbers without ties or with few images (a test checks this). It has no exact distribution for 14 to 50 differences
    with ties, which shares have. So this function is needed.
    """
    x = np.asarray(differences, dtype=np.float64)
    x = x[x != 0]
    n = len(x)
    if n == 0:
        return 1.0
    doubled, ties = _doubled_ranks(x)
    statistic, total = int(doubled[x > 0].sum()), n * (n + 1)
    if n > EXACT:
        variance = n * (n + 1) * (2 * n + 1) / 24 - float((ties.astype(float) ** 3 - ties).sum()) / 48
        return math.erfc(abs(statistic - total / 2) / 2 / math.sqrt(2 * variance))
    # Probability of each sum, if each rank is in the sum with probability 1/2.
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for rank in doubled.tolist():
        chance[rank:] = (chance[rank:] + chance[: total + 1 - rank]) / 2
        chance[:rank] /= 2
    return float(min(1.0, 2 * chance[: min(statistic, total - statistic) + 1].sum()))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return the adjusted p-values of one family in the given order. Reject at level q if the value is below q."""
    p = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


@dataclass(frozen=True)
class Ranking:
    """Methods ordered by their mean, with the results of paired tests. Indices are those of the scores' rows."""

    order: tuple[int, ...]
    differences: tuple[Difference, ...]
    """Differences of all other methods to the first, in order."""
    adjusted: tuple[float, ...]
    """Holm's p-values of `differences`."""
    marks: dict[int, str]
    """Method -> best or second, if the test separates it from every method behind it."""


def rank(scores: npt.ArrayLike, higher_is_better: bool, level: float = 0.05) -> Ranking:
    """Rank methods on shared images. `scores`: [methods, images], nan if a method has no score.

    The first method is marked best if it differs from every other (Wilcoxon, Holm over the others). Then the next is
    marked second if it differs from the rest. If all methods are equal, marks are rarer than `level`.
    """
    x = np.asarray(scores, dtype=np.float64)
    means = [float(row[~np.isnan(row)].mean()) if not np.isnan(row).all() else math.nan for row in x]
    sign = -1 if higher_is_better else 1
    order = sorted((i for i, mean in enumerate(means) if not math.isnan(mean)), key=lambda i: sign * means[i])
    if len(order) < 2:
        return Ranking(tuple(order), (), (), {})
    differences = tuple(paired_difference(x[other], x[order[0]]) for other in order[1:])
    adjusted = holm([difference.p for difference in differences])
    marks: dict[int, str] = {}
    if max(adjusted) < level:
        marks[order[0]] = "best"
        rest = [signed_rank(_differences(x[other], x[order[1]])) for other in order[2:]]
        if rest and max(holm(rest)) < level:
            marks[order[1]] = "second"
    return Ranking(tuple(order), differences, tuple(adjusted), marks)
