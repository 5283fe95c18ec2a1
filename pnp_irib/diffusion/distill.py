"""Losses that lead latents to what a frozen denoiser holds for natural.

Variational score distillation, where a second denoiser follows the outputs, is that of Wang et al., ProlificDreamer,
arXiv 2305.16213, in the form of Wu et al., OSEDiff, arXiv 2406.08177, and Yin et al., Distribution matching distillation,
arXiv 2311.18828.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Denoiser", "denoising_loss", "noised", "score_distillation_loss", "variational_score_loss"]

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

    Returns:
        (N,).
    """
    with torch.no_grad():
        noisy = noised(latents.detach(), noise, timesteps, alphas)
        alpha = _at(alphas, timesteps, latents)

        def clean(found: Tensor) -> Tensor:
            return (noisy - (1 - alpha).sqrt() * found.float()) / alpha.sqrt()

        followed = clean(critic(noisy, timesteps, embedding))
        natural = clean(guided(frozen, noisy, timesteps, embedding, negative, guidance))
        distance = (latents - natural).abs().mean((1, 2, 3), keepdim=True)
        target = latents - (followed - natural) / distance
    return (latents.float() - target.float()).square().mean((1, 2, 3))


def denoising_loss(
    latents: Tensor, denoiser: Denoiser, *, embedding: Tensor, timesteps: Tensor, noise: Tensor, alphas: Tensor
) -> Tensor:
    """How far a denoiser is from the noise in noised ``latents``: mean squared error of each picture, (N,).

    As a loss on a critic (detach ``latents``) it makes the critic follow them; as one on the latents, with gradients through
    the denoiser, it is score matching (Vincent, 2011).
    """
    noisy = noised(latents, noise, timesteps, alphas)
    return (denoiser(noisy, timesteps, embedding).float() - noise.float()).square().mean((1, 2, 3))


def score_distillation_loss(
    latents: Tensor,
    frozen: Denoiser,
    *,
    embedding: Tensor,
    negative: Tensor,
    guidance: float,
    timesteps: Tensor,
    noise: Tensor,
    alphas: Tensor,
) -> Tensor:
    """Score distillation sampling (Poole et al., DreamFusion, arXiv 2209.14988): (N,), no gradients through the denoiser.

    The gradient for z is (1 - alpha_t) (e - noise) over the number of elements, e being the noise that is found with guidance.
    For the arguments see `variational_score_loss`.
    """
    with torch.no_grad():
        noisy = noised(latents.detach(), noise, timesteps, alphas)
        found = guided(frozen, noisy, timesteps, embedding, negative, guidance)
        target = latents - (1 - _at(alphas, timesteps, latents)) * (found - noise)
    return 0.5 * (latents.float() - target.float()).square().mean((1, 2, 3))


def guided(
    denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, embedding: Tensor, negative: Tensor, guidance: float
) -> Tensor:
    """Noise found with classifier-free guidance (Ho and Salimans, arXiv 2207.12598), float32; 1 is without."""
    both = denoiser(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat((negative, embedding)))
    without, with_prompt = both.float().chunk(2)
    return without + guidance * (with_prompt - without)


def _at(alphas: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    return alphas.to(device=like.device, dtype=torch.float32)[timesteps.to(like.device)].view(-1, 1, 1, 1)
