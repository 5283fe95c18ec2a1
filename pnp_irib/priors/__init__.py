"""Priors over HQ pictures: the L_HQ-prior of the objective, by a frozen denoiser of latents or of pixels."""

from pnp_irib.priors.base import LatentPriorConfig, PixelPriorConfig, Prior, PriorConfig
from pnp_irib.priors.denoiser import DenoiserArchitecture, PixelDenoiser
from pnp_irib.priors.latent import LatentPrior
from pnp_irib.priors.loading import load_prior
from pnp_irib.priors.pixel import GaussianDenoiser, PixelPrior

__all__ = [
    "DenoiserArchitecture",
    "GaussianDenoiser",
    "LatentPrior",
    "LatentPriorConfig",
    "PixelDenoiser",
    "PixelPrior",
    "PixelPriorConfig",
    "Prior",
    "PriorConfig",
    "load_prior",
]
