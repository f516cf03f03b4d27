"""The injective neural ODE as a method: inversion, restoration, posterior samples, and edits inside its latent.

The solver works in the gauge u = (z - cos t mu) / S_t (field.py). There the flow of a certified field is
du/dt = k(t) N(u, t). The Gaussian part, which is the largest part of the flow, is exact at any number of steps. A
guided velocity F is solved in the gauge of its caption: du/dt = (F - G) / S_t with G the velocity of N(mu, diag c).

Restoration, given y of a known kind (`procedure`):
    zero         decode u_T = 0 under (y, kind): close to the posterior mean
    sample       decode u_T ~ N(0, I) under (y, kind): a posterior sample, or the mean of n samples
    mean         mu(y) alone, the result at k = 0; the other procedures show how much the flow adds to it
    bridge       encode y under the condition "images are measurements of this kind", decode under (y, kind)
    consistency  decode noise under the caption alone; each step moves its estimate of the image to the measurement,
                 x0 += w A^T(y - A x0), w = sigma_t^2 / (sigma_t^2 + sigma_y^2) (after DDNM, Wang et al., ICLR 2023)

The conditioner runs once per condition. As for a text encoder, its seconds count, but it is not an evaluation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor

from methods.base import Generators, Latent, Measurement, normal, with_known
from methods.denoiser import Condition, Denoiser
from methods.guarantees import LocalEdit
from methods.injective_ode import options
from methods.injective_ode.conditioner import CORRUPTIONS
from methods.injective_ode.field import Features, InjectiveField
from methods.inversion.flow_ode import Chart, FlowODE
from methods.options import MethodOptions
from methods.paths import Node, TimeGrid, Trigonometric
from methods.solvers import Field


class Operator(Protocol):
    """A measurement with its operator: A, A^T, and the std of the noise in model range."""

    @property
    def sigma(self) -> float: ...
    def forward(self, x: Tensor) -> Tensor: ...
    def adjoint(self, y: Tensor) -> Tensor: ...


def uncertainty(samples: Tensor) -> Tensor:
    """Return the std of posterior samples [n, B, C, H, W] at each pixel, RMS over channels: [B, 1, H, W].

    It is near 0 where the measurement determines the image, and large where the model generates it. Raises ValueError
    for n < 2.
    """
    if len(samples) < 2:
        raise ValueError(f"a standard deviation needs at least two samples, got {len(samples)}")
    return samples.var(0).mean(1, keepdim=True).sqrt()


class InjectiveODE(FlowODE):
    Options = options.InjectiveODE

    def __init__(self, denoiser: Denoiser, options: MethodOptions, grid: TimeGrid) -> None:
        if not isinstance(denoiser.backbone, InjectiveField):
            made = type(denoiser.backbone).__name__
            raise ValueError(f"InjectiveODE runs on an InjectiveField (scenes_inode, digits_inode ..), got {made}")
        super().__init__(denoiser, options, grid)

    @property
    def network(self) -> InjectiveField:
        return cast(InjectiveField, self.denoiser.backbone)

    # --- the gauge as the solver's coordinate --------------------------------------------------------------------

    def time(self, node: Node) -> float:
        return node.time

    def node(self, time: float) -> Node:
        return cast(Trigonometric, self.denoiser.path).node(time)

    def facts(self) -> dict[str, float]:
        """Return K between the ends of the grid, and `certified`: 1 if the field is certified, else K is nominal.

        2K bounds the log of the condition number of the flow in the gauge. Returns nothing if the method does not use
        the flow of the field: with guidance, or for the procedures consistency and mean.
        """
        guidances = {self.options.guidance, self.options.guidance_invert} - {None}
        if not guidances <= {0.0, 1.0} or self.options.procedure in ("consistency", "mean"):
            return {}
        certificate = self.network.certificate(t0=self.times[0], t1=self.times[-1])
        return {"K": certificate.K, "certified": float(certificate.certified)}

    def gauge(self, cond: Condition) -> Features:
        """Return the gauge of the caption (and measurement), or of the null condition if guidance is 0."""
        return self.network.unpack(cond.null if cond.guidance == 0 else cond.embedding)

    def chart(self, time: float, cond: Condition) -> Chart:
        return self._chart(self.node(time), self.gauge(cond))

    def _chart(self, node: Node, gauge: Features) -> Chart:
        mean, variance = (part.to(self.latent_dtype) for part in (gauge.mean, gauge.variance))
        return Chart(node.alpha * mean, (variance * node.alpha**2 + node.sigma**2).sqrt())

    def field(self, cond: Condition) -> Field:
        """Return the function du/dt at angle t, from one (guided) evaluation of F."""
        gauge = self.gauge(cond)
        mean, variance = (part.to(self.latent_dtype) for part in (gauge.mean, gauge.variance))

        def derivative(t: float, u: Tensor) -> Tensor:
            node = self.node(t)
            chart = self._chart(node, gauge)
            gaussian = node.sigma * (node.alpha * (1 - variance) / chart.scale * u - mean)
            return (self.denoiser.output(chart.leave(u), t, cond) - gaussian) / chart.scale

        return derivative

    def at_gauge(self, u: Tensor, cond: Condition) -> Latent:
        """Return the latent of a point u [B, C, H, W] of the gauge at the noisy end. It holds x_T alone."""
        return Latent({"x_T": self.chart(self.times[-1], cond).leave(u)})

    # --- guarantees ------------------------------------------------------------------------------------------------

    def decoding(self, measurement: Measurement, cond: Condition) -> Condition:
        """Return the condition of a restoration: (y, kind) and the caption. `consistency` decodes without y."""
        if self.options.procedure == "consistency":
            return super().decoding(measurement, cond)
        return self.given(measurement, cond)

    def certificates(self, cond: Condition) -> list[dict[str, float | bool]] | None:
        """Return the constants of each image; None with guidance, since a certificate holds for one condition."""
        if cond.evaluations != 1:
            return None
        ends = {"t0": self.times[0], "t1": self.times[-1]}
        images = range(len(cond.embedding))
        return [self.network.certificate(self.gauge(cond.image(i)), **ends).as_dict() for i in images]

    def local_edit(self, image: Tensor, cond: Condition, mask: Tensor, delta: Tensor) -> LocalEdit | None:
        return self.edit_latent(image, cond, mask, delta) if cond.evaluations == 1 else None

    # --- restoration -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def given(self, measurement: Measurement, cond: Condition) -> Condition:
        """Return the condition (y, kind) and, with `decode=caption`, the caption.

        The null condition of guidance has no caption, but it has y. Raises ValueError for an unknown kind.
        """
        if measurement.kind not in CORRUPTIONS:
            raise ValueError(
                f"InjectiveODE was trained on measurements of kind {', '.join(CORRUPTIONS)}, got {measurement.kind!r}; "
                "use procedure=consistency, which takes any kind"
            )
        captions = list(cond.captions) if self.options.decode == "caption" else [""] * len(measurement.y)
        if len(captions) != len(measurement.y):
            raise ValueError(
                "a restoration needs a condition with one caption per image: make it by denoiser.condition"
            )
        observed = (measurement.y, measurement.known, measurement.kind)
        embedding = self.network.encode(captions, *observed)
        null = embedding if cond.guidance == 1 else self.network.encode([""] * len(captions), *observed)
        return replace(cond, embedding=embedding, null=null)

    def restore(self, measurement: Measurement, cond: Condition, generators: Generators = ()) -> tuple[Tensor, Latent]:
        """Restore by the option `procedure`. The option `project` says how the known pixels of a mask are kept."""
        if self.options.procedure == "consistency":
            return self._consistent(measurement, cond, generators)
        given = self.given(measurement, cond)
        if self.options.procedure == "sample":
            samples, latent = self._samples(measurement, given, self.options.samples, generators)
            return with_known(samples.mean(0), measurement, self.options.project), latent
        if self.options.procedure == "mean":
            mean = self.gauge(given).mean.to(self.latent_dtype)
            return with_known(mean, measurement, self.options.project), self.at_gauge(torch.zeros_like(mean), given)
        if self.options.procedure == "bridge":
            latent = self._handed_on(self.invert(self._y(measurement), self._as_data(measurement, cond)))
        else:
            latent = self.at_gauge(torch.zeros_like(self._y(measurement)), given)
        return self._decode_known(latent, given, measurement), latent

    def posterior(self, measurement: Measurement, cond: Condition, samples: int, generators: Generators) -> Tensor:
        """Return posterior samples [n, B, C, H, W]. `uncertainty` turns them into a map."""
        return self._samples(measurement, self.given(measurement, cond), samples, generators)[0]

    def _samples(
        self, measurement: Measurement, cond: Condition, samples: int, generators: Generators
    ) -> tuple[Tensor, Latent]:
        """Return posterior samples, and the latent of the last one. They are drawn one by one, so that the NFE count
        all."""
        decoded = []
        for _ in range(samples):
            latent = self.at_gauge(normal(self._y(measurement), generators), cond)
            decoded.append(self._decode_known(latent, cond, measurement))
        return torch.stack(decoded), latent

    def _y(self, measurement: Measurement) -> Tensor:
        return measurement.y.to(self.latent_dtype)

    @torch.no_grad()
    def _as_data(self, measurement: Measurement, cond: Condition) -> Condition:
        """Return the condition under which y itself is an image: the data are measurements of its kind."""
        embedding = self.network.encode([""] * len(measurement.y), kind=f"is_{measurement.kind}")
        return replace(cond, embedding=embedding, guidance=1.0)

    def _consistent(self, measurement: Measurement, cond: Condition, generators: Generators) -> tuple[Tensor, Latent]:
        if not hasattr(measurement, "forward"):
            raise ValueError("procedure=consistency needs a measurement with its operator (`forward` and `adjoint`)")
        operator, y = cast(Operator, measurement), self._y(measurement)
        target = cond if self.options.decode == "caption" else self._undescribed(cond)
        latent = self.at_gauge(normal(y, generators), target)
        z = latent.x_T
        for k in range(self.grid.steps, 0, -1):
            node, after = self.grid[k], self.grid[k - 1]
            x0, eps = self.denoiser.views(z, node, target)
            weight = node.sigma**2 / (node.sigma**2 + operator.sigma**2)
            x0 = x0 + weight * operator.adjoint(y - operator.forward(x0))
            z = after.alpha * x0 + after.sigma * eps
        return with_known(z, measurement, self.options.project), latent

    # --- edits -----------------------------------------------------------------------------------------------------

    def edit(
        self, x0: Tensor, source: Condition, target: Condition, mask: Tensor | None = None, generators: Generators = ()
    ) -> tuple[Tensor, Latent]:
        """Edit as every method does. With `edit=latent` the mask applies to the change of the latent instead, and
        decoding is under the source at guidance 1."""
        if mask is None or self.options.edit == "image":
            return super().edit(x0, source, target, mask, generators)
        edited, latent = super().edit(x0, source, target, None, generators)
        unguided = source.at(1.0)
        return self.edit_latent(x0, unguided, mask, self.latent_change(edited, x0, unguided)).image, latent

    def latent_change(self, reference: Tensor, x0: Tensor, cond: Condition) -> Tensor:
        """Return the change of u_T that turns x0 into a reference image. Both are [B, C, H, W], under one condition."""
        return self._u(self.invert(reference, cond), cond) - self._u(self.invert(x0, cond), cond)

    def edit_latent(self, x0: Tensor, cond: Condition, mask: Tensor, delta: Tensor) -> LocalEdit:
        """Change the latent of x0 by `delta` [B, C, H, W] inside the mask (bool [B, 1, H, W]): proposal, section 2.5.

        `delta` is in the gauge, so in units of the noise. Raises ValueError for a guided condition, since its flow has
        no certificate.
        """
        if cond.evaluations != 1:
            raise ValueError(
                f"a certificate holds for one condition, and not with guidance {cond.guidance:g}: use cond.at(1.0)"
            )
        start, moved = self._u(self.invert(x0, cond), cond), torch.where(mask, delta, 0.0)
        before, after = (self.decode(self.at_gauge(u, cond), cond) for u in (start, start + moved))
        certificate = self.network.certificate(t0=self.times[0], t1=self.times[-1])
        scale = cast(Tensor, self.chart(self.times[0], cond).scale)
        widest = torch.where(mask, 0.0, scale).flatten(1).amax(1)
        return LocalEdit(
            image=x0 + (after - before),
            outside=_norm(torch.where(mask, 0.0, after - before)),
            bound=widest * (certificate.gronwall - 1) * _norm(moved),
            certified=certificate.certified,
        )

    def _u(self, latent: Latent, cond: Condition) -> Tensor:
        return self.chart(self.times[-1], cond).enter(latent.x_T)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)
