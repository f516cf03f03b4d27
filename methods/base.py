"""The interface of every method: a problem goes in, a solution comes out.

`Method` is a LightningModule made of a denoiser, its frozen options and a time grid. `InversionMethod` inverts and
decodes, and its tasks are built from these; a `Restorer` restores measurements and has no latent. Tensors go in and
tensors come out: images are [B, C, H, W] in [-1, 1], a batch gives what its images give alone, and inputs are never
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
"""Called with a latent after each decoding step and the level that it reached; returns the latent to go on with."""

Generators = Sequence[torch.Generator]
"""One generator per image, so that a batch draws what its images would draw alone."""

Column = Sequence[float | int | bool | None]
"""A column of the result rows: one value per image."""

T = TypeVar("T")


class Measurement(Protocol):
    """What a restoration is given: y [B, C, H, W] in [-1, 1], and for masks the pixels observed, bool [B, 1, H, W].

    `kind` names the family of its corruption, such as gaussian_blur, for methods that were trained on some.
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
        """Bytes an image that must be kept to decode."""
        return sum(t.element_size() * t[0].numel() for t in self.tensors.values())

    @property
    def std(self) -> Tensor:
        """[B]; 1 for noise. A perfect round trip hides an exploded latent: look here."""
        return self.x_T.double().flatten(1).std(1)

    @property
    def kurtosis(self) -> Tensor:
        """[B]; 3 for a Gaussian."""
        z = self.x_T.double().flatten(1)
        z = z - z.mean(1, keepdim=True)
        return (z**4).mean(1) / (z**2).mean(1) ** 2


@dataclass(frozen=True)
class Cost:
    """Per image: network evaluations, those with a backward pass, wall-clock seconds (synchronised).

    An autoencoder's two passes are no evaluations, but their seconds count.
    """

    nfe: int
    nfe_grad: int
    seconds: float


@dataclass(frozen=True)
class Problem:
    """A batch to solve. `source` describes the image as it is, `target` what an edit asks for.

    `guarantee`: how the task guarantee looks at a flow, whose restoration is then measured further.
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
        """On a device; generators stay, since noise is drawn on the CPU to be the same everywhere."""
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
    """A method's answer to a problem, and what it cost."""

    image: Tensor
    latent: Latent | None
    """None for a method without one."""
    cost: Cost
    error: Tensor | None = None
    """The mean squared error [B] of a reconstruction in the space that the method works in, unclipped."""
    steps: Sequence[Sequence[Step]] | None = None
    """Each image's steps of an adaptive solver in the order taken, h > 0 to the noise and h < 0 to the image. Their
    evaluations are the network's: guidance counts two."""
    walked: float = 1.0
    """The share of the grid between image and noise that the method walks; below 1 the latent is not noise."""


@dataclass(frozen=True)
class LatentMeasurement:
    """A measurement in an autoencoder's latents, without the operator, which acts on pixels."""

    y: Tensor
    known: Tensor | None
    kind: str = ""

    def to(self, device: torch.device | str) -> LatentMeasurement:
        return LatentMeasurement(
            self.y.to(device), self.known.to(device) if self.known is not None else None, self.kind
        )


@torch.no_grad()
def in_latents(problem: Problem, denoiser: Denoiser) -> Problem:
    """A problem as a latent model sees it. A cell is known where all of its pixels are, and edited where any is."""

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
    """A latent solution as an image. Pixels that the task keeps are the input's own, not the autoencoder's."""
    image: Tensor = denoiser.backbone.to_image(z)  # type: ignore[operator]
    if problem.task == "edit":
        return only_inside(image, problem.image, problem.mask)
    return image if problem.measurement is None else with_known(image, problem.measurement, project)


def with_known(x: Tensor, measurement: Measurement, project: str) -> Tensor:
    """x with the known pixels of a mask, unless the option `project` is none."""
    if measurement.known is None or project == "none":
        return x
    return torch.where(measurement.known, measurement.y.to(x), x)


def only_inside(edited: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
    """An edit inside the mask (bool [B, 1, H, W]) and the image outside; the edit alone without a mask."""
    return edited if mask is None else torch.where(mask, edited, image.to(edited))


def _any_pixel(mask: Tensor, z: Tensor) -> Tensor:
    """Where any pixel of a latent cell is in a mask [B, 1, H, W]."""
    return F.adaptive_max_pool2d(mask.float(), z.shape[2:]).bool()


def normal(like: Tensor, generators: Generators) -> Tensor:
    """Standard normal noise in the shape and dtype of `like` [B, ...], each image's from its own generator."""
    if len(generators) != len(like):
        raise ValueError(f"{len(like)} images need as many generators, got {len(generators)}")
    draws = [torch.randn(like.shape[1:], generator=g, dtype=torch.float64) for g in generators]
    return torch.stack(draws).to(like)


def pinned_pixels(y: Tensor, known: Tensor, latent: Tensor, top: Node) -> Constrain:
    """Holds known pixels on the straight line of the path from y to their own inverted noise.

    At a level (alpha, sigma) they are alpha y + sigma e with e = (z_n - alpha_n y) / sigma_n from the inverted latent
    z_n at level n: exactly y at the clean end and exactly z_n at the noisy one.
    """
    noise = (latent - top.alpha * y) / top.sigma

    def constrain(z: Tensor, node: Node) -> Tensor:
        return torch.where(known, node.alpha * y + node.sigma * noise, z)

    return constrain


def needed(value: T | None, task: str, what: str) -> T:
    """The part of a problem that a task needs. Raises ValueError where the problem lacks it."""
    if value is None:
        raise ValueError(f"the task {task} needs a {what}")
    return value


class Method(pl.LightningModule):
    """Base of all methods. The options' `refuses` says which tasks a method cannot do; `solve` does the others."""

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
        """Numbers that its weights and options fix before any image is seen, such as a certified constant."""
        return {}

    def columns(self, problem: Problem, solution: Solution) -> dict[str, Column]:
        """The result columns that this method adds. Neither memory nor seconds of this count as the method's."""
        return {}

    def solve(self, problem: Problem) -> Solution:
        """Run the problem's task, in latents where the model has an autoencoder, and count its cost."""
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
        """The answer, and the latent of a method that has one."""
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
    """Base of methods that only restore measurements, and have no latent. A subclass writes `restore`."""

    Options: ClassVar[type[options.RestorerOptions]] = options.RestorerOptions

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.Options, options.RestorerOptions):  # they tell the plan which tasks it cannot do
            raise TypeError(f"{cls.__name__}.Options must be a subclass of methods.options.RestorerOptions")

    def restore(self, measurement: Measurement, cond: Condition, generators: Generators) -> Tensor:
        """Measurement -> image [B, C, H, W], under a condition. `generators` serve methods that draw noise."""
        raise NotImplementedError

    def _run(self, problem: Problem) -> tuple[Tensor, None]:
        measurement = needed(problem.measurement, problem.task, "measurement")
        cond = problem.source if self.options.decode == "caption" else problem.source.unconditional
        return with_known(self.restore(measurement, cond, problem.generators), measurement, self.options.project), None


