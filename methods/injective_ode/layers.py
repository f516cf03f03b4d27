"""The network N(u, t; features) of the injective ODE, with three constraints to choose from and one interface.

`strict`: 1-Lipschitz in u at any weights, because every step is an isometry or 1-Lipschitz. The steps are
pixel-unshuffle of 2x2 windows; an orthogonal matrix Q = (I + A)^-1 (I - A) with A skew (Cayley); a bias, which does not
change the constant; the smooth modulus sqrt(q^2 + e^2) - e on half of the channels; and a first and a last projection,
each divided by max(1, its largest singular value).
`soft`: 3x3 convolutions under torch's spectral_norm. It normalises the flattened kernel, not the operator, so nothing
is certified.
`free`: residual 3x3 convolutions without any constraint.

Inside the network, maps are [B, H, W, C], so windows are the rows of one matrix product.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Constraint = Literal["strict", "soft", "free"]
SOFTNESS = 0.1
"""e of the smooth modulus."""


def gather_windows(x: Tensor) -> Tensor:
    """Return [B, H/2, W/2, 4C] from [B, H, W, C]: pixel-unshuffle, a permutation of the entries."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def scatter_windows(x: Tensor) -> Tensor:
    """The inverse of `gather_windows`."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


def modulus(x: Tensor) -> Tensor:
    """Apply sqrt(q^2 + e^2) - e to the first half of the channels, and the identity to the rest: 1-Lipschitz."""
    bent, kept = x.chunk(2, dim=-1)
    return torch.cat([(bent.square() + SOFTNESS**2).sqrt() - SOFTNESS, kept], dim=-1)


def cayley(weight: Tensor, size: int) -> Tensor:
    """Return the orthogonal matrix (I + A)^-1 (I - A) = 2 (I + A)^-1 - I of a skew A [size, size].

    `weight` holds the entries of A above the diagonal, row by row.
    """
    row, column = torch.triu_indices(size, size, 1, device=weight.device)
    half = weight.new_zeros(size, size).index_put((row, column), weight)
    identity = torch.eye(size, dtype=weight.dtype, device=weight.device)
    return 2 * torch.linalg.inv(identity + half - half.T) - identity


class Rotation(nn.Module):
    """An orthogonal matrix on 2x2 windows. Every other layer shifts the windows by one pixel, with periodic borders."""

    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.size = size = 4 * width
        self.shift = shift
        # Eigenvalues of A within +-i: rotations by up to 90 degrees, far from the identity and from its negative.
        self.weight = nn.Parameter(torch.randn(size * (size - 1) // 2) * 0.5 / size**0.5)
        self._frozen: tuple[object, Tensor] | None = None

    @property
    def matrix(self) -> Tensor:
        """The matrix Q.

        With frozen weights, Q is computed once in float64 and kept until the weights change: other storage, or an
        in-place edit that autograd counts. Autograd does not count an edit of `weight.data`, so Q is then out of date.
        """
        if self.weight.requires_grad:
            return cayley(self.weight, self.size)
        state = (self.weight.data_ptr(), self.weight._version, self.weight.dtype, self.weight.device)
        if self._frozen is None or self._frozen[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._frozen = state, cayley(self.weight.double(), self.size).to(self.weight.dtype)
        return self._frozen[1]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        if self.shift:
            x = x.roll((1, 1), (1, 2))
        x = scatter_windows(gather_windows(x) @ self.matrix.T)
        if self.shift:
            x = x.roll((-1, -1), (1, 2))
        return modulus(x + bias)


class SoftConvolution(nn.Module):
    """A 3x3 convolution whose flattened kernel has spectral norm about one, then the modulus."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv2d(width, width, 3, padding=1, bias=False))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return modulus(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + bias)


