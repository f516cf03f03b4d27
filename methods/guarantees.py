"""Checks that a flow is as injective and stable as its certificate says, in float64, for any `WalkedFlow`.

The flow goes from image to noise in the coordinate of the solver: the gauge u of the injective ODE, or
X = x / (alpha + sigma) of other methods. It is measured at the clean image, under the condition that a restoration
decodes under. There is one row per image.

Singular values and pairs are inner bounds (`methods.flow_analysis`): a value outside the constants of a certificate
disproves it, and a value inside shows how much of them is used. These values come from the map of rk4, which may be
outside the constants although the flow is inside, if the steps are few. So if a value is outside, the perturbations
with the extreme values go through the flow again with twice the steps. `violated` is true only if a value is still
outside, by more than the change that the doubling made.

The certificate holds for the flow, given its condition. The response of a restoration to noise in its measurement also
depends on the conditioner, which has no certificate. So the amplification of noise is measured, and has no bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

from methods.base import Column, Generators, Latent, Measurement, Problem, in_latents, needed
from methods.denoiser import Condition, Denoiser
from methods.flow_analysis import (
    Flow,
    Pairs,
    RoundTrip,
    adversarial_pair_ratios,
    divergence_integral,
    noise_amplification,
    pair_ratios,
    random_pair_ratios,
    reverse_solve,
    round_trip,
    singular_values,
    stretch,
)
from methods.options import Guarantees
from methods.solvers import Dopri5, Field, Solver, data_end_times

SLACK = 1e-9
"""Relative tolerance for float64 rounding before a measured value counts as outside a bound."""
RESOLVED = 1e-3
"""If the rounding of the ratio of a pair, eps |Phi| / |a - b|, is at least this, the columns of the pair are None."""
FlowT = TypeVar("FlowT", bound="WalkedFlow")


@dataclass(frozen=True)
class LocalEdit:
    """An edit u_T' = u_T + M delta, and the change outside the mask as L2 norms [B]."""

    image: Tensor
    """x + Phi(u_T') - Phi(u_T). The exact flow has Phi(u_T) = x, so this difference removes the error of the solver."""
    outside: Tensor
    """Measured: |x' - x|."""
    bound: Tensor
    """The bound for the exact flow of a certified field: max S_0 outside the mask, times (e^K - 1) |M delta|.

    u_0 is u_T plus the integral of du/dt. u_T changes only inside the mask. The integral changes by at most the
    integral of k e^(integral of k so far) |M delta|, which is (e^K - 1) |M delta|.
    """
    certified: bool
    """True if the field is certified; else the bound is nominal."""


class Chart(Protocol):
    """The coordinate of a solver at one level."""

    def enter(self, x: Tensor) -> Tensor: ...
    def leave(self, q: Tensor) -> Tensor: ...


class WalkedFlow(Protocol):
    """A method that solves a flow between image and noise, and that knows the certificate of the flow."""

    denoiser: Denoiser
    options: Any
    solver: Solver
    times: list[float]

    def changed(self, denoiser: Denoiser, **options: Any) -> Self:
        """Return the same method on another denoiser, with some options changed."""
        ...

    def field(self, cond: Condition) -> Field:
        """Return the velocity that the solver integrates."""
        ...

    def chart(self, time: float, cond: Condition) -> Chart: ...

    def restore(
        self, measurement: Measurement, cond: Condition, generators: Generators = ()
    ) -> tuple[Tensor, Latent]: ...

    def decoding(self, measurement: Measurement, cond: Condition) -> Condition:
        """Return the condition that a restoration decodes under."""
        ...

    def certificates(self, cond: Condition) -> list[dict[str, float | bool]] | None:
        """Return the constants that the weights guarantee for each image, under its condition; None without a
        certificate."""
        ...

    def local_edit(self, image: Tensor, cond: Condition, mask: Tensor, delta: Tensor) -> LocalEdit | None:
        """Return the image after a change `delta` of its latent inside the mask; None for a flow without a bound."""
        ...


