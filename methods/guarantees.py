"""Is a flow injective and stable, as its certificate says? One image a row, in float64, for any flow by `FlowODE`.

The flow is that of the solver's own coordinate (the gauge u of the injective ODE; X = x / (alpha + sigma) of others)
from image to noise, at the clean image, under the condition that a restoration decodes under. Singular values, pairs
and volumes are inner bounds (`methods.flow_analysis`): a value outside a certificate's constants disproves it, a value
inside shows how much of them is used.

What is certified is the flow, given its condition. How a restoration answers noise in its measurement also depends on
the conditioner, which has no certificate: its amplification is measured and compared with nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from methods.base import Measurement, Problem, in_latents
from methods.denoiser import Condition, Denoiser
from methods.flow_analysis import (
    Flow,
    adversarial_pair_ratios,
    divergence_integral,
    noise_amplification,
    random_pair_ratios,
    round_trip,
    singular_values,
)
from methods.flow_ode import FlowODE
from methods.injective_ode.field import Certificate
from methods.injective_ode.method import InjectiveODE
from methods.options import Guarantees
from methods.solvers import Dopri5, data_end_times

Column = Sequence[float | int | bool | None]

SLACK = 1e-9
"""Relative; what float64 rounding may add to a measured value before it counts as outside of a bound."""
RESOLVED = 1e-3
"""The rounding of a pair's ratio, eps |Phi| / |a - b|, from which on the pair says nothing: its columns are None."""


def check(method: FlowODE, problem: Problem, options: Guarantees) -> dict[str, Column]:
    """Columns of one value an image. Without a certificate those of its constants, and `violated`, are None.

    Where a certificate is nominal (`certified` False: the free and soft fields) `violated` says whether the flow is
    outside the constants that the strict form would have. Gradients are needed: not in inference mode.
    """
    exact = in_float64(method)
    problem = in_latents(problem, exact.denoiser) if exact.denoiser.latent else problem
    measurement = problem.measurement
    if measurement is None:
        raise ValueError("the task guarantee needs a measurement")
    with torch.enable_grad():
        cond = _decoding(exact, measurement, _double(problem.source))
        start = exact.chart(exact.times[0], cond).enter(problem.image.double())
        return (
            distances(exact, start, cond, options)
            | _round_trips(exact, start, cond, options)
            | _amplification(exact, measurement, _double(problem.source), options)
        )


def in_float64(method: FlowODE) -> FlowODE:
    """The same method around a copy of its network in float64, on its whole grid."""
    denoiser = method.denoiser
    network = copy.deepcopy(denoiser.backbone).double()
    # Forward derivatives of some layers want plain strides.
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    twin = Denoiser(network, denoiser.path, denoiser.prediction).eval().requires_grad_(False)
    return type(method)(twin, method.options.model_copy(update={"dtype": "float64", "strength": 1.0}), method.grid)


def certificates(method: FlowODE, cond: Condition) -> list[Certificate] | None:
    """What the weights guarantee under the condition of each image; None for a flow without constants, and for a
    guided one: a certificate is of one condition."""
    if not isinstance(method, InjectiveODE) or cond.evaluations != 1:
        return None
    ends = {"t0": method.times[0], "t1": method.times[-1]}
    images = range(len(cond.embedding))
    return [method.network.certificate(method.gauge(cond.image(i)), **ends) for i in images]


def _double(cond: Condition) -> Condition:
    return replace(cond, embedding=cond.embedding.double(), null=cond.null.double())


def _decoding(method: FlowODE, measurement: Measurement, cond: Condition) -> Condition:
    return method.given(measurement, cond) if isinstance(method, InjectiveODE) else cond


# --- distances and volumes ----------------------------------------------------------------------------------------


def distances(method: FlowODE, start: Tensor, cond: Condition, options: Guarantees) -> dict[str, Column]:
    """Singular values, pairs and volume of the flow at start [B, ...] in the solver's coordinate, and the constants."""
    times = data_end_times(method.times[0], method.times[-1], options.steps)
    flow = Flow(method.field(cond), times)
    values = singular_values(flow, start, options.iterations)
    random = random_pair_ratios(flow, start, options.distance, options.pairs)
    sought = adversarial_pair_ratios(flow, start, options.distance, options.updates, options.rate)
    volume = divergence_integral(flow, start, options.probes)
    rounding = torch.finfo(start.dtype).eps * flow(start).flatten(1).norm(dim=1) / options.distance
    pairs = {
        "pairs_min": random.amin(1),
        "pairs_max": random.amax(1),
        "adversarial_min": sought.smallest,
        "adversarial_max": sought.largest,
    }
    measured = {
        "sv_min": values.smallest,
        "sv_max": values.largest,
        **{name: torch.where(rounding < RESOLVED, column, torch.nan) for name, column in pairs.items()},
        "log_det": volume.mean,
        "log_det_error": volume.standard_error,
    }
    columns = {name: _numbers(column) for name, column in measured.items()}
    return columns | _against(measured, rounding, certificates(method, cond), start[0].numel())


