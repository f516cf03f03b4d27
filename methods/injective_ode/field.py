"""The injective neural ODE: a velocity field on z_t = cos t x + sin t eps that is certified injective at any weights.

A conditioner gives a mean mu(y), a variance c(y) in [c_lo, c_hi] and feature maps. With S_t = sqrt(c cos^2 t + sin^2 t)
and the gauge u = (z - cos t mu) / S_t the field is

    F(z, t; y) = -sin t mu + [sin t cos t (1 - c) / S_t^2] (z - cos t mu) + S_t k(t) N(u, t; features).

The first two terms are the exact probability-flow ODE of N(mu, diag c). The gauge removes them:

    du/dt = k(t) N(u, t; features),      |N(u1) - N(u2)| <= |u1 - u2| at any weights,  0 <= k(t) <= k_max.

Theorem 1 (injectivity). For two solutions, |d/dt |u1 - u2|| <= k(t) |u1 - u2|. By Gronwall, the flow between any two
times is bi-Lipschitz in u with constants e^-K and e^K, where K is the integral of k. In z the ratio of S at the two
ends is a further factor. With k = 0 it is the flow of a Gaussian, and decoding the zero latent gives mu.

Theorem 2 (strict monotonicity). With L >= k(t) and w = e^((L + lambda) t) u, dw/dt = h w + g(w), where h = L + lambda
and g(w) = k e^((L + lambda) t) N(e^-((L + lambda) t) w) is Lipschitz with constant k <= L. So this flow is
f = g + h w with h = L + lambda, which is lambda-strongly monotone: <f(w1) - f(w2), w1 - w2> >= lambda |w1 - w2|^2.
(The weaker h > -lambda is not sufficient: take g = -L w with h = 0.) Every lambda describes the same flow, with the
same condition number.

Theorem 3 (objective). The regression on v = cos t eps - sin t x equals the regression on the noise: with
eps_hat = sin t z + cos t F, |eps - eps_hat|^2 = cos^2 t |v - F|^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones.captions import VOCABULARIES
from methods.injective_ode import options
from methods.injective_ode.conditioner import KINDS, Conditioner
from methods.injective_ode.layers import Constraint, Core

HALF_TURN = math.pi / 2
ROUNDING = 1e-12
"""Rounding error allowed in an angle: the ends of a grid may lie outside [0, pi / 2] by this much."""
FREQUENCIES = 6
"""Number of harmonics of 2t in the network's input. Few keep the field smooth in time, as the solvers' orders need."""


@dataclass(frozen=True)
class Features:
    """The condition of each image: mean and variance [B, C, H, W], maps [B, C_i, H_i, W_i]."""

    mean: Tensor
    variance: Tensor
    maps: tuple[Tensor, ...]

    def repeat(self, draws: int) -> Features:
        """Return the features for `draws` latents per image, draw by draw. Maps are not repeated here: layers do it."""
        return Features(self.mean.repeat(draws, 1, 1, 1), self.variance.repeat(draws, 1, 1, 1), self.maps)

    def scale(self, t: Tensor) -> Tensor:
        """Return S_t [B, C, H, W] at angles t [B]."""
        cos, sin = _waves(t)
        return (self.variance * cos.square() + sin.square()).sqrt()

    def pack(self) -> Tensor:
        """Return all features as one embedding [B, 1, D]."""
        return torch.cat([part.flatten(1) for part in (self.mean, self.variance, *self.maps)], dim=1)[:, None]


@dataclass(frozen=True)
class Certificate:
    """The constants that the weights guarantee between the angles t0 and t1, for all inputs, in exact arithmetic.

    If `certified` is False (constraints soft and free), the same formulas are nominal: nothing enforces them.
    """

    certified: bool
    t0: float
    t1: float
    lipschitz_N: float
    """Bound for N from its matrices: at most 1 up to rounding, less if a projection shrinks; nominally 1."""
    K: float
    """The integral of k(t) over [t0, t1], times lipschitz_N."""
    lam: float
    """lambda of theorem 2, as given by the caller."""
    L: float
    """The largest k(t), times lipschitz_N: the largest Lip(g) of theorem 2."""
    h: float
    """L + lambda."""
    u_lower: float
    u_upper: float
    """|u(t1) - u'(t1)| / |u(t0) - u'(t0)| lies in [u_lower, u_upper] = [e^-K, e^K]."""
    z_lower: float
    z_upper: float
    """The same bounds for z."""
    log_condition: float
    """log(z_upper / z_lower) = 2K + range of log S at t0 + range of log S at t1: bounds the log condition number."""
    gronwall: float
    """For a reverse solve from t1 to t0: |error of u(t0)| <= gronwall (|error of u(t1)| + sum of local errors)."""
    gronwall_z: float
    """The same in z: the maximum over t of the growth of an error from t to t0."""

    def as_dict(self) -> dict[str, float | bool]:
        return asdict(self)


def _waves(t: Tensor) -> tuple[Tensor, Tensor]:
    return t.cos()[:, None, None, None], t.sin()[:, None, None, None]


class InjectiveField(nn.Module):
    """The whole field: conditioner, gauge and core. As a denoiser's backbone on the path `trig` it predicts v.

    The arguments are those of `options.InjectiveField`, which raises ValueError for wrong ones. The lower bound c_lo of
    `variance` limits |u| = |x - mu| / sqrt(c) for an image that is unlikely under a sharp condition.
    """

    prediction = options.InjectiveField.prediction

    def __init__(
        self,
        vocabulary: str,
        shape: Sequence[int],
        constraint: Constraint = "strict",
        widths: Sequence[int] = (48, 96, 96),
        conditioner: Sequence[int] = (24, 48, 96),
        depth: int = 2,
        k_max: float = 4.0,
        variance: Sequence[float] = (1e-3, 1.0),
        time: int = 64,
    ) -> None:
        super().__init__()
        given = options.InjectiveField.model_validate(
            {
                "vocabulary": vocabulary,
                "shape": tuple(shape),
                "constraint": constraint,
                "widths": tuple(widths),
                "conditioner": tuple(conditioner),
                "depth": depth,
                "k_max": k_max,
                "variance": tuple(variance),
                "time": time,
            }
        )
        channels, height, width = self.shape = given.shape
        self.vocabulary = VOCABULARIES[given.vocabulary]
        self.constraint, self.k_max = given.constraint, given.k_max
        self.c_lo, self.c_hi = given.variance
        self.widths = given.conditioner
        self.levels = len(given.widths)
        sides = tuple((height >> i, width >> i) for i in range(1, self.levels + 1))
        feature_widths = tuple(self.widths[min(i, len(self.widths) - 1)] for i in range(1, self.levels + 1))
        self.conditioner = Conditioner(channels, self.widths, self.vocabulary.size, self.vocabulary.slots)
        self.core = Core(given.constraint, channels, given.widths, sides, feature_widths, given.time, given.depth)
        first, second = nn.Linear(2 * FREQUENCIES, given.time), nn.Linear(given.time, given.time)
        self.clock = nn.Sequential(first, nn.SiLU(), second, nn.SiLU())
        self.rate = nn.Parameter(torch.zeros(FREQUENCIES))

    # --- conditions --------------------------------------------------------------------------------------------

    def describe(self, tokens: Tensor, y: Tensor, known: Tensor, kind: Tensor) -> Features:
        """Run the conditioner: tokens int [B, slots], y [B, C, H, W] (0: unknown), known [B, 1, H, W], kind int [B]."""
        known = known.to(y.dtype)
        correction, logit, maps = self.conditioner(tokens, y, known, kind)
        variance = self.c_lo * (self.c_hi / self.c_lo) ** torch.sigmoid(logit)
        return Features(known * y + correction, variance, tuple(maps[1:]))

    def encode(
        self,
        captions: list[str],
        y: Tensor | None = None,
        known: Tensor | None = None,
        kind: str | Sequence[str] = "null",
    ) -> Tensor:
        """Return embeddings [B, 1, D] of captions and, if given, a measurement. An empty caption means: unknown.

        `y`: [B, C, H, W] in model range. `known`: bool [B, 1, H, W]; None: all of y is known. `kind`: one of `KINDS`,
        or a list with one per image. Raises ValueError for a caption outside the grammar, an unknown kind, a measured
        kind without y, or y without a measured kind.
        """
        kinds = [kind] * len(captions) if isinstance(kind, str) else list(kind)
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {sorted(unknown)[0]!r}")
        measured = [name != "null" and not name.startswith("is_") for name in kinds]
        if any(measured) != (y is not None):
            raise ValueError(
                "a measured kind and y need each other: give y with every kind but null and is_*, and none with those"
            )
        like = next(self.parameters())
        if y is None:
            y, seen = like.new_zeros(len(captions), *self.shape), like.new_zeros(len(captions), 1, *self.shape[1:])
        else:
            y = y.to(like)
            seen = torch.ones_like(y[:, :1]) if known is None else known.to(like)
        tokens = torch.tensor([self.vocabulary.tokens(caption) for caption in captions], device=like.device)
        indices = torch.tensor([KINDS.index(name) for name in kinds], device=like.device)
        return self.describe(tokens, y, seen, indices).pack()

    def unpack(self, embedding: Tensor) -> Features:
        """Return the features in an embedding [B, 1, D] of `encode`."""
        _, height, width = self.shape
        sizes = [self.shape, self.shape]
        sizes += [(w, height >> i, width >> i) for i, w in enumerate(self.widths) if i]
        parts = embedding[:, 0].split([math.prod(size) for size in sizes], dim=1)
        mean, variance, *maps = (part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True))
        return Features(mean, variance, tuple(maps))

    # --- the field ---------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """Return v [B, C, H, W] at latents x [B, C, H, W], angles t [B] and embeddings of `encode`."""
        return self.velocity(x, t, self.unpack(embedding))

    def velocity(self, z: Tensor, t: Tensor, features: Features) -> Tensor:
        """Return F(z, t; y) = dz/dt [B, C, H, W] at angles t [B] in [0, pi/2]."""
        cos, sin = _waves(t)
        scale = features.scale(t)
        centred = z - cos * features.mean
        gaussian = sin * cos * (1 - features.variance) / scale.square() * centred - sin * features.mean
        return gaussian + scale * self.gauge_velocity(centred / scale, t, features)

    def gauge_velocity(self, u: Tensor, t: Tensor, features: Features) -> Tensor:
        """Return du/dt = k(t) N(u, t; features) [B, C, H, W]."""
        maps = list(features.maps)
        while len(maps) < self.levels:
            maps.append(F.avg_pool2d(maps[-1], 2))
        last = tuple(m.permute(0, 2, 3, 1) for m in maps)
        return self.strength(t)[:, None, None, None] * self.core(u, self.clock(self._harmonics(t)), last)

    def to_gauge(self, z: Tensor, t: Tensor, features: Features) -> Tensor:
        """Return u = (z - cos t mu) / S_t."""
        return (z - _waves(t)[0] * features.mean) / features.scale(t)

    def from_gauge(self, u: Tensor, t: Tensor, features: Features) -> Tensor:
        """Return z = cos t mu + S_t u."""
        return _waves(t)[0] * features.mean + features.scale(t) * u

    def strength(self, t: Tensor) -> Tensor:
        """Return k(t) [B] in [0, k_max], smooth in t."""
        return self.k_max * torch.sigmoid(self._harmonics(t)[:, :FREQUENCIES] @ self.rate - 1)

    def _harmonics(self, t: Tensor) -> Tensor:
        angles = 2 * t[:, None] * torch.arange(FREQUENCIES, dtype=t.dtype, device=t.device)
        return torch.cat([angles.cos(), angles.sin()], dim=1).to(self.rate.dtype)

    # --- the guarantee -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def certificate(
        self, features: Features | None = None, lam: float = 1.0, t0: float = 0.0, t1: float = HALF_TURN
    ) -> Certificate:
        """Return the constants between t0 and t1, in float64, for all conditions or for those of `features`.

        They are upper bounds at any weights. On each of `INTERVALS` intervals, k is bounded by its values at the ends
        and the largest curvature that its harmonics allow (`_Rate`), so a peak between two nodes is covered. Raises
        ValueError unless 0 <= t0 <= t1 <= pi / 2 (where S is monotone in t) and lam >= 0, and if the weights of k are
        not finite.
        """
        if not -ROUNDING <= t0 <= t1 <= HALF_TURN + ROUNDING:
            raise ValueError(f"a certificate needs 0 <= t0 <= t1 <= pi / 2, got t0={t0:g} and t1={t1:g}")
        if not self.rate.isfinite().all():
            raise ValueError("a certificate needs finite weights, and the weights of k(t) are not finite")
        if not 0 <= lam < math.inf:
            raise ValueError(f"lam must be 0 or more, and finite, got {lam:g}")
        grid = np.linspace(t0, t1, INTERVALS + 1)
        rate = _Rate(self.k_max, self.rate.detach().cpu().double().numpy())
        lipschitz = self.core.lipschitz() if self.constraint == "strict" else 1.0
        growth = lipschitz * np.concatenate([[0.0], np.cumsum(rate.integrals(grid))])
        K, L = float(growth[-1]), lipschitz * rate.most(grid)
        if math.isnan(K):
            raise ValueError("a certificate needs smaller weights: their sums overflow float64")
        c = np.array([self.c_lo, self.c_hi])
        if features is not None:
            c = np.array([float(features.variance.min()), float(features.variance.max())])
        scale = np.sqrt(c[:, None] * np.cos(grid) ** 2 + np.sin(grid) ** 2)  # [2, n + 1], monotone in c and in t
        start, end = scale[:, 0], scale[:, -1]
        lower = math.exp(-K) * end.min() / start.max()
        upper = _exp(K) * end.max() / start.min()
        # Back from t, the flow in the gauge is bounded by e^K(t), or as the identity plus a remainder of e^K(t) - 1.
        floor = np.minimum(scale.min(0)[:-1], scale.min(0)[1:])
        same = np.maximum(start[:, None] / scale[:, :-1], start[:, None] / scale[:, 1:]).max(0)
        stretch = _exp(growth[1:])
        back = np.minimum(start.max() / floor * stretch, same + start.max() / floor * (stretch - 1))
        return Certificate(
            certified=self.constraint == "strict",
            t0=t0,
            t1=t1,
            lipschitz_N=lipschitz,
            K=K,
            lam=lam,
            L=L,
            h=L + lam,
            u_lower=math.exp(-K),
            u_upper=_exp(K),
            z_lower=float(lower),
            z_upper=float(upper),
            log_condition=2 * K + math.log(end.max() / start.min()) - math.log(end.min() / start.max()),
            gronwall=_exp(K),
            gronwall_z=float(max(1.0, back.max())),
        )


INTERVALS = 20_000
"""Intervals of the angle on which a certificate bounds k."""


@dataclass(frozen=True)
class _Rate:
    """Bounds of k(t) = k_max sigmoid(p(t)), p(t) = sum_j r_j cos(2 j t) - 1, between the nodes of a grid.

    |p'| <= D1 = sum 2j |r_j| and |p''| <= D2 = sum 4j^2 |r_j|; |sigmoid'| <= 1/4 and |sigmoid''| <= 1 / (6 sqrt 3).
    """

    k_max: float
    r: np.ndarray

    def exponent(self, t: np.ndarray) -> np.ndarray:
        return np.cos(2 * t[:, None] * np.arange(len(self.r))) @ self.r - 1

    def _curvature(self) -> float:
        """D2."""
        return float((4 * np.arange(len(self.r)) ** 2 * np.abs(self.r)).sum())

    def integrals(self, grid: np.ndarray) -> np.ndarray:
        """Return upper bounds of the integral of k over each interval [n].

        Each is the smaller of two: the trapezium rule plus its error bound, and the interval's maximum times its width.
        """
        step = grid[1] - grid[0] if len(grid) > 1 else 0.0
        p = self.exponent(grid)
        k = self.k_max * _sigmoid(p)
        slope = float((2 * np.arange(len(self.r)) * np.abs(self.r)).sum())
        second = self.k_max * (slope * slope / (6 * math.sqrt(3)) + self._curvature() / 4)  # infinite at huge weights
        trapezium = step * (k[:-1] + k[1:]) / 2 + second * step**3 / 12
        return np.minimum(trapezium, step * self._peaks(p, step))

    def most(self, grid: np.ndarray) -> float:
        """Return an upper bound of k on the range of the grid."""
        return float(self._peaks(self.exponent(grid), grid[1] - grid[0]).max())

    def _peaks(self, p: np.ndarray, step: float) -> np.ndarray:
        return self.k_max * _sigmoid(np.maximum(p[:-1], p[1:]) + self._curvature() * step**2 / 8)


def _sigmoid(p: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -p))


def _exp(x: Any) -> Any:
    """Return e^x, or infinity without a warning if it overflows: infinity is still a true upper bound."""
    with np.errstate(over="ignore"):
        found = np.exp(x)
    return found if isinstance(x, np.ndarray) else float(found)
