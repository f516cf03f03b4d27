"""Measures how a flow changes distances and volumes, matrix-free, on a plain velocity field. It knows no model.

For the flow Phi of dz/dt = f(t, z) with Jacobian J at a point it computes

- the largest and smallest singular value of J (Golub & Kahan 1965), from products J v and J^T u through the solver;
- log |det J|, from the whole Jacobian, or as the integral of div f by Hutchinson's estimator (FFJORD, Grathwohl et al.
  2019);
- ratios |Phi(a) - Phi(b)| / |a - b| of pairs, at random or by gradient ascent;
- round trips, local errors by step doubling, and the amplification of noise in a measurement by a restoration.

Every reported singular value and ratio is attained by some perturbation, so it is an inner bound. A value outside the
constants of a certificate disproves the certificate, even if the search has not converged.

Points are [B, ...] and results [B]. The field must treat the images of a batch independently. Use float64. Do not call
it in inference mode, since it differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.solvers import RK4, Field, Solver, integrate, reverse, rk4_increment

CLASSIC = RK4()


@dataclass(frozen=True)
class Flow:
    """The flow Phi: z at times[0] -> z at times[-1], by a solver with floating-point numbers."""

    field: Field
    times: Sequence[float]
    solver: Solver = CLASSIC

    def __call__(self, z: Tensor) -> Tensor:
        return self.solver.solution(integrate(self.field, z, self.times, self.solver))

    @property
    def inverse(self) -> Flow:
        """The same flow from times[-1] to times[0]: the inverse map up to the solver's error."""
        return Flow(self.field, list(self.times)[::-1], self.solver)


# --- singular values ----------------------------------------------------------------------------------------------


class SingularValues(NamedTuple):
    """Ritz values [B] of J and the residuals |J^T u - s v| of their triplets, in the same units."""

    largest: Tensor
    smallest: Tensor
    largest_residual: Tensor
    smallest_residual: Tensor
    stretched: Tensor
    """[B, ...], the right singular vector v of the largest: |v| = 1 and |J v| = largest."""


def singular_values(flow: Callable[[Tensor], Tensor], z: Tensor, iterations: int = 20, seed: int = 0) -> SingularValues:
    """Return the largest and smallest singular value of J at z [B, ...], by Lanczos bidiagonalisation.

    It takes `iterations` products with J and as many with J^T, and reorthogonalises fully. It is exact after as many
    iterations as z has dimensions. `largest` never exceeds the largest singular value, and `smallest` is never below
    the smallest. If many singular values are close to the smallest, `smallest` converges slowly. Then 1 /
    singular_values(flow.inverse, flow(z)).largest is the better estimate.
    """
    steps = min(iterations, z[0].numel())
    if steps < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    rng = torch.Generator().manual_seed(seed)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward derivative
        pull = vjp(flow, z)[1]
        _, v = _orthonormal(_draw(z, rng).flatten(1), [], rng)
        rights, lefts, bidiagonal = [v], list[Tensor](), z.new_zeros(len(z), steps, steps)
        for j in range(steps):
            pushed = jvp(flow, (z,), (rights[-1].view_as(z),))[1].flatten(1)
            bidiagonal[:, j, j], u = _orthonormal(pushed, lefts, rng)
            lefts.append(u)
            beta, v = _orthonormal(pull(u.view_as(z))[0].flatten(1), rights, rng)
            if j + 1 < steps:
                bidiagonal[:, j, j + 1] = beta
                rights.append(v)
    left, values, right = torch.linalg.svd(bidiagonal)
    residuals = beta[:, None] * left[:, -1].abs()
    stretched = (right[:, :1] @ torch.stack(rights, dim=1)).view_as(z)
    return SingularValues(values[:, 0], values[:, -1], residuals[:, 0], residuals[:, -1], stretched)


def stretch(flow: Callable[[Tensor], Tensor], z: Tensor, direction: Tensor) -> Tensor:
    """Return |J d| / |d| [B] at z, for a direction d of the shape of z."""
    with sdpa_kernel(SDPBackend.MATH):
        pushed = jvp(flow, (z,), (direction,))[1]
    return pushed.flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1)


def _draw(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng, dtype=torch.float64).to(like)


