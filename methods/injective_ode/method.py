"""The injective neural ODE as a method: inversion, restoration, posterior samples, and edits inside its latent.

The solver walks in the gauge u = (z - cos t mu) / S_t (field.py), where the flow of a certified field is
du/dt = k(t) N(u, t): the Gaussian part, which is most of the way, is exact at any number of steps. A guided velocity F
is walked in the gauge of its caption: du/dt = (F - G) / S_t with G the velocity of N(mu, diag c).

Restoration, given y of a known kind (`procedure`):
    zero         decode u_T = 0 under (y, kind): close to the posterior mean
    sample       decode u_T ~ N(0, I) under (y, kind): a posterior sample; the mean of n of them
    mean         mu(y) alone, the answer at k = 0: what the flow adds to it is the flow's worth
    bridge       encode y under "data are such images", decode its latent under (y, kind)
    consistency  decode noise under the caption alone; each step's estimate of the image is drawn to the measurement,
                 x0 += w A^T(y - A x0), w = sigma_t^2 / (sigma_t^2 + sigma_y^2) (after DDNM, Wang et al., ICLR 2023)

The conditioner runs once for each condition. As with a text encoder's pass, its seconds count and it is no evaluation.
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
    """A measurement that knows its operator: A, A^T, and the noise's std in model range."""

    @property
    def sigma(self) -> float: ...
    def forward(self, x: Tensor) -> Tensor: ...
    def adjoint(self, y: Tensor) -> Tensor: ...


