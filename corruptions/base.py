"""Operators, corruptions, and keyed measurements y = A x + n.

Images are in model range [-1, 1]: a noise level sigma01 for images in [0, 1] has std 2 sigma01 here, and a hole filled
with 0 is mid-gray. All random numbers are drawn on the CPU, in float64, from a Philox generator with the key (dataset,
image id, corruption, severity, seed). So a measurement never depends on method, batch, order, device or chunk. With the
sha256 of y, a table can refuse to compare rows with different measurements.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from corruptions.options import CorruptionOptions

Shape = tuple[int, int, int]
Purpose = Literal["operator", "noise"]
OptionsT = TypeVar("OptionsT", bound=CorruptionOptions)


class Operator(ABC):
    """A linear map A from image to image, [C, H, W] or [B, C, H, W], in any floating dtype and on any device.

    It keeps shape and dtype and never changes its input. Gradients flow through both directions.
    """

    @property
    def known(self) -> Tensor | None:
        """The mask of pixels that are observed up to noise, bool [1, H, W]; None if the operator is not a mask."""
        return None

    @property
    @abstractmethod
    def norm(self) -> float:
        """The largest singular value of A."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""

    def observe(self, x: Tensor) -> Tensor:
        """Return A x for the measurement itself: x is [C, H, W], float64, on the CPU.

        y is hashed, and the hash must be the same on every machine. So an operator overrides this if its `forward`
        leaves the order of a sum to the BLAS of the machine.
        """
        return self.forward(x)

    def describe(self) -> dict[str, float]:
        """Return the drawn parameters for the result rows, in pixels of this image."""
        return {}

    def to(self, device: torch.device | str) -> Operator:
        """Return the same operator with its tensors on `device`."""
        return self


class Corruption(ABC, Generic[OptionsT]):
    """A family of operators with a noise level. `draw` chooses the operator of one image."""

    kind: ClassVar[str] = ""
    """The name of the family, for methods that are trained on it; empty if there are none."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def draw(self, shape: Shape, rng: np.random.Generator) -> Operator:
        """Draw the operator for an image of shape (C, H, W). All random numbers come from `rng`."""


@dataclass(frozen=True)
class Key:
    """The key of the random numbers of a measurement."""

    dataset: str
    image_id: str
    corruption: str
    severity: int
    seed: int

    def generator(self, purpose: Purpose) -> np.random.Generator:
        """Return a new generator. Each purpose has its own stream, so more draws for one do not change the other."""
        words = json.dumps([*dataclasses.astuple(self), purpose]).encode()
        key = int.from_bytes(hashlib.blake2b(words, digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key))


@dataclass(frozen=True, eq=False)
class Measurement:
    """One corrupted image."""

    y: Tensor
    """float32 [C, H, W] in model range, on the CPU, not clipped; holes are 0."""
    operator: Operator
    sha256: str
    sigma01: float
    """Std of the noise for images in [0, 1]; it is 2 sigma01 in the range of y."""
    snr_db: float | None
    """Energy SNR, 10 log10(|A x|^2 / |n|^2) on [0, 1] data; None if it is not finite (no noise, or no signal)."""
    psnr: float | None
    """PSNR of y against x in dB, both clipped to [0, 1]; None if they are equal."""
    details: dict[str, float]
    kind: str = ""
    """The kind of its corruption."""


@dataclass(frozen=True, eq=False)
class MeasurementBatch:
    """A batch of measurements of one corruption. Each image has its own operator."""

    y: Tensor
    """[B, C, H, W] in model range."""
    known: Tensor | None
    """bool [B, 1, H, W], or None if the operators are not masks."""
    operators: tuple[Operator, ...]
    sha256: tuple[str, ...]
    sigma01: float
    kind: str = ""

    def __len__(self) -> int:
        return len(self.operators)

    @property
    def sigma(self) -> float:
        """Std of the noise in model range."""
        return 2 * self.sigma01

    def forward(self, x: Tensor) -> Tensor:
        """Return A_b x_b for each image b of x [B, C, H, W]."""
        self._require_batch(x)
        if self._shared():
            return self.operators[0].forward(x)
        return torch.stack([operator.forward(image) for operator, image in zip(self.operators, x, strict=True)])

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A_b^T y_b for each image b of y [B, C, H, W]."""
        self._require_batch(y)
        if self._shared():
            return self.operators[0].adjoint(y)
        return torch.stack([operator.adjoint(image) for operator, image in zip(self.operators, y, strict=True)])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> MeasurementBatch:
        """Return the same batch on `device`, with y in `dtype`. The hashes are still those of the float32
        measurement."""
        known = None if self.known is None else self.known.to(device)
        operators = tuple(operator.to(device) for operator in self.operators)
        return dataclasses.replace(self, y=self.y.to(device, dtype), known=known, operators=operators)

    def _shared(self) -> bool:
        return all(operator == self.operators[0] for operator in self.operators)

    def _require_batch(self, x: Tensor) -> None:
        if x.ndim != 4 or len(x) != len(self):
            raise ValueError(f"expected [{len(self)}, C, H, W], one image per measurement, got {tuple(x.shape)}")