def _orthonormal(x: Tensor, basis: list[Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (norm [B], direction [B, D]) of the part of x [B, D] outside of an orthonormal basis.

    If this part is zero (the basis spans an invariant subspace), the norm is 0 and the direction is random, so the
    search continues in the rest of the space.
    """
    outside = _without(x, basis)
    norm = outside.norm(dim=1)
    lost = norm <= 100 * torch.finfo(x.dtype).eps * x.norm(dim=1)
    fresh = _without(_draw(x, rng), basis)
    norm = torch.where(lost, 0, norm)
    direction = torch.where(lost[:, None], fresh, outside)
    return norm, direction / direction.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _without(x: Tensor, basis: list[Tensor]) -> Tensor:
    """Return x without its part in an orthonormal basis; two passes are enough (Kahan and Parlett)."""
    for _ in range(2 if basis else 0):
        q = torch.stack(basis, dim=1)
        x = x - ((q @ x[:, :, None]).mT @ q)[:, 0]
    return x


# --- volumes ------------------------------------------------------------------------------------------------------


def jacobian(flow: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return J [B, D, D] at z [B, ...], with one product per column: for small D."""
    with sdpa_kernel(SDPBackend.MATH):
        columns = [jvp(flow, (z,), (axis,))[1].flatten(1) for axis in _axes(z)]
    return torch.stack(columns, dim=2)


def _axes(z: Tensor) -> list[Tensor]:
    """Return the D unit vectors, each in the shape of z."""
    unit = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device)
    return [axis.view(1, *z.shape[1:]).expand_as(z) for axis in unit]


def log_determinant(flow: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return log |det J| [B] at z, from the whole Jacobian."""
    return torch.linalg.slogdet(jacobian(flow, z))[1]


class Estimate(NamedTuple):
    """Mean and standard error over probes, [B] each; the error is 0 if nothing is random."""

    mean: Tensor
    standard_error: Tensor


def divergence_integral(flow: Flow, z: Tensor, probes: int | None = None, seed: int = 0) -> Estimate:
    """Return log |det J| = the integral of div f along the path from z, integrated with it by the flow's own solver.

    `probes` (2 or more) vectors e of random signs, drawn once per path, estimate div f = E[e^T (df/dz) e] with one
    product per probe and evaluation. None computes the trace exactly, with D products.
    """
    if probes is not None and probes < 2:
        raise ValueError(f"probes must be 2 or more for a standard error, got {probes}")
    dims = z[0].numel()
    rng = torch.Generator().manual_seed(seed)
    vectors = _axes(z) if probes is None else [_draw(z, rng).sign() for _ in range(probes)]

    def with_divergence(t: float, state: Tensor) -> Tensor:
        x = state[:, :dims].reshape(z.shape)
        slope, products = flow.field(t, x), [jvp(lambda y: flow.field(t, y), (x,), (e,))[1] for e in vectors]
        parts = torch.stack([(e * product).flatten(1).sum(1) for e, product in zip(vectors, products, strict=True)], 1)
        parts = parts.sum(1, keepdim=True) if probes is None else parts
        return torch.cat([slope.flatten(1), parts], dim=1)

    start = torch.cat([z.flatten(1), z.new_zeros(len(z), probes or 1)], dim=1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        ended = flow.solver.solution(integrate(with_divergence, start, flow.times, flow.solver))
    integrals = ended[:, dims:]
    if probes is None:
        return Estimate(integrals[:, 0], torch.zeros_like(integrals[:, 0]))
    return Estimate(integrals.mean(1), integrals.std(1) / probes**0.5)


# --- pairs --------------------------------------------------------------------------------------------------------


def pair_ratios(flow: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Return |Phi(a) - Phi(b)| / |a - b| [B]."""
    return (flow(a) - flow(b)).flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)


def random_pair_ratios(
    flow: Callable[[Tensor], Tensor], z: Tensor, size: float, pairs: int = 8, seed: int = 0
) -> Tensor:
    """Return the ratios [B, pairs] of z and z + d, with d of length `size` in random directions."""
    rng = torch.Generator().manual_seed(seed)
    offsets = [_of_length(_draw(z, rng), size) for _ in range(pairs)]
    ended = flow(z)
    return torch.stack([(flow(z + d) - ended).flatten(1).norm(dim=1) / size for d in offsets], dim=1)


class Pairs(NamedTuple):
    """The smallest and largest ratio found in the search, [B] each, and the pairs of points [B, ...] that have them."""

    smallest: Tensor
    largest: Tensor
    nearest: tuple[Tensor, Tensor]
    farthest: tuple[Tensor, Tensor]


def adversarial_pair_ratios(
    flow: Callable[[Tensor], Tensor], z: Tensor, size: float, updates: int = 50, rate: float = 0.05, seed: int = 0
) -> Pairs:
    """Search by Adam for pairs at a distance of `size` with a small and with a large ratio.

    The search starts at z and moves both the point and the direction, by about `rate` per coordinate and update at
    most. Every ratio is valid, wherever the search ends.
    """
    ratios, ends = [], []
    for sign in (1.0, -1.0):
        point = z.detach().clone().requires_grad_()
        direction = _draw(z, torch.Generator().manual_seed(seed)).requires_grad_()
        adam = torch.optim.Adam([point, direction], lr=rate)
        best = torch.full((len(z),), sign * torch.inf, dtype=z.dtype, device=z.device)
        pair = (z, z)
        for _ in range(updates):
            points = (point, point + _of_length(direction, size))
            ratio = pair_ratios(flow, *points)
            better = (sign * ratio.detach() < sign * best).view(-1, *[1] * (z.dim() - 1))
            pair = (
                torch.where(better, points[0].detach(), pair[0]),
                torch.where(better, points[1].detach(), pair[1]),
            )
            best = sign * torch.minimum(sign * best, sign * ratio.detach())
            point.grad, direction.grad = torch.autograd.grad(sign * ratio.log().sum(), [point, direction])
            adam.step()
        ratios.append(best)
        ends.append(pair)
    return Pairs(ratios[0], ratios[1], ends[0], ends[1])


def _of_length(d: Tensor, size: float) -> Tensor:
    return size * d / d.flatten(1).norm(dim=1).view(-1, *[1] * (d.dim() - 1))


# --- round trips and stability ------------------------------------------------------------------------------------


class RoundTrip(NamedTuple):
    """The errors |z_back - z| of an encoding and its decoding, and their evaluations of the field."""

    rms: Tensor
    """[B], RMS error of decoding from the solver's whole state."""
    largest: Tensor
    """[B], largest error of any number of an image; 0 for a bit-exact solver."""
    alone: Tensor
    """[B], RMS error of decoding from the solution alone, without the rest of the state."""
    unequal: Tensor
    """[B] int, how many numbers of z, in the solver's own format, do not return as the same number."""
    encoded: Tensor
    """[B, ...], the solution at times[-1]."""
    encoding: int
    decoding: int


def round_trip(
    field: Field,
    z: Tensor,
    times: Sequence[float],
    solver: Solver,
    leave: Callable[[Tensor], Tensor] = lambda z: z,
) -> RoundTrip:
    """Encode z [B, ...], rounded to the solver's own format, and decode it again.

    Errors are differences of leave(z). `leave` maps from the solver's coordinates to those of the errors.
    """
    calls = 0

    def counted(t: float, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return field(t, x)

    with torch.no_grad():
        kept = solver.numbers.keep(z)
        held = leave(solver.numbers.value(kept))
        state = integrate(counted, z, times, solver)
        encoding, encoded = calls, solver.solution(state)
        returned = reverse(counted, state, times, solver)
        decoding = calls - encoding
        back = leave(solver.solution(returned)) - held
        alone = back
        if solver.reversible:
            begun = solver.begin(field, times[-1], encoded)
            alone = leave(solver.solution(reverse(field, begun, times, solver))) - held
        unequal = (returned[0] != kept).flatten(1).sum(1)
    return RoundTrip(_rms(back), back.flatten(1).abs().amax(1), _rms(alone), unequal, encoded, encoding, decoding)


class ReverseSolve(NamedTuple):
    """The errors of rk4's way back to a known point, [B] each, L2."""

    error: Tensor
    local: Tensor
    """An estimate of the sum of local errors."""


def reverse_solve(field: Field, z: Tensor, times: Sequence[float]) -> ReverseSolve:
    """Integrate from z with half steps of rk4, return with whole steps, and measure the error and its local errors.

    Suppose that the exact flow to times[0] stretches no distance by more than G. Then each local error grows at most by
    G on the way there: error <= G * local in exact arithmetic (Gronwall).

    `local` is an estimate, not a bound: |one step - two half steps| is 15 times the error of the two half steps and
    15/16 of the error of the one step, up to higher orders in the step (Hairer, Norsett & Wanner, Solving Ordinary
    Differential Equations I, II.4).
    """
    with torch.no_grad():
        there, going = z, z.new_zeros(len(z))
        for t, u in pairwise(times):
            once, there = _once_and_in_halves(field, t, u, there)
            going = going + (once - there).flatten(1).norm(dim=1) / 15
        back, coming = there, z.new_zeros(len(z))
        for t, u in pairwise(list(times)[::-1]):
            back, twice = _once_and_in_halves(field, t, u, back)
            coming = coming + 16 / 15 * (back - twice).flatten(1).norm(dim=1)
    return ReverseSolve((back - z).flatten(1).norm(dim=1), going + coming)


def _once_and_in_halves(field: Field, t: float, u: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z after one step of rk4 and after two half steps."""
    m = (t + u) / 2
    half = z + rk4_increment(field, t, m, z)
    return z + rk4_increment(field, t, u, z), half + rk4_increment(field, m, u, half)


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()


def noise_amplification(
    restore: Callable[[Tensor], Tensor],
    y: Tensor,
    sigma: float,
    draws: int = 8,
    seed: int = 0,
    measured: Tensor | None = None,
) -> Tensor:
    """Return |R(y + n) - R(y)| / |n| [B, draws] of a restoration R for noise n ~ N(0, sigma^2) in its measurement.

    R must be the same function at every call, so fix its own random draws. `measured`: bool, broadcast to y; noise is
    added only where it is True.
    """
    rng = torch.Generator().manual_seed(seed)
    seen = torch.ones_like(y) if measured is None else measured.to(y)
    with torch.no_grad():
        return torch.stack([pair_ratios(restore, y, y + sigma * seen * _draw(y, rng)) for _ in range(draws)], dim=1)
