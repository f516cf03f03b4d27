"""Tests of metrics, against closed forms, second implementations and the libraries that define them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from bench import prefetch
from bench.columns import ASKED, METRICS, Metric
from bench.data.scenes import EDITS, Scenes
from bench.errors import UserError
from bench.metrics import edit
from bench.metrics.edit import clip_similarity, pie_mask, region_mse
from bench.metrics.image import l2, lpips, mse, psnr, ssim
from bench.metrics.latent import normal_distance
from bench.metrics.scoring import Batch
from bench.metrics.scoring import score as score_of
from bench.spec import metrics
from bench.weights import JUDGE, LPIPS_SQUEEZE, Weights, weights_folder
from reports.distances import frechet, kernel


def pictures(count: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(count, 3, size, size, generator=rng)
    return (truth + 0.1 * torch.randn(truth.shape, generator=rng)), truth


def available(names: tuple[str, ...], task: str = "restore") -> tuple[tuple[str, ...], dict[str, str]]:
    usable, missing = metrics.available(metrics.chosen(names), task)
    return tuple(usable), missing


def score(names: tuple[str, ...], batch: Batch) -> dict[str, list[float | None]]:
    return score_of(metrics.scores(names), batch)


def scenes(count: int) -> Tensor:
    data = Scenes()
    return torch.stack([torch.from_numpy(data.item(i).image) for i in range(count)])


# --- names -----------------------------------------------------------------------------------------------------------


def test_every_metric_of_images_is_found() -> None:
    names = tuple(name for name in ASKED if METRICS[name].kind == "image")
    assert set(metrics.scores(names)) == set(names)
    assert {METRICS[name].kind for name in ASKED} == {"image", "set"}


def test_no_distance_over_other_features_is_called_fid() -> None:
    titles = {metric.title for metric in METRICS.values() if metric.extractor == "inception"}
    assert titles == {"FID", "KID"}
    assert {m.title for m in METRICS.values() if m.extractor == "scenes"} == {"FD-scenes", "KD-scenes"}
    assert all("(" in METRICS[name].title for name in ASKED if "lpips" in name), "LPIPS names its backbone"


# --- images ----------------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_offset() -> None:
    truth = torch.full((2, 3, 8, 8), 0.5)
    assert psnr(truth + 0.1, truth).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(truth, truth).tolist() == [100.0, 100.0]
    assert l2(truth + 0.1, truth).tolist() == pytest.approx([0.1 * math.sqrt(192)] * 2)


def test_values_are_clipped_as_a_viewer_would() -> None:
    assert mse(torch.full((1, 1, 8, 8), 7.0), torch.ones(1, 1, 8, 8)).item() == 0
    assert mse(torch.full((1, 1, 8, 8), -7.0), torch.zeros(1, 1, 8, 8)).item() == 0


def test_against_scikit_image() -> None:
    x, truth = pictures()
    for ours, ours_ssim, a, b in zip(psnr(x, truth), ssim(x, truth), x.clamp(0, 1), truth, strict=True):
        a, b = a.double().numpy(), b.double().numpy()
        assert ours.item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-6)
        # Both handle the window's weights and borders in the same way only inside; the means differ slightly.
        theirs = structural_similarity(
            b, a, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours_ssim.item() == pytest.approx(theirs, abs=0.02)
    settings = {"data_range": 1.0, "kernel_size": 11, "sigma": 1.5, "reduction": "none"}
    whole = structural_similarity_index_measure(x.clamp(0, 1).double(), truth.double(), **settings)
    torch.testing.assert_close(ssim(x, truth), whole)


def test_better_images_score_better() -> None:
    truth = pictures()[1]
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    near, far = truth + 0.02 * noise, truth + 0.2 * noise
    assert (psnr(near, truth) > psnr(far, truth)).all() and (ssim(near, truth) > ssim(far, truth)).all()
    assert torch.allclose(ssim(truth, truth), torch.ones(3, dtype=torch.float64))


def test_an_image_scores_what_it_scores_alone() -> None:
    x, truth = pictures()
    for compare in (psnr, ssim, mse, l2):
        together = compare(x, truth)
        alone = torch.cat([compare(x[i : i + 1], truth[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_an_image_that_is_not_finite_has_no_score() -> None:
    x, truth = pictures()
    x[1, 0, 0, 0] = float("nan")
    truth[2] = float("nan")
    found = score(("psnr", "ssim", "fid"), Batch(x, truth, truth))
    assert found["psnr"][1:] == [None, None] and found["ssim"][1:] == [None, None]
    assert np.isfinite([found["psnr"][0], found["ssim"][0]]).all() and "fid" not in found


def test_lpips_through_its_own_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest backbone, with random weights, is found in torch's cache and gives a valid distance."""
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert available(("lpips_squeeze",))[0] == ()
    torch.manual_seed(0)
    path = LPIPS_SQUEEZE.path
    path.parent.mkdir(parents=True)
    torch.save(squeezenet1_1().state_dict(), path)
    assert available(("lpips_squeeze",))[0] == ("lpips_squeeze",)
    x, truth = pictures(2)
    assert lpips(truth, truth, "squeeze").abs().max() == 0
    assert (lpips(x, truth, "squeeze") > 0).all()
    assert score(("lpips_squeeze",), Batch(x, truth, truth)) == {"lpips_squeeze": lpips(x, truth, "squeeze").tolist()}


