"""Stable Diffusion as a picture-to-picture network in one step.

The latent of the low-quality picture is taken for a noisy latent of the last timestep; one call of the UNet says the noise in
it, and what is left is decoded (OSEDiff, Wu et al., arXiv 2406.08177).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pnp_irib.convolution import in_fewer_products
from pnp_irib.diffusion.latents import Cuts, LatentTiles, predict_in_tiles
from pnp_irib.diffusion.offload import unet_bytes
from pnp_irib.diffusion.vae import VaeMode, decode, encode, sample_posterior

if TYPE_CHECKING:
    from pnp_irib.diffusion.base import StableDiffusion

__all__ = ["OneStepResult", "one_step"]


@dataclass(frozen=True)
class OneStepResult:
    """What one step makes on its way.

    Attributes:
        latent: of the low-quality picture, scaled, (N, C, h, w).
        noise: that the UNet finds in it.
        denoised: what is left, scaled.
        picture: decoded, (N, 3, H, W), about [-1, 1], not clamped.
    """

    latent: Tensor
    noise: Tensor
    denoised: Tensor
    picture: Tensor


def one_step(
    base: StableDiffusion,
    pictures: Tensor,
    embedding: Tensor,
    *,
    draw: Callable[[tuple[int, ...]], Tensor] | None,
    timestep: int = 999,
    plan: Callable[[int, int], LatentTiles | None] = lambda height, width: None,
    batch: int = 1,
    vae_mode: VaeMode = "whole",
    stray_noise: bool = False,
) -> OneStepResult:
    """Restore pictures in one step, under the caller's grad mode.

    Args:
        base: the model, with the adapters that are to act.
        pictures: (N, 3, H, W) in [-1, 1], sides multiples of ``base.factor``, of the dtype of the base.
        embedding: of the prompts, (N, length, width).
        draw: gives standard normal numbers of a shape; None: the mean of the posterior is taken instead of a sample.
        timestep: whose noise the UNet is asked for.
        plan: tiles for a latent of (height, width).
        batch: tiles in one call of the UNet at most.
        vae_mode: how the VAE works on large pictures. In strips, the UNet's convolutions take fewer products as well.
        stray_noise: add the 1e-10 of a second draw, as the scheduler of the published code does.
    """
    size = pictures.dtype.itemsize
    with base.vae_stage(pictures, vae_mode, decoder=False) as mode:
        mean, logvar = encode(base.vae, pictures, mode)
    sample = mean if draw is None else sample_posterior(mean, logvar, draw(tuple(mean.shape)))
    latent = sample * base.vae.config.scaling_factor
    times = torch.full((1,), timestep, device=latent.device)

    def predict(part: Tensor, cuts: Cuts) -> Tensor:
        found: Tensor = base.unet(part, times, encoder_hidden_states=embedding[cuts.pictures]).sample
        return found

    tiles = plan(latent.shape[-2], latent.shape[-1])
    count, positions = (batch, tiles.height * tiles.width) if tiles else (latent.shape[0], latent.shape[-2] * latent.shape[-1])
    if tiles and base.offload is not None:  # as many tiles in a call as the budget holds
        count = max(1, min(batch, base.offload.room("unet") // unet_bytes(base.unet, positions, size)))
    faster = in_fewer_products(base.unet) if vae_mode == "strips" else contextlib.nullcontext()
    with base.stage("unet", unet_bytes(base.unet, count * positions, size)), faster:
        noise = predict_in_tiles(predict, latent, tiles, batch=count)
    alpha = base.alphas[timestep].item()
    denoised = (latent - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    if stray_noise and draw is not None:
        denoised = denoised + 1e-10 * draw(tuple(denoised.shape))
    with base.vae_stage(pictures, vae_mode, decoder=True) as mode:
        picture = decode(base.vae, denoised.to(latent.dtype) / base.vae.config.scaling_factor, mode)
    return OneStepResult(latent, noise, denoised, picture.to(pictures.dtype))