def check(method: WalkedFlow, problem: Problem, options: Guarantees) -> dict[str, Column]:
    """Return the columns, with one value per image. Without a certificate, its constants and `violated` are None.

    If a certificate is nominal (`certified` is False: free and soft fields), `violated` is true if the flow is outside
    the constants of the strict form. Gradients are needed, so this does not work in inference mode.
    """
    exact = in_float64(method)
    problem = in_latents(problem, exact.denoiser) if exact.denoiser.latent else problem
    measurement = needed(problem.measurement, "guarantee", "measurement")
    with torch.enable_grad():
        cond = exact.decoding(measurement, _double(problem.source))
        start = exact.chart(exact.times[0], cond).enter(problem.image.double())
        columns = distances(exact, start, cond, options)
        return (
            columns
            | _reverse_solve(exact, start, cond, columns["gronwall"], options)
            | _round_trips(exact, start, cond, options)
            | _in_float32(method, problem)
            | _amplification(exact, measurement, _double(problem.source), options)
            | _local_edit(exact, problem.image.double(), cond)
        )


def in_float64(method: FlowT) -> FlowT:
    """Return the same method around a copy of its network in float64, on the whole grid."""
    denoiser = method.denoiser
    network = copy.deepcopy(denoiser.backbone).double()
    # Forward derivatives of some layers need plain strides.
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    double = Denoiser(network, denoiser.path, denoiser.prediction).eval().requires_grad_(False)
    return method.changed(double, dtype="float64", strength=1.0)


def _double(cond: Condition) -> Condition:
    return replace(cond, embedding=cond.embedding.double(), null=cond.null.double())


# --- distances and volumes ----------------------------------------------------------------------------------------


def distances(method: WalkedFlow, start: Tensor, cond: Condition, options: Guarantees) -> dict[str, Column]:
    """Return singular values, pairs and volume of the flow at start [B, ...], and the constants of the certificate.

    `start` is in the coordinate of the solver. `flow_steps` is the number of rk4 steps for the values of an image; it
    is doubled if the values with fewer steps were outside the constants.
    """
    certified = method.certificates(cond)
    measured, witnesses = _search(_flow(method, cond, options.steps), start, options)
    steps = start.new_full((len(start),), options.steps)
    against: dict[str, Column] = {name: [None] * len(start) for name in (*CONSTANTS, *AGAINST)}
    if certified is not None:
        against, bounds = _constants(certified, start)
        seen = _finite(measured)
        before = after = _excess(measured, bounds)
        outside = (before > _slack(measured)).any(0)
        if outside.any():
            again = _measure_again(_flow(method, cond, 2 * options.steps), start, witnesses, options)
            measured = {name: torch.where(outside, again[name], column) for name, column in measured.items()}
            steps, seen = torch.where(outside, 2 * steps, steps), seen & _finite(measured)
            after = _excess(measured, bounds)
            outside &= (after > _slack(measured) + (after - before).abs()).any(0)
        against |= {
            "used_min": _numbers(after[0].exp()),
            "used_max": _numbers(after[1].exp()),
            "violated": [bool(out) if known else None for out, known in zip(outside, seen, strict=True)],
        }
    shown = {name: _numbers(column) for name, column in measured.items() if name != "rounding"}
    return shown | {"flow_steps": [int(count) for count in steps]} | against


def _flow(method: WalkedFlow, cond: Condition, steps: int) -> Flow:
    return Flow(method.field(cond), data_end_times(method.times[0], method.times[-1], steps))


class _Witnesses(NamedTuple):
    """The perturbations that give the extreme values of a search."""

    stretched: Tensor
    """[B, ...]: the perturbation at the start that the flow stretches most."""
    ended: Tensor
    """[B, ...]: the end of the flow from the start."""
    squeezed: Tensor
    """[B, ...]: the perturbation at the end that the inverse flow stretches most."""
    pairs: Pairs


