"""The interface of every method: a problem goes in, a solution comes out.

`Method` is a LightningModule made of a denoiser, its frozen options and a time grid. An `InversionMethod` inverts and
decodes, and its tasks are built from these two. A `Restorer` restores measurements and has no latent. Tensors go in and
tensors come out. Images are [B, C, H, W] in [-1, 1]. An image has the same result in a batch as alone. Inputs are never
changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from methods import options
from methods.denoiser import Condition, Denoiser
from methods.paths import Node, TimeGrid
from methods.solvers import Step

Constrain = Callable[[Tensor, Node], Tensor]
"""Called after each decoding step with the latent and its level. Returns the latent for the next step."""

Generators = Sequence[torch.Generator]
"""One generator per image, so that an image draws the same numbers in a batch as alone."""

Column = Sequence[float | int | bool | None]
"""A column of the result rows: one value per image."""

T = TypeVar("T")


class Measurement(Protocol):
    """The input of a restoration: y [B, C, H, W] in [-1, 1] and, for masks, the known pixels, bool [B, 1, H, W].

    `kind` is the family of the corruption, such as gaussian_blur. Methods that are trained on some kinds use it.
    """

    @property
    def y(self) -> Tensor: ...
    @property
    def known(self) -> Tensor | None: ...
    @property
    def kind(self) -> str: ...

    def to(self, device: torch.device | str) -> Measurement: ...


@dataclass(frozen=True)
class Latent:
    """Everything that decoding needs. The first tensor is x_T, in the path's own scale."""

    tensors: dict[str, Tensor]

    @property
    def x_T(self) -> Tensor:
        return next(iter(self.tensors.values()))

    @property
    def state_bytes(self) -> int:
        """Bytes per image that must be kept for decoding."""
        return sum(t.element_size() * t[0].numel() for t in self.tensors.values())

    @property
    def std(self) -> Tensor:
        """Standard deviation of x_T per image, [B]; 1 for noise. It shows a latent that has exploded although the round
        trip is perfect."""
        return self.x_T.double().flatten(1).std(1)

    @property
    def kurtosis(self) -> Tensor:
        """Kurtosis of x_T per image, [B]; 3 for a Gaussian."""
        z = self.x_T.double().flatten(1)
        z = z - z.mean(1, keepdim=True)
        return (z**4).mean(1) / (z**2).mean(1) ** 2


@dataclass(frozen=True)
class Cost:
    """The cost per image: network evaluations, evaluations with a backward pass, wall-clock seconds (synchronised).

    The two passes of an autoencoder are not evaluations, but their seconds count.
    """

    nfe: int
    nfe_grad: int
    seconds: float


@dataclass(frozen=True)
class Problem:
    """A batch to solve. `source` describes the image as it is, `target` the image after an edit.

    `guarantee` holds the options of the task guarantee, which measures the flow of a restoration.
    """

    task: str
    image: Tensor
    source: Condition
    generators: Generators
    target: Condition | None = None
    measurement: Measurement | None = None
    mask: Tensor | None = None
    guarantee: options.Guarantees | None = None

    def to(self, device: torch.device | str) -> Problem:
        """Return the problem on a device. Generators stay on the CPU, so the noise is the same on every device."""
        return replace(
            self,
            image=self.image.to(device),
            source=self.source.to(device),
            target=self.target and self.target.to(device),
            measurement=self.measurement and self.measurement.to(device),
            mask=self.mask.to(device) if self.mask is not None else None,
        )


@dataclass(frozen=True)
class Solution:
    """The result of a method for a problem, and its cost."""

    image: Tensor
    latent: Latent | None
    """None for a method without a latent."""
    cost: Cost
    error: Tensor | None = None
    """The mean squared error [B] of a reconstruction, in the space that the method works in and without clipping."""
    steps: Sequence[Sequence[Step]] | None = None
    """The steps of an adaptive solver for each image, in their order: h > 0 to the noise, h < 0 to the image. Their
    evaluations are network evaluations, so a guided call counts as two."""
    walked: float = 1.0
    """The share of the grid between image and noise that the method uses. Below 1, the latent is not noise."""


@dataclass(frozen=True)
class LatentMeasurement:
    """A measurement in the latents of an autoencoder. It has no operator, since the operator acts on pixels."""

    y: Tensor
    known: Tensor | None
    kind: str = ""

    def to(self, device: torch.device | str) -> LatentMeasurement:
        return LatentMeasurement(
            self.y.to(device), self.known.to(device) if self.known is not None else None, self.kind
        )


@torch.no_grad()
def in_latents(problem: Problem, denoiser: Denoiser) -> Problem:
    """Return the problem in the latents of an autoencoder.

    A latent position is known if all its pixels are known. An edit changes it if the mask has any of its pixels.
    """

    def encode(image: Tensor) -> Tensor:
        return denoiser.backbone.to_latent(image)  # type: ignore[operator]

    if problem.measurement is None:
        z = encode(problem.image)
        return replace(problem, image=z, mask=_any_pixel(problem.mask, z) if problem.mask is not None else None)
    z, known = encode(problem.measurement.y), problem.measurement.known
    known = ~_any_pixel(~known, z) if known is not None else None
    return replace(problem, image=z, measurement=LatentMeasurement(z, known, problem.measurement.kind))


