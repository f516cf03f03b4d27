"""Tests of statistics: intervals against scipy and closed forms, coverage by simulation, Holm by an example."""

from __future__ import annotations

import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.calibration import POPULATIONS, SWEEPS, coverage, false_calls, nested_coverage
from reports.statistics import (
    Interval,
    bootstrap,
    cluster_means,
    hedges_g,
    holm,
    interval,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    rank,
    signed_rank,
)

PAGE = Path(__file__).resolve().parent.parent / "reports" / "STATISTICS.md"


def half_width(found: Interval) -> float:
    return (found.high - found.low) / 2


def test_bootstrap_is_the_smoothed_studentised_one() -> None:
    """It agrees with a second implementation of its definition, which has its own random draws."""
    x = np.random.default_rng(1).gamma(2.0, 3.0, size=40)
    rng = np.random.default_rng(2)
    samples = x[rng.integers(40, size=(20_000, 40))] + 0.3 * x.std() * rng.normal(size=(20_000, 40))
    t = (samples.mean(1) - x.mean()) / (samples.std(1, ddof=0) / math.sqrt(39))
    error = x.std(ddof=1) / math.sqrt(40)
    low, high = x.mean() - np.quantile(t, [0.975, 0.025]) * error
    ours = interval(x)
    assert ours.mean == pytest.approx(x.mean())
    assert ours.low == pytest.approx(low, abs=0.05 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.05 * (high - low))


@pytest.mark.parametrize("n", [2, 3, 4, 1000])
def test_few_and_many_images_have_students_interval(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    theirs = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    ours = interval(x)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("x", [[31, 31, 36, 44, 44, 44], [10, 10.1, 10.2, 30, 30.1], [2] * 11 + [3]])
def test_groups_and_ties_do_not_stretch_an_interval(x: list[float]) -> None:
    """A resample of only one group has almost no spread, so its studentised value would explode."""
    students = stats.t.ppf(0.975, len(x) - 1) * np.std(x, ddof=1) / math.sqrt(len(x))
    assert students < half_width(interval(x)) < 2 * students


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 5), (3, 12), (12, 12), (700, 1000)])
def test_shares_have_wilsons_interval(hits: int, n: int) -> None:
    theirs = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    ours = interval([1.0] * hits + [0.0] * (n - hits), share=True)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_zeros_are_a_share_only_of_what_is_one() -> None:
    """Errors that are all exactly zero, and differences of equal methods, have no spread."""
    assert (interval([0.0] * 5).low, interval([0.0] * 5).high) == (0.0, 0.0)


def test_tied_values_have_an_interval() -> None:
    """Resamples of almost equal values have no spread to divide by, but the interval is still finite."""
    found = interval([2.0] * 11 + [3.0])
    assert found.low < found.mean < found.high < 3
    assert half_width(interval([2.0] * 12)) == 0


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    """For many images the half-width is 1.96 standard deviations (with 1 / n) of the mean."""
    x = np.random.default_rng(0).normal(size=4000)
    ours = bootstrap(x, np.arange(4000))
    assert half_width(ours) == pytest.approx(1.95996 * x.std() / math.sqrt(4000), rel=0.05)


def test_seeds_are_nested_in_images() -> None:
    """Copies of the value of an image do not narrow the interval, and more seeds do not give an image more weight."""
    x = np.random.default_rng(3).normal(size=20)
    once = bootstrap(x, np.arange(20))
    copies = bootstrap(np.repeat(x, 7), np.repeat(np.arange(20), 7))
    assert astuple(copies) == pytest.approx(astuple(once))
    assert bootstrap([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]).mean == 3.0


@pytest.mark.parametrize("population", ["normal", "bounded (beta 8, 2)", "skewed (gamma 2)"])
def test_coverage(population: str) -> None:
    """The true mean lies inside 93 to 97 % of the intervals of 12 images."""
    assert 0.93 <= coverage(*POPULATIONS[population], images=12, sweeps=2000) <= 0.97


def test_the_page_is_what_the_simulation_gives() -> None:
    """One entry of the page is simulated again."""
    lines = PAGE.read_text().splitlines()
    head, row = (
        [cell.strip() for cell in next(line for line in lines if line.startswith(start)).split("|")]
        for start in ("| scores of the images", "| uniform")
    )
    written = float(row[head.index("n = 12")].removesuffix(" %"))
    assert 100 * coverage(*POPULATIONS["uniform"], images=12, sweeps=SWEEPS, seed=12) == pytest.approx(written, abs=0.1)


def test_coverage_of_nested_seeds() -> None:
    assert 0.93 <= nested_coverage(images=30, seeds=3, sweeps=1000) <= 0.97


@pytest.mark.parametrize(("methods", "images"), [(2, 12), (5, 20)])
def test_equal_methods_are_rarely_called_different(methods: int, images: int) -> None:
    marked, _ = false_calls(methods, images, sweeps=400)
    assert marked <= 0.05


def test_bootstrap_is_deterministic_and_order_free() -> None:
    x = np.random.default_rng(4).normal(size=30)
    order = np.random.default_rng(6).permutation(30)
    names = np.asarray([f"{i:03d}" for i in range(30)])
    assert bootstrap(x, names) == bootstrap(x[order], names[order])