def uncertainty(samples: Tensor) -> Tensor:
    """Posterior samples [n, B, C, H, W], n >= 2 -> their std at each pixel, RMS over channels, [B, 1, H, W].

    About 0 where the measurement decides, large where the model invents.
    """
    if len(samples) < 2:
        raise ValueError(f"a spread needs two samples or more, got {len(samples)}")
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
        """K between the ends of the grid, so that 2K bounds the log of the flow's condition number in the gauge, and
        whether the field is certified; where it is not, K is nominal. Nothing where another flow than the field's is
        walked: a guided one, or none."""
        guidances = {self.options.guidance, self.options.guidance_invert} - {None}
        if not guidances <= {0.0, 1.0} or self.options.procedure in ("consistency", "mean"):
            return {}
        certificate = self.network.certificate(t0=self.times[0], t1=self.times[-1])
        return {"K": certificate.K, "certified": float(certificate.certified)}

    def gauge(self, cond: Condition) -> Features:
        """Of the caption (and measurement); of the null condition where guidance is 0."""
        return self.network.unpack(cond.null if cond.guidance == 0 else cond.embedding)

    def chart(self, time: float, cond: Condition) -> Chart:
        return self._chart(self.node(time), self.gauge(cond))

    def _chart(self, node: Node, gauge: Features) -> Chart:
        mean, variance = (part.to(self.latent_dtype) for part in (gauge.mean, gauge.variance))
        return Chart(node.alpha * mean, (variance * node.alpha**2 + node.sigma**2).sqrt())

    def field(self, cond: Condition) -> Field:
        """du/dt at angle t, from one (guided) evaluation of F."""
        gauge = self.gauge(cond)
        mean, variance = (part.to(self.latent_dtype) for part in (gauge.mean, gauge.variance))

        def answer(t: float, u: Tensor) -> Tensor:
            node = self.node(t)
            chart = self._chart(node, gauge)
            gaussian = node.sigma * (node.alpha * (1 - variance) / chart.scale * u - mean)
            return (self.denoiser.output(chart.leave(u), t, cond) - gaussian) / chart.scale

        return answer

    def at_gauge(self, u: Tensor, cond: Condition) -> Latent:
        """The latent of a point u [B, C, H, W] of the gauge at the noisy end; a solver starts anew from it."""
        return Latent({"x_T": self.chart(self.times[-1], cond).leave(u)})

    # --- guarantees ------------------------------------------------------------------------------------------------

    def decoding(self, measurement: Measurement, cond: Condition) -> Condition:
        """The measurement and the caption; by a procedure that decodes without y as any other flow's."""
        if self.options.procedure == "consistency":
            return super().decoding(measurement, cond)
        return self.given(measurement, cond)

    def certificates(self, cond: Condition) -> list[dict[str, float | bool]] | None:
        """The constants of each image; None under guidance: a certificate holds for one condition."""
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
        """The condition (y, kind) and, with `decode=caption`, the caption. Guidance takes away the caption, never y."""
        if measurement.kind not in CORRUPTIONS:
            raise ValueError(
                f"InjectiveODE was trained on measurements of kind {', '.join(CORRUPTIONS)}, got {measurement.kind!r}; "
                "procedure=consistency takes any"
            )
        captions = list(cond.captions) if self.options.decode == "caption" else [""] * len(measurement.y)
        if len(captions) != len(measurement.y):
            raise ValueError("the condition of a restoration must keep its captions: make it by denoiser.condition")
        told = (measurement.y, measurement.known, measurement.kind)
        embedding = self.network.encode(captions, *told)
        null = embedding if cond.guidance == 1 else self.network.encode([""] * len(captions), *told)
        return replace(cond, embedding=embedding, null=null)

    def restore(self, measurement: Measurement, cond: Condition, generators: Generators = ()) -> tuple[Tensor, Latent]:
        """By the option `procedure`; known pixels of a mask are held as `project` says."""
        if self.options.procedure == "consistency":
            return self._consistent(measurement, cond, generators)
        told = self.given(measurement, cond)
        if self.options.procedure == "sample":
            samples, latent = self._samples(measurement, told, self.options.samples, generators)
            return with_known(samples.mean(0), measurement, self.options.project), latent
        if self.options.procedure == "mean":
            mean = self.gauge(told).mean.to(self.latent_dtype)
            return with_known(mean, measurement, self.options.project), self.at_gauge(torch.zeros_like(mean), told)
        if self.options.procedure == "bridge":
            latent = self._handed_on(self.invert(self._y(measurement), self._as_data(measurement, cond)))
        else:
            latent = self.at_gauge(torch.zeros_like(self._y(measurement)), told)
        return self._decode_known(latent, told, measurement), latent

    def posterior(self, measurement: Measurement, cond: Condition, samples: int, generators: Generators) -> Tensor:
        """Samples [n, B, C, H, W] of what may have been measured; `uncertainty` makes a map of them."""
        return self._samples(measurement, self.given(measurement, cond), samples, generators)[0]

    def _samples(
        self, measurement: Measurement, told: Condition, samples: int, generators: Generators
    ) -> tuple[Tensor, Latent]:
        """One after the other, so that evaluations are counted as they are made; and the last one's latent."""
        decoded = []
        for _ in range(samples):
            latent = self.at_gauge(normal(self._y(measurement), generators), told)
            decoded.append(self._decode_known(latent, told, measurement))
        return torch.stack(decoded), latent

    def _y(self, measurement: Measurement) -> Tensor:
        return measurement.y.to(self.latent_dtype)

    @torch.no_grad()
    def _as_data(self, measurement: Measurement, cond: Condition) -> Condition:
        """The condition under which y itself is an image: data are measurements of its kind, of nobody knows what."""
        embedding = self.network.encode([""] * len(measurement.y), kind=f"is_{measurement.kind}")
        return replace(cond, embedding=embedding, guidance=1.0)

    def _consistent(self, measurement: Measurement, cond: Condition, generators: Generators) -> tuple[Tensor, Latent]:
        if not hasattr(measurement, "forward"):
            raise ValueError("procedure=consistency needs a measurement that knows its operator")
        operator, y = cast(Operator, measurement), self._y(measurement)
        told = cond if self.options.decode == "caption" else self._undescribed(cond)
        latent = self.at_gauge(normal(y, generators), told)
        z = latent.x_T
        for k in range(self.grid.steps, 0, -1):
            node, after = self.grid[k], self.grid[k - 1]
            x0, eps = self.denoiser.views(z, node, told)
            weight = node.sigma**2 / (node.sigma**2 + operator.sigma**2)
            x0 = x0 + weight * operator.adjoint(y - operator.forward(x0))
            z = after.alpha * x0 + after.sigma * eps
        return with_known(z, measurement, self.options.project), latent

    # --- edits -----------------------------------------------------------------------------------------------------

    def edit(
        self, x0: Tensor, source: Condition, target: Condition, mask: Tensor | None = None, generators: Generators = ()
    ) -> tuple[Tensor, Latent]:
        """As every method's. With `edit=latent` the mask acts on the change of the latent, decoded under the source at
        guidance 1."""
        if mask is None or self.options.edit == "image":
            return super().edit(x0, source, target, mask, generators)
        edited, latent = super().edit(x0, source, target, None, generators)
        told = source.at(1.0)
        return self.edit_latent(x0, told, mask, self.towards(edited, x0, told)).image, latent

    def towards(self, reference: Tensor, x0: Tensor, cond: Condition) -> Tensor:
        """The change of u_T that turns x0 into a reference image, both [B, C, H, W] and under one condition."""
        return self._u(self.invert(reference, cond), cond) - self._u(self.invert(x0, cond), cond)

    def edit_latent(self, x0: Tensor, cond: Condition, mask: Tensor, delta: Tensor) -> LocalEdit:
        """x0 with its latent changed by `delta` [B, C, H, W] (in the gauge, so in units of the noise) inside the mask
        (bool [B, 1, H, W]): proposal, section 2.5. Raises ValueError for a guided condition, whose flow is another."""
        if cond.evaluations != 1:
            raise ValueError(
                f"the certificate is of one condition, not of guidance {cond.guidance:g}: use cond.at(1.0)"
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
