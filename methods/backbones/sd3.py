"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): a transformer over latents on the rectified path.

Its inputs are the time 1000 s, the joined token embeddings of two CLIPs and T5, and the pooled embeddings of the CLIPs.
The output is eps - x0. Guidance is classifier-free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.backbones.pretrained import Pretrained, pack_text, unpack_text
from methods.denoiser import Prediction
from methods.paths import Rectified


class StableDiffusion3(Pretrained):
    """The Stable Diffusion 3 adapter. `tokens` is the length to which T5's captions are padded."""

    pipeline_class = "StableDiffusion3Pipeline"
    absent = ("feature_extractor", "image_encoder")
    prediction: Prediction = "velocity"

    def __init__(
        self,
        pretrained: str,
        dtype: str = "bfloat16",
        revision: str | None = None,
        variant: str | None = None,
        tokens: int = 256,
    ) -> None:
        super().__init__(pretrained, dtype, revision, variant)
        self.path = Rectified()
        self.tokens = tokens
        config = self.net.config
        self.multiple = config.patch_size
        self.widths: tuple[int, int] = (config.joint_attention_dim, config.pooled_projection_dim)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Return [B, 1 + 77 + tokens, D]: the pooled embedding, then the sequence (`pack_text`)."""
        sequence, _, pooled, _ = self.pipeline.encode_prompt(
            captions, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.tokens
        )
        return pack_text(sequence, pooled)

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        sequence, pooled = unpack_text(embedding, *self.widths)
        return self.net(
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
