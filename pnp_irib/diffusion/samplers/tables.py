"""How much of a picture is left at each timestep; what a network's output says of the picture, and this of the next latent.

A noisy latent is x = sqrt(a) * picture + sqrt(1 - a) * noise, where a, the product of 1 - beta up to a timestep, is called its
alpha here (Ho et al., arXiv 2006.11239). Divided by sqrt(a) it is picture + sigma * noise (Karras et al., arXiv 2206.00364).
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Numbers",
    "Prediction",
    "alphas_of",
    "picture_from",
    "picture_from_eps",
    "picture_from_v",
    "posterior",
    "rescaled_guidance",
    "scaled_linear_betas",
    "sigmas_of",
    "zero_snr_betas",
]

Numbers = NDArray[np.float64]

Prediction = Literal["eps", "v"]
"""What a network predicts: the noise, or v = sqrt(a) * noise - sqrt(1 - a) * picture (Salimans and Ho, arXiv 2202.00512)."""


def scaled_linear_betas(first: float = 0.00085, last: float = 0.012, count: int = 1000) -> Numbers:
    """Betas whose roots rise evenly, (count,), as Stable Diffusion was trained with."""
    return np.linspace(first**0.5, last**0.5, count, dtype=np.float64) ** 2


def zero_snr_betas(betas: Numbers) -> Numbers:
    """Betas changed so that nothing of the picture is left at the last timestep (Lin et al., arXiv 2305.08891, algorithm 1).

    Args:
        betas: (T,), each in (0, 1).

    Returns:
        (T,); the first is kept, the last is exactly 1.
    """
    roots = np.sqrt(alphas_of(betas))
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    return cast(Numbers, 1 - np.concatenate([roots[:1], roots[1:] / roots[:-1]]) ** 2)


def alphas_of(betas: Numbers) -> Numbers:
    """Products of 1 - beta by timestep, (T,), falling, in [0, 1)."""
    return cast(Numbers, np.cumprod(1 - betas))


def sigmas_of(alphas: Numbers) -> Numbers:
    """Noise for a picture of weight 1, sqrt((1 - a) / a); infinite where nothing of the picture is left."""
    with np.errstate(divide="ignore"):
        return cast(Numbers, np.sqrt((1 - alphas) / alphas))


def picture_from_eps(latent: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """The picture that some noise in a latent implies; ``alpha`` in (0, 1]."""
    return cast(Tensor, (latent - (1 - alpha) ** 0.5 * eps) / alpha**0.5)


def picture_from_v(latent: Tensor, v: Tensor, alpha: float) -> Tensor:
    """The picture that v implies, also where ``alpha`` is 0."""
    return cast(Tensor, alpha**0.5 * latent - (1 - alpha) ** 0.5 * v)


def picture_from(latent: Tensor, output: Tensor, alpha: float, prediction: Prediction) -> Tensor:
    """The picture that a network's output implies.

    Args:
        latent: what the network saw, of variance about 1.
        output: of the network.
        alpha: of the latent; above 0 for "eps".
        prediction: what the output is.
    """
    return (picture_from_v if prediction == "v" else picture_from_eps)(latent, output, alpha)


def posterior(alpha: float, target: float) -> tuple[float, float, float]:
    """Of the less noisy latent, given the picture and the noisier latent (Ho et al., equation 7).

    Args:
        alpha: of the noisier one, in [0, 1).
        target: of the less noisy one, in (0, 1].

    Returns:
        Weight of the picture and of the noisier latent in the mean; the variance.
    """
    kept = alpha / target
    return (
        target**0.5 * (1 - kept) / (1 - alpha),
        kept**0.5 * (1 - target) / (1 - alpha),
        (1 - kept) * (1 - target) / (1 - alpha),
    )


def rescaled_guidance(scale: float, timestep: float, total: int = 1000) -> float:
    """DiffBIR's guidance scale that rises from 1 at the noisiest timestep to 1 + ``scale`` at the picture."""
    return 1 + scale * (1 - float(np.cos(np.pi * ((total - timestep) / total) ** 5))) / 2
