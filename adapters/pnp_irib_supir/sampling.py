"""SUPIR's samplers: EDM with restoration guidance, and SDE-DPM-Solver++(2M); their schedules over sigma."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pnp_irib.diffusion.samplers.brownian import increments
from pnp_irib.diffusion.samplers.edm import euler_to
from pnp_irib.diffusion.samplers.edm_random import dpmpp_2m_sde
from pnp_irib.diffusion.samplers.grids import edm_sigmas, timestep_of
from pnp_irib.diffusion.samplers.tables import Numbers, sigmas_of
from pnp_irib.diffusion.samplers.walk import At, walk
from pnp_irib.restorer import NoiseSource

__all__ = ["SAMPLERS", "Predict", "Schedule", "sample"]

SAMPLERS = ("edm", "dpm++_2m_sde")
_LEAST_GUIDED = 0.05  # no restoration guidance in steps that lead to less noise
_RHO = 7.0  # of Karras et al.

Predict = Callable[[Tensor, float, float, float], Tensor]
"""Maps a latent of variance about 1, its timestep, the guidance scale and that of the connectors to the noise in it."""


@dataclass(frozen=True)
class Schedule:
    """What happens when, as functions of sigma.

    Attributes:
        alphas: products of 1 - beta by timestep, (T,).
        sampler: one of `SAMPLERS`.
        steps: how many.
        guidance: scale of the prompt over the negative one, at the end.
        guidance_start: the same at the noisiest level; in between it is linear in sigma.
        control: scale of the connectors, at the end.
        control_start: the same at the noisiest level; None: as at the end.
        restoration: power of sigma with which estimates are pulled towards a known picture (arXiv 2401.13627, algorithm 1:
            tau_r); None: they are not.
        s_churn: noise that is added on the way, over all steps (Karras et al., arXiv 2206.00364, algorithm 2).
        s_noise: standard deviation of noise that is added.
        published: sigmas above those that the network knows, told as the nearest that it knows; for "dpm++_2m_sde" no noise in
            the first step, no restoration and no ``control_start``.
        rounding: of sigmas, with ``published``: the dtype that they are kept in.
    """

    alphas: Numbers
    sampler: Literal["edm", "dpm++_2m_sde"] = "edm"
    steps: int = 50
    guidance: float = 4.0
    guidance_start: float = 1.0
    control: float = 1.0
    control_start: float | None = None
    restoration: float | None = None
    s_churn: float = 5.0
    s_noise: float = 1.01
    published: bool = False
    rounding: torch.dtype = torch.float32

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Falling, and 0, (steps + 1,)."""
        found = edm_sigmas(self.steps, self.alphas)
        if self.sampler != "edm":
            ends = np.array([found[0], found[-2]]) ** (1 / _RHO)
            found = (*(float(s) for s in np.linspace(ends[0], ends[1], self.steps) ** _RHO), 0.0)
        return tuple(self.rounded(sigma) for sigma in found)

    @property
    def noisiest(self) -> float:
        """The highest sigma that the network knows."""
        return float(sigmas_of(self.alphas[-1:])[0])

    def _share(self, sigma: float) -> float:
        """Of the noisiest level; the published code has fewer digits of that."""
        return sigma / (14.6146 if self.published else self.noisiest)

    @property
    def growth(self) -> float:
        """What churn multiplies a sigma by."""
        return 1 + (min(self.s_churn / self.steps, math.sqrt(2) - 1) if self.sampler == "edm" else 0.0)

    def rounded(self, sigma: float) -> float:
        """A sigma as the published code keeps it; itself without ``published``."""
        return float(torch.tensor(sigma, dtype=self.rounding)) if self.published else sigma

    def churned(self, sigma: float) -> float:
        """The sigma that a step begins at: not above the noisiest, unless published."""
        more = self.rounded(sigma * self.growth)
        return more if self.published or more <= self.noisiest else sigma

    def known(self, sigma: float) -> tuple[float, float]:
        """What the network is told of a sigma: the sigma that its output is taken for, and its timestep."""
        if not self.published:
            return sigma, timestep_of(sigma, self.alphas)
        table = sigmas_of(self.alphas)
        nearest = int(np.abs(table - sigma).argmin())
        return float(table[nearest]), float(nearest)

    def guidance_at(self, sigma: float) -> float:
        """The guidance scale."""
        return self.guidance + (self.guidance_start - self.guidance) * self._share(sigma)

    def control_at(self, sigma: float) -> float:
        """The scale of the connectors."""
        if self.control_start is None or (self.published and self.sampler != "edm"):
            return self.control
        return self.control + (self.control_start - self.control) * self._share(sigma)

    def pull_at(self, sigma: float) -> float:
        """How much of the way estimates are pulled."""
        return 0.0 if self.restoration is None else float(self._share(sigma) ** self.restoration)


