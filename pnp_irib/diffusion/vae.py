"""The VAE of Stable Diffusion, from pictures to latents and back."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from pnp_irib.diffusion.vae_bounded import (
    BoundedTiles,
    decoded_in_bounded_tiles,
    encoded_in_bounded_tiles,
    mode_within,
)
from pnp_irib.diffusion.vae_published import PublishedTiles, decoded_in_tiles, encoded_in_tiles
from pnp_irib.diffusion.vae_strips import decoded_in_strips, encoded_in_strips

__all__ = ["BoundedTiles", "PublishedTiles", "VaeMode", "decode", "encode", "mode_within", "sample_posterior"]

VaeMode: TypeAlias = Literal["whole", "strips"] | BoundedTiles | PublishedTiles
"""In one piece; in strips, with the same result in less memory; in tiles, with about the same result in as little memory as
one likes; or in tiles as published code has it."""

LOGVAR_RANGE = (-30.0, 20.0)


def encode(vae: Any, pictures: Tensor, mode: VaeMode = "whole") -> tuple[Tensor, Tensor]:
    """Mean and log variance of the posterior, (N, C, H/f, W/f) each, not scaled.

    Args:
        vae: an ``AutoencoderKL`` of diffusers.
        pictures: (N, 3, H, W) in [-1, 1], sides multiples of the VAE's downscaling f.
        mode: how; with gradients always in one piece.
    """
    if torch.is_grad_enabled() or mode == "whole":
        hidden = vae.encoder(pictures)
    elif mode == "strips":
        hidden = encoded_in_strips(vae.encoder, pictures)
    elif isinstance(mode, BoundedTiles):
        hidden = encoded_in_bounded_tiles(vae.encoder, pictures, mode, _factor(vae))
    else:
        hidden = encoded_in_tiles(vae.encoder, pictures, mode, _factor(vae))
    if getattr(vae, "quant_conv", None) is not None:
        hidden = vae.quant_conv(hidden.to(pictures.dtype))
    mean, logvar = hidden.chunk(2, 1)
    return mean, logvar.clamp(*LOGVAR_RANGE)


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """A sample of the posterior, not scaled."""
    return mean + torch.exp(0.5 * logvar) * noise


def decode(vae: Any, latents: Tensor, mode: VaeMode = "whole") -> Tensor:
    """Pictures (N, 3, f H, f W) in about [-1, 1], not clamped.

    Args:
        vae: an ``AutoencoderKL`` of diffusers.
        latents: (N, C, H, W), not scaled.
        mode: how; with gradients always in one piece.
    """
    if getattr(vae, "post_quant_conv", None) is not None:
        latents = vae.post_quant_conv(latents)
    if torch.is_grad_enabled() or mode == "whole":
        return cast(Tensor, vae.decoder(latents))
    if mode == "strips":
        return decoded_in_strips(vae.decoder, latents)
    if isinstance(mode, BoundedTiles):
        return decoded_in_bounded_tiles(vae.decoder, latents, mode, _factor(vae))
    return decoded_in_tiles(vae.decoder, latents, mode, _factor(vae))


def _factor(vae: Any) -> int:
    """Pixels on a side of one latent pixel."""
    return 1 << (len(vae.decoder.up_blocks) - 1)
