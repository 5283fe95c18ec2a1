"""Which timesteps are visited, and how noisy the latent is at each.

Every grid falls from the noisiest level and ends with the level that the last step leads to, where no network is asked. With
``published`` the grids are those of DiffBIR's published code. Without, every number of steps from 1 on works, each grid begins
at the last timestep, where pure noise belongs, each leads to the picture, and the network is told the timestep that the noise
has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pnp_irib.diffusion.samplers.tables import Numbers, Prediction, sigmas_of
from pnp_irib.diffusion.schedule import trailing
from pnp_irib.errors import ConfigError

__all__ = [
    "INFINITE_SIGMA",
    "Level",
    "check_prediction",
    "ddim_levels",
    "edm_sigmas",
    "edm_timesteps",
    "nearest_timestep",
    "solver_levels",
    "spaced_levels",
    "timestep_of",
]

INFINITE_SIGMA = (1e8 - 1) ** 0.5  # stands for infinity, about 1e4: an alpha of 1e-8
_SMALLEST_LOG_SNR = -5.1  # half of it; below, the published solver cuts the table off


@dataclass(frozen=True)
class Level:
    """A level of noise.

    Attributes:
        timestep: that the network is told, which may lie between two; of the picture: 0.
        alpha: share of the picture's variance in the latent, in [0, 1].
    """

    timestep: float
    alpha: float


_PICTURE = Level(0.0, 1.0)


def _possible(steps: int, total: int) -> None:
    if not 1 <= steps <= total:
        raise ConfigError(f"{steps} steps; expected 1 to {total}, the timesteps that the model knows.")


def spaced_levels(steps: int, alphas: Numbers) -> tuple[Level, ...]:
    """From the last timestep to the first in even steps, rounded, then to the picture.

    Args:
        steps: how many; 1: from the last timestep to the picture, which the published code cannot do.
        alphas: by timestep, (T,).

    Raises:
        ConfigError: more steps than timesteps, or fewer than 1.
    """
    total = len(alphas)
    _possible(steps, total)
    stride = (total - 1) / (steps - 1) if steps > 1 else 0.0
    timesteps, place = [], 0.0
    for _ in range(steps):
        timesteps.append(round(place))
        place += stride  # a sum, not a product: which of two timesteps is rounded to hangs on it
    falling = timesteps[::-1] if steps > 1 else [total - 1]
    return (*(Level(t, float(alphas[t])) for t in falling), _PICTURE)


def ddim_levels(steps: int, alphas: Numbers, *, published: bool = False) -> tuple[Level, ...]:
    """Even whole steps.

    Args:
        steps: how many.
        alphas: by timestep, (T,).
        published: strides of T // steps up from timestep 1, which are more steps than were asked for where these do not divide
            T, never begin at the last timestep, and end at the noise of timestep 0. Else see
            `pnp_irib.diffusion.schedule.trailing`, and the last step leads to the picture.

    Raises:
        ConfigError: more steps than timesteps, or fewer than 1; a published grid that reaches beyond the last timestep.
    """
    total = len(alphas)
    _possible(steps, total)
    if not published:
        return (*(Level(t, float(alphas[t])) for t in trailing(steps, total)), _PICTURE)
    timesteps = _published_ddim(steps, total)
    if timesteps[-1] >= total:
        near = sorted((n for n in range(1, total + 1) if _published_ddim(n, total)[-1] < total), key=lambda n: abs(n - steps))
        raise ConfigError(
            f"{steps} steps: the published ddim would ask for timestep {timesteps[-1]}, the last is {total - 1}. "
            f"Take {near[0]} steps, or leave compat out."
        )
    return (*(Level(t, float(alphas[t])) for t in reversed(timesteps)), Level(0.0, float(alphas[0])))


def _published_ddim(steps: int, total: int) -> range:
    return range(1, total + 1, total // steps)


def solver_levels(steps: int, alphas: Numbers, *, published: bool = False) -> tuple[Level, ...]:
    """Even steps of time between timesteps, for DPM-Solver++ (Lu et al., arXiv 2211.01095, "time_uniform").

    Args:
        steps: how many.
        alphas: by timestep, (T,).
        published: entries whose log-SNR is below -10.2 are cut off the end of the table, the rest is taken for the whole
            range of time, so that the network is told timesteps that are too high where any were cut; ends at the noise of
            timestep 0. Else the whole table counts, and the last step leads to the picture.

    Raises:
        ConfigError: more steps than timesteps, or fewer than 1.
    """
    total = len(alphas)
    _possible(steps, total)
    if not published:
        times = np.linspace(total - 1, 0, steps + 1)[:-1]
        found = np.interp(times, np.arange(total), np.sqrt(alphas)) ** 2
        return (*(Level(float(t), float(a)) for t, a in zip(times, found, strict=True)), _PICTURE)
    with np.errstate(divide="ignore"):
        # Its table is made of float32 numbers, whose rounding adds up.
        shares = 1 - (1 - alphas / np.concatenate(([1.0], alphas[:-1]))).astype(np.float32)
        logs = 0.5 * np.cumsum(np.log(shares)).astype(np.float64)
        kept = total - int((logs - 0.5 * np.log1p(-alphas) < _SMALLEST_LOG_SNR).sum())
    times = np.linspace(1, 1 / kept, steps + 1)
    found = np.exp(2 * np.interp(times, np.arange(1, kept + 1) / kept, logs[:kept]))
    return tuple(Level(float((t - 1 / kept) * total), float(a)) for t, a in zip(times, found, strict=True))


def edm_timesteps(steps: int, total: int = 1000) -> tuple[int, ...]:
    """Timesteps that fall evenly from the last, (steps,); the first is never reached.

    Raises:
        ConfigError: more steps than timesteps, or fewer than 1.
    """
    _possible(steps, total)
    return tuple(int(t) for t in np.linspace(total - 1, 0, steps, endpoint=False))


def edm_sigmas(steps: int, alphas: Numbers, *, published: bool = False) -> tuple[float, ...]:
    """Sigmas of `edm_timesteps`, and 0, (steps + 1,).

    Args:
        steps: how many.
        alphas: by timestep, (T,).
        published: begin at `INFINITE_SIGMA` whatever the model, and round to float32. Else that is only where nothing of the
            picture is left.

    Raises:
        ConfigError: more steps than timesteps, or fewer than 1.
    """
    timesteps = edm_timesteps(steps, len(alphas))
    sigmas = [INFINITE_SIGMA if published or alphas[-1] <= 0 else float(sigmas_of(alphas[-1:])[0])]
    sigmas += (float(s) for s in sigmas_of(alphas[list(timesteps[1:])]))
    return (*(float(np.float32(s)) if published else s for s in sigmas), 0.0)


def nearest_timestep(sigma: float, steps: int, alphas: Numbers) -> float:
    """The timestep that the published code tells the network: of the nearest sigma of the grid, its 0 included."""
    timesteps = (*edm_timesteps(steps, len(alphas)), 0)
    offs = np.abs(np.array(edm_sigmas(steps, alphas, published=True)) - sigma)
    return float(timesteps[int(offs.argmin())])


def timestep_of(sigma: float, alphas: Numbers) -> float:
    """The timestep of a sigma, between two by the logarithms of theirs; at most the last, at least 0."""
    sigmas = np.minimum(sigmas_of(alphas), INFINITE_SIGMA)
    return float(np.interp(np.log(max(sigma, 1e-12)), np.log(sigmas), np.arange(len(alphas))))


def check_prediction(alphas: Numbers, prediction: Prediction) -> None:
    """Check that a network can be asked at every timestep.

    Raises:
        ConfigError: it predicts noise where there is nothing else, which says nothing of the picture.
    """
    if prediction == "eps" and alphas[-1] <= 0:
        raise ConfigError(
            "an eps model with a zero-SNR noise schedule: its output says nothing of the picture at the last timestep. "
            "Take prediction='v', or the noise schedule that the model was trained with."
        )