# --- latents ---------------------------------------------------------------------------------------------------------


def test_distance_to_the_prior() -> None:
    z = torch.special.ndtri((torch.arange(3072, dtype=torch.float64) + 0.5) / 3072)[torch.randperm(3072)].reshape(
        1, 3, 32, 32
    )
    scale = float(z.std(correction=0))
    assert normal_distance(z).item() == pytest.approx(0, abs=1e-12)
    assert normal_distance(z + 2).item() == pytest.approx(2)
    assert normal_distance(3 * z).item() == pytest.approx(2 * scale, rel=1e-6)
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (normal_distance(noise) < 0.1).all()
    assert not normal_distance(torch.full((1, 4), math.inf)).isfinite().any()


# --- sets ------------------------------------------------------------------------------------------------------------


def test_frechet_is_the_closed_form() -> None:
    """It is checked by scipy's matrix square root, with more images than features and with fewer."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8)), 0.5 + 2 * rng.normal(size=(80, 8))
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    few, other = x[:5], y[:6]
    assert frechet(few, other) == pytest.approx(frechet(np.pad(few, ((0, 0), (0, 3))), np.pad(other, ((0, 0), (0, 3)))))
    one_dimension = frechet(x[:, :1], y[:, :1])
    assert one_dimension == pytest.approx(shift[0] ** 2 + (x[:, 0].std(ddof=1) - y[:, 0].std(ddof=1)) ** 2)


def test_kernel_distance_is_unbiased() -> None:
    """For two samples of one distribution its mean is 0; for few points it is the sum over pairs."""
    rng = np.random.default_rng(1)
    found = [kernel(rng.normal(size=(20, 4)), rng.normal(size=(25, 4))) for _ in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(300)
    x, y = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))

    def k(a: Any, b: Any) -> float:
        return float((a @ b / 3 + 1) ** 3)

    by_hand = k(x[0], x[1]) + k(y[0], y[1]) - np.mean([2 * k(a, b) for a in x for b in y])
    assert kernel(x, y) == pytest.approx(by_hand)
    assert math.isnan(kernel(x[:1], y)) and math.isnan(frechet(x, y[:1]))


class Pixels(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = (images.clamp(0, 1) * 255).round().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_distances_are_torch_fidelitys() -> None:
    """Our numbers from stored features equal those of torch-fidelity, from the registered extractor and the images."""
    import torch_fidelity

    from bench.metrics.features import SceneFeatures, features

    truth = scenes(60)
    x = (0.8 * truth + 0.1 + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)))[:60]
    theirs = torch_fidelity.calculate_metrics(
        input1=Pixels(x), input2=Pixels(truth), cuda=False, fid=True, kid=True, verbose=False, batch_size=7,
        feature_extractor=SceneFeatures.NAME, kid_subset_size=60, kid_subsets=1,
    )  # fmt: skip
    a, b = features("scenes", x), features("scenes", truth)
    assert frechet(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    # torch-fidelity sums the cubes of the kernel in single precision.
    scale = float(np.mean((a @ a.T / a.shape[1] + 1) ** 3))
    assert kernel(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-5 * scale)
    order = [3, 1, 2, 0]
    np.testing.assert_array_equal(features("scenes", x[order]), a[order])
    x[2, 0, 0, 0] = float("nan")
    assert np.isnan(features("scenes", x[:4])[2]).all()


# --- edits -----------------------------------------------------------------------------------------------------------


def edited(kind: str, count: int = 4, output: str = "truth") -> Batch:
    """Return scenes whose edit is perfect (truth) or absent (image)."""
    data = Scenes()
    places = [i for i in range(30) if data.edit(i, kind) is not None][:count]
    items, answers = [data.item(i) for i in places], [data.edit(i, kind) for i in places]
    image = torch.stack([torch.from_numpy(item.image) for item in items])
    truth = torch.stack([torch.from_numpy(answer.truth) for answer in answers])
    mask = torch.stack([torch.from_numpy(answer.mask)[None] for answer in answers])
    captions = tuple(item.caption for item in items), tuple(answer.caption for answer in answers)
    return Batch({"truth": truth, "image": image}[output], truth, image, mask, *captions)


@pytest.mark.parametrize("kind", EDITS)
def test_a_perfect_edit_and_none(kind: str) -> None:
    names = ("verdict", "kept", "outside_psnr", "inside_psnr", "outside_ssim", "pie_psnr", "outside_mse")
    perfect, none = (score(names, edited(kind, output=output)) for output in ("truth", "image"))
    assert set(perfect["verdict"]) <= {1.0, None} and set(none["verdict"]) <= {0.0, None}
    assert perfect["verdict"].count(1.0) >= 3
    assert perfect["kept"] == none["kept"] == [1.0] * 4
    assert perfect["inside_psnr"] == [100.0] * 4 and max(none["inside_psnr"]) < 30
    for found in (perfect, none):
        assert [v for v in found["outside_psnr"] if v is not None] == [100.0] * sum(
            v is not None for v in found["outside_psnr"]
        )
    assert none["pie_psnr"] == [100.0] * 4


def test_regions_are_averaged_over_their_own_pixels() -> None:
    """PIE-Bench divides by the whole frame, so a larger mask scores better there. Here the score stays the same."""
    image = torch.full((2, 3, 16, 16), 0.5)
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask[0, :, 4:8, 4:8] = mask[1, :, 2:14, 2:14] = True
    e = Batch(image + 0.1, image, image, mask, ("", ""), ("", ""))
    found = score(("outside_mse", "inside_mse", "outside_psnr", "pie_mse", "pie_psnr"), e)
    assert found["outside_mse"] == pytest.approx([0.01, 0.01]) and found["inside_mse"] == pytest.approx([0.01, 0.01])
    assert found["outside_psnr"] == pytest.approx([20, 20], abs=1e-4)
    outside = [196 - 16, 196 - 144]  # of the 14 x 14 pixels inside the border; its masks always contain the border
    assert found["pie_mse"] == pytest.approx([0.01 * n / 256 for n in outside])
    assert found["pie_psnr"][1] > found["pie_psnr"][0] > 20
    assert pie_mask(mask)[..., 0, :].all() and not mask[..., 0, :].any()


def test_an_edit_of_everything_has_no_outside() -> None:
    image = torch.rand(1, 3, 16, 16)
    e = Batch(image, torch.full_like(image, math.nan), image, torch.ones(1, 1, 16, 16, dtype=torch.bool), ("",), ("",))
    found = score(("outside_psnr", "outside_ssim", "inside_psnr"), e)
    assert found == {"outside_psnr": [None], "outside_ssim": [None], "inside_psnr": [None]}
    assert region_mse(image, image, ~e.region).isnan().all()


def test_the_classifier_does_not_count() -> None:
    """If one of two equal objects is removed, no attribute changes, so there is no verdict."""
    image = scenes(1)
    pair = ("a red circle and a red circle on a plain gray background",), ("a red circle on a plain gray background",)
    e = Batch(image, image, image, torch.ones(1, 1, 32, 32, dtype=torch.bool), *pair)
    assert score(("verdict",), e) == {"verdict": [None]}


def test_the_verdict_asks_for_the_change_alone() -> None:
    """The target's objects on another background: the requested change is there, but the rest was not kept."""
    data = Scenes()
    e = edited("recolour", 1)
    other = edited("restyle", 1)
    asked = Batch(other.output, e.truth, e.given, e.mask, other.source, other.target)
    assert score(("verdict", "kept"), asked) == {"verdict": [1.0], "kept": [1.0]}
    wrong = Batch(other.output, e.truth, e.given, e.mask, e.source, e.target)
    assert score(("verdict", "kept"), wrong) == {"verdict": [0.0], "kept": [0.0]}
    assert data.item(0).caption == e.source[0] == other.source[0]


