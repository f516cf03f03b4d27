"""Intervals against scipy and closed forms, their coverage by simulation, Holm against a worked example."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.statistics import bootstrap, cluster_means, holm, paired_difference, signed_rank


def test_bootstrap_agrees_with_scipy() -> None:
    x = np.random.default_rng(1).gamma(2.0, 3.0, size=40)
    ours = bootstrap(x, np.arange(40), draws=20_000)
    theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    width = theirs.high - theirs.low
    assert ours.mean == pytest.approx(x.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    """For many images the half-width is 1.96 standard deviations (1 / n) of the mean."""
    x = np.random.default_rng(0).normal(size=4000)
    ours = bootstrap(x, np.arange(4000), draws=4000)
    assert ours.half_width == pytest.approx(1.95996 * x.std() / math.sqrt(4000), rel=0.05)


def test_seeds_are_nested_in_images() -> None:
    """Copies of an image's value narrow nothing, and an image with more seeds weighs no more."""
    x = np.random.default_rng(3).normal(size=20)
    once = bootstrap(x, np.arange(20))
    copies = bootstrap(np.repeat(x, 7), np.repeat(np.arange(20), 7))
    assert astuple(copies) == pytest.approx(astuple(once))
    assert bootstrap([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]).mean == 3.0


def test_coverage() -> None:
    """A nested normal model, 30 images of 3 seeds: the true mean lies inside about 95 % of the intervals."""
    rng = np.random.default_rng(5)
    images = np.repeat(np.arange(30), 3)
    hits = 0
    for seed in range(400):
        values = 2.0 + rng.normal(size=30)[images] + 0.5 * rng.normal(size=90)
        interval = bootstrap(values, images, draws=500, seed=seed)
        hits += interval.low <= 2.0 <= interval.high
    assert 0.90 <= hits / 400 <= 0.99


def test_bootstrap_is_deterministic_and_order_free() -> None:
    x = np.random.default_rng(4).normal(size=30)
    order = np.random.default_rng(6).permutation(30)
    names = np.asarray([f"{i:03d}" for i in range(30)])
    assert bootstrap(x, names) == bootstrap(x[order], names[order])


def test_large_sets_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(8).normal(size=50)
    whole = bootstrap(x, np.arange(50), draws=300)
    monkeypatch.setattr("reports.statistics.BLOCK", 120)
    assert bootstrap(x, np.arange(50), draws=300) == whole


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
    # The images' own spread cancels: far narrower than the interval of either mean.
    assert difference.interval.half_width < 0.1 * bootstrap(b, np.arange(25)).half_width


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
    """Small: against all 2^n signs. Large: against scipy's normal approximation with its correction for ties."""
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
    """4 x .005, 3 x .01, 2 x .03, then .04 is held at .06 by the step before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p: list[float]) -> None:
    for raw, adjusted in zip(p, holm(p), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p)) + 1e-12
