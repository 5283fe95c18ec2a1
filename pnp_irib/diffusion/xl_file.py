"""A Stable Diffusion XL model in one file, in the layout of its authors' training code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.ldm import XL, Published, clip_names, text_names
from pnp_irib.diffusion.single_file import UNET, VAE, Heads, taken, tensors_of, text_encoder_of, unet_of, vae_of

__all__ = ["CLIP", "OPENCLIP", "read_xl_file", "xl_parts_of"]

CLIP, OPENCLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
_UNUSED = ("embeddings.position_ids", "logit_scale")  # numbers from 0 to 76, and what the encoders were trained with


def read_xl_file(file: Path, *, dtype: torch.dtype, heads: Heads | None = None) -> tuple[nn.ModuleList, Any, Any]:
    """Text encoders (of OpenAI, and of OpenCLIP), VAE and UNet, frozen. The shapes of the tensors tell all but ``heads``.

    Args:
        file: ``.safetensors``, or ``.ckpt`` read with ``weights_only``.
        dtype: of the weights.
        heads: see `Heads`.

    Raises:
        WeightsError: damaged, or not such a file; names the first tensor that is missing.
    """
    return xl_parts_of(tensors_of(file, (UNET, VAE, CLIP, OPENCLIP), XL), dtype=dtype, heads=heads, source=str(file))


def xl_parts_of(
    tensors: dict[str, Tensor], *, dtype: torch.dtype, heads: Heads | None = None, source: str
) -> tuple[nn.ModuleList, Any, Any]:
    """The same of tensors, which are taken out one by one.

    Raises:
        WeightsError: they do not fit; names the first that is missing.
    """
    heads = heads or Heads()
    vae = vae_of(taken(tensors, VAE), None, dtype, source, family=XL)
    clip = _text_encoder(tensors, CLIP, dtype, heads.text, source)
    openclip = _text_encoder(tensors, OPENCLIP, dtype, heads.text, source)
    pooled = openclip.config.projection_dim
    unet = unet_of(taken(tensors, UNET), None, dtype, heads.unet, source, family=XL, pooled=pooled)
    return nn.ModuleList([clip, openclip]), vae, unet


def _text_encoder(tensors: dict[str, Tensor], prefix: str, dtype: torch.dtype, head_width: int, source: str) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    own = {name: value for name, value in taken(tensors, prefix).items() if name not in _UNUSED}
    published = Published(own, source=source, prefix=prefix, family=XL)
    if prefix == CLIP:
        config = CLIPTextConfig(**published.clip(head_width))
        return text_encoder_of(CLIPTextModel, config, clip_names, own, dtype, source, prefix=prefix)
    config = CLIPTextConfig(**published.text(head_width, pooled=True))
    return text_encoder_of(CLIPTextModelWithProjection, config, text_names, own, dtype, source, prefix=prefix)