def test_few_and_missing_images() -> None:
    assert bootstrap([], []).n == 0
    single = bootstrap([3.0, math.nan], ["a", "b"])
    assert (single.mean, single.n) == (3.0, 1)
    assert math.isnan(single.low)
    assert bootstrap([math.inf, 1.0], ["a", "b"]).mean == math.inf
    with pytest.raises(ValueError, match="one length"):
        cluster_means([1.0], [1, 2])
    with pytest.raises(ValueError, match="level"):
        bootstrap([1.0], [1], level=95)


def test_paired_difference() -> None:
    rng = np.random.default_rng(7)
    b = rng.normal(20, 5, size=25)
    a = b + rng.normal(0.5, 0.2, size=25)
    difference = paired_difference(a, b)
    assert difference.p == pytest.approx(stats.wilcoxon(a - b).pvalue)
    assert difference.interval.mean == pytest.approx((a - b).mean())
    # The spread between images cancels: the interval is far narrower than that of either mean.
    assert half_width(difference.interval) < 0.1 * half_width(bootstrap(b, np.arange(25)))


def test_paired_difference_of_equals_and_infinities() -> None:
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1.0
    same = paired_difference([math.inf, 2.0, math.nan], [math.inf, 2.0, 1.0])
    assert (same.interval.mean, same.interval.n, same.p) == (0.0, 2, 1.0)
    assert paired_difference([math.inf, 2.0], [1.0, 1.0]).interval.mean == math.inf


@pytest.mark.parametrize("n", [1, 2, 5, 8, 13, 30, 50, 51, 200])
@pytest.mark.parametrize("shift", [0.0, 0.3, -1.5])
def test_signed_rank_agrees_with_scipy(n: int, shift: float) -> None:
    x = np.random.default_rng(n).normal(shift, 1, size=n)
    assert signed_rank(x) == pytest.approx(stats.wilcoxon(x).pvalue, rel=1e-9)


def test_signed_rank_with_ties_and_zeros() -> None:
    """Small samples are checked by all 2^n signs, large ones by scipy's normal approximation, corrected for ties."""
    rng = np.random.default_rng(11)
    for _ in range(5):
        x = rng.integers(-3, 6, size=9).astype(float)
        kept = x[x != 0]
        ranks = stats.rankdata(abs(kept))
        signs = (np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept))) & 1
        sums, seen = signs @ ranks, ranks[kept > 0].sum()
        exact = min(1.0, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))
        assert signed_rank(x) == pytest.approx(exact)
    many = rng.integers(-3, 5, size=150).astype(float)
    theirs = stats.wilcoxon(many, method="asymptotic", correction=False).pvalue
    assert signed_rank(many) == pytest.approx(theirs, rel=1e-9)
    assert signed_rank([0.0, 0.0]) == 1.0


def test_holm_by_hand() -> None:
    """The values are 4 x .005, 3 x .01, 2 x .03; then .04 is raised to .06 by the step before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p: list[float]) -> None:
    for raw, adjusted in zip(p, holm(p), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p)) + 1e-12


def test_effect_sizes() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=15), rng.normal(0.4, 1, size=15)
    cohen = (a - b).mean() / (a - b).std(ddof=1)
    assert hedges_g(a - b) == pytest.approx(cohen * (1 - 3 / (4 * 14 - 1)), rel=1e-3)
    assert hedges_g([2.0, 2.0]) == math.inf and hedges_g([0.0, 0.0]) == 0 and math.isnan(hedges_g([1.0]))


def test_hedges_g_is_unbiased() -> None:
    """For six differences with a mean of 0.7 deviations, Cohen's d is a fifth too large on average, not Hedges' g."""
    x = np.random.default_rng(4).normal(0.7, 1, size=(4000, 6))
    found = np.array([hedges_g(row) for row in x])
    assert found.mean() == pytest.approx(0.7, abs=3 * found.std() / math.sqrt(4000))


def test_probability_of_improvement() -> None:
    assert probability_of_improvement([1, 2, 3, 4], [0, 2, 4, 4]) == 0.5
    assert paired_difference([1, 2, 3], [0, 0, 0]).wins == 1
    assert math.isnan(probability_of_improvement([], []))


def test_performance_profile() -> None:
    found = performance_profile([[1, 2, 3, np.nan], [5, 5, 5, 5]], [0, 2, 5, 6])
    np.testing.assert_allclose(found, [[0.75, 0.5, 0, 0], [1, 1, 1, 0]])
    lower = performance_profile([[1, 2, 3, np.nan]], [0, 2, 5], higher_is_better=False)
    np.testing.assert_allclose(lower, [[0, 0.5, 0.75]])


def test_ranking() -> None:
    """A clear order is marked, a lead that is only noise is not. A method without a score is not ranked."""
    rng = np.random.default_rng(5)
    base, noise = rng.normal(20, 5, size=12), rng.normal(0, 0.1, size=(4, 12))
    clear = rank(base + noise + np.array([[0], [3], [1], [0]]), higher_is_better=True)
    assert clear.order[:2] == (1, 2) and clear.marks == {1: "best", 2: "second"}
    assert clear.adjusted[-1] == pytest.approx(3 * 2 / 2**12)
    assert rank(-(base + noise + np.array([[0], [3], [1], [0]])), higher_is_better=False).marks == clear.marks
    assert rank(base + noise, higher_is_better=True).marks == {}
    gone = base + noise
    gone[0] = np.nan
    assert 0 not in rank(gone, higher_is_better=True).order
    assert rank(base[None], higher_is_better=True).marks == {}
