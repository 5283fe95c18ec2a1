"""Variational score distillation: a frozen denoiser and one that follows the outputs, as a loss on latents.

Wang et al., ProlificDreamer, arXiv 2305.16213; in the form of Wu et al., OSEDiff, arXiv 2406.08177, and Yin et al.,
Distribution matching distillation, arXiv 2311.18828.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Denoiser", "denoising_loss", "noised", "variational_score_loss"]

Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noisy latents (N, C, h, w), timesteps (N,) and embeddings (N, length, width) to the noise in them."""


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
    """Latents at a timestep.

    Args:
        latents: (N, C, h, w), scaled.
        noise: standard normal, of the same shape.
        timesteps: (N,).
        alphas: products of 1 - beta by timestep, (T,).
    """
    alpha = _at(alphas, timesteps, latents)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def variational_score_loss(
    latents: Tensor,
    frozen: Denoiser,
    critic: Denoiser,
    *,
    embedding: Tensor,
    negative: Tensor,
    guidance: float,
    timesteps: Tensor,
    noise: Tensor,
    alphas: Tensor,
) -> Tensor:
    """A loss whose gradient leads the latents from where the critic sees them to where the frozen denoiser does.

    With the clean latents x_c and x_f that critic and frozen denoiser see in the noised ones, and a the mean of |z - x_f| of a
    picture: the gradient for z is 2 (x_c - x_f) / a, over the number of elements (OSEDiff, equation 8).

    Args:
        latents: z, (N, C, h, w), scaled.
        frozen: of natural pictures.
        critic: follows the latents, see `denoising_loss`; without guidance.
        embedding: of the prompts.
        negative: of the negative prompts, for classifier-free guidance.
        guidance: its strength.
        timesteps: (N,).
        noise: like ``latents``.
        alphas: see `noised`.
    """
    with torch.no_grad():
        noisy = noised(latents.detach(), noise, timesteps, alphas)
        alpha = _at(alphas, timesteps, latents)

        def clean(found: Tensor) -> Tensor:
            return (noisy - (1 - alpha).sqrt() * found.float()) / alpha.sqrt()

        followed = clean(critic(noisy, timesteps, embedding))
        both = frozen(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat((negative, embedding)))
        without, with_prompt = both.float().chunk(2)
        natural = clean(without + guidance * (with_prompt - without))
        distance = (latents - natural).abs().mean((1, 2, 3), keepdim=True)
        target = latents - (followed - natural) / distance
    return F.mse_loss(latents.float(), target.float())


def denoising_loss(
    latents: Tensor, critic: Denoiser, *, embedding: Tensor, timesteps: Tensor, noise: Tensor, alphas: Tensor
) -> Tensor:
    """How far the critic is from the noise in ``latents``, which get no gradient: with it, the critic follows them."""
    noisy = noised(latents.detach(), noise, timesteps, alphas)
    return F.mse_loss(critic(noisy, timesteps, embedding.detach()).float(), noise.float())


def _at(alphas: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    return alphas.to(device=like.device, dtype=torch.float32)[timesteps.to(like.device)].view(-1, 1, 1, 1)
