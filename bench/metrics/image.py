"""Metrics that compare two images, with one number per image.

Images are [B, C, H, W] in [0, 1]; values outside this range are clipped first, as in an image viewer. SSIM is
torchmetrics' (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, data range 1, k = (0.01, 0.03), reflected
borders, mean over pixels and channels. PSNR has peak 1 and is computed per image: a table shows the mean of decibels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from bench.metrics.scoring import Batch


def mse(x: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error [B], float64."""
    return (x.clamp(0, 1).double() - truth.clamp(0, 1).double()).square().flatten(1).mean(1)


def decibels(error: Tensor) -> Tensor:
    """Return the PSNR in dB of mean squared errors, for peak 1. Errors below 1e-10 give 100 dB."""
    return -10 * error.clamp(min=1e-10).log10()


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB [B], for peak 1. Equal images have 100 dB."""
    return decibels(mse(x, truth))


def l2(x: Tensor, truth: Tensor) -> Tensor:
    """Return the Euclidean distance [B], float64: the root of the sum of squares over pixels and channels."""
    return (mse(x, truth) * x[0].numel()).sqrt()


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity [B], float64."""
    return ssim_map(x, truth).flatten(1).mean(1)


def ssim_map(x: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity at every pixel [B, C, H, W], float64."""
    _, full = structural_similarity_index_measure(
        x.clamp(0, 1).double(), truth.clamp(0, 1).double(), data_range=1.0, kernel_size=11, sigma=1.5,
        reduction="none", return_full_image=True,
    )  # fmt: skip
    return full.reshape(x.shape)


@cache
def _lpips_network(backbone: str) -> Any:
    import lpips

    return lpips.LPIPS(net=backbone, verbose=False).eval().requires_grad_(False)


def lpips(x: Tensor, truth: Tensor, backbone: str = "alex") -> Tensor:
    """Return the learned perceptual distance [B] (LPIPS, Zhang et al. 2018, version 0.1).

    `backbone` is alex, vgg or squeeze. Images below 64 pixels are enlarged by nearest neighbour with the smallest
    whole factor that gives 64 pixels or more, because the networks halve the image four times.
    """

    def prepared(image: Tensor) -> Tensor:
        image = image.clamp(0, 1).float() * 2 - 1
        factor = -(-64 // image.shape[-1])
        return image.expand(-1, 3, -1, -1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    return _lpips_network(backbone)(prepared(x), prepared(truth)).flatten().double()


class OfTruth:
    """A metric that compares the output with the ground truth."""

    def __init__(self, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.compare = compare

    def __call__(self, batch: Batch) -> Tensor:
        return self.compare(batch.output, batch.truth)


PSNR, SSIM, MSE, L2 = OfTruth(psnr), OfTruth(ssim), OfTruth(mse), OfTruth(l2)
LPIPS = OfTruth(lpips)
LPIPS_VGG = OfTruth(partial(lpips, backbone="vgg"))
LPIPS_SQUEEZE = OfTruth(partial(lpips, backbone="squeeze"))
