"""A Gaussian denoiser as a prior, on the pixels of pictures.

With a picture z, noise n ~ N(0, I) and z_sigma = z + sigma n, a denoiser D(z_sigma, sigma) of least squared error tells the
score of the noisy pictures (Tweedie's formula; Karras et al., arXiv 2206.00364, equation 3):

    grad log p(z_sigma; sigma) = (D(z_sigma, sigma) - z_sigma) / sigma^2,

so that e(z_sigma) = (z_sigma - D(z_sigma, sigma)) / sigma is the noise that it finds. Means are over the elements of a
picture.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.lora import UNET_LAYERS, active, adapter_module, add_adapter, layers_named
from pnp_irib.errors import ConfigError, InputError
from pnp_irib.priors.base import PixelPriorConfig, check_generators, normal
from pnp_irib.priors.denoiser import PixelDenoiser
from pnp_irib.prompts import Prompt
from pnp_irib.runtime import frozen

__all__ = [
    "GaussianDenoiser",
    "PixelPrior",
    "score_distillation_loss",
    "score_matching_loss",
    "variational_score_loss",
]

GaussianDenoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Noisy pictures (N, 3, H, W), about [0, 1], and the standard deviation of their noise (N,) to clean pictures."""

CRITIC = "critic"


def score_matching_loss(pictures: Tensor, denoiser: GaussianDenoiser, *, sigma: Tensor, noise: Tensor) -> Tensor:
    """Denoising score matching (Vincent, 2011, "A connection between score matching and denoising autoencoders").

    The mean of (e(z_sigma) - n)^2 = ((z - D(z_sigma, sigma)) / sigma)^2. As a loss on the pictures it has gradients through
    the denoiser; as one on the denoiser (detach ``pictures``) it makes that follow the pictures.

    Args:
        pictures: z, (N, 3, H, W), about [0, 1].
        denoiser: of natural pictures.
        sigma: standard deviation of the noise, (N,), above 0, in the range of the pictures.
        noise: n, like ``pictures``.

    Returns:
        (N,).

    Raises:
        InputError: the denoiser changes the shape.
    """
    return _residual(pictures, denoiser, sigma, noise).square().mean((1, 2, 3))


def score_distillation_loss(pictures: Tensor, denoiser: GaussianDenoiser, *, sigma: Tensor, noise: Tensor) -> Tensor:
    """Score distillation sampling (Poole et al., DreamFusion, arXiv 2209.14988, equation 3, with w = 1).

    The gradient for z is e(z_sigma) - n over the number of elements, without the Jacobian of the denoiser; the value is half
    the mean of its square. For arguments and errors see `score_matching_loss`.
    """
    with torch.no_grad():
        gradient = _residual(pictures, denoiser, sigma, noise)
    return _with_gradient(pictures, gradient)


def variational_score_loss(
    pictures: Tensor, denoiser: GaussianDenoiser, critic: GaussianDenoiser, *, sigma: Tensor, noise: Tensor
) -> Tensor:
    """Variational score distillation (Wang et al., ProlificDreamer, arXiv 2305.16213, with weight 1).

    The gradient for z is e(z_sigma) - e_c(z_sigma) = (D_c - D)(z_sigma, sigma) / sigma over the number of elements, e_c and
    D_c being of a critic that follows the pictures (`score_matching_loss`); the value is half the mean of its square. For the
    other arguments and errors see there.
    """
    with torch.no_grad():
        noisy = pictures + _at(sigma) * noise
        gradient = (_checked(critic, noisy, sigma) - _checked(denoiser, noisy, sigma)) / _at(sigma)
    return _with_gradient(pictures, gradient)


class PixelPrior:
    """A `Prior` on pixels.

    Args:
        config: which.
        denoiser: of natural pictures, on the device of the pictures. It is left as it is: a critic is a copy with LoRA.

    Raises:
        ConfigError: the kind is vsd, and the denoiser is no `PixelDenoiser`.
    """

    def __init__(self, config: PixelPriorConfig, denoiser: GaussianDenoiser) -> None:
        self.config = config
        self.denoiser = denoiser
        self.critic: nn.Module = nn.Module()  # the LoRA that follows the restored pictures
        self._seen: Tensor | None = None
        if config.kind != "vsd":
            return
        if not isinstance(denoiser, PixelDenoiser):
            raise ConfigError(
                f"prior.kind=vsd puts LoRA on the UNet of a PixelDenoiser, and this denoiser is a "
                f"{type(denoiser).__name__}. Train one with pnp-irib train-prior, or use score-matching or sds."
            )
        self._follower = copy.deepcopy(denoiser).eval().requires_grad_(False)
        unet = self._follower.unet
        add_adapter(unet, CRITIC, layers_named(unet, UNET_LAYERS), rank=config.rank, alpha=config.alpha)
        self.critic = adapter_module(unet, CRITIC)

    def __call__(
        self, restored: Tensor, prompts: Sequence[Prompt | None] | None, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """See `Prior`; it is the same for all prompts."""
        check_generators(restored, generators)
        pictures = restored if restored.dtype == torch.float64 else restored.float()
        sigma, noise = self._draw(pictures, generators)
        self._seen = pictures.detach()
        if self.config.kind == "score-matching":
            return score_matching_loss(pictures, self._frozen, sigma=sigma, noise=noise)
        if self.config.kind == "sds":
            return score_distillation_loss(pictures, self._frozen, sigma=sigma, noise=noise)
        return variational_score_loss(pictures, self._frozen, self._critic, sigma=sigma, noise=noise)

    def follow(self, generators: Sequence[torch.Generator]) -> Tensor:
        """See `Prior.follow`."""
        if self._seen is None or self.config.kind != "vsd":
            raise RuntimeError("a critic follows the pictures of the call before, and only vsd has one")
        check_generators(self._seen, generators)
        sigma, noise = self._draw(self._seen, generators)
        return score_matching_loss(self._seen, self._critic, sigma=sigma, noise=noise)

    def _draw(self, pictures: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        low, high = (math.log(sigma) for sigma in self.config.sigmas)
        uniform = torch.cat([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
        sigma = torch.exp(low + (high - low) * uniform)
        return sigma.to(pictures), normal(pictures, generators)

    def _frozen(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        if not isinstance(self.denoiser, nn.Module):
            return self.denoiser(noisy, sigma)
        with frozen(self.denoiser):
            clean: Tensor = self.denoiser(noisy, sigma)
            return clean

    def _critic(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        with active(self._follower.unet, [CRITIC]):
            clean: Tensor = self._follower(noisy, sigma)
            return clean


def _residual(pictures: Tensor, denoiser: GaussianDenoiser, sigma: Tensor, noise: Tensor) -> Tensor:
    # e(z_sigma) - n without the difference of the two, in which small sigmas would lose digits.
    return (pictures - _checked(denoiser, pictures + _at(sigma) * noise, sigma)) / _at(sigma)


def _with_gradient(pictures: Tensor, gradient: Tensor) -> Tensor:
    """A loss (N,) of this gradient, over the number of elements; its value is half the mean of the square."""
    loss = 0.5 * gradient.square() + gradient * (pictures - pictures.detach())
    return loss.mean((1, 2, 3))


def _checked(denoiser: GaussianDenoiser, noisy: Tensor, sigma: Tensor) -> Tensor:
    clean = denoiser(noisy, sigma)
    if clean.shape != noisy.shape:
        raise InputError(f"the denoiser made {tuple(clean.shape)} of pictures {tuple(noisy.shape)}; it must keep their shape.")
    return clean.to(noisy.dtype)


def _at(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)
