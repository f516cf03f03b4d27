"""The distance of a latent from the noise of the prior."""

from __future__ import annotations

import torch
from torch import Tensor


def normal_distance(latent: Tensor) -> Tensor:
    """Return the 2-Wasserstein distance [B] between the values of each latent [B, ...] and N(0, 1).

    In one dimension it has a closed form: the root mean square difference between order statistics and normal quantiles
    (Villani 2003, theorem 2.18). It is 0 for perfect noise, |m| for noise shifted by m and |s - 1| for noise scaled by
    s. It is not finite if the latent is not finite.
    """
    z = latent.double().flatten(1).sort(1).values
    count = z.shape[1]
    levels = (torch.arange(count, dtype=torch.float64, device=z.device) + 0.5) / count
    return (z - torch.special.ndtri(levels)).square().mean(1).sqrt()
