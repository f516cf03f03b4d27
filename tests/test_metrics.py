"""Metrics against closed forms and a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bench import metrics
from bench.metrics.image import FUNCTIONS, mse, psnr, score, ssim


def pictures(count: int = 3, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(count, 3, size, size, generator=rng)
    return (truth + 0.1 * torch.randn(truth.shape, generator=rng)), truth


def test_psnr_of_a_constant_offset() -> None:
    truth = torch.full((2, 3, 8, 8), 0.5)
    assert psnr(truth + 0.1, truth).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(truth, truth).tolist() == [100.0, 100.0]


def test_values_are_clipped_as_a_viewer_would() -> None:
    assert mse(torch.full((1, 1, 8, 8), 7.0), torch.ones(1, 1, 8, 8)).item() == 0
    assert mse(torch.full((1, 1, 8, 8), -7.0), torch.zeros(1, 1, 8, 8)).item() == 0


def test_against_scikit_image() -> None:
    x, truth = pictures()
    for ours, ours_ssim, a, b in zip(psnr(x, truth), ssim(x, truth), x.clamp(0, 1), truth, strict=True):
        a, b = a.double().numpy(), b.double().numpy()
        assert ours.item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-6)
        # The window's weights and borders are handled alike only inside; the means differ by little.
        theirs = structural_similarity(
            b, a, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours_ssim.item() == pytest.approx(theirs, abs=0.02)


def test_better_images_score_better() -> None:
    truth = pictures()[1]
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    near, far = truth + 0.02 * noise, truth + 0.2 * noise
    assert (psnr(near, truth) > psnr(far, truth)).all() and (ssim(near, truth) > ssim(far, truth)).all()
    assert torch.allclose(ssim(truth, truth), torch.ones(3, dtype=torch.float64))


def test_an_image_scores_what_it_scores_alone() -> None:
    x, truth = pictures()
    for name in ("psnr", "ssim", "mse"):
        together = FUNCTIONS[name](x, truth)
        alone = torch.cat([FUNCTIONS[name](x[i : i + 1], truth[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_an_image_that_is_not_finite_has_no_score() -> None:
    x, truth = pictures()
    x[1, 0, 0, 0] = float("nan")
    found = score(("psnr", "ssim"), x, truth)
    assert found["psnr"][1] is None and found["ssim"][1] is None
    assert np.isfinite([found["psnr"][0], found["ssim"][2]]).all()


def test_missing_weights_are_a_reason_and_no_number(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    usable, missing = metrics.available(("psnr", "lpips"))
    assert usable == ("psnr",) and "LPIPS weights" in missing["lpips"]
