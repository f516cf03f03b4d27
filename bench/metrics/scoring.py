"""What a metric sees, and how the metrics of a batch are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images [B, C, H, W] in [0, 1], not clipped. `truth`: what a perfect output would be, the image itself or, of an
    edit, its counterfactual (nan where none is known). `given`: what the method saw, the measurement or the image.

    An edit also has a mask, bool [B, 1, H, W], and the captions of the image and of what was asked.
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
        assert self.mask is not None, "a metric that needs a mask is for task=edit alone"
        return self.mask


Score = Callable[[Batch], Tensor]
"""A metric: one number [B] for each image, the same whatever else is in the batch."""


@torch.no_grad()
def score(metrics: Mapping[str, Score], batch: Batch) -> dict[str, list[float | None]]:
    """Every metric of every image; None where the output or the number is not finite."""
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
