"""Training of a conditional denoiser: regression on the network's own view, with condition dropout and EMA weights.

Loss: E |F(x_t, t, c) - target|^2, where the target is the declared prediction: v of Salimans & Ho 2022 on the
variance-preserving path, velocity of Liu et al. 2023 on the rectified path.

Of all times, 90 % are logit-normal in the rectified time s = sigma / (alpha + sigma) (Esser et al. 2024, section 3.1)
with mean `time_mean` and standard deviation 1. The network decides at high noise where objects stand, so captions of
several objects need a mean above 0. The other 10 % are uniform in s, so that training covers both ends of the path,
where inversion starts and ends. A caption is dropped with probability `caption_dropout`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.backbones.attributes import HEADS, AttributeClassifier
from methods.denoiser import Denoiser
from methods.paths import Rectified


@dataclass(frozen=True)
class Optimisation:
    """The optimiser: AdamW with a linear warm-up and a cosine schedule to zero over `steps` updates."""

    steps: int
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    warmup: int = 200

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at an update."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        return rise * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))

    def configure(self, module: pl.LightningModule) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.99)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def keyed_generator(device: torch.device, *key: int) -> torch.Generator:
    """Return the generator of one update. A resumed run then draws the same numbers as one without interruption."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (2**63)
    return torch.Generator(device).manual_seed(seed)


def rectified_times(count: int, rng: torch.Generator, device: torch.device, mean: float = 0.0) -> Tensor:
    """Return rectified times s [count]: 90 % logit-normal with the given mean and std 1, 10 % uniform in [0, 1]."""
    uniform = torch.rand(count, generator=rng, device=device)
    normal = (mean + torch.randn(count, generator=rng, device=device)).sigmoid()
    return torch.where(torch.rand(count, generator=rng, device=device) < 0.1, uniform, normal)


class Training(pl.LightningModule):
    """The base class of all trainings: optimiser, keyed draws, and the held-out loss curve in the checkpoint."""

    network: Any

    def __init__(self, optimisation: Optimisation, seed: int) -> None:
        super().__init__()
        self.optimisation = optimisation
        self.seed = seed
        self.curve: list[tuple[int, float]] = []
        """The held-out loss curve: (update, loss of the averaged weights)."""
        self.history: list[tuple[int, int]] = []
        """(first update, length of the schedule) of every start; a resumed run may have a longer schedule."""

    def loss(self, images: Tensor, targets: Tensor, rng: torch.Generator, training: bool) -> Tensor:
        """Return the mean loss, a scalar, of a batch of images [B, C, H, W] in [-1, 1]."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        return self.optimisation.configure(self)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        rng = keyed_generator(self.device, self.seed, self.global_step, self.global_rank)
        loss = self.loss(_to_model_range(batch[0]), batch[1], rng, training=True)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        rng = keyed_generator(self.device, 17, index)
        loss = self.loss(_to_model_range(batch[0]), batch[1], rng, training=False)
        self.log("held_out_loss", loss, prog_bar=True, on_epoch=True, sync_dist=True)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step >= self.optimisation.steps:
            self.trainer.should_stop = True  # the curve then ends with the last update

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.curve.append((self.global_step, float(self.trainer.callback_metrics["held_out_loss"])))

    def on_train_start(self) -> None:
        if not self.history or self.history[-1][1] != self.optimisation.steps:
            self.history.append((self.global_step, self.optimisation.steps))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"] = self.curve
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve = checkpoint["curve"]
        self.history = checkpoint["history"]


def _to_model_range(images: Tensor) -> Tensor:
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class DenoiserTraining(Training):
    """Training of a denoiser. Batches are (images uint8 [B, C, H, W], caption tokens [B, slots])."""

    def __init__(
        self,
        denoiser: Denoiser,
        optimisation: Optimisation,
        caption_dropout: float = 0.1,
        seed: int = 0,
        time_mean: float = 0.0,
    ) -> None:
        super().__init__(optimisation, seed)
        self.denoiser = denoiser
        self.network = denoiser.backbone
        self.caption_dropout = caption_dropout
        self.time_mean = time_mean

    def times(self, count: int, rng: torch.Generator, mean: float) -> Tensor:
        """Return `rectified_times` as times [count] of the model's own path."""
        s = rectified_times(count, rng, self.device, mean)
        path = self.denoiser.path
        if isinstance(path, Rectified):
            return s
        grid = torch.arange(path.t_max + 1, device=self.device)
        alpha, sigma = path.coefficients(grid)
        above = torch.searchsorted((sigma / (alpha + sigma)).to(s.dtype), s).clamp(max=len(grid) - 1)
        return (above - torch.rand(count, generator=rng, device=self.device)).clamp(min=0)

    def loss(self, images: Tensor, targets: Tensor, rng: torch.Generator, training: bool) -> Tensor:
        # The held-out loss always has mean 0, so that runs of different `time_mean` can be compared.
        t = self.times(len(images), rng, self.time_mean if training else 0.0)
        noise = torch.randn(images.shape, generator=rng, device=self.device)
        alpha, sigma = (c.to(images.dtype)[:, None, None, None] for c in self.denoiser.path.coefficients(t))
        answer = {
            "eps": noise,
            "x0": images,
            "v": alpha * noise - sigma * images,
            "velocity": noise - images,
        }[self.denoiser.prediction]
        drop = torch.rand(len(images), generator=rng, device=self.device) < self.caption_dropout * training
        null = torch.as_tensor(self.network.vocabulary.tokens(""), device=self.device)
        embedding = self.network.slots(torch.where(drop[:, None], null, targets))
        return (self.network(alpha * images + sigma * noise, t, embedding) - answer).square().mean()


class JudgeTraining(Training):
    """Training of the attribute classifier, with random noise, blur and contrast. Targets are its heads in one row."""

    def __init__(self, network: AttributeClassifier, optimisation: Optimisation, seed: int = 0):
        super().__init__(optimisation, seed)
        self.network = network

    def loss(self, images: Tensor, targets: Tensor, rng: torch.Generator, training: bool) -> Tensor:
        truth = dict(zip(HEADS, targets.split([len(classes) for classes in HEADS.values()], dim=1), strict=True))
        return self.network.loss(self._degraded(images, rng) if training else images, truth)

    def _degraded(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the images with noise of std 0 .. 0.2 and contrast 0.8 .. 1.2; half are also blurred."""
        shape = (len(images), 1, 1, 1)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=rng, device=self.device)

        soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = torch.lerp(images, soft, uniform(-1, 1).clamp(min=0))
        noise = torch.randn(images.shape, generator=rng, device=self.device)
        return images * uniform(0.8, 1.2) + uniform(0, 0.2) * noise