def _search(flow: Flow, start: Tensor, options: Guarantees) -> tuple[dict[str, Tensor], _Witnesses]:
    """Search the extreme values. The smallest singular value is 1 over the largest of the inverse flow, from the
    end."""
    ended = flow(start)
    back = singular_values(flow.inverse, ended, options.iterations)
    forth = singular_values(flow, start, options.iterations)
    sought = adversarial_pair_ratios(flow, start, options.distance, options.updates, options.rate)
    found = (1 / back.largest, forth.largest, sought.smallest, sought.largest)
    witnesses = _Witnesses(forth.stretched, ended, back.stretched, sought)
    return _measured(flow, start, found, options), witnesses


def _measure_again(flow: Flow, start: Tensor, known: _Witnesses, options: Guarantees) -> dict[str, Tensor]:
    """Measure the same perturbations with another number of steps."""
    squeezed = 1 / stretch(flow.inverse, known.ended, known.squeezed)
    nearest, farthest = pair_ratios(flow, *known.pairs.nearest), pair_ratios(flow, *known.pairs.farthest)
    return _measured(flow, start, (squeezed, stretch(flow, start, known.stretched), nearest, farthest), options)


def _measured(flow: Flow, start: Tensor, found: Sequence[Tensor], options: Guarantees) -> dict[str, Tensor]:
    """Return all measured values, each [B]; nan if rounding hides the ratio of a pair. `rounding` is relative, of this
    ratio."""
    random = random_pair_ratios(flow, start, options.distance, options.pairs)
    volume = divergence_integral(flow, start, options.probes)
    rounding = torch.finfo(start.dtype).eps * flow(start).flatten(1).norm(dim=1) / options.distance
    values = dict(zip(("sv_min", "sv_max", "adversarial_min", "adversarial_max"), found, strict=True))
    values |= {"pairs_min": random.amin(1), "pairs_max": random.amax(1)}
    unclear = rounding >= RESOLVED
    return {
        **{k: v if k.startswith("sv") else torch.where(unclear, torch.nan, v) for k, v in values.items()},
        "log_det": volume.mean,
        "log_det_error": volume.standard_error,
        "rounding": rounding,
    }


def _numbers(column: Tensor) -> Column:
    return [value if math.isfinite(value) else None for value in column.tolist()]


class _Bounds(NamedTuple):
    """The bounds, [B] each: `lower` and `upper` of distance ratios, and K for |log |det J|| per dimension."""

    lower: Tensor
    upper: Tensor
    K: Tensor
    dimensions: int


def _constants(certified: Sequence[Mapping[str, float | bool]], like: Tensor) -> tuple[dict[str, Column], _Bounds]:
    """Return the constants of the certificate as columns, and as tensors.

    |log |det J|| <= D K, since each of D singular values lies in [e^-K, e^K]. The same bound holds for the estimate
    from each probe of signs e, since |e^T (df/dz) e| <= k |e|^2.
    """
    columns: dict[str, Column] = {name: [c[what] for c in certified] for name, what in CONSTANTS.items()}
    lower, upper, K = (like.new_tensor(columns[name]) for name in ("certified_min", "certified_max", "K"))
    dimensions = like[0].numel()
    return columns | {"certified_log_det": (dimensions * K).tolist()}, _Bounds(lower, upper, K, dimensions)


def _excess(measured: Mapping[str, Tensor], bounds: _Bounds) -> Tensor:
    """Return how far values are outside their bounds, [3, B], in logs: the smallest distance ratio, the largest, and
    the volume per dimension. It is above 0 outside."""
    least = torch.stack([measured[f"{kind}_min"].nan_to_num(torch.inf) for kind in KINDS]).amin(0)
    most = torch.stack([measured[f"{kind}_max"].nan_to_num(-torch.inf) for kind in KINDS]).amax(0)
    volume = measured["log_det"].abs() / bounds.dimensions - bounds.K
    return torch.stack([(bounds.lower / least).log(), (most / bounds.upper).log(), volume])


