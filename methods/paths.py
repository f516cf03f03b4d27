"""Noising paths `x_t = alpha(t) x0 + sigma(t) eps`, and time grids for both directions.

There are two families. Variance-preserving paths are those of Ho et al. 2020, with the schedules of Stable Diffusion
and of Nichol & Dhariwal 2021, and also in terms of an angle (Salimans & Ho 2022). The rectified path is that of Liu et
al. 2023 and Esser et al. 2024. `alpha`, `sigma` and times are Python floats (float64): a grid has a few dozen levels,
and exact inversion needs the same coefficient in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Schedule = Literal["scaled_linear", "cosine"]
Direction = Literal["eps", "velocity"]


@dataclass(frozen=True)
class Node:
    """One level of a grid: the time for the network, and the path's coefficients at this time."""

    time: float
    alpha: float
    sigma: float

    @property
    def s(self) -> float:
        """The rectified time of this level, sigma / (alpha + sigma), in [0, 1]."""
        return self.sigma / (self.alpha + self.sigma)

    @property
    def scale(self) -> float:
        """alpha + sigma: x / scale is the latent in rectified coordinates, (1 - s) x0 + s eps."""
        return self.alpha + self.sigma


@dataclass(frozen=True)
class TimeGrid:
    """Levels 0 (clean) .. N (noisiest). Inversion goes up and decoding goes down the same grid."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        sigmas = [node.sigma / max(node.alpha, 1e-300) for node in self.nodes]
        if len(self.nodes) < 2 or any(b < a for a, b in pairwise(sigmas)):
            raise ValueError(
                "a time grid needs two or more levels, and sigma / alpha must not fall from one to the next"
            )

    @property
    def steps(self) -> int:
        return len(self.nodes) - 1

    def __getitem__(self, level: int) -> Node:
        return self.nodes[level]

    def truncate(self, strength: float) -> TimeGrid:
        """Return the grid of the int(N * strength) least noisy steps, at least one (as in EDICT and SDEdit)."""
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {strength}")
        kept = max(1, int(round(self.steps * strength, 9)))
        return TimeGrid(self.nodes[: kept + 1])


class Path(Protocol):
    """The interface of a path, as a denoiser uses it.

    `direction` is the view of the network in which a step is affine without a singularity: eps on a variance-preserving
    path, velocity (eps - x0) on the rectified path.
    """

    @property
    def direction(self) -> Direction: ...

    @property
    def t_max(self) -> float:
        """The noisiest time."""
        ...

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) at times t, in float64 and the shape of t."""
        ...

    def grid(self, steps: int, spacing: str = ..., level0: str = ..., mu: float | None = ...) -> TimeGrid:
        """Return a grid of N = `steps` steps over the whole path."""
        ...

    def node_at(self, s: float) -> Node:
        """Return the level at rectified time s in [0, 1], for methods that evaluate between two levels of a grid."""
        ...

    def step(self, source: Node, target: Node) -> tuple[float, float]:
        """Return (a, b) with x_target = a x_source + b direction: the DDIM map (Song et al. 2021, eq. 12)."""
        ...


