"""RF-Inversion: controlled rectified flows (Rout et al. 2024, arXiv 2410.10792), in endpoint form.

s is the rectified time (0 image, 1 noise); x0_hat and eps_hat are the two views of the denoiser. A step of the ODEs (8)
and (15) is

    inversion  s -> s+   Y += (s+ - s)/(1 - s) ((1 - gamma) eps_hat(Y, s) + gamma y1 - Y)        y1 ~ N(0, I), fixed
    decoding   s -> s-   X += (s - s-)/s       ((1 - eta) x0_hat(X, s) + eta y0 - X)             y0 the input image

This equals the paper's velocity form, without its divisions by 1 - s and s near 0. gamma mixes the predicted noise with
the noise target y1, eta mixes the predicted image with the input y0. The last decoding factor is exactly 1. With a
finite terminal weight lambda (proof of Prop. 3.2) a step goes the share kappa = d / (d + 1/lambda) of the way to its
target, d = 1 - s or s: gamma y1 becomes gamma (Y + kappa (y1 - Y)), and eta y0 in the same way. Where gamma or eta is 1
the network is not evaluated.

The SDE (10) needs no network: Y_s = (1 - s) y0 + s (gamma y1 + sqrt(1 - gamma) xi), one draw. The SDE (17), which is
(22) at eta = 0, is linear in X if x0_hat is held constant over a step, and is then solved exactly:

    c = (2 (1 - eta) x0_hat + eta y0) / (2 - eta)        q = (((1 - s) s-) / (s (1 - s-)))^(1 - eta)
    X = (1 - s-) c + s- (q (X - (1 - s) c) / s + sqrt(1 - q^2) xi)

This is ancestral sampling at eta = 0 and the ODE at eta = 1. No step is singular, and no step leaves noise behind. At
s = 1 the result does not depend on X, as in (17). The noise comes from one seed per image. The inversion draws the
seeds, and the latent holds them.

On a variance-preserving model the coordinates are the same: X = x / (alpha + sigma), s = sigma / (alpha + sigma).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from methods.base import Constrain, Generators, InversionMethod, Latent, normal
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.paths import Node, Rectified, TimeGrid


class RFInversion(InversionMethod):
    Options = options.RFInversion

    def __init__(self, denoiser: Denoiser, options: options.RFInversion, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        if options.grid == "diffusers" and not isinstance(denoiser.path, Rectified):
            raise ValueError(
                "grid=diffusers is the grid of a flow model's pipeline: it needs a model on the rectified path"
            )
        self.all_steps = grid.steps
        if options.start_reading == "partial" and options.start:
            self.grid = grid.truncate(1 - options.start)

    # --- controls ----------------------------------------------------------------------------------------------

    def eta(self, level: int) -> float:
        """Return eta of the step that leaves a level: the schedule inside the window, 0 outside."""
        o, i = self.options, self.all_steps - level
        if i < int(round(self.all_steps * o.start, 9)):  # these levels are used only with start_reading=uncontrolled
            return 0.0
        passed = self._passed(level)
        if passed is None:
            return 0.0
        if o.eta_schedule == "linear":
            return o.eta * (1 - passed)
        if o.eta_schedule == "power":
            return o.eta * (1 - i / self.all_steps) ** o.eta_power
        if o.eta_schedule == "exponential":
            return o.eta * (1 - math.expm1(o.eta_rate * passed) / math.expm1(o.eta_rate))
        return o.eta

    def _passed(self, level: int) -> float | None:
        """Return the share of eta's window that decoding has passed at a level; None outside the window."""
        if self.options.window_steps is not None:
            first, end = self.options.window_steps
            i = self.all_steps - level
            return (i - first) / (end - first) if first <= i < end else None
        (low, high), s = self.options.window, self.grid[level].s
        return ((high - s) / (high - low) if high > low else 0.0) if low <= s <= high else None

    @property
    def controlled(self) -> bool:
        """True if any decoding step uses y0."""
        return any(self.eta(k) for k in range(1, self.grid.steps + 1))

    def kappa(self, distance: float) -> float:
        """Return the share of the way to its target that the controller goes, at a `distance` in s from it."""
        weight = self.options.terminal_weight
        return 1.0 if weight is None else distance / (distance + 1 / weight)

    # --- inversion ---------------------------------------------------------------------------------------------

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        o, top = self.options, self.grid[self.grid.steps]
        y1 = normal(x0, generators) if o.gamma else None
        y = self.forward_ode(x0, y1, cond) if o.mode_forward == "ode" else self.forward_sde(x0, y1, generators)
        tensors = {"x_T": y * top.scale}
        if self.controlled:
            tensors["y0"] = x0
        if o.mode_reverse == "sde":
            tensors["seeds"] = seeds(generators, x0)
        return Latent(tensors)

    def forward_ode(self, x0: Tensor, y1: Tensor | None, cond: Condition) -> Tensor:
        """Return X at level N by the ODE (8) from x0, for a given noise target y1 (None if gamma = 0)."""
        gamma = self.options.gamma
        y = x0 / self.grid[0].scale
        for node, gap in self.climb():
            kappa = self.kappa(1 - node.s)
            eps = self.denoiser.eps(y * node.scale, node, cond) if gamma < 1 else 0.0
            target = gamma * kappa * y1 if y1 is not None else 0.0
            y = y + gap / (1 - node.s) * ((1 - gamma) * eps + target - (1 - gamma * (1 - kappa)) * y)
        return y

    def forward_sde(self, x0: Tensor, y1: Tensor | None, generators: Generators) -> Tensor:
        """Return X at level N by the SDE (10) from x0: one draw from its transition law, without a network."""
        gamma, bottom, top = self.options.gamma, self.grid[0].s, self.grid[self.grid.steps].s
        kept = (1 - top) / (1 - bottom)
        target = gamma * y1 if y1 is not None else 0.0
        std = math.sqrt((1 - gamma) * (top**2 - (kept * bottom) ** 2))
        return target + kept * (x0 / self.grid[0].scale - target) + std * normal(x0, generators)

    def climb(self) -> Iterator[tuple[Node, float]]:
        """Yield (level at which the network is evaluated, step in s) from the image to the noise."""
        N = self.grid.steps
        for i in range(N):
            if self.options.grid == "diffusers":  # the gaps of the falling grid in falling order, while s rises
                yield self.denoiser.path.node_at(i / (N + 1)), self.grid[N - i].s - self.grid[N - i - 1].s
            else:
                yield self.grid[i], self.grid[i + 1].s - self.grid[i].s

    # --- decoding ----------------------------------------------------------------------------------------------

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        y0 = latent.tensors["y0"] if self.controlled else 0.0
        stochastic = self.options.mode_reverse == "sde"
        noise = reseeded(latent.tensors["seeds"]) if stochastic else ()
        x = latent.x_T / self.grid[self.grid.steps].scale
        for k in range(self.grid.steps, 0, -1):
            node, earlier, eta = self.grid[k], self.grid[k - 1], self.eta(k)
            x0_hat = self.denoiser.x0(x * node.scale, node, cond) if eta < 1 else 0.0
            if stochastic:
                x = step_sde(x, x0_hat, y0, eta, node.s, earlier.s, noise)
            else:
                kappa = self.kappa(node.s)
                aim = (1 - eta) * x0_hat + eta * kappa * y0 - (1 - eta * (1 - kappa)) * x
                x = x + (node.s - earlier.s) / node.s * aim
            if constrain:
                x = constrain(x * earlier.scale, earlier) / earlier.scale
        return x * self.grid[0].scale

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        evaluated = self.options.mode_forward == "ode" and self.options.gamma < 1
        uncontrolled = sum(self.eta(k) < 1 for k in range(1, self.grid.steps + 1))
        return evaluated * self.grid.steps * inverting.evaluations + uncontrolled * decoding.evaluations


def step_sde(
    x: Tensor, x0_hat: Tensor | float, y0: Tensor | float, eta: float, s: float, earlier: float, noise: Generators
) -> Tensor:
    """Return X at `earlier` < s by the SDE (17), solved exactly with x0_hat constant."""
    c = (2 * (1 - eta) * x0_hat + eta * y0) / (2 - eta)
    q = ((1 - s) * earlier / (s * (1 - earlier))) ** (1 - eta)
    kept = q * (x - (1 - s) * c) / s
    return (1 - earlier) * c + earlier * (kept + math.sqrt(1 - q * q) * normal(x, noise))


def seeds(generators: Generators, like: Tensor) -> Tensor:
    """Return int64 [B]: one seed per image, drawn from its generator, so that decoding can be repeated."""
    if len(generators) != len(like):
        raise ValueError(f"{len(like)} images need one generator each, got {len(generators)} generators")
    return torch.cat([torch.randint(2**62, (1,), generator=g) for g in generators])


def reseeded(drawn: Tensor) -> Generators:
    """Return one generator for each seed of `seeds`."""
    return [torch.Generator().manual_seed(seed) for seed in drawn.tolist()]