def _slack(measured: Mapping[str, Tensor]) -> Tensor:
    """Return the tolerance for rounding, [B], in logs."""
    rounding = measured["rounding"]
    return SLACK + torch.where(rounding < RESOLVED, 10 * rounding, 0)


def _finite(measured: Mapping[str, Tensor]) -> Tensor:
    """Return True for each image whose values are finite, [B]: a flow that overflows is not measured."""
    return (measured["sv_min"] + measured["sv_max"] + measured["log_det"]).isfinite()


KINDS = ("sv", "pairs", "adversarial")
AGAINST = ("certified_log_det", "used_min", "used_max", "violated")
CONSTANTS = {
    "certified": "certified",
    "certified_min": "u_lower",
    "certified_max": "u_upper",
    "certified_z_min": "z_lower",
    "certified_z_max": "z_upper",
    "K": "K",
    "L": "L",
    "lam": "lam",
    "h": "h",
    "lipschitz_N": "lipschitz_N",
    "gronwall": "gronwall",
    "gronwall_z": "gronwall_z",
}
"""Column -> name of the constant in the certificate."""


# --- round trips --------------------------------------------------------------------------------------------------

BITS = "_bits"
"""The end of the name of a solver that adds integers."""


def _round_trips(method: WalkedFlow, start: Tensor, cond: Condition, options: Guarantees) -> dict[str, Column]:
    """Return the error and the evaluations of round trips (encode and decode) with several solvers.

    dopri5 runs at each tolerance, one image at a time; the other solvers run on the steps of the method. `trip_NAME` is
    the rms error of the image (range [-1, 1]), and `trip_NAME_nfe` the evaluations. They are None if a solver fails:
    its integers overflow, or it needs more steps than allowed. Only for solvers on the steps of the method,
    `trip_NAME_unequal` counts the numbers of an image, in the number type of the solver, that do not return the same;
    it is 0 for a bit-exact solver. Only for reversible solvers, `trip_NAME_alone` is the error of decoding from x_T
    alone. `encoded_std` and `encoded_max` describe the latent in the coordinate of the solver, with the solver of the
    method.
    """
    columns: dict[str, Column] = {}
    encoded = torch.full_like(start, torch.nan)
    for tolerance in options.tolerances:
        solver, name = Dopri5(tolerance, tolerance, method.options.max_steps), f"trip_dopri5_{tolerance:.0e}"
        walks = [_trip(method, start[i : i + 1], cond.image(i), solver) for i in range(len(start))]
        columns[name] = [_numbers(walk.rms)[0] if walk else None for walk in walks]
        columns[f"{name}_nfe"] = [cond.evaluations * _calls(walk) if walk else None for walk in walks]
        for i, walk in enumerate(walks):
            if walk and method.solver.adaptive:
                encoded[i] = walk.encoded[0]
    own = _own_solver(method)
    for name in dict.fromkeys((*own, *options.solvers)):
        update = {"solver": name.removesuffix(BITS), "bit_exact": name.endswith(BITS), "keep": "state"}
        walked = method if name in own else method.changed(method.denoiser, **update)
        trip = _trip(walked, start, cond, walked.solver)
        missing: Column = [None] * len(start)
        columns |= {
            f"trip_{name}": _numbers(trip.rms) if trip else missing,
            f"trip_{name}_nfe": [cond.evaluations * _calls(trip)] * len(start) if trip else missing,
            f"trip_{name}_unequal": trip.unequal.tolist() if trip else missing,
        }
        if walked.solver.reversible:
            columns[f"trip_{name}_alone"] = _numbers(trip.alone) if trip else missing
        if name in own and trip:
            encoded = trip.encoded
    flat = encoded.flatten(1)
    return columns | {"encoded_std": _numbers(flat.std(1)), "encoded_max": _numbers(flat.abs().amax(1))}


