"""Simulations of the statistics of the tables: `python -m reports.calibration > reports/STATISTICS.md`.

They answer two questions with the functions that the tables call. First, how often does the 95 % interval hold the
true mean, if the scores of images are normal, skewed, heavy-tailed or bounded, and seeds are nested in images? Second,
how often are equal methods called different?
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import numpy as np

from reports.statistics import Array, bootstrap, interval, rank

Draw = Callable[[np.random.Generator, int], Array]

POPULATIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "uniform": (lambda rng, n: rng.uniform(size=n), 0.5),
    "bounded (beta 8, 2)": (lambda rng, n: rng.beta(8, 2, size=n), 0.8),
    "heavy tails (Student, 5)": (lambda rng, n: rng.standard_t(5, size=n), 0.0),
    "skewed (gamma 2)": (lambda rng, n: rng.gamma(2, 1, size=n), 2.0),
    "very skewed (exponential)": (lambda rng, n: rng.exponential(size=n), 1.0),
}
"""Name -> (function that draws the scores of n images, their true mean)."""


def _two_groups(share: float) -> Draw:
    return lambda rng, n: 10.0 * (rng.uniform(size=n) < share) + rng.normal(size=n)


GROUPS: dict[str, tuple[Draw, float]] = {
    f"{100 * share:.0f} % of the images 10 standard deviations apart": (_two_groups(share), 10 * share)
    for share in (0.4, 0.2)
}
"""Name -> (function, mean) for images that form two groups. Few images say too little about them."""

SHARES = (0.02, 0.1, 0.5)
"""True shares of images with the value 1, such as images that a method edits correctly."""

SIZES = (8, 12, 30, 100, 300)
FAMILIES = ((2, 12), (5, 12), (17, 12), (5, 50), (17, 50))
"""(number of methods, number of images)."""
SWEEPS = 10_000
"""Number of simulated sweeps for each share of coverage; a quarter of them for each share of false calls."""


def coverage(draw: Draw, mean: float, images: int, sweeps: int, seed: int = 0) -> float:
    """Return the share of simulated sweeps whose 95 % interval holds the true mean."""
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(sweeps):
        found = interval(draw(rng, images))
        hits += found.low <= mean <= found.high
    return hits / sweeps


def share_coverage(share: float, images: int, sweeps: int, seed: int = 0) -> float:
    """Return the coverage for images of which a share has the value 1 and the others 0."""
    hits = np.random.default_rng(seed).binomial(images, share, size=sweeps)
    found = [interval([1.0] * k + [0.0] * (images - k), share=True) for k in range(images + 1)]
    held = np.array([one.low <= share <= one.high for one in found])
    return float(held[hits].mean())


def nested_coverage(images: int, seeds: int, sweeps: int, seed: int = 0) -> float:
    """Return the coverage for scores that are the sum of an image's level and a seed's deviation from it."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(images), seeds)
    hits = 0
    for _ in range(sweeps):
        found = bootstrap(rng.normal(size=images)[clusters] + rng.normal(size=images * seeds), clusters)
        hits += found.low <= 0 <= found.high
    return hits / sweeps


def false_calls(methods: int, images: int, sweeps: int, seed: int = 0) -> tuple[float, float]:
    """Return shares of simulated sweeps of equal methods: with a mark, and with a p-value against the best below .05.

    Images differ far more than methods do on one image, as in restoration.
    """
    rng = np.random.default_rng(seed)
    marked = called = 0
    for _ in range(sweeps):
        scores = 5 * rng.normal(size=images) + rng.normal(size=(methods, images))
        ranking = rank(scores, higher_is_better=True)
        marked += bool(ranking.marks)
        called += min(ranking.adjusted) < 0.05
    return marked / sweeps, called / sweeps


def _shares(name: str, shares: Iterable[float]) -> str:
    return f"| {name} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |"


def page(sweeps: int = SWEEPS) -> str:
    """Return the page with all tables as Markdown."""
    head = [f"| scores of the images | {' | '.join(f'n = {n}' for n in SIZES)} |", f"|---|{'---:|' * len(SIZES)}"]
    lines = [
        "# Statistics, checked by simulation",
        "",
        "Made by `python -m reports.calibration > reports/STATISTICS.md`, with the functions that the tables call.",
        "",
        "## Coverage of the 95 % interval",
        "",
        f"Share of {sweeps:,} simulated sweeps whose interval holds the true mean. "
        f"The simulation's own standard error is {100 * (0.95 * 0.05 / sweeps) ** 0.5:.1f} points.",
        "",
        *head,
    ]
    for name, (draw, mean) in POPULATIONS.items():
        lines.append(_shares(name, (coverage(draw, mean, n, sweeps, seed=n) for n in SIZES)))
    nested = (nested_coverage(n, 3, sweeps, seed=n) for n in SIZES)
    lines.append(_shares("3 seeds nested in each image", nested))
    lines += [
        "",
        "Sometimes the images form two groups that are far apart, for example if a mask covers the object or not. Few "
        "images then say too little about the shares of the groups. The interval is too wide, or too narrow if there "
        "may be no image of the smaller group. Take 100 images.",
        "",
        *head,
    ]
    for name, (draw, mean) in GROUPS.items():
        lines.append(_shares(name, (coverage(draw, mean, n, sweeps, seed=n) for n in SIZES)))
    lines += [
        "",
        "The next table is for a share of the images, with Wilson's interval. Only few outcomes are possible, so its "
        "coverage is above or below 95 %, depending on which outcomes lie inside.",
        "",
        head[0].replace("scores of the images", "share of the images"),
        head[1],
        *(_shares(f"{share:.0%}", (share_coverage(share, n, sweeps, seed=n) for n in SIZES)) for share in SHARES),
        "",
        "## Methods that are the same",
        "",
        f"Share of {sweeps // 4:,} simulated sweeps of identical methods in which a method is marked (bold or "
        "underlined) as different. Tables use only the mark. The last column says how often the Holm-adjusted p-value "
        "of any method against the leading method is below .05. The same data choose the leader, so this p-value says "
        "how far a method is behind the leader. It does not test two methods that were named in advance.",
        "",
        "| methods | images | marked | p below .05 against the leader |",
        "|---:|---:|---:|---:|",
    ]
    for methods, images in FAMILIES:
        marked, called = false_calls(methods, images, sweeps // 4)
        lines.append(f"| {methods} | {images} | {100 * marked:.1f} % | {100 * called:.1f} % |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
