"""A network with its path: three linear views of one output, batched guidance, and the only NFE counter.

With `x = alpha x0 + sigma eps`, each of eps, x0, v = alpha eps - sigma x0 (Salimans & Ho 2022) and velocity = eps - x0
gives the others by a linear map. A method uses the view of its paper. So every DDIM-type method runs on flow models,
and every flow method on diffusion models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from methods.paths import Node, Path

Prediction = Literal["eps", "x0", "v", "velocity"]


class Backbone(Protocol):
    """A network: noisy images [B, C, H, W], times [B] (the path's own), embeddings [B, L, D] -> [B, C, H, W].

    A backbone that works in latents also has `to_latent(image)` and `to_image(latent)`. One with distilled guidance has
    `distilled = True` and a fourth argument `guidance`. One that knows its `path` and `prediction` has these too.
    """

    def __call__(self, x: Tensor, t: Tensor, embedding: Tensor) -> Tensor: ...

    def encode(self, captions: list[str]) -> Tensor:
        """Return embeddings [B, L, D] of captions; the empty caption is the null condition."""
        ...


@dataclass(frozen=True)
class Condition:
    """Embeddings with classifier-free guidance (Ho & Salimans 2022): null + guidance * (caption - null).

    Guidance 1 is the caption alone and guidance 0 the null condition alone. Both cost one evaluation, any other value
    two. `distilled`: guidance is an input of the network (Meng et al. 2023; Flux) and costs one evaluation.
    """

    embedding: Tensor
    null: Tensor
    guidance: float = 1.0
    distilled: bool = False
    captions: tuple[str, ...] = ()
    """The captions of the embedding, one per image, for models whose condition holds more than a caption."""

    def at(self, guidance: float) -> Condition:
        """Return the same condition at another guidance."""
        return replace(self, guidance=float(guidance))

    def to(self, device: torch.device | str) -> Condition:
        return replace(self, embedding=self.embedding.to(device), null=self.null.to(device))

    def image(self, i: int) -> Condition:
        """Return the condition of one image of the batch."""
        return replace(
            self,
            embedding=self.embedding[i : i + 1],
            null=self.null[i : i + 1],
            captions=self.captions[i : i + 1],
        )

    @property
    def unconditional(self) -> Condition:
        """The null condition for the same images."""
        return replace(self, embedding=self.null, guidance=1.0, captions=("",) * len(self.captions))

    @property
    def evaluations(self) -> int:
        """The number of network evaluations of one guided call, 1 or 2."""
        return 1 if self.distilled or self.guidance in (0.0, 1.0) else 2


class Denoiser(nn.Module):
    """A backbone on its path.

    Latents have the dtype of the method. They are cast to `network_dtype` for the network, and its output is cast back.
    So a float32 network does not round a method that computes in float64, as EDICT needs.

    `nfe` counts network evaluations per image (a guided call counts two). `nfe_grad` counts those with a backward pass.
    """

    def __init__(self, backbone: nn.Module, path: Path, prediction: Prediction) -> None:
        super().__init__()
        if prediction not in ("eps", "x0", "v", "velocity"):
            raise ValueError(f"prediction must be eps, x0, v or velocity, got {prediction!r}")
        self.backbone = backbone
        self.path = path
        self.prediction = prediction
        self.distilled: bool = getattr(backbone, "distilled", False)
        self.latent: bool = hasattr(backbone, "to_latent")
        """True if methods work in the latents of an autoencoder."""
        self.reset_counters()

    @property
    def network_dtype(self) -> torch.dtype:
        """The current dtype of the backbone's weights; float64 if it has none."""
        return next((p.dtype for p in self.backbone.parameters()), torch.float64)

    def reset_counters(self) -> None:
        self.nfe = 0
        self.nfe_grad = 0

    def one_by_one(self, solve: Callable[[int], Tensor], images: int) -> Tensor:
        """Return solve(0) .. solve(images - 1), each [1, ...], as one batch; count the NFE of the most expensive image.

        Adaptive solvers need this: in a batch, images would share their steps.
        """
        before, most, solved = (self.nfe, self.nfe_grad), (0, 0), []
        for i in range(images):
            self.reset_counters()
            solved.append(solve(i))
            most = max(most, (self.nfe, self.nfe_grad))
        self.nfe, self.nfe_grad = before[0] + most[0], before[1] + most[1]
        return torch.cat(solved)

    def condition(self, captions: list[str], guidance: float = 1.0) -> Condition:
        """Return the condition of captions, one per image, with the null condition beside them."""
        with torch.no_grad():
            encode = cast(Backbone, self.backbone).encode
            null = encode([""] * len(captions))
            return Condition(encode(captions), null, guidance, self.distilled, tuple(captions))

    def output(self, x: Tensor, t: float, cond: Condition) -> Tensor:
        """Return the network's own prediction at x [B, C, H, W] and time t, with guidance, in the dtype of x."""
        if cond.distilled:
            return self._evaluate(x, t, cond.embedding, guidance=cond.guidance)
        if cond.evaluations == 1:
            return self._evaluate(x, t, cond.embedding if cond.guidance == 1.0 else cond.null)
        both = self._evaluate(torch.cat([x, x]), t, torch.cat([cond.null, cond.embedding]), images=len(x))
        null, caption = both.chunk(2)
        return null + cond.guidance * (caption - null)

    def _evaluate(
        self, x: Tensor, t: float, embedding: Tensor, images: int | None = None, guidance: float | None = None
    ) -> Tensor:
        evaluations = len(x) // (images or len(x))
        self.nfe += evaluations
        if torch.is_grad_enabled() and (x.requires_grad or embedding.requires_grad):
            self.nfe_grad += evaluations
        # Never half precision: bfloat16 can represent one timestep in four. Some networks round them by themselves.
        precision = torch.promote_types(self.network_dtype, torch.float32)
        times = torch.full((len(x),), float(t), dtype=precision, device=x.device)
        extra = {} if guidance is None else {"guidance": guidance}
        return self.backbone(x.to(self.network_dtype), times, embedding, **extra).to(x.dtype)

    def views(self, x: Tensor, node: Node, cond: Condition) -> tuple[Tensor, Tensor]:
        """Return (x0, eps) at a level of the grid, from one guided evaluation; each has the shape of x."""
        a, s = node.alpha, node.sigma
        out = self.output(x, node.time, cond)
        if self.prediction == "eps":
            return (x - s * out) / a, out
        if self.prediction == "x0":
            return out, (x - a * out) / s
        if self.prediction == "v":
            norm = a * a + s * s
            return (a * x - s * out) / norm, (s * x + a * out) / norm
        return (x - s * out) / (a + s), (x + a * out) / (a + s)

    def eps(self, x: Tensor, node: Node, cond: Condition) -> Tensor:
        """Return the predicted noise."""
        return self.views(x, node, cond)[1]

    def x0(self, x: Tensor, node: Node, cond: Condition) -> Tensor:
        """Return the predicted image (the posterior mean)."""
        return self.views(x, node, cond)[0]

    def velocity(self, x: Tensor, node: Node, cond: Condition) -> Tensor:
        """Return eps - x0, the rectified velocity towards noise (the sign of Flux and Stable Diffusion 3)."""
        x0, eps = self.views(x, node, cond)
        return eps - x0

    def direction(self, x: Tensor, node: Node, cond: Condition) -> Tensor:
        """Return the view in which steps on this path are affine (`Path.step`): eps or velocity."""
        if self.prediction == self.path.direction:
            return self.output(x, node.time, cond)
        return getattr(self, self.path.direction)(x, node, cond)