def tiny_clip(folder: Path) -> None:
    """Write a CLIP with random weights and its tokenizer, in the layout of a snapshot."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<bos>", "<eos>", "a", "red", "blue", "circle", "square", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=16,
    )  # fmt: skip
    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = common | {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=common | {"image_size": 16, "patch_size": 8}, projection_dim=8
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPProcessor(transformers.CLIPImageProcessor(**size), fast).save_pretrained(folder)


def test_clip_similarity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert available(("clip",), "edit")[1] == {"clip": "CLIP weights, run bench.prefetch metric=clip"}
    repository = tmp_path / "models--openai--clip-vit-large-patch14"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    tiny_clip(repository / "snapshots" / ("0" * 40))
    assert available(("clip",), "edit")[0] == ("clip",)
    edit._clip.cache_clear()
    images, captions = scenes(3), ["a red circle", "a blue square", "a red square"]
    found = clip_similarity(images, captions)
    assert found.shape == (3,) and (found.abs() <= 100).all() and len(set(found.tolist())) == 3
    alone = torch.cat([clip_similarity(images[i : i + 1], captions[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-3)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_missing_weights_are_a_reason_and_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    usable, missing = available(("psnr", "lpips", "fid", "fd_scenes"))
    assert usable == ("psnr", "fd_scenes")
    assert missing["lpips"] == "LPIPS weights, run bench.prefetch metric=lpips"
    assert missing["fid"] == "Inception weights, run bench.prefetch metric=fid"
    with pytest.raises(UserError, match="verdict has no meaning for task=restore; only for edit"):
        available(("verdict",), "restore")
    assert metrics.unsuited(METRICS["fd_scenes"], (3, 32, 32)) is None
    assert "not 1x16x16" in str(metrics.unsuited(METRICS["fd_scenes"], (1, 16, 16)))


def test_the_classifiers_weights_are_part_of_the_identity() -> None:
    found = metrics.identity(metrics.chosen(("psnr", "verdict")))
    assert found["psnr"] == 1
    assert found["verdict"] == "1+" + hashlib.sha256(JUDGE.path.read_bytes()).hexdigest()[:8]


def test_prefetch_keeps_whole_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real downloader runs, with a local address."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    source = tmp_path / "alexnet"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:8]

    def offered(name: str) -> Metric:
        (tmp_path / name).write_bytes(source.read_bytes())
        return replace(METRICS["lpips"], needs=Weights("LPIPS weights", "lpips", (tmp_path / name).as_uri()))

    monkeypatch.setitem(METRICS, "lpips", offered(f"alexnet-{digest}.pth"))
    for _ in range(2):
        assert prefetch.main(["metric=lpips"]) == 0
        kept = Path(capsys.readouterr().out.strip().removeprefix("lpips: "))
        assert kept.read_bytes() == b"weights" and kept.parent == weights_folder()
    kept.write_bytes(b"half")
    with pytest.raises(UserError, match="damaged"):
        prefetch.main(["metric=lpips"])
    monkeypatch.setitem(METRICS, "lpips", offered("alexnet-00000000.pth"))
    with pytest.raises(UserError, match="LPIPS weights"):
        prefetch.main(["metric=lpips"])
    assert not (weights_folder() / "alexnet-00000000.pth").exists()
    with pytest.raises(UserError, match=r"unknown metric 'lpip'.*nearest: lpips"):
        prefetch.main(["metric=lpip"])
