"""Steps on latents of variance about 1, sqrt(a) * picture + sqrt(1 - a) * noise: DDPM, DDIM, DPM-Solver++."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor

from pnp_irib.diffusion.samplers.grids import Level
from pnp_irib.diffusion.samplers.tables import posterior
from pnp_irib.diffusion.samplers.walk import At

__all__ = ["ddim", "ddpm", "dpm_solver_2m", "half_log_snr"]


def ddpm(at: At[Level], x: Tensor, *, published: bool = False) -> Tensor:
    """A draw from the posterior (Ho et al., arXiv 2006.11239), with the smaller of the two variances.

    Args:
        at: where.
        x: the latent.
        published: draw noise also where there is none to add.
    """
    found = at.denoise(x, at.here)
    of_picture, of_latent, variance = posterior(at.here.alpha, at.there.alpha)
    noise = at.draw() if variance > 0 or published else None
    mean = of_picture * found + of_latent * x
    return mean if noise is None or variance == 0 else mean + variance**0.5 * noise


def ddim(at: At[Level], x: Tensor, *, published: bool = False) -> Tensor:
    """The deterministic step of Song et al. (arXiv 2010.02502, equation 12, eta = 0).

    Args:
        at: where.
        x: the latent.
        published: draw noise that is not used.
    """
    found = at.denoise(x, at.here)
    if published:
        at.draw()
    alpha, target = at.here.alpha, at.there.alpha
    of_noise = ((1 - target) / (1 - alpha)) ** 0.5  # of the noise in x, which is (x - sqrt(a) * picture) / sqrt(1 - a)
    return cast(Tensor, (target**0.5 - of_noise * alpha**0.5) * found + of_noise * x)


def half_log_snr(alpha: float) -> float:
    """log(sqrt(a) / sqrt(1 - a)), infinite at 0 and 1."""
    if 0 < alpha < 1:
        return 0.5 * (math.log(alpha) - math.log1p(-alpha))
    return math.inf if alpha else -math.inf


def dpm_solver_2m(at: At[Level], x: Tensor, *, first_order_end: bool = True) -> Tensor:
    """DPM-Solver++ of second order with the estimate of the step before (Lu et al., arXiv 2211.01095, algorithm 2).

    Args:
        at: where; an alpha of 0 at the beginning and of 1 at the end will do.
        x: the latent.
        first_order_end: the last step is of first order; always so where it leads to the picture.
    """
    found = at.denoise(x, at.here)
    here, there = half_log_snr(at.here.alpha), half_log_snr(at.there.alpha)
    length, line = there - here, found
    if at.past and math.isfinite(length) and not (first_order_end and at.last):
        before = here - half_log_snr(at.levels[at.number - 1].alpha)
        line = found + 0.5 * length / before * (found - at.past[-1])
    at.remember(found, 1)
    of_noise = ((1 - at.there.alpha) / (1 - at.here.alpha)) ** 0.5
    return cast(Tensor, of_noise * x - at.there.alpha**0.5 * math.expm1(-length) * line)
