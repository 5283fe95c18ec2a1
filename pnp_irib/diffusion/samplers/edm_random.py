"""Steps on latents picture + sigma * noise that add noise: ancestral samplers, and solvers of the reverse diffusion.

The ancestral ones step below the target and add independent noise. The others solve the stochastic equation whose share of
noise is eta: 0 is the probability flow, 1 the reverse diffusion (Lu et al., arXiv 2211.01095, section 5), along one Brownian
path.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pnp_irib.diffusion.samplers.edm import euler_to
from pnp_irib.diffusion.samplers.walk import At

__all__ = ["ancestral", "dpm_2_a", "dpmpp_2m_sde", "dpmpp_2s_a", "dpmpp_3m_sde", "dpmpp_sde", "euler_a"]


def ancestral(sigma: float, target: float, eta: float, *, published: bool = False) -> tuple[float, float]:
    """How far down to step, and how much noise to add then, for a target.

    Args:
        sigma: that the step begins at.
        target: that it leads to.
        eta: share of the noise that is renewed; 1: as the reverse diffusion has it.
        published: in float32, which leaves one digit of the first number where a step begins at 1e4.
    """
    if published:
        begin, end = (torch.tensor(number, dtype=torch.float32) for number in (sigma, target))
        added = min(end, eta * (end**2 * (begin**2 - end**2) / begin**2) ** 0.5)
        return ((end**2 - added**2) ** 0.5).item(), added.item()
    up = min(target, eta * math.sqrt(target**2 * (sigma**2 - target**2) / sigma**2))
    return math.sqrt(target**2 - up**2), up


def euler_a(at: At[float], x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0, published: bool = False) -> Tensor:
    """Euler's step below the target, then noise. With ``eta`` 1 that is `steps.ddpm`.

    Args:
        at: where.
        x: the latent.
        eta: see `ancestral`.
        s_noise: factor of the noise.
        published: write and round the step as the published code, and draw noise also where an eta of 0 adds none.
    """
    down, up = ancestral(at.here, at.there, eta, published=published)
    x = euler_to(x, at.denoise(x, at.here), at.here, down, published=published)
    return _with_noise(at, x, up, s_noise, published)


def dpm_2_a(
    at: At[float],
    x: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    published: bool = False,
    euler_first: bool = False,
) -> Tensor:
    """As `edm.dpm_2`, below the target, then noise. For the options see `euler_a` and `edm.heun`."""
    sigma = at.here
    down, up = ancestral(sigma, at.there, eta, published=published)
    found = at.denoise(x, sigma)
    ahead = euler_to(x, found, sigma, down, published=published)
    if down > 0 and not (euler_first and at.number == 0):
        middle = math.sqrt(sigma * down)
        half = euler_to(x, found, sigma, middle, published=published)
        ahead = x + (half - at.denoise(half, middle)) / middle * (down - sigma)
    return _with_noise(at, ahead, up, s_noise, published)


def dpmpp_2s_a(at: At[float], x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0, published: bool = False) -> Tensor:
    """DPM-Solver++(2S) (Lu et al., arXiv 2211.01095, algorithm 1, r = 1/2) below the target, then noise. As `euler_a`."""
    sigma = at.here
    down, up = ancestral(sigma, at.there, eta, published=published)
    found = at.denoise(x, sigma)
    if down > 0:
        middle = math.sqrt(sigma * down)
        found = at.denoise(euler_to(x, found, sigma, middle), middle)
    return _with_noise(at, euler_to(x, found, sigma, down), up, s_noise, published)


def _with_noise(at: At[float], x: Tensor, up: float, s_noise: float, published: bool) -> Tensor:
    if at.there == 0 or (up == 0 and not published):
        return x
    return x + s_noise * up * at.draw()


def dpmpp_sde(at: At[float], x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0, published: bool = False) -> Tensor:
    """As `dpmpp_2s_a`, but the middle is that of the whole step and is given its noise too, along one Brownian path.

    Args:
        at: where.
        x: the latent.
        eta: see `ancestral`.
        s_noise: factor of the noise.
        published: round as the published code, and ask the path for increments also where an eta of 0 adds none of them.
    """
    sigma, target = at.here, at.there
    found = at.denoise(x, sigma)
    if target == 0:
        return found
    middle = math.sqrt(sigma * target)
    if published:  # it takes sigmas from their logarithms
        logs = np.log(np.array([sigma, target], dtype=np.float32))
        sigma, target, middle = np.exp([logs[0], logs[1], logs[0] + (logs[1] - logs[0]) * np.float32(0.5)]).tolist()

    def to(level: float, picture: Tensor) -> Tensor:
        down, up = ancestral(sigma, level, eta, published=published)
        reached = euler_to(x, picture, sigma, down)
        if up == 0 and not published:
            return reached
        return reached + s_noise * up * at.increment(sigma, level)

    return to(target, at.denoise(to(middle, found), middle))


def dpmpp_2m_sde(at: At[float], x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """SDE-DPM-Solver++(2M), the midpoint form (Lu et al., arXiv 2211.01095, section 5).

    Args:
        at: where.
        x: the latent.
        eta: 0: as `edm.dpmpp_2m`, 1: the reverse diffusion.
        s_noise: factor of the noise.
    """
    found = at.denoise(x, at.here)
    if at.there == 0:
        return found
    length, line = math.log(at.here / at.there), found
    if at.past:
        line = found + 0.5 * length / math.log(at.levels[at.number - 1] / at.here) * (found - at.past[-1])
    at.remember(found, 1)
    decay = length * (1 + eta)
    return _with_increment(at, math.exp(-decay) * x - math.expm1(-decay) * line, length, eta, s_noise)


def dpmpp_3m_sde(at: At[float], x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0, published: bool = False) -> Tensor:
    """The same of third order: the estimate is a parabola in log sigma through the latest three, integrated exactly.

    Args:
        at: where.
        x: the latent.
        eta: see `dpmpp_2m_sde`.
        s_noise: factor of the noise.
        published: give the bend of the parabola half its weight, as published code does, which is of second order.
    """
    found = at.denoise(x, at.here)
    if at.there == 0:
        return found
    length = math.log(at.here / at.there)
    decay = length * (1 + eta)
    # Estimates are taken at times 0, -first, -first - second, in units of the step.
    ahead = math.exp(-decay) * x - math.expm1(-decay) * found
    linear = math.expm1(-decay) / decay + 1
    if at.past:
        first = math.log(at.levels[at.number - 1] / at.here) / length
        slope = (found - at.past[-1]) / first
        if len(at.past) > 1:
            second = math.log(at.levels[at.number - 2] / at.levels[at.number - 1]) / length
            bend = (slope - (at.past[-1] - at.past[-2]) / second) / (first + second)
            slope = slope + first * bend
            # The integral over the step of the time squared, as the other two are of the time and of 1.
            ahead = ahead + (1 - 2 * linear / decay) * (0.5 if published else 1.0) * bend
        ahead = ahead + linear * slope
    at.remember(found, 2)
    return _with_increment(at, ahead, length, eta, s_noise)


def _with_increment(at: At[float], x: Tensor, length: float, eta: float, s_noise: float) -> Tensor:
    if eta == 0 or s_noise == 0:
        return x
    spread = at.there * math.sqrt(-math.expm1(-2 * eta * length))
    return x + s_noise * spread * at.increment(at.here, at.there)
