"""Many steps from noise to a picture: which timesteps are visited, and what a step does.

Denoising diffusion (Ho et al., arXiv 2006.11239) with fewer steps than it was trained with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pnp_irib.diffusion.samplers.tables import picture_from_eps, posterior
from pnp_irib.errors import ConfigError, check_number

__all__ = ["KeepsLastSteps", "Step", "ancestral_step", "leading", "noised", "sample", "steps_of", "trailing"]

_SMALLEST_VARIANCE = 1e-20


@dataclass(frozen=True)
class Step:
    """From one noise level to the next.

    Attributes:
        timestep: whose noise the network is asked for.
        alpha: product of 1 - beta up to it: the share of the picture's variance in the noisy latent.
        target: the same where the step leads; 1: to the picture.
    """

    timestep: int
    alpha: float
    target: float


def leading(count: int, total: int = 1000, offset: int = 1) -> tuple[int, ...]:
    """Timesteps that begin below the noisiest and end at ``offset``, as schedulers of Stable Diffusion 1 and 2 space them.

    Raises:
        ConfigError: more steps than timesteps that lie so.
    """
    _possible(count, total - offset)
    return tuple(k * (total // count) + offset for k in reversed(range(count)))


def trailing(count: int, total: int = 1000) -> tuple[int, ...]:
    """Timesteps that begin at the noisiest (Lin et al., arXiv 2305.08891).

    Raises:
        ConfigError: more steps than timesteps.
    """
    _possible(count, total)
    return tuple(int(t) - 1 for t in np.round(np.arange(total, 0, -total / count))[:count])


def _possible(count: int, total: int) -> None:
    if not 1 <= count <= total:
        raise ConfigError(f"{count} steps; expected 1 to {total}.")


def steps_of(alphas: Tensor, timesteps: Sequence[int], *, stride: int | None = None) -> tuple[Step, ...]:
    """The steps over some timesteps, the noisiest first.

    Args:
        alphas: products of 1 - beta by timestep, (T,).
        timesteps: falling.
        stride: every step leads so many timesteps down, wherever the next begins, as older schedulers have it; None: to the
            next timestep, the last one to the picture.
    """
    follow = [*timesteps[1:], -1] if stride is None else [t - stride for t in timesteps]
    return tuple(
        Step(t, alphas[t].item(), alphas[after].item() if after >= 0 else 1.0)
        for t, after in zip(timesteps, follow, strict=True)
    )


def noised(picture: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """A latent at a noise level."""
    return cast(Tensor, alpha**0.5 * picture + (1 - alpha) ** 0.5 * noise)


def ancestral_step(latent: Tensor, predicted: Tensor, step: Step, noise: Tensor | None) -> Tensor:
    """The next latent: mean and variance of the posterior, given the picture that the predicted noise implies.

    Args:
        latent: noisy, (N, C, H, W).
        predicted: noise in it, as the network says.
        step: the levels of noise.
        noise: standard normal numbers; None: the mean.
    """
    of_picture, of_latent, variance = posterior(step.alpha, step.target)
    mean = of_picture * picture_from_eps(latent, predicted, step.alpha) + of_latent * latent
    return mean if noise is None else mean + max(variance, _SMALLEST_VARIANCE) ** 0.5 * noise


def sample(
    latent: Tensor,
    steps: Sequence[Step],
    predict: Callable[[Tensor, int], Tensor],
    draw: Callable[[tuple[int, ...]], Tensor],
    *,
    kept: int | None = None,
    stray_noise: bool = False,
    each: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """All steps, under the caller's grad mode.

    With gradients, the network's inner values are not kept but computed again in the backward pass, step by step.

    Args:
        latent: at the level of the first step.
        steps: see `steps_of`.
        predict: the noise in a latent at a timestep.
        draw: gives standard normal numbers of a shape.
        kept: gradients pass through so many of the last steps; None: all.
        stray_noise: add noise of the smallest variance also where a step leads to the picture, as published code does.
        each: told after every step its number, the predicted noise, and the latent.
    """
    gradients = torch.is_grad_enabled()
    for number, step in enumerate(steps):
        with torch.set_grad_enabled(gradients and (kept is None or len(steps) - number <= kept)):
            if torch.is_grad_enabled():
                predicted = cast(Tensor, checkpoint(predict, latent, step.timestep, use_reentrant=False))
            else:
                predicted = predict(latent, step.timestep)
            noise = draw(tuple(latent.shape)) if step.target < 1 or stray_noise else None
            latent = ancestral_step(latent, predicted, step, noise).to(latent.dtype)
        if each is not None:
            each(number, predicted, latent)
    return latent


class KeepsLastSteps:
    """Mixin of a `pnp_irib.restorer.MultiStepRestorer`: how many of its last steps keep gradients."""

    kept_steps: int | None = None

    @contextlib.contextmanager
    def gradients_through(self, steps: int) -> Iterator[None]:
        """Inside, gradients pass through the last ``steps`` steps of each restoration; the ones before are constants.

        One thread at a time.

        Raises:
            ConfigError: it is no number from 1 on.
        """
        check_number("steps", steps, whole=True)
        before, self.kept_steps = self.kept_steps, steps
        try:
            yield
        finally:
            self.kept_steps = before