class FreeConvolution(nn.Module):
    """A residual layer: x + conv(SiLU(x + bias))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.conv(F.silu(x + bias).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _semi_orthogonal(rows: int, columns: int) -> Tensor:
    basis = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0]
    return basis if rows >= columns else basis.T.contiguous()


class Projection(nn.Module):
    """A matrix on channels; if `bounded`, it is divided by max(1, its largest singular value)."""

    def __init__(self, before: int, after: int, bounded: bool, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(after, before) if zero else _semi_orthogonal(after, before))
        self.bounded = bounded

    @property
    def matrix(self) -> Tensor:
        if not self.bounded:
            return self.weight
        # Squares of large entries could overflow. The quotient does not depend on `size`, so it needs no gradient.
        size = self.weight.detach().abs().amax().clamp(min=1.0)
        scaled = self.weight / size
        # Eigenvalues of the smaller Gram matrix have a gradient also at zero weights.
        gram = scaled.T @ scaled if scaled.shape[0] > scaled.shape[1] else scaled @ scaled.T
        return scaled / torch.linalg.eigvalsh(gram)[-1].clamp(min=size**-2).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T


class Layer(nn.Module):
    """One layer, whose bias depends on the time, the features and the position."""

    def __init__(
        self, constraint: Constraint, width: int, side: tuple[int, int], time: int, features: int, shift: int
    ) -> None:
        super().__init__()
        makers = {
            "strict": lambda: Rotation(width, shift),
            "soft": lambda: SoftConvolution(width),
            "free": lambda: FreeConvolution(width),
        }
        self.mix = makers[constraint]()
        self.told = nn.Linear(features, width)  # maps the features; the shipped weights use this name
        self.time = nn.Linear(time, 2 * width)
        self.position = nn.Parameter(torch.zeros(*side, width))

    def forward(self, x: Tensor, time: Tensor, features: Tensor) -> Tensor:
        """x [B, H, W, C], time [B, T], features [B', H, W, F] -> [B, H, W, C]; B / B' draws share a map."""
        scale, shift = self.time(time)[:, None, None].chunk(2, dim=-1)
        bias = self.told(features)
        bias = bias.repeat(len(x) // len(bias), 1, 1, 1)
        return self.mix(x, bias * (1 + scale) + shift + self.position)


class Core(nn.Module):
    """The network N, U-shaped by pixel-unshuffle.

    On the way down, `widths[i + 1]` of the 4 widths[i] channels go to the next level, and the rest are skip
    connections.
    `sides` and `features` are the spatial size and the channels of the conditioner's map at every level.
    `options.InjectiveField` checks the conditions on widths and sides.
    """

    def __init__(
        self,
        constraint: Constraint,
        channels: int,
        widths: tuple[int, ...],
        sides: tuple[tuple[int, int], ...],
        features: tuple[int, ...],
        time: int,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.widths = widths
        bounded = constraint == "strict"
        self.inp = Projection(4 * channels, widths[0], bounded)
        self.out = Projection(widths[0], 4 * channels, bounded, zero=constraint != "soft")
        if constraint == "soft":  # spectral_norm is not defined at zero weights
            self.inp, self.out = (spectral_norm(part) for part in (self.inp, self.out))  # type: ignore[assignment]

        def level(i: int) -> nn.ModuleList:
            return nn.ModuleList(
                Layer(constraint, widths[i], sides[i], time, features[i], shift=n % 2) for n in range(depth)
            )

        self.down = nn.ModuleList(level(i) for i in range(len(widths)))
        self.up = nn.ModuleList(level(i) for i in range(len(widths)))

    def forward(self, u: Tensor, time: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        """u [B, C, H, W], time features [B, T], the conditioner's maps [B', H_i, W_i, F_i] -> N [B, C, H, W]."""
        x = self.inp(gather_windows(u.permute(0, 2, 3, 1)))
        skips = []
        for i, layers in enumerate(self.down):
            if i:
                x = gather_windows(x)
                x, skip = x[..., : self.widths[i]], x[..., self.widths[i] :]
                skips.append(skip)
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, time, maps[i])
        for i, layers in reversed(list(enumerate(self.up))):
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, time, maps[i])
            if i:
                x = scatter_windows(torch.cat([x, skips.pop()], dim=-1))
        return scatter_windows(self.out(x)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def lipschitz(self) -> float:
        """Return the Lipschitz bound of the current matrices, in float64; at most 1 up to rounding if strict.

        A skip connection goes around the layers below it, so each rotation counts with at least 1.
        """
        bound = 1.0
        for module in self.modules():
            if isinstance(module, (Rotation, Projection)):
                norm = float(torch.linalg.matrix_norm(module.matrix.double(), 2))
                bound *= max(norm, 1.0) if isinstance(module, Rotation) else norm
        return bound
