"""The input of a metric, and the computation of metrics for a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images [B, C, H, W] in [0, 1], not clipped.

    `truth` is the ground truth: the image, or for an edit its counterfactual (nan if none is known). `given` is the
    method's input: the measurement or the image. An edit also has a mask, bool [B, 1, H, W], the source captions and
    the target captions.
    """

    output: Tensor
    truth: Tensor
    given: Tensor
    mask: Tensor | None = None
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()

    @property
    def region(self) -> Tensor:
        """The mask of an edit."""
        assert self.mask is not None, "a metric that needs a mask is only for task=edit"
        return self.mask


Score = Callable[[Batch], Tensor]
"""A metric: a batch -> one number per image, [B]. The number does not depend on the other images of the batch."""


@torch.no_grad()
def score(metrics: Mapping[str, Score], batch: Batch) -> dict[str, list[float | None]]:
    """Return name -> one value per image, for every metric; None where the output or the value is not finite."""
    finite = batch.output.flatten(1).isfinite().all(1)
    safe = replace(batch, output=torch.where(finite[:, None, None, None], batch.output, 0.0))
    found = {name: metric(safe) for name, metric in metrics.items()}
    for name, values in found.items():
        if values.shape != finite.shape:
            raise ValueError(f"metric {name} gave {list(values.shape)} numbers for {len(finite)} images")
    return {
        name: [v if ok else None for v, ok in zip(values.tolist(), (finite & values.isfinite()).tolist(), strict=True)]
        for name, values in found.items()
    }
