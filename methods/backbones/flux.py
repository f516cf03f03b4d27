"""Flux.1 (Black Forest Labs 2024): a transformer over 2x2 patches of latents on the rectified path.

Its inputs are s in [0, 1], T5's token embeddings, CLIP's pooled embedding and, for dev, the guidance scale. Guidance
was distilled into dev, so it is an input and needs no second evaluation. The output is eps - x0. Methods see latents
[B, C, h, w]; patches and their positions are internal. In bfloat16 the network rounds s to 8 bits, in the same way in
both directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.backbones.pretrained import Pretrained, pack_text, unpack_text
from methods.denoiser import Prediction
from methods.paths import Rectified


def pack(z: Tensor) -> Tensor:
    """Return tokens [B, hw/4, 4C] of latents [B, C, h, w]; channels are ordered (C, row, column) within a patch."""
    return F.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return latents [B, C, height, width] of tokens: the inverse of `pack`."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return (0, row, column) of every token of a height x width latent: float32 [hw/4, 3]."""
    rows, columns = torch.meshgrid(
        torch.arange(height // 2, device=device), torch.arange(width // 2, device=device), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


class Flux(Pretrained):
    """The Flux adapter. `tokens` is the length to which T5's captions are padded: 512 for dev, 256 for schnell."""

    pipeline_class = "FluxPipeline"
    absent = ("feature_extractor", "image_encoder")
    multiple = 2
    prediction: Prediction = "velocity"

    def __init__(
        self,
        pretrained: str,
        dtype: str = "bfloat16",
        revision: str | None = None,
        variant: str | None = None,
        tokens: int = 512,
    ) -> None:
        super().__init__(pretrained, dtype, revision, variant)
        self.path = Rectified()
        self.tokens = tokens
        config = self.net.config
        self.distilled = bool(config.guidance_embeds)
        self.widths: tuple[int, int] = (config.joint_attention_dim, config.pooled_projection_dim)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Return [B, 1 + tokens, D]: CLIP's pooled embedding, then T5's sequence (`pack_text`)."""
        sequence, pooled, _ = self.pipeline.encode_prompt(
            captions, None, device=self.device, max_sequence_length=self.tokens
        )
        return pack_text(sequence, pooled)

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor, guidance: float = 1.0) -> Tensor:
        sequence, pooled = unpack_text(embedding, *self.widths)
        height, width = x.shape[2:]
        tokens = self.net(
            hidden_states=pack(x),
            timestep=t,
            guidance=torch.full_like(t, guidance) if self.distilled else None,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(sequence.shape[1], 3, device=x.device),
            img_ids=positions(height, width, x.device),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)