def _numbers(column: Tensor) -> Column:
    return [value if math.isfinite(value) else None for value in column.tolist()]


def _against(
    measured: Mapping[str, Tensor], rounding: Tensor, certified: Sequence[Certificate] | None, dimensions: int
) -> dict[str, Column]:
    """The certificate's constants; the extremes measured over them, at most 1 inside; whether any value is outside.

    |log |det J|| <= D K, since each of D singular values lies in [e^-K, e^K]; so does the estimate from every probe of
    signs e, as |e^T (df/dz) e| <= k |e|^2. Where the flow overflows, `violated` is None: nothing was seen.
    """
    images = len(rounding)
    if certified is None:
        return {name: [None] * images for name in (*CONSTANTS, *AGAINST)}
    columns: dict[str, list[Any]] = {
        name: [getattr(c, attribute) for c in certified] for name, attribute in CONSTANTS.items()
    }
    lower, upper = (rounding.new_tensor(columns[f"certified_{end}"]) for end in ("min", "max"))
    volume = rounding.new_tensor(columns["K"]) * dimensions
    least = torch.stack([measured[f"{kind}_min"].nan_to_num(torch.inf) for kind in KINDS]).amin(0)
    most = torch.stack([measured[f"{kind}_max"].nan_to_num(-torch.inf) for kind in KINDS]).amax(0)
    slack = 1 + SLACK + torch.where(rounding < RESOLVED, 10 * rounding, 0)
    outside = (lower > least * slack) | (most > upper * slack)
    outside |= measured["log_det"].abs() > volume + SLACK * dimensions
    seen = (measured["sv_min"] + measured["sv_max"] + measured["log_det"]).isfinite()
    return {
        **columns,
        "certified_log_det": volume.tolist(),
        "used_min": _numbers(lower / least),
        "used_max": _numbers(most / upper),
        "violated": [value if known else None for value, known in zip(outside.tolist(), seen.tolist(), strict=True)],
    }


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
"""column -> of the certificate"""


# --- round trips --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trip:
    rms: list[float]
    alone: list[float]
    nfe: list[int]


def _round_trips(method: FlowODE, start: Tensor, cond: Condition, options: Guarantees) -> dict[str, Column]:
    """rms error of the image (range [-1, 1]) and evaluations of encoding and decoding: dopri5 by its tolerance, one
    image at a time, and the method's own solver; for the latter also the error of decoding from x_T alone."""
    trips = {}
    for tolerance in options.tolerances:
        solver = Dopri5(tolerance, tolerance, method.options.max_steps)
        trips[f"dopri5_{tolerance:.0e}"] = _trips(method, start, cond, solver, [method.times[0], method.times[-1]])
    columns: dict[str, Column] = {}
    if not method.solver.adaptive:
        trips[method.options.solver] = _trips(method, start, cond, method.solver, method.times)
        columns[f"trip_{method.options.solver}_alone"] = trips[method.options.solver].alone
    for name, trip in trips.items():
        columns |= {f"trip_{name}": trip.rms, f"trip_{name}_nfe": trip.nfe}
    return columns


def _trips(method: FlowODE, start: Tensor, cond: Condition, solver: Any, times: Sequence[float]) -> _Trip:
    trip = _Trip([], [], [])
    for i in range(len(start)):
        alone = cond.image(i)
        chart = method.chart(times[0], alone)
        done = round_trip(method.field(alone), start[i : i + 1], times, solver, chart.leave)
        trip.rms.append(float(done.rms))
        trip.alone.append(float(done.alone))
        trip.nfe.append(cond.evaluations * (done.encoding + done.decoding))
    return trip


# --- stability ----------------------------------------------------------------------------------------------------


def _amplification(
    method: FlowODE, measurement: Measurement, cond: Condition, options: Guarantees
) -> dict[str, Column]:
    """|R(y + n) - R(y)| / |n| over draws of noise on what was measured."""

    def restore(y: Tensor) -> Tensor:
        rngs = [torch.Generator().manual_seed(0) for _ in y]  # a restoration that draws draws the same again
        return method.restore(replace(cast(Any, measurement), y=y), cond, rngs)[0]

    y = measurement.y.double()
    ratios = noise_amplification(restore, y, options.noise, options.draws, measured=measurement.known)
    return {"amplification": ratios.mean(1).tolist(), "amplification_max": ratios.amax(1).tolist()}
