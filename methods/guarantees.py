"""Is a flow injective and stable, as its certificate says? One row per image, in float64, for any `WalkedFlow`.

The flow is that of the solver's own coordinate (the gauge u of the injective ODE; X = x / (alpha + sigma) of others)
from image to noise, at the clean image, under the condition that a restoration decodes under. Singular values and pairs
are inner bounds (`methods.flow_analysis`): a value outside a certificate's constants disproves it, a value inside shows
how much of them is used. What is differentiated is rk4's map, though, and few steps may leave constants that the flow
keeps: where a value is outside, the perturbations that attained them are pushed through the flow again at doubled
steps, and `violated` is true only where one is still outside, by more than the doubling moved it.

What is certified is the flow, given its condition. How a restoration answers noise in its measurement also depends on
the conditioner, which has no certificate: its amplification is measured and compared with nothing.
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
"""Relative; what float64 rounding may add to a measured value before it counts as outside of a bound."""
RESOLVED = 1e-3
"""The rounding of a pair's ratio, eps |Phi| / |a - b|, from which on the pair says nothing: its columns are None."""
FlowT = TypeVar("FlowT", bound="WalkedFlow")


@dataclass(frozen=True)
class LocalEdit:
    """An edit u_T' = u_T + M delta, and what became of the rest: L2 norms [B] outside the mask."""

    image: Tensor
    """x + Phi(u_T') - Phi(u_T): by the exact flow Phi(u_T) = x, and a solver's error of it is not taken for an edit."""
    outside: Tensor
    """Measured: |x' - x|."""
    bound: Tensor
    """Guaranteed for the exact flow of a certified field: max S_0 outside the mask, times (e^K - 1) |M delta|.

    The way from u_T to u_0 is the identity, which moves nothing outside the mask, and the integral of du/dt, whose
    change is at most that of k e^(growth of k so far) |M delta|: (e^K - 1) |M delta|.
    """
    certified: bool
    """Whether the field is certified; where it is not, the bound is nominal."""


class Chart(Protocol):
    """The coordinate that a solver walks in, at one level."""

    def enter(self, x: Tensor) -> Tensor: ...
    def leave(self, q: Tensor) -> Tensor: ...


class WalkedFlow(Protocol):
    """A method that walks a flow between image and noise by a solver, and that says what is certified of the flow."""

    denoiser: Denoiser
    options: Any
    solver: Solver
    times: list[float]

    def changed(self, denoiser: Denoiser, **options: Any) -> Self:
        """The same method on another denoiser, with some options changed."""
        ...

    def field(self, cond: Condition) -> Field:
        """The velocity that the solver integrates."""
        ...

    def chart(self, time: float, cond: Condition) -> Chart: ...

    def restore(
        self, measurement: Measurement, cond: Condition, generators: Generators = ()
    ) -> tuple[Tensor, Latent]: ...

    def decoding(self, measurement: Measurement, cond: Condition) -> Condition:
        """The condition that a restoration decodes under."""
        ...

    def certificates(self, cond: Condition) -> list[dict[str, float | bool]] | None:
        """The constants that the weights guarantee under the condition of each image; None for a flow without any."""
        ...

    def local_edit(self, image: Tensor, cond: Condition, mask: Tensor, delta: Tensor) -> LocalEdit | None:
        """The image with its latent changed by `delta` inside the mask; None for a flow without a bound of that."""
        ...


def check(method: WalkedFlow, problem: Problem, options: Guarantees) -> dict[str, Column]:
    """Columns of one value per image. Without a certificate those of its constants, and `violated`, are None.

    Where a certificate is nominal (`certified` False: the free and soft fields) `violated` says whether the flow is
    outside the constants that the strict form would have. Gradients are needed: not in inference mode.
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
    """The same method around a copy of its network in float64, on its whole grid."""
    denoiser = method.denoiser
    network = copy.deepcopy(denoiser.backbone).double()
    # Forward derivatives of some layers want plain strides.
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    double = Denoiser(network, denoiser.path, denoiser.prediction).eval().requires_grad_(False)
    return method.changed(double, dtype="float64", strength=1.0)


def _double(cond: Condition) -> Condition:
    return replace(cond, embedding=cond.embedding.double(), null=cond.null.double())


# --- distances and volumes ----------------------------------------------------------------------------------------


def distances(method: WalkedFlow, start: Tensor, cond: Condition, options: Guarantees) -> dict[str, Column]:
    """Singular values, pairs and volume of the flow at start [B, ...] in the solver's coordinate, and the constants.

    `flow_steps`: those of rk4 that an image's values are of, the doubled ones where values of fewer were outside.
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
            again = _again(_flow(method, cond, 2 * options.steps), start, witnesses, options)
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
    """The perturbations that attained what a search found."""

    stretched: Tensor
    """[B, ...], at the start."""
    ended: Tensor
    """[B, ...], where the flow takes the start."""
    squeezed: Tensor
    """[B, ...], there: what the way back stretches most."""
    pairs: Pairs


def _search(flow: Flow, start: Tensor, options: Guarantees) -> tuple[dict[str, Tensor], _Witnesses]:
    """The small end of the singular values is looked for from the noise, as the large end of the inverse flow."""
    ended = flow(start)
    back = singular_values(flow.inverse, ended, options.iterations)
    forth = singular_values(flow, start, options.iterations)
    sought = adversarial_pair_ratios(flow, start, options.distance, options.updates, options.rate)
    found = (1 / back.largest, forth.largest, sought.smallest, sought.largest)
    witnesses = _Witnesses(forth.stretched, ended, back.stretched, sought)
    return _measured(flow, start, found, options), witnesses


