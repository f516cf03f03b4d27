"""How far a latent is from the noise that a prior expects."""

from __future__ import annotations

import torch
from torch import Tensor


def normal_distance(latent: Tensor) -> Tensor:
    """2-Wasserstein distance [B] between the values of each latent [B, ...] and N(0, 1), in closed form for one
    dimension: the root mean square between order statistics and normal quantiles (Villani 2003, theorem 2.18).

    0 for perfect noise; |m| for noise shifted by m, |s - 1| for noise scaled by s; not finite where the latent is not.
    """
    z = latent.double().flatten(1).sort(1).values
    count = z.shape[1]
    levels = (torch.arange(count, dtype=torch.float64, device=z.device) + 0.5) / count
    return (z - torch.special.ndtri(levels)).square().mean(1).sqrt()