def sample(
    schedule: Schedule,
    predict: Predict,
    latent: Tensor,
    noise: NoiseSource,
    *,
    known: Tensor | None = None,
    always_draw: bool = False,
    kept: int | None = None,
    each: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """All steps, under the caller's grad mode.

    With gradients, the network's inner values are not kept but computed again in the backward pass, call by call. Between the
    calls the latent is float32, or float64 where ``latent`` is.

    Args:
        schedule: sampler, steps and scales.
        predict: asks the network.
        latent: standard normal, (N, C, H, W).
        noise: of the steps.
        known: the latent that estimates are pulled towards, (N, C, H, W); needed with ``schedule.restoration``.
        always_draw: noise for each step, also where none is added.
        kept: gradients pass through so many of the last steps; None: all.
        each: told in every step its number, the latent that the network is asked about (in units where the picture has weight
            1), and the picture estimated from it.

    Returns:
        The picture's latent, (N, C, H, W).
    """
    sigmas = schedule.sigmas
    state = latent.to(torch.promote_types(latent.dtype, torch.float32))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        told, timestep = schedule.known(sigma)
        before = sigma / schedule.growth if schedule.published else sigma  # the published code goes by that before churn
        asked = (x / math.sqrt(told**2 + 1), timestep, schedule.guidance_at(sigma), schedule.control_at(before))
        eps = checkpoint(predict, *asked, use_reentrant=False) if torch.is_grad_enabled() else predict(*asked)
        found: Tensor = x - told * eps.to(x.dtype)
        return found

    def pulled(found: Tensor, _: float, number: int) -> Tensor:
        sigma, target = sigmas[number : number + 2]
        assert known is not None
        return torch.lerp(found, known.to(found.dtype), schedule.pull_at(sigma)) if target > _LEAST_GUIDED else found

    def draw() -> Tensor:
        return noise.normal(tuple(state.shape), device=state.device, dtype=state.dtype)

    guided = schedule.restoration is not None and not (schedule.published and schedule.sampler != "edm")
    return walk(
        partial(_edm if schedule.sampler == "edm" else _solver, schedule, always_draw),
        state * math.sqrt(1 + sigmas[0] ** 2),
        sigmas,
        denoise,
        draw=draw,
        increment=increments(noise, draw, state),
        kept=kept,
        each=each,
        guide=pulled if guided else None,
    )


def _edm(schedule: Schedule, always_draw: bool, at: At[float], x: Tensor) -> Tensor:
    """Euler's step from a level with noise added (Karras et al., algorithm 2)."""
    sigma, more = at.here, schedule.churned(at.here)
    added = at.draw() if more > sigma or always_draw else None
    if added is not None and more > sigma:
        x = x + schedule.s_noise * math.sqrt(more**2 - sigma**2) * added
    return euler_to(x, at.denoise(x, more), more, at.there, published=schedule.published)


def _solver(schedule: Schedule, _: bool, at: At[float], x: Tensor) -> Tensor:
    first = schedule.published and not at.past
    return dpmpp_2m_sde(at, x, s_noise=0.0 if first else schedule.s_noise)
