"""From a configuration to a prior."""

from __future__ import annotations

import torch

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.model import NoiseSchedule, known_as
from pnp_irib.errors import ConfigError
from pnp_irib.priors.base import LatentPriorConfig, PixelPriorConfig, Prior
from pnp_irib.priors.denoiser import PixelDenoiser
from pnp_irib.priors.latent import LatentPrior
from pnp_irib.priors.pixel import PixelPrior

__all__ = ["load_prior"]


def load_prior(
    config: LatentPriorConfig | PixelPriorConfig, *, base: StableDiffusion | None = None, device: str | torch.device = "cpu"
) -> Prior:
    """The prior of a configuration, in float32.

    Args:
        config: which.
        base: a Stable Diffusion that is in memory already; a latent prior shares it where it is the same.
        device: of what is loaded.

    Raises:
        ConfigError: a latent prior names no base, and there is none to share.
        MissingExtraError: diffusers, or what else it needs, is not installed.
        WeightsError: what it names cannot be loaded.
    """
    if isinstance(config, PixelPriorConfig):
        return PixelPrior(config, PixelDenoiser.from_pretrained(config.denoiser).to(device).requires_grad_(False))
    lent = base is not None and base.fingerprint is not None  # else its weights were changed for good
    same = base is not None and known_as(config.base or base.place) == base.place
    if base is not None and lent and same and (config.base is None or base.noise.prediction == config.prediction):
        return LatentPrior(config, base)
    if config.base is None:
        raise ConfigError("prior.base is not set, and there is no Stable Diffusion to share as it was made; name one.")
    return LatentPrior(
        config, StableDiffusion.load(config.base, noise=NoiseSchedule(config.prediction)).to(torch.device(device))
    )
