"""Parity with the reference implementations, on a Gaussian mixture with a noise prediction in closed form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from methods.backbones.analytic import GaussianMixture
from methods.base import Latent
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.inversion.bdia import BDIA
from methods.inversion.belm import OBELM
from methods.inversion.ddim import DDIM
from methods.inversion.ddpm_inversion import DDPMInversion
from methods.inversion.edict import EDICT
from methods.inversion.erddci import ERDDCI
from methods.inversion.negative_prompt import NegativePrompt
from methods.inversion.null_text import NullText
from methods.paths import Node, TimeGrid, VariancePreserving

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


def agree(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error < tolerance, f"relative error {error:.1e}"


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
    """The model of the recorded null-text inversions: the mixture at c = 0, plus a term of the embedding."""

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


@pytest.mark.parametrize("case", range(3))
def test_bdia(case: int, oracle: tuple[Denoiser, torch.Tensor]) -> None:
    denoiser, x0 = oracle
    golden, meta = load(f"bdia_{case}")
    chosen = options.BDIA(steps=meta["steps"], gamma=meta["gamma"], strength=meta["strength"], dtype="float64")
    method = BDIA(denoiser, chosen, denoiser.path.grid(meta["steps"], "leading", "first"))
    source = denoiser.condition(["src"], meta["guidance_invert"])
    latent = method.invert(x0, source)
    agree(latent.x_T, golden["z_T"])
    agree(latent.tensors["x_T_minus_1"], golden["z_T_minus_1"])
    agree(method.decode(latent, source), golden["reconstruction"])
    reached: list[torch.Tensor] = []

    def watch(z: torch.Tensor, node: Node) -> torch.Tensor:
        reached.append(z)
        return z

    agree(method.decode(latent, denoiser.condition(["tgt"], meta["guidance_edit"]), watch), golden["edit_level0"])
    agree(reached[-2], golden["edit_t0"])


@pytest.mark.parametrize("case", range(2))
def test_obelm(case: int, oracle: tuple[Denoiser, torch.Tensor]) -> None:
    denoiser, x0 = oracle
    golden, meta = load(f"obelm_{case}")
    clean, *noisy = denoiser.path.grid(meta["steps"], "linspace", "one").nodes
    grid = TimeGrid((Node(meta["first_step_timestep"], clean.alpha, clean.sigma), *noisy))
    method = OBELM(denoiser, options.OBELM(steps=meta["steps"], dtype="float64"), grid)
    source = denoiser.condition(["src"], meta["guidance"])
    latent = method.invert(x0, source)
    agree(latent.x_T, golden["x_T"])
    agree(latent.tensors["x_T_minus_1"], golden["x_T_minus_1"])
    agree(method.decode(latent, source), golden["reconstruction"])


@pytest.mark.parametrize("case", range(2))
def test_erddci(case: int, oracle: tuple[Denoiser, torch.Tensor]) -> None:
    denoiser, x0 = oracle
    golden, meta = load(f"erddci_{case}")
    chosen = options.ERDDCI(steps=meta["steps"], dtype="float64")
    method = ERDDCI(denoiser, chosen, denoiser.path.grid(meta["steps"], "leading", "first"))
    latent = method.invert(x0, denoiser.condition(["src"], 1.0))
    original = latent.tensors[f"o_{meta['steps']}"]
    agree(latent.x_T, golden["z_T_auxiliary"])
    agree(original, golden["z_T_original"])
    decoding = denoiser.condition(["src"], meta["guidance_decode"])
    x_hat = method.decode(latent, decoding)
    agree(x_hat, golden["decode_auxiliary"])
    taught = Latent({**latent.tensors, "x_T": original})
    agree(method.decode(taught, decoding), golden["decode_original_teacher_forced"])
    exact = meta["guidance_decode"] == 1.0
    assert ((x_hat - x0).abs().max().item() < TOLERANCE) == exact, "inverted at w = 1, it is exact only at w = 1"


def test_ddpm_inversion(oracle: tuple[Denoiser, torch.Tensor]) -> None:
    denoiser, _ = oracle
    golden, meta = load("ddpm_inversion")
    grid = denoiser.path.grid(meta["steps"], "leading1", "first")
    source = denoiser.condition(["src"], meta["guidance_source"])
    xs = list(golden["xts"])
    whole = DDPMInversion(denoiser, options.DDPMInversion(steps=meta["steps"], dtype="float64"), grid)
    maps = whole.noise_maps([x[None] for x in xs], source)
    for k in range(2, meta["steps"] + 1):
        agree(maps.tensors[f"sz_{k}"] / whole.noise_std(k), golden["zs"][k - 1][None])
    chosen = options.DDPMInversion(
        steps=meta["steps"], strength=1 - meta["skip"] / meta["steps"], dtype="float64", zero_last_noise=True
    )
    method = DDPMInversion(denoiser, chosen, grid)
    assert method.grid.steps == meta["steps"] - meta["skip"]
    latent = method.noise_maps([x[None] for x in xs[: method.grid.steps + 1]], source)
    agree(method.decode(latent, denoiser.condition(["src"], meta["guidance_edit"])), golden["edit"])


@pytest.mark.parametrize("case", range(2))
def test_null_text_and_negative_prompt(case: int, oracle: tuple[Denoiser, torch.Tensor]) -> None:
    """Up to 500 updates by Adam amplify rounding, so the results agree to 1e-6, not to 1e-10."""
    analytic, x0 = oracle
    golden, meta = load(f"nti_{case}")
    denoiser = Denoiser(Embedded(analytic.backbone, golden["W"]), analytic.path, "eps")
    condition = Condition(golden["emb"][1:2], golden["emb"][0:1], meta["guidance"])
    grid = denoiser.path.grid(meta["steps"], "leading", "first")
    fitted = {"inner_steps": meta["inner_steps"], "early_stop": meta["early_stop"]}
    method = NullText(denoiser, options.NullText(steps=meta["steps"], dtype="float64", **fitted), grid)
    latent = method.invert(x0, condition)
    agree(latent.x_T, golden["pivots"][-1])
    agree(latent.tensors["null_embeddings"][0], golden["null_embeddings"][:, 0], 1e-6)
    agree(method.decode(latent, condition), golden["reconstruction"], 1e-6)
    negative = NegativePrompt(denoiser, options.NegativePrompt(steps=meta["steps"], dtype="float64"), grid)
    agree(negative.reconstruct(x0, condition)[0], golden["npi_reconstruction"])