def _again(flow: Flow, start: Tensor, known: _Witnesses, options: Guarantees) -> dict[str, Tensor]:
    """What another discretisation makes of the same perturbations."""
    squeezed = 1 / stretch(flow.inverse, known.ended, known.squeezed)
    nearest, farthest = pair_ratios(flow, *known.pairs.nearest), pair_ratios(flow, *known.pairs.farthest)
    return _measured(flow, start, (squeezed, stretch(flow, start, known.stretched), nearest, farthest), options)


def _measured(flow: Flow, start: Tensor, found: Sequence[Tensor], options: Guarantees) -> dict[str, Tensor]:
    """Each [B], of what was found and is drawn; nan where a pair says nothing. `rounding`: relative, of its ratio."""
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
    """[B] each: what distances keep to, and |log |det J|| a dimension."""

    lower: Tensor
    upper: Tensor
    K: Tensor
    dimensions: int


def _constants(certified: Sequence[Mapping[str, float | bool]], like: Tensor) -> tuple[dict[str, Column], _Bounds]:
    """Columns, and the same as tensors.

    |log |det J|| <= D K, since each of D singular values lies in [e^-K, e^K]; so does the estimate from every probe of
    signs e, as |e^T (df/dz) e| <= k |e|^2.
    """
    columns: dict[str, Column] = {name: [c[what] for c in certified] for name, what in CONSTANTS.items()}
    lower, upper, K = (like.new_tensor(columns[name]) for name in ("certified_min", "certified_max", "K"))
    dimensions = like[0].numel()
    return columns | {"certified_log_det": (dimensions * K).tolist()}, _Bounds(lower, upper, K, dimensions)


def _excess(measured: Mapping[str, Tensor], bounds: _Bounds) -> Tensor:
    """[3, B], in logs, above 0 outside: of the least distance measured, of the most, and of the volume a dimension."""
    least = torch.stack([measured[f"{kind}_min"].nan_to_num(torch.inf) for kind in KINDS]).amin(0)
    most = torch.stack([measured[f"{kind}_max"].nan_to_num(-torch.inf) for kind in KINDS]).amax(0)
    volume = measured["log_det"].abs() / bounds.dimensions - bounds.K
    return torch.stack([(bounds.lower / least).log(), (most / bounds.upper).log(), volume])


def _slack(measured: Mapping[str, Tensor]) -> Tensor:
    """[B], in logs: what rounding may add."""
    rounding = measured["rounding"]
    return SLACK + torch.where(rounding < RESOLVED, 10 * rounding, 0)


def _finite(measured: Mapping[str, Tensor]) -> Tensor:
    """[B] bool; where the flow overflows nothing was seen."""
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
"""column -> of the certificate"""


# --- round trips --------------------------------------------------------------------------------------------------

BITS = "_bits"
"""Ends the name of a solver that adds in integers."""


def _round_trips(method: WalkedFlow, start: Tensor, cond: Condition, options: Guarantees) -> dict[str, Column]:
    """rms error of the image (range [-1, 1]) and evaluations of encoding and decoding: dopri5 by its tolerance, one
    image at a time, and solvers on the method's own steps.

    None where a solver cannot walk this flow: its integers end, or the steps that it is allowed. Of solvers on the
    method's steps also how many of an image's numbers, as the solver holds them, do not come back the same (0 of the
    integers of a bit-exact one), and of reversible ones the error of decoding from x_T alone. `encoded_std` and
    `encoded_max` are of the latent in the solver's coordinate, by the method's own solver.
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
    own = _name(method)
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
    """The round trip of the method's own solver, if it has steps of its own, in float32 on the network as it is."""
    single = method.changed(method.denoiser, dtype="float32", strength=1.0)
    cond = single.decoding(needed(problem.measurement, "guarantee", "measurement"), problem.source)
    start = single.chart(single.times[0], cond).enter(problem.image.float())
    columns: dict[str, Column] = {}
    for name in _name(single):
        trip = _trip(single, start, cond, single.solver)
        columns[f"trip_{name}_float32"] = _numbers(trip.rms) if trip else [None] * len(start)
    return columns


def _name(method: WalkedFlow) -> tuple[str, ...]:
    """Of the method's own solver; none for dopri5, which chooses its steps."""
    chosen = method.options
    return () if method.solver.adaptive else (chosen.solver + (BITS if chosen.bit_exact else ""),)


def _trip(method: WalkedFlow, start: Tensor, cond: Condition, solver: Solver) -> RoundTrip | None:
    """None where the solver gives up."""
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
    """The error of rk4's way back in the solver's coordinate, on the steps of the map that is differentiated; local
    errors as step doubling estimates them; and e^K times these, a bound as far as the estimate holds."""
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
    """|R(y + n) - R(y)| / |n| over draws of noise on what was measured."""

    def restore(y: Tensor) -> Tensor:
        rngs = [torch.Generator().manual_seed(0) for _ in y]  # a restoration that draws draws the same again
        return method.restore(replace(cast(Any, measurement), y=y), cond, rngs)[0]

    y = measurement.y.double()
    ratios = noise_amplification(restore, y, options.noise, options.draws, measured=measurement.known)
    return {"amplification": ratios.mean(1).tolist(), "amplification_max": ratios.amax(1).tolist()}


# --- local edits ----------------------------------------------------------------------------------------------------


def _local_edit(method: WalkedFlow, image: Tensor, cond: Condition) -> dict[str, Column]:
    """L2 changes of the image where the latent was changed by noise of std 1 in the square of half the side in the
    middle: inside it, outside of it, and the most that the certificate allows outside."""
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