@torch.no_grad()
def in_pixels(z: Tensor, problem: Problem, denoiser: Denoiser, project: str) -> Tensor:
    """Return a latent solution as an image. The pixels that the task keeps come from the input, not from the
    autoencoder."""
    image: Tensor = denoiser.backbone.to_image(z)  # type: ignore[operator]
    if problem.task == "edit":
        return only_inside(image, problem.image, problem.mask)
    return image if problem.measurement is None else with_known(image, problem.measurement, project)


def with_known(x: Tensor, measurement: Measurement, project: str) -> Tensor:
    """Return x with the known pixels of the measurement; x itself without a mask or if the option `project` is none."""
    if measurement.known is None or project == "none":
        return x
    return torch.where(measurement.known, measurement.y.to(x), x)


def only_inside(edited: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
    """Return the edit inside the mask (bool [B, 1, H, W]) and the image outside; without a mask, the edit."""
    return edited if mask is None else torch.where(mask, edited, image.to(edited))


def _any_pixel(mask: Tensor, z: Tensor) -> Tensor:
    """Return the mask in latents: True at positions of z with any pixel in the mask [B, 1, H, W]."""
    return F.adaptive_max_pool2d(mask.float(), z.shape[2:]).bool()


def normal(like: Tensor, generators: Generators) -> Tensor:
    """Draw standard normal noise in the shape and dtype of `like` [B, ...], with one generator per image. Raises
    ValueError if their numbers differ."""
    if len(generators) != len(like):
        raise ValueError(f"one generator per image is needed: got {len(generators)} generators for {len(like)} images")
    draws = [torch.randn(like.shape[1:], generator=g, dtype=torch.float64) for g in generators]
    return torch.stack(draws).to(like)


def pinned_pixels(y: Tensor, known: Tensor, latent: Tensor, top: Node) -> Constrain:
    """Return a constraint that keeps known pixels on the path from y to their inverted noise.

    At a level (alpha, sigma) they are alpha y + sigma e, with e = (z_n - alpha_n y) / sigma_n from the inverted latent
    z_n at level n. This is exactly y at the clean end, and exactly z_n at level n.
    """
    noise = (latent - top.alpha * y) / top.sigma

    def constrain(z: Tensor, node: Node) -> Tensor:
        return torch.where(known, node.alpha * y + node.sigma * noise, z)

    return constrain


def needed(value: T | None, task: str, what: str) -> T:
    """Return a part of a problem that the task needs. Raises ValueError if the problem does not have it."""
    if value is None:
        raise ValueError(f"the task {task} needs a {what}")
    return value


class Method(pl.LightningModule):
    """Base of all methods. `refuses` of the options lists the tasks that a method cannot do; `solve` does the
    others."""

    Options: ClassVar[type[options.CommonOptions]]

    def __init__(self, denoiser: Denoiser, options: options.CommonOptions, grid: TimeGrid) -> None:
        super().__init__()
        self.save_hyperparameters({"method": type(self).__name__, **options.model_dump(mode="json")})
        self.denoiser = denoiser
        self.options: Any = options
        self.grid = grid.truncate(options.strength)

    @property
    def latent_dtype(self) -> torch.dtype:
        return getattr(torch, self.options.dtype)

    def facts(self) -> dict[str, float]:
        """Return numbers that depend on the weights and options only, not on images, such as a certified constant."""
        return {}

    def columns(self, problem: Problem, solution: Solution) -> dict[str, Column]:
        """Return the result columns that this method adds. Their memory and seconds do not count as cost of the
        method."""
        return {}

    def solve(self, problem: Problem) -> Solution:
        """Run the task of the problem and measure its cost. A model with an autoencoder works in its latents. Raises
        ValueError for a task that the method cannot do."""
        if (reason := self.options.refuses.get(problem.task)) is not None:
            raise ValueError(f"{type(self).__name__} cannot do the task {problem.task}: {reason}")
        self.denoiser.reset_counters()
        self._synchronise()
        start = time.perf_counter()
        inner = in_latents(problem, self.denoiser) if self.denoiser.latent else problem
        z, latent = self._run(inner)
        x_hat = in_pixels(z, problem, self.denoiser, self.options.project) if self.denoiser.latent else z
        self._synchronise()
        seconds = (time.perf_counter() - start) / len(problem.image)
        cost = Cost(self.denoiser.nfe, self.denoiser.nfe_grad, seconds)
        reconstructed = problem.task == "reconstruct"
        error = (z.double() - inner.image.double()).square().flatten(1).mean(1) if reconstructed else None
        return Solution(x_hat, latent, cost, error, walked=self.grid.steps / self.options.steps)

    def _run(self, problem: Problem) -> tuple[Tensor, Latent | None]:
        """Return the solution, and the latent if the method has one."""
        raise NotImplementedError

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # --- as a LightningModule ------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Problem, device: torch.device, dataloader_idx: int) -> Problem:
        return batch.to(device)

    def predict_step(self, batch: Problem, batch_idx: int) -> Solution:  # type: ignore[override]
        return self.solve(batch)


class Restorer(Method):
    """Base of methods that only restore measurements and have no latent. A subclass defines `restore`."""

    Options: ClassVar[type[options.RestorerOptions]] = options.RestorerOptions

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.Options, options.RestorerOptions):  # they list the tasks that it cannot do
            raise TypeError(f"{cls.__name__}.Options must be a subclass of methods.options.RestorerOptions")

    def restore(self, measurement: Measurement, cond: Condition, generators: Generators) -> Tensor:
        """Map a measurement to an image [B, C, H, W], under a condition. Methods that draw noise use `generators`."""
        raise NotImplementedError

    def _run(self, problem: Problem) -> tuple[Tensor, None]:
        measurement = needed(problem.measurement, problem.task, "measurement")
        cond = problem.source if self.options.decode == "caption" else problem.source.unconditional
        return with_known(self.restore(measurement, cond, problem.generators), measurement, self.options.project), None