def _in_float32(method: WalkedFlow, problem: Problem) -> dict[str, Column]:
    """Return the error of the round trip in float32, with the solver and the network of the method; nothing for
    dopri5."""
    single = method.changed(method.denoiser, dtype="float32", strength=1.0)
    cond = single.decoding(needed(problem.measurement, "guarantee", "measurement"), problem.source)
    start = single.chart(single.times[0], cond).enter(problem.image.float())
    columns: dict[str, Column] = {}
    for name in _own_solver(single):
        trip = _trip(single, start, cond, single.solver)
        columns[f"trip_{name}_float32"] = _numbers(trip.rms) if trip else [None] * len(start)
    return columns


def _own_solver(method: WalkedFlow) -> tuple[str, ...]:
    """Return the name of the solver of the method; nothing for dopri5, which chooses its own steps."""
    chosen = method.options
    return () if method.solver.adaptive else (chosen.solver + (BITS if chosen.bit_exact else ""),)


def _trip(method: WalkedFlow, start: Tensor, cond: Condition, solver: Solver) -> RoundTrip | None:
    """Run a round trip. Returns None if the solver fails."""
    times = [method.times[0], method.times[-1]] if solver.adaptive else method.times
    try:
        return round_trip(method.field(cond), start, times, solver, method.chart(times[0], cond).leave)
    except ArithmeticError:
        return None


def _calls(trip: RoundTrip) -> int:
    return trip.encoding + trip.decoding


def _reverse_solve(
    method: WalkedFlow, start: Tensor, cond: Condition, gronwall: Column, options: Guarantees
) -> dict[str, Column]:
    """Return the error of the reverse solve by rk4, its local errors, and a bound from them.

    The errors are in the coordinate of the solver, with the steps of `distances`. Step doubling estimates the local
    errors. The bound is e^K times their sum; it is only as good as this estimate.
    """
    flow = _flow(method, cond, options.steps)
    found = reverse_solve(flow.field, start, flow.times)
    growth = start.new_tensor([math.nan if value is None else value for value in gronwall])
    return {
        "rk4_error": _numbers(found.error),
        "rk4_local_errors": _numbers(found.local),
        "gronwall_bound": _numbers(growth * found.local),
    }


# --- stability ----------------------------------------------------------------------------------------------------


def _amplification(
    method: WalkedFlow, measurement: Measurement, cond: Condition, options: Guarantees
) -> dict[str, Column]:
    """Return |R(y + n) - R(y)| / |n|, mean and maximum over draws of noise n on the measured pixels."""

    def restore(y: Tensor) -> Tensor:
        # A restoration that draws noise must draw the same noise for each y.
        rngs = [torch.Generator().manual_seed(0) for _ in y]
        return method.restore(replace(cast(Any, measurement), y=y), cond, rngs)[0]

    y = measurement.y.double()
    ratios = noise_amplification(restore, y, options.noise, options.draws, measured=measurement.known)
    return {"amplification": ratios.mean(1).tolist(), "amplification_max": ratios.amax(1).tolist()}


# --- local edits ----------------------------------------------------------------------------------------------------


def _local_edit(method: WalkedFlow, image: Tensor, cond: Condition) -> dict[str, Column]:
    """Return the L2 change of the image inside and outside an edited square, and its certified bound outside.

    The edit adds noise of std 1 to the latent, in a square in the middle with half the side of the image.
    """
    height, width = image.shape[2:]
    mask = torch.zeros(len(image), 1, height, width, dtype=torch.bool)
    mask[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    noise = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        edit = method.local_edit(image, cond, mask.to(image.device), noise.to(image).expand_as(image))
    if edit is None:
        return {name: [None] * len(image) for name in ("edit_inside", "edit_outside", "edit_bound")}
    inside = torch.where(mask.to(image.device), edit.image - image, 0.0).flatten(1).norm(dim=1)
    return {
        "edit_inside": inside.tolist(), "edit_outside": edit.outside.tolist(), "edit_bound": edit.bound.tolist()
    }  # fmt: skip
