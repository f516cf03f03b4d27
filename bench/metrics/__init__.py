"""Per-image metrics by name: which exist, which can be computed here. The numbers are in `bench.metrics.image`.

No torch here: a plan asks what is available. A metric whose weights are not on disk is "unavailable" with the reason,
never replaced by another under its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

VERSIONS = {"psnr": 1, "ssim": 1, "mse": 1, "lpips": 1}
"""Raised when a metric's numbers change: part of a cell's identity."""

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
"""torchvision's AlexNet, over which lpips lays its own linear weights (Zhang et al. 2018)."""


def weights_folder() -> Path:
    """Where torch.hub keeps downloaded weights."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def available(names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """(the metrics that can be computed here, {the others: why not})."""
    missing = {}
    if "lpips" in names and not (weights_folder() / LPIPS_BACKBONE).is_file():
        missing["lpips"] = f"LPIPS weights ({LPIPS_BACKBONE}) are not in torch's cache"
    return tuple(name for name in names if name not in missing), missing
