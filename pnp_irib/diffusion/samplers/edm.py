"""Steps on latents picture + sigma * noise: the deterministic samplers of Karras et al., and multistep ones.

The probability flow is dx/dsigma = (x - D(x, sigma)) / sigma, where D is the estimate of the picture (arXiv 2206.00364,
equation 3 with s = 1). A schedule may begin at a sigma of 1e4. There the slope times the length of a step loses the digits of
the picture in float32; so Euler's step is written as a mean of latent and estimate. With ``published`` steps are written and
rounded as in the published code, which networks that amplify rounding make visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pnp_irib.diffusion.samplers.walk import At

__all__ = ["churned", "dpm_2", "dpmpp_2m", "euler", "euler_to", "heun", "lms", "lms_weights"]


def euler_to(x: Tensor, found: Tensor, sigma: float, target: float, *, published: bool = False) -> Tensor:
    """Along the slope at a latent, given the estimate there, from a sigma to another."""
    if published:
        return x + (x - found) / sigma * (target - sigma)
    ratio = target / sigma
    return ratio * x + (1 - ratio) * found


def churned(
    at: At[float], x: Tensor, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float, published: bool
) -> tuple[Tensor, float]:
    """A latent with noise added before a step, and its sigma (Karras et al., algorithm 2, lines 4 to 6).

    Args:
        at: where.
        x: the latent.
        s_churn: how much noise, over all steps.
        s_tmin: lowest sigma at which any is added.
        s_tmax: highest.
        s_noise: standard deviation of it.
        published: draw noise also where none is added.
    """
    sigma, gamma = at.here, 0.0
    if s_tmin <= sigma <= s_tmax:
        gamma = min(s_churn / (len(at.levels) - 1), math.sqrt(2) - 1)
    noise = at.draw() if gamma > 0 or published else None
    if noise is None or gamma == 0:
        return x, sigma
    more = sigma * (gamma + 1)
    return x + s_noise * math.sqrt(more**2 - sigma**2) * noise, more


def euler(
    at: At[float],
    x: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    published: bool = False,
) -> Tensor:
    """Euler's step (Karras et al., algorithm 2 without its lines 9 to 11). For the options see `churned`."""
    x, sigma = churned(at, x, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise, published=published)
    return euler_to(x, at.denoise(x, sigma), sigma, at.there, published=published)


def heun(
    at: At[float],
    x: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    published: bool = False,
    euler_first: bool = False,
) -> Tensor:
    """Heun's step: the mean of the slopes at both ends (Karras et al., algorithm 2). For the other options see `churned`.

    With ``euler_first`` the first step is Euler's, where it begins at a stand-in for infinity: a step so long in sigma
    multiplies the difference of two estimates by hundreds.
    """
    x, sigma = churned(at, x, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise, published=published)
    found, target = at.denoise(x, sigma), at.there
    ahead = euler_to(x, found, sigma, target, published=published)
    if target == 0 or (euler_first and at.number == 0):
        return ahead
    slope = ((x - found) / sigma + (ahead - at.denoise(ahead, target)) / target) / 2
    return x + slope * (target - sigma)


def dpm_2(
    at: At[float],
    x: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    published: bool = False,
    euler_first: bool = False,
) -> Tensor:
    """The slope half way, in log sigma, for the whole step (DPM-Solver-2, Lu et al., arXiv 2206.00927). See `heun`."""
    x, sigma = churned(at, x, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise, published=published)
    found, target = at.denoise(x, sigma), at.there
    ahead = euler_to(x, found, sigma, target, published=published)
    if target == 0 or (euler_first and at.number == 0):
        return ahead
    middle = math.sqrt(sigma * target)
    half = euler_to(x, found, sigma, middle, published=published)
    return x + (half - at.denoise(half, middle)) / middle * (target - sigma)


def lms_weights(sigmas: Sequence[float], number: int, order: int) -> list[float]:
    """Integrals over a step of the Lagrange polynomials through the latest sigmas, that of the step itself first.

    Args:
        sigmas: falling.
        number: of the step.
        order: how many polynomials; no more than there were steps, this one included.
    """
    begin, end = sigmas[number], sigmas[number + 1]
    nodes = [sigmas[number - k] for k in range(order)]
    places, shares = np.polynomial.legendre.leggauss(order)  # exact for them, and loses no digits with sigmas of 1e4
    places = begin + (end - begin) * (places + 1) / 2
    found = []
    for k, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != k]
        values = np.prod([(places - other) / (node - other) for other in others], axis=0) * np.ones(order)
        found.append(float((shares * values).sum() * (end - begin) / 2))
    return found


def lms(at: At[float], x: Tensor, *, order: int = 4, published: bool = False) -> Tensor:
    """Adams-Bashforth on the slopes of the latest steps, whose sigmas lie at any distance.

    Args:
        at: where.
        x: the latent.
        order: how many slopes, the one of this step included; 1: Euler.
        published: round as the published code.
    """
    sigma = at.here
    found = at.denoise(x, sigma)
    slope = (x - found) / sigma
    weights = lms_weights(at.levels, at.number, min(at.number + 1, order))
    ahead = euler_to(x, found, sigma, at.there, published=published)  # the weights' sum is the length of the step
    for weight, earlier in zip(weights[1:], reversed(at.past), strict=False):
        ahead = ahead + weight * (earlier - slope)
    at.remember(slope, max(1, order - 1))
    return ahead


def dpmpp_2m(at: At[float], x: Tensor) -> Tensor:
    """DPM-Solver++ of second order with the estimate of the step before (Lu et al., arXiv 2211.01095, algorithm 2)."""
    found, sigma, target = at.denoise(x, at.here), at.here, at.there
    line = found
    if at.past and target > 0:
        length, before = math.log(sigma / target), math.log(at.levels[at.number - 1] / sigma)
        line = found + 0.5 * length / before * (found - at.past[-1])
    at.remember(found, 1)
    return euler_to(x, line, sigma, target)
