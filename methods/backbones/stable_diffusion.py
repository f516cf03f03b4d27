"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): a U-Net over latents on the variance-preserving path.

The betas are scaled-linear. The network predicts eps or v, as the configuration of its scheduler says. The null
condition is the empty caption, padded like any other caption.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.backbones.pretrained import Pretrained
from methods.denoiser import Prediction
from methods.paths import VariancePreserving

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def scheduled_path(scheduler: Mapping[str, Any]) -> VariancePreserving:
    """Return the path of a scheduler's configuration. Raises ValueError if its betas are not exactly ours."""
    path = VariancePreserving("scaled_linear", scheduler["num_train_timesteps"])
    ends = np.array([scheduler["beta_start"], scheduler["beta_end"]])
    plain = scheduler.get("trained_betas") is None and not scheduler.get("rescale_betas_zero_snr")
    if scheduler["beta_schedule"] != "scaled_linear" or not plain or not np.array_equal(ends, [0.00085, 0.012]):
        raise ValueError(
            "the pipeline's betas must be scaled_linear from 0.00085 to 0.012, not rescaled; its scheduler has "
            f"beta_schedule={scheduler['beta_schedule']}, beta_start={ends[0]}, beta_end={ends[1]}, "
            f"trained_betas={'none' if scheduler.get('trained_betas') is None else 'given'}, "
            f"rescale_betas_zero_snr={bool(scheduler.get('rescale_betas_zero_snr'))}"
        )
    return path


class StableDiffusion(Pretrained):
    pipeline_class = "StableDiffusionPipeline"
    network = "unet"
    absent = ("safety_checker", "feature_extractor", "image_encoder")

    def __init__(
        self, pretrained: str, dtype: str = "float32", revision: str | None = None, variant: str | None = None
    ) -> None:
        super().__init__(pretrained, dtype, revision, variant)
        scheduler, unet = self.pipeline.scheduler.config, self.net.config
        self.path = scheduled_path(scheduler)
        self.prediction = PREDICTIONS[scheduler["prediction_type"]]
        if unet.in_channels != self.vae.config.latent_channels:
            raise ValueError(
                f"the U-Net takes {unet.in_channels} channels, but the latents have {self.vae.config.latent_channels}: "
                "inpainting and depth models are not supported"
            )
        if unet.addition_embed_type or unet.time_cond_proj_dim or unet.class_embed_type:
            raise ValueError("the U-Net needs more inputs than a time and a caption: SDXL and LCM are not supported")

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Return CLIP's token embeddings [B, 77, D]; longer captions are cut."""
        embeddings, _ = self.pipeline.encode_prompt(captions, self.device, 1, do_classifier_free_guidance=False)
        return embeddings

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        return self.net(x, t, encoder_hidden_states=embedding, return_dict=False)[0]