class InversionMethod(Method):
    """Base of methods that invert. A subclass defines `invert` and `decode`; all tasks are built from these."""

    Options: ClassVar[type[options.MethodOptions]] = options.MethodOptions
    exact: bool = False
    """True if decode(invert(x)) = x up to rounding, with the same condition for both."""
    nfe_is_exact: bool = True
    """True if `expected_nfe` is the exact count. False if iterations may stop early: then it is the maximum."""

    # --- what a method defines ---------------------------------------------------------------------------------

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        """Map an image [B, C, H, W] to a latent, under a condition. Methods that draw noise use `generators`."""
        raise NotImplementedError

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        """Map a latent to an image [B, C, H, W], under a condition."""
        raise NotImplementedError

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """Return the evaluations per image of one `invert` and one `decode`, by a formula that the tests check."""
        return self.options.calls_per_step * self.grid.steps * (inverting.evaluations + decoding.evaluations)

    # --- tasks -------------------------------------------------------------------------------------------------

    def reconstruct(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> tuple[Tensor, Latent]:
        """Invert and decode under one condition. With `guidance_invert`, only the guidance differs."""
        inverting = self._inverting(cond)
        latent = self.invert(x0, inverting, generators)
        if inverting.guidance != cond.guidance:
            latent = self._handed_on(latent)
        return self.decode(latent, cond), latent

    def edit(
        self, x0: Tensor, source: Condition, target: Condition, mask: Tensor | None = None, generators: Generators = ()
    ) -> tuple[Tensor, Latent]:
        """Invert under the source and decode under the target. Outside `mask` (bool [B, 1, H, W]) the image is kept."""
        latent = self._handed_on(self.invert(x0, self._inverting(source), generators))
        return only_inside(self.decode(latent, target), x0, mask), latent

    def restore(self, measurement: Measurement, cond: Condition, generators: Generators = ()) -> tuple[Tensor, Latent]:
        """Invert y under the null condition up to `strength`, then decode under the caption or the null condition."""
        undescribed = self._undescribed(cond)
        latent = self.invert(measurement.y.to(self.latent_dtype), undescribed, generators)
        target = undescribed
        if self.options.decode == "caption":
            target, latent = cond, self._handed_on(latent)
        return self._decode_known(latent, target, measurement), latent

    def _decode_known(self, latent: Latent, cond: Condition, measurement: Measurement) -> Tensor:
        """Decode. The option `project` says how the known pixels of a mask are kept."""
        known, constrain = measurement.known, None
        if known is not None and self.options.project == "each_step":
            y = measurement.y.to(self.latent_dtype)
            constrain = pinned_pixels(y, known, latent.x_T, self.grid[self.grid.steps])
        return with_known(self.decode(latent, cond, constrain), measurement, self.options.project)

    def _handed_on(self, latent: Latent) -> Latent:
        """Return the part of a latent that is decoded if the condition differs from that of the inversion."""
        return latent

    def _inverting(self, cond: Condition) -> Condition:
        w = self.options.guidance_invert
        return cond if w is None else cond.at(w)

    def _undescribed(self, cond: Condition) -> Condition:
        """Return the null condition, under which a measurement is inverted."""
        return cond.unconditional

    def _run(self, problem: Problem) -> tuple[Tensor, Latent]:
        image, task = problem.image.to(self.latent_dtype), problem.task
        if task == "reconstruct":
            return self.reconstruct(image, problem.source, problem.generators)
        if task == "edit":
            target = needed(problem.target, task, "target")
            return self.edit(image, problem.source, target, problem.mask, problem.generators)
        if task in ("restore", "guarantee"):  # `columns` then measures the guarantee
            return self.restore(needed(problem.measurement, task, "measurement"), problem.source, problem.generators)
        raise ValueError(f"task must be reconstruct, restore, edit or guarantee, got {task!r}")
