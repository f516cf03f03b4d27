"""The adapters of large pretrained models, through their real loaders on pipelines with tiny random weights.

Parity is with diffusers: its community EDICT and RF-Inversion pipelines (recorded), and its own samplers (run here).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from bench import hub
from bench.cell.models import build_denoiser, build_grid
from bench.errors import UserError
from bench.plan import missing_assets
from bench.spec.compose import compose_config
from bench.spec.config import ModelConfig, PathConfig
from methods.backbones.flux import Flux, pack, unpack
from methods.backbones.pretrained import Pretrained, pack_text, unpack_text
from methods.backbones.sd3 import StableDiffusion3
from methods.backbones.stable_diffusion import StableDiffusion
from methods.base import InversionMethod, LatentMeasurement, Problem
from methods.denoiser import Denoiser
from methods.inversion import options
from methods.inversion.ddim import DDIM
from methods.inversion.edict import EDICT
from methods.inversion.rf_inversion import RFInversion
from methods.inversion.sampling import sample
from methods.paths import Node, VariancePreserving

TINY = Path(__file__).parent / "golden" / "tiny"
SD, FLUX = str(TINY / "tiny_sd"), str(TINY / "tiny_flux")
CAT, DOG = "a photo of a cat", "a photo of a dog"
SIGMAS = [0.0, 0.2, 0.4, 0.7, 0.9, 1.0]


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    with np.load(TINY / f"{name}.npz") as archive:
        arrays = {key: torch.from_numpy(archive[key]) for key in archive.files if key != "meta"}
        return arrays, json.loads(str(archive["meta"]))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def denoiser(backbone: Pretrained, path: VariancePreserving | None = None) -> Denoiser:
    return Denoiser(backbone, path or backbone.path, backbone.prediction).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Stable Diffusion 3 of 0.1 M random weights, with the tiny Flux's T5 and tokenizers, saved as a pipeline."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    flux = diffusers.FluxPipeline.from_pretrained(FLUX)
    clip = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, projection_dim=16, num_hidden_layers=3,
        num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=32,
    )  # fmt: skip
    flux.vae.register_to_config(scaling_factor=1.5305, shift_factor=0.0609)
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), flux.vae,
        transformers.CLIPTextModelWithProjection(clip), flux.tokenizer,
        transformers.CLIPTextModelWithProjection(clip), flux.tokenizer,
        flux.text_encoder_2, flux.tokenizer_2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny_sd3")
    pipeline.save_pretrained(folder)
    return str(folder)


def noise(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5))


# --- recorded trajectories -------------------------------------------------------------------------------------


class Float32Coefficients(VariancePreserving):
    """Steps whose coefficients are computed in float32, as diffusers does even for a model in float64.

    By numpy, whose square root is correctly rounded everywhere: torch's, on some CPUs, is off by a unit in the last
    place for a fifth of all numbers, which EDICT's inversion grows to 6e-7.
    """

    def step(self, source: Node, target: Node) -> tuple[float, float]:
        one = np.float32(1)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
        table = torch.cumprod(1 - betas, 0).numpy()
        here, there = table[int(source.time)], table[int(target.time)]
        a = np.sqrt(there / here)
        return float(a), float(-a * np.sqrt(one - here) + np.sqrt(one - there))


@pytest.mark.parametrize(
    ("dtype", "path", "tolerance"),
    [
        ("float64", Float32Coefficients(), 1e-10),
        ("float64", None, 1e-5),  # the same with our coefficients: theirs are rounded to float32
        ("float32", None, 1e-4),  # rounding of the network, which EDICT's inversion grows by p^(-2N) = 333
    ],
)
def test_edict_on_stable_diffusion(dtype: str, path: VariancePreserving | None, tolerance: float) -> None:
    arrays, meta = golden("edict_sd")
    model = denoiser(StableDiffusion(SD, dtype), path)
    chosen = options.EDICT(steps=meta["steps"], strength=meta["strength"], p=meta["mixing"], dtype=dtype)
    method = EDICT(model, chosen, model.path.grid(meta["steps"], "leading1", "first"))
    z0 = arrays["z0"].to(method.latent_dtype)
    source = model.condition([meta["prompts"]["base"]], meta["guidance"])
    latent = method.invert(z0, source)
    assert relative(latent.tensors["x_T"], arrays["x_T"]) < tolerance
    assert relative(latent.tensors["y_T"], arrays["y_T"]) < tolerance
    target = model.condition([meta["prompts"]["target"]], meta["guidance"])
    assert relative(method.decode(latent, target), arrays["edit"]) < tolerance
    assert relative(method.decode(latent, source), z0) < (1e-12 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("case", range(4))
def test_rf_inversion_on_flux(case: int) -> None:
    arrays, meta = golden("rf_inversion_flux")
    chosen = meta["cases"][case]
    N, steps = meta["num_inversion_steps"], chosen["steps"]
    backbone = Flux(FLUX, "float32")
    model = denoiser(backbone)
    mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)  # of 16 tokens, by the scheduler's base and largest shift
    y0, y1 = (unpack(arrays[key], 8, 8) for key in ("y0_packed", "y1_packed"))

    asked = options.RFInversion(steps=N, gamma=meta["gamma"], grid="diffusers")
    inverting = RFInversion(model, asked, model.path.grid(N, "flux_shift", mu=mu))
    source = model.condition([meta["source_prompt"]], meta["source_guidance_scale"])
    model.reset_counters()
    y = inverting.forward_ode(y0, y1, source)
    assert model.nfe == N, "distilled guidance is one evaluation"
    assert relative(pack(y), arrays["inverted_packed"]) < 1e-5

    asked = options.RFInversion(
        steps=steps,
        eta=chosen["eta"],
        window_steps=(int(chosen["start"] * steps), min(int(chosen["stop"] * steps), steps)),
        eta_schedule="power" if chosen["decay_eta"] else "constant",
    )
    decoding = RFInversion(model, asked, model.path.grid(steps, "flux_shift", mu=mu))
    backbone.tokens = chosen["max_sequence_length"]
    target = model.condition([meta["prompt"]], meta["guidance_scale"])
    latent = inverting.invert(y0, source, [torch.Generator()])
    latent.tensors.update(x_T=unpack(arrays["inverted_packed"], 8, 8), y0=y0)
    assert relative(pack(decoding.decode(latent, target)), arrays[f"edit_{case}"]) < 1e-5


def test_the_recorded_latent_is_drawn_around_ours() -> None:
    arrays, _ = golden("rf_inversion_flux")
    image = arrays["image"].permute(2, 0, 1)[None].float() / 127.5 - 1
    backbone = Flux(FLUX, "float32").requires_grad_(False)
    spread = backbone.vae.encode(image).latent_dist.std * backbone.vae.config.scaling_factor
    residual = (unpack(arrays["y0_packed"], 8, 8) - backbone.to_latent(image)) / spread
    assert 0.85 < residual.std() < 1.15, "the record is a sample of the posterior"
    assert residual.mean().abs() < 0.15


# --- the pipelines' own samplers -------------------------------------------------------------------------------


def test_sampling_is_that_of_the_stable_diffusion_pipeline() -> None:
    backbone = StableDiffusion(SD)
    ours = sample(m := denoiser(backbone), m.path.grid(10, "leading1", "first"), m.condition([CAT, DOG], 3.0), noise())
    theirs = backbone.pipeline(
        [CAT, DOG], latents=noise(), num_inference_steps=10, guidance_scale=3.0, output_type="latent"
    ).images
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.5])
def test_sampling_is_that_of_the_flux_pipeline(guidance: float) -> None:
    import diffusers

    backbone = Flux(FLUX, "float32", tokens=16)
    model = denoiser(backbone)
    backbone.pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift=1.0)
    ours = sample(model, model.path.from_sigmas(SIGMAS), model.condition([CAT, DOG], guidance), noise())
    theirs = backbone.pipeline(
        [CAT, DOG], latents=pack(noise()), sigmas=SIGMAS[:0:-1], guidance_scale=guidance, height=64, width=64,
        num_inference_steps=5, max_sequence_length=16, output_type="latent",
    ).images  # fmt: skip
    assert relative(pack(ours), theirs) < 1e-5


def test_sampling_is_that_of_the_stable_diffusion_3_pipeline(sd3_folder: str) -> None:
    import diffusers

    backbone = StableDiffusion3(sd3_folder, "float32", tokens=16)
    model = denoiser(backbone)
    backbone.pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    ours = sample(model, model.path.from_sigmas(SIGMAS), model.condition([CAT, DOG], 3.5), noise())
    theirs = backbone.pipeline(
        [CAT, DOG], latents=noise(), sigmas=SIGMAS[:0:-1], guidance_scale=3.5, height=64, width=64,
        num_inference_steps=5, max_sequence_length=16, output_type="latent",
    ).images  # fmt: skip
    assert relative(ours, theirs) < 1e-5
    image = backbone.to_image(ours)
    pixels = backbone.pipeline.vae.decode(theirs / 1.5305 + 0.0609).sample
    assert relative(image, pixels) < 1e-5


def test_packing_is_lossless() -> None:
    sequence, pooled = torch.randn(2, 5, 7), torch.randn(2, 9)
    for s, p in ((sequence, pooled), (sequence, pooled[:, :4])):
        packed = pack_text(s, p)
        assert packed.shape == (2, 6, max(s.shape[2], p.shape[1]))
        assert all(torch.equal(a, b) for a, b in zip(unpack_text(packed, s.shape[2], p.shape[1]), (s, p), strict=True))
    z = torch.randn(2, 4, 6, 8)
    assert pack(z).shape == (2, 12, 16)
    assert torch.equal(unpack(pack(z), 6, 8), z)


def test_flux_without_distilled_guidance_is_guided_by_two_evaluations(tmp_path: Path) -> None:
    import diffusers

    pipeline = diffusers.FluxPipeline.from_pretrained(FLUX)
    pipeline.transformer = diffusers.FluxTransformer2DModel(**{**pipeline.transformer.config, "guidance_embeds": False})
    pipeline.save_pretrained(tmp_path)
    model = denoiser(Flux(str(tmp_path), "float32", tokens=16))
    cond = model.condition([CAT], 3.5)
    assert model.output(noise(1), 0.5, cond).shape == (1, 4, 8, 8)
    assert model.nfe == cond.evaluations == 2


# --- images around latents -------------------------------------------------------------------------------------


def problem(model: Denoiser, task: str, count: int = 2) -> Problem:
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(count, 1, 64, 64, dtype=torch.bool)
    mask[..., 10:31, 5:40] = True
    return Problem(
        task,
        images,
        model.condition([CAT] * count, 1.0),
        [torch.Generator().manual_seed(i) for i in range(count)],
        target=model.condition([DOG] * count, 2.0),
        measurement=LatentMeasurement(torch.where(mask, 0.0, images), ~mask) if task == "restore" else None,
        mask=mask if task == "edit" else None,
    )


@pytest.fixture(scope="module", params=[StableDiffusion, Flux, StableDiffusion3])
def model(request: pytest.FixtureRequest, sd3_folder: str) -> Denoiser:
    folder = {StableDiffusion: SD, Flux: FLUX, StableDiffusion3: sd3_folder}[request.param]
    return denoiser(request.param(folder, "float32"))


def ddim(model: Denoiser, **changes: object) -> InversionMethod:
    chosen = options.DDIM(**{"steps": 4, **changes})
    return DDIM(model, chosen, model.path.grid(4))


@pytest.mark.parametrize("task", ["reconstruct", "restore", "edit"])
def test_images_enter_and_leave_and_latents_are_inside(model: Denoiser, task: str) -> None:
    given = problem(model, task)
    method = ddim(model, project="final")
    solution = method.solve(given)
    assert solution.image.shape == (2, 3, 64, 64)
    assert solution.latent.x_T.shape == (2, 4, 8, 8)
    assert solution.cost.nfe == 4 * 2 + (4 if task == "edit" and not model.distilled else 0)
    keep = {"restore": given.measurement and given.measurement.known, "edit": given.mask is not None and ~given.mask}
    if task in keep:
        assert torch.equal(torch.where(keep[task], solution.image, 0), torch.where(keep[task], given.image, 0))
        changed = torch.where(keep[task], 0, solution.image - given.image)
        assert changed.abs().max() > 0.01
    again = method.solve(problem(model, task, count=1))
    torch.testing.assert_close(again.image, solution.image[:1], rtol=0, atol=1e-4)


def test_masks_reach_the_latents_cell_by_cell(model: Denoiser) -> None:
    """Rows 10..30 touch cells 1..3 and columns 5..39 cells 0..4: a cell is known only where it is known whole."""
    seen: dict[str, torch.Tensor] = {}

    class Watching(DDIM):
        def restore(self, measurement, cond, generators=()):  # type: ignore[no-untyped-def]
            seen["known"] = measurement.known
            return super().restore(measurement, cond, generators)

        def edit(self, x0, source, target, mask=None, generators=()):  # type: ignore[no-untyped-def]
            seen["mask"] = mask
            return super().edit(x0, source, target, mask, generators)

    method = Watching(model, options.DDIM(steps=1, project="each_step"), model.path.grid(1))
    method.solve(problem(model, "restore"))
    method.solve(problem(model, "edit"))
    expected = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    expected[..., 1:4, 0:5] = True
    assert torch.equal(seen["mask"], expected)
    assert torch.equal(seen["known"], ~expected)


def test_the_autoencoder_is_deterministic_and_says_which_sides_it_takes(model: Denoiser) -> None:
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    z = model.backbone.to_latent(images)
    assert torch.equal(z, model.backbone.to_latent(images))
    assert z.shape == (1, 4, 4, 6)
    assert model.backbone.to_image(z).shape == images.shape
    with pytest.raises(ValueError, match="multiples of"):
        model.backbone.to_latent(torch.zeros(1, 3, 32, 44))


def test_gradients_reach_the_embedding(model: Denoiser) -> None:
    """What null-text inversion needs."""
    cond = model.condition([CAT], 1.0)
    null = cond.null.clone().requires_grad_(True)
    model.reset_counters()
    model.output(noise(1), model.path.t_max / 2, cond.__class__(null, cond.null, 1.0, cond.distilled)).sum().backward()
    assert null.grad is not None
    assert null.grad.abs().max() > 0
    assert model.nfe_grad == 1


def test_half_precision_networks_get_exact_times() -> None:
    told: list[torch.Tensor] = []
    backbone = StableDiffusion(SD, "bfloat16")
    model = denoiser(backbone)
    backbone.register_forward_pre_hook(lambda module, inputs: told.append(inputs[1]))
    out = model.output(noise(1).double(), 981, model.condition([CAT]))
    assert out.dtype == torch.float64
    assert model.network_dtype == torch.bfloat16
    assert told[0].item() == 981
    assert backbone.vae.dtype == torch.float32


# --- what is refused -------------------------------------------------------------------------------------------


def edited(tmp_path: Path, part: str, **changes: object) -> str:
    folder = tmp_path / "edited"
    shutil.copytree(SD, folder)
    file = next((folder / part).glob("*config.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(folder)


@pytest.mark.parametrize("changes", [{"beta_end": 0.02}, {"beta_schedule": "linear"}, {"rescale_betas_zero_snr": True}])
def test_another_schedule_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"betas must be scaled_linear from 0\.00085 to 0\.012"):
        StableDiffusion(edited(tmp_path, "scheduler", **changes))


def config(**changes: object) -> ModelConfig:
    sd15 = compose_config(["model=sd15"], sweep_required=False).model["sd15"]
    return sd15.model_copy(update={"backbone": {"pretrained": SD}, "shape": (3, 64, 64), **changes})


def test_the_yaml_and_the_weights_must_agree(tmp_path: Path) -> None:
    assert build_denoiser(config()).latent
    folder = edited(tmp_path, "scheduler", prediction_type="v_prediction")
    with pytest.raises(UserError, match=r"prediction=eps in the model's YAML.*trained for v"):
        build_denoiser(config(backbone={"pretrained": folder}))
    assert build_denoiser(config(backbone={"pretrained": folder}, prediction="v")).prediction == "v"
    with pytest.raises(UserError, match="path="):
        build_denoiser(config(path=PathConfig(kind="vp", schedule="cosine")))


def test_the_shipped_configurations_build_their_grids() -> None:
    for name in ("sd15", "sd3", "flux"):
        found = compose_config([f"model={name}"], sweep_required=False).model[name]
        assert build_grid(found, 10).steps == 10
        assert found.pretrained
    third = compose_config(["model=sd3"], sweep_required=False).model["sd3"]
    assert build_grid(third, 2)[1].s == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


def test_a_missing_extra_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install inversion-bench\[large\]"):
        StableDiffusion(SD)
    with pytest.raises(UserError, match=r"pip install inversion-bench\[large\]"):
        build_denoiser(config())


def test_a_pipeline_that_is_not_here_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in (str(tmp_path), "nobody/nothing"):
        with pytest.raises(FileNotFoundError, match="neither the folder of a pipeline nor in the cache of the hub"):
            StableDiffusion(name)


def test_the_plan_names_missing_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    run = compose_config(["sweep=reconstruction", "profile=sd15"])
    (line,) = missing_assets(run)
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert "pipeline of model sd15" in line
    assert f"{name} is not in the Hugging Face cache" in line
    repository, commit = tmp_path / f"models--{name.replace('/', '--')}", "0" * 39 + "1"
    shutil.copytree(SD, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert not missing_assets(run)
    assert hub.commit(name) == commit
    assert hub.commit(name, commit) == commit
    assert hub.commit(name, "other") is None
    assert hub.commit(SD) is None
    (repository / "snapshots" / commit / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "lacks unet" in missing_assets(run)[0]
    assert "there is no folder" in str(hub.missing(str(tmp_path / "none")))
