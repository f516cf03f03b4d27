"""Parity with the reference implementations, on the Gaussian mixture whose noise prediction is stated in full."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from methods import options
from methods.backbones.analytic import GaussianMixture
from methods.base import Latent
from methods.ddim import DDIM
from methods.denoiser import Condition, Denoiser
from methods.edict import EDICT
from methods.paths import VariancePreserving

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-10


def load(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = {key: torch.from_numpy(archive[key]) for key in archive.files if key != "meta"}
        return arrays, json.loads(str(archive["meta"]))


def mixture(meta: dict, arrays: dict[str, torch.Tensor]) -> tuple[Denoiser, torch.Tensor]:
    path = VariancePreserving("scaled_linear")
    backbone = GaussianMixture(arrays["mu"], meta["var"], path, meta["wiggle"])
    return Denoiser(backbone, path, "eps"), arrays["x0"]


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error < TOLERANCE, f"relative error {error:.1e}"


@pytest.fixture
def oracle() -> tuple[Denoiser, torch.Tensor]:
    arrays, meta = load("gmm")
    return mixture(meta, arrays)


@pytest.mark.parametrize("case", range(4))
def test_edict(case: int, oracle: tuple[Denoiser, torch.Tensor]) -> None:
    denoiser, x0 = oracle
    golden, meta = load(f"edict_{case}")
    chosen = options.EDICT(
        steps=meta["steps"], p=meta["mixing"], strength=meta["strength"], dtype="float64", leapfrog=meta["leapfrog"]
    )
    method = EDICT(denoiser, chosen, denoiser.path.grid(meta["steps"], "leading", "first"))
    source = denoiser.condition(["src"], meta["guidance_invert"])
    latent = method.invert(x0, source)
    agree(latent.tensors["x_T"], golden["x_T"])
    agree(latent.tensors["y_T"], golden["y_T"])
    agree(method.decode(latent, source), golden["reconstruction"])
    x, y = method.decode_pair(latent, denoiser.condition(["tgt"], meta["guidance_edit"]))
    agree(x, golden["edit_x"])
    agree(y, golden["edit_y"])


class Embedded(torch.nn.Module):
    """The goldens' model for null-text inversion: the mixture at c = 0 plus a push by the embedding."""

    def __init__(self, mixture: GaussianMixture, weight: torch.Tensor) -> None:
        super().__init__()
        self.mixture = mixture
        self.register_buffer("weight", weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        neutral = self.mixture(x, t, torch.zeros(len(x), 1, 1, dtype=torch.float64))
        return neutral + 0.25 * torch.tanh(embedding.flatten(1) @ self.weight).reshape(x.shape)


@pytest.mark.parametrize("case", range(2))
def test_ddim_pivots(case: int, oracle: tuple[Denoiser, torch.Tensor]) -> None:
    analytic, x0 = oracle
    golden, meta = load(f"nti_{case}")
    denoiser = Denoiser(Embedded(analytic.backbone, golden["W"]), analytic.path, "eps")
    condition = Condition(golden["emb"][1:2], golden["emb"][0:1], 1.0)
    grid = denoiser.path.grid(meta["steps"], "leading", "first")
    for level in range(1, meta["steps"] + 1):
        chosen = options.DDIM(steps=meta["steps"], strength=level / meta["steps"], dtype="float64")
        agree(DDIM(denoiser, chosen, grid).invert(x0, condition).x_T, golden["pivots"][level])
    whole = DDIM(denoiser, options.DDIM(steps=meta["steps"], dtype="float64"), grid)
    agree(whole.decode(Latent({"x_T": golden["pivots"][-1]}), condition), golden["ddim_reconstruction_w1"])