def measure(corruption: Corruption[Any], x: Tensor, key: Key) -> Measurement:
    """Measure y = A x + n with n ~ N(0, (2 sigma01)^2). A mask measures kept pixels only: y = M (x + n).

    x is [C, H, W], floating, in [-1, 1], on any device. The computation is on the CPU in float64; y is rounded to
    float32 at the end. Raises ValueError for an image of another shape, dtype or range.
    """
    x = _checked(x)
    sigma01 = float(corruption.options.sigma01)
    channels, height, width = x.shape
    operator = corruption.draw((channels, height, width), key.generator("operator"))
    noise = _noise(sigma01, (channels, height, width), key)
    if operator.known is not None:
        noise = torch.where(operator.known, noise, 0.0)
    y = (operator.observe(x) + noise).to(torch.float32)
    return Measurement(
        y=y,
        operator=operator,
        sha256=content_hash(y),
        sigma01=sigma01,
        snr_db=_decibel(_energy(operator.forward((x + 1) / 2)), _energy(noise / 2)),
        psnr=_decibel(1.0, _energy(_unit(y.to(torch.float64)) - _unit(x)) / x.numel()),
        details=operator.describe(),
        kind=corruption.kind,
    )


def stack(measurements: Sequence[Measurement]) -> MeasurementBatch:
    """Join measurements of one corruption and image size into a batch. Raises ValueError for a mixture."""
    if not measurements:
        raise ValueError("a batch needs at least one measurement")
    levels = sorted({m.sigma01 for m in measurements})
    if len(levels) > 1:
        raise ValueError(f"a batch needs one noise level, got sigma01 = {levels}")
    known = [m.operator.known for m in measurements]
    masks = [mask for mask in known if mask is not None]
    if masks and len(masks) < len(known):
        raise ValueError("a batch must hold only masks, or no masks")
    kinds = sorted({m.kind for m in measurements})
    if len(kinds) > 1:
        raise ValueError(f"a batch needs one kind of corruption, got {', '.join(kinds)}")
    return MeasurementBatch(
        y=torch.stack([m.y for m in measurements]),
        known=torch.stack(masks) if masks else None,
        operators=tuple(m.operator for m in measurements),
        sha256=tuple(m.sha256 for m in measurements),
        sigma01=levels[0],
        kind=kinds[0],
    )


def content_hash(y: Tensor) -> str:
    """Return the sha256 (hex) of the float32 little-endian bytes of y in C order, then its shape as `[3, 32, 32]`."""
    array = np.ascontiguousarray(y.detach().cpu().numpy(), dtype="<f4")
    return hashlib.sha256(array.tobytes() + json.dumps(array.shape).encode()).hexdigest()


def _checked(x: Tensor) -> Tensor:
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"expected a floating [C, H, W] image, got {x.dtype} {tuple(x.shape)}")
    x = x.detach().to("cpu", torch.float64)
    # The tolerance is for images that were in half precision. A range [0, 255] and NaN still fail.
    if not bool((x.abs() <= 1 + 1e-3).all()):
        raise ValueError(f"expected an image in [-1, 1], got values in [{float(x.min()):.3g}, {float(x.max()):.3g}]")
    return x


def _noise(sigma01: float, shape: Shape, key: Key) -> Tensor:
    if sigma01 == 0:
        return torch.zeros(shape, dtype=torch.float64)
    return torch.from_numpy(2 * sigma01 * key.generator("noise").standard_normal(shape))


def _unit(x: Tensor) -> Tensor:
    return ((x + 1) / 2).clamp(0, 1)


def _energy(x: Tensor) -> float:
    return float(x.square().sum())


def _decibel(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