@dataclass(frozen=True)
class VariancePreserving:
    """A variance-preserving path: alpha^2 = alpha_bar(t), sigma^2 = 1 - alpha_bar(t), t in 0 .. timesteps - 1.

    `scaled_linear`: beta = linspace(sqrt(.00085), sqrt(.012), T)^2 (Stable Diffusion).
    `cosine`: alpha_bar = cos^2(pi/2 (t/T + .008)/1.008) / its value at 0, beta at most .999 (Nichol & Dhariwal 2021).
    """

    schedule: Schedule = "scaled_linear"
    timesteps: int = 1000
    direction: Direction = "eps"

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """alpha_bar at every timestep, float64 [timesteps], falling."""
        if self.schedule == "scaled_linear":
            betas = np.linspace(0.00085**0.5, 0.012**0.5, self.timesteps, dtype=np.float64) ** 2
        elif self.schedule == "cosine":
            u = np.arange(self.timesteps + 1, dtype=np.float64) / self.timesteps
            f = np.cos(0.5 * math.pi * (u + 0.008) / 1.008) ** 2
            betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
        else:
            raise ValueError(f"schedule must be scaled_linear or cosine, got {self.schedule!r}")
        return np.cumprod(1 - betas)

    @property
    def t_max(self) -> float:
        return float(self.timesteps - 1)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) at times t; between two timesteps log(alpha_bar) is linear."""
        table = torch.as_tensor(np.log(self.alpha_bar), device=t.device)
        position = t.to(torch.float64).clamp(0, self.t_max)
        low = position.floor().long().clamp(max=self.timesteps - 2)
        log_alpha_bar = torch.lerp(table[low], table[low + 1], position - low)
        return (0.5 * log_alpha_bar).exp(), (-torch.expm1(log_alpha_bar)).sqrt()

    def node(self, timestep: float, alpha_bar: float | None = None) -> Node:
        abar = float(self.alpha_bar[round(timestep)]) if alpha_bar is None else alpha_bar
        return Node(float(timestep), math.sqrt(abar), math.sqrt(1 - abar))

    def node_at(self, s: float) -> Node:
        """Return the level with sigma / (alpha + sigma) = s; its time is the inverse of `coefficients`, in float64.

        alpha and sigma are exact for s. Only the time for the network is limited to 0 .. t_max.
        """
        s = _rectified_time(s)
        norm = math.hypot(1 - s, s)
        alpha, sigma = (1 - s) / norm, s / norm
        falling = np.log(self.alpha_bar)
        time = np.interp(-2 * math.log(max(alpha, 1e-300)), -falling, np.arange(self.timesteps))
        return Node(float(time), alpha, sigma)

    def from_timesteps(self, timesteps: Sequence[int], level0: str = "first") -> TimeGrid:
        """Return a grid over the given rising timesteps.

        `level0` is first (alpha_bar[0], as in Stable Diffusion's set_alpha_to_one=False) or one (alpha_bar = 1: no
        noise).
        """
        if level0 not in ("first", "one"):
            raise ValueError(f"level0 must be first or one, got {level0!r}")
        clean = self.node(0, None if level0 == "first" else 1.0)
        return TimeGrid((clean, *(self.node(t) for t in timesteps)))

    def grid(self, steps: int, spacing: str = "trailing", level0: str = "one", mu: float | None = None) -> TimeGrid:
        """Return a grid of N = `steps` steps.

        `spacing` is leading (0, T/N, ...; EDICT, BDIA), leading1 (1, 1 + T/N, ...; diffusers' steps_offset=1),
        trailing (..., T - 1; Lin et al. 2024) or linspace (0 .. T - 1, rounded; BELM).
        """
        T = self.timesteps
        if not 1 <= steps <= T:
            raise ValueError(f"steps must lie in 1 .. {T}, got {steps}")
        if spacing in ("leading", "leading1"):
            times = np.arange(steps, dtype=np.float64) * (T // steps) + (spacing == "leading1")
        elif spacing == "trailing":
            times = np.round(np.arange(1, steps + 1) * (T / steps)) - 1
        elif spacing == "linspace":
            times = np.linspace(0, T - 1, steps).round()
        else:
            raise ValueError(f"spacing on this path must be leading, leading1, trailing or linspace, got {spacing!r}")
        if times[-1] >= T:
            raise ValueError(f"spacing={spacing} with {steps} steps goes beyond the last timestep {T - 1}")
        return self.from_timesteps([int(t) for t in times], level0)

    def step(self, source: Node, target: Node) -> tuple[float, float]:
        a = target.alpha / source.alpha
        return a, target.sigma - source.sigma * a


@dataclass(frozen=True)
class Rectified:
    """The rectified path: alpha = 1 - s, sigma = s with s in [0, 1], a straight line from image (0) to noise (1)."""

    direction: Direction = "velocity"

    @property
    def t_max(self) -> float:
        return 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s = t.to(torch.float64)
        return 1 - s, s

    def node_at(self, s: float) -> Node:
        s = _rectified_time(s)
        return Node(s, 1 - s, s)

    def from_sigmas(self, sigmas: Sequence[float]) -> TimeGrid:
        """Return a grid over rising sigmas; the first is the clean end."""
        return TimeGrid(tuple(Node(float(s), 1 - float(s), float(s)) for s in sigmas))

    def grid(self, steps: int, spacing: str = "linspace", level0: str = "one", mu: float | None = None) -> TimeGrid:
        """Return a grid of N = `steps` steps. Level 0 is the image, whatever `level0` says.

        `spacing` is linspace (uniform) or flux_shift: s' = e^mu / (e^mu + 1/s - 1), Flux's dynamic shift. mu = 0 is
        uniform.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        s = np.arange(1, steps + 1, dtype=np.float64) / steps
        if spacing == "flux_shift":
            if mu is None:
                raise ValueError("spacing=flux_shift needs mu")
            s = math.exp(mu) / (math.exp(mu) + (1 / s - 1))
        elif spacing != "linspace":
            raise ValueError(f"spacing on a rectified path must be linspace or flux_shift, got {spacing!r}")
        return self.from_sigmas([0.0, *s.tolist()])

    def step(self, source: Node, target: Node) -> tuple[float, float]:
        return 1.0, target.sigma - source.sigma


@dataclass(frozen=True)
class Trigonometric:
    """The trigonometric path: alpha = cos t, sigma = sin t with angles t, variance preserving (that of v-prediction).

    At the noisiest level alpha is 0.07, as in Stable Diffusion: at pi / 2 the eps view would divide by zero.
    """

    direction: Direction = "eps"
    t_max: float = 1.5

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t.to(torch.float64)
        return angle.cos(), angle.sin()

    def node(self, angle: float) -> Node:
        return Node(angle, math.cos(angle), math.sin(angle))

    def node_at(self, s: float) -> Node:
        s = _rectified_time(s)
        return self.node(math.atan2(s, 1 - s))

    def grid(self, steps: int, spacing: str = "linspace", level0: str = "one", mu: float | None = None) -> TimeGrid:
        """Return the grid of the angles k t_max / N. Level 0 is the image, whatever `level0` says."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if spacing != "linspace":
            raise ValueError(f"spacing on a trigonometric path must be linspace, got {spacing!r}")
        return TimeGrid(tuple(self.node(self.t_max * k / steps) for k in range(steps + 1)))

    def step(self, source: Node, target: Node) -> tuple[float, float]:
        a = target.alpha / source.alpha
        return a, target.sigma - source.sigma * a


def _rectified_time(s: float) -> float:
    if not 0 <= s <= 1:
        raise ValueError(f"a rectified time lies in [0, 1], got {s}")
    return float(s)


def make_path(kind: str, schedule: Schedule = "scaled_linear") -> VariancePreserving | Rectified | Trigonometric:
    """Return the path that a model's YAML names: vp | rectified | trig."""
    if kind == "vp":
        return VariancePreserving(schedule)
    if kind == "rectified":
        return Rectified()
    if kind == "trig":
        return Trigonometric()
    raise ValueError(f"path must be vp, rectified or trig, got {kind!r}")