class InversionMethod(Method):
    """Base of methods that invert. A subclass writes `invert` and `decode`; the rest follows."""

    Options: ClassVar[type[options.MethodOptions]] = options.MethodOptions
    exact: bool = False
    """Whether decode(invert(x)) = x up to rounding when both are under the same condition."""
    nfe_is_exact: bool = True
    """Whether `expected_nfe` is what a run takes; False where iterations stop by themselves, and it is the most."""

    # --- what a method defines ---------------------------------------------------------------------------------

    def invert(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> Latent:
        """Image [B, C, H, W] -> latent, under a condition. `generators` serve methods that draw noise."""
        raise NotImplementedError

    def decode(self, latent: Latent, cond: Condition, constrain: Constrain | None = None) -> Tensor:
        """Latent -> image [B, C, H, W]."""
        raise NotImplementedError

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """Evaluations per image of one invert and one decode: the declared formula, checked by the tests."""
        return self.options.calls_per_step * self.grid.steps * (inverting.evaluations + decoding.evaluations)

    # --- tasks -------------------------------------------------------------------------------------------------

    def reconstruct(self, x0: Tensor, cond: Condition, generators: Generators = ()) -> tuple[Tensor, Latent]:
        """Invert and decode under one condition, but for the guidance where `guidance_invert` says so."""
        inverting = self._inverting(cond)
        latent = self.invert(x0, inverting, generators)
        if inverting.guidance != cond.guidance:
            latent = self._handed_on(latent)
        return self.decode(latent, cond), latent

    def edit(
        self, x0: Tensor, source: Condition, target: Condition, mask: Tensor | None = None, generators: Generators = ()
    ) -> tuple[Tensor, Latent]:
        """Invert under the source, decode under the target; outside `mask` (bool [B, 1, H, W]) the image is kept."""
        latent = self._handed_on(self.invert(x0, self._inverting(source), generators))
        return only_inside(self.decode(latent, target), x0, mask), latent

    def restore(self, measurement: Measurement, cond: Condition, generators: Generators = ()) -> tuple[Tensor, Latent]:
        """Invert y under the null condition up to `strength`; decode under the caption or the null condition."""
        undescribed = self._undescribed(cond)
        latent = self.invert(measurement.y.to(self.latent_dtype), undescribed, generators)
        target = undescribed
        if self.options.decode == "caption":
            target, latent = cond, self._handed_on(latent)
        return self._decode_known(latent, target, measurement), latent

    def _decode_known(self, latent: Latent, cond: Condition, measurement: Measurement) -> Tensor:
        """Decode; known pixels of a mask are held as `project` says."""
        known, constrain = measurement.known, None
        if known is not None and self.options.project == "each_step":
            y = measurement.y.to(self.latent_dtype)
            constrain = pinned_pixels(y, known, latent.x_T, self.grid[self.grid.steps])
        return with_known(self.decode(latent, cond, constrain), measurement, self.options.project)

    def _handed_on(self, latent: Latent) -> Latent:
        """The part of a latent that a decode under another condition than the inversion's gets."""
        return latent

    def _inverting(self, cond: Condition) -> Condition:
        w = self.options.guidance_invert
        return cond if w is None else cond.at(w)

    def _undescribed(self, cond: Condition) -> Condition:
        """The null condition, under which a measurement is inverted."""
        return cond.unconditional

    def _run(self, problem: Problem) -> tuple[Tensor, Latent]:
        image, task = problem.image.to(self.latent_dtype), problem.task
        if task == "reconstruct":
            return self.reconstruct(image, problem.source, problem.generators)
        if task == "edit":
            target = needed(problem.target, task, "target")
            return self.edit(image, problem.source, target, problem.mask, problem.generators)
        if task in ("restore", "guarantee"):  # a guarantee's restoration is measured further by `columns`
            return self.restore(needed(problem.measurement, task, "measurement"), problem.source, problem.generators)
        raise ValueError(f"task must be reconstruct, restore, edit or guarantee, got {task!r}")
