"""The samplers by name, and one call that runs any of them on a network of Stable Diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pnp_irib.diffusion.samplers import edm, edm_random, grids, steps
from pnp_irib.diffusion.samplers.brownian import increments
from pnp_irib.diffusion.samplers.grids import Level
from pnp_irib.diffusion.samplers.tables import Numbers, Prediction, picture_from, posterior, rescaled_guidance
from pnp_irib.diffusion.samplers.walk import walk
from pnp_irib.errors import ConfigError, check_number, did_you_mean

if TYPE_CHECKING:
    from pnp_irib.restorer import NoiseSource

__all__ = ["SAMPLERS", "Guide", "Predict", "Sampler", "Sampling", "guidance_at", "sample", "step_count"]

Predict = Callable[[Tensor, float, float], Tensor]
"""Maps a latent of variance about 1, its timestep and the guidance scale to the network's output: eps or v.

The output is guided: without prompt, plus the scale times what the prompt adds. At a scale of exactly 1 it is that of the
prompt, and the network need not be asked without."""

Guide = Callable[[Tensor, float, float], Tensor]
"""Maps an estimate of the picture, its timestep + 1, and its weight in the next latent, to a better estimate."""

_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_ANCESTRAL = ("eta", "s_noise")


@dataclass(frozen=True)
class Sampler:
    """What is known of one sampler.

    Attributes:
        grid: whose levels it visits.
        step: see `pnp_irib.diffusion.samplers.walk.Step`.
        takes: the options of `Sampling` that its step takes.
        published: whether its step knows how the published code draws, rounds or weighs otherwise.
        euler_first: whether its first step is Euler's where it begins at a stand-in for infinity.
    """

    grid: Literal["spaced", "ddim", "solver", "edm"]
    step: Callable[..., Tensor]
    takes: tuple[str, ...] = ()
    published: bool = False
    euler_first: bool = False


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "spaced": Sampler("spaced", steps.ddpm, published=True),
        "ddim": Sampler("ddim", steps.ddim, published=True),
        "dpm++_m2": Sampler("solver", steps.dpm_solver_2m),
        "edm_euler": Sampler("edm", edm.euler, _CHURN, published=True),
        "edm_euler_a": Sampler("edm", edm_random.euler_a, _ANCESTRAL, published=True),
        "edm_heun": Sampler("edm", edm.heun, _CHURN, published=True, euler_first=True),
        "edm_dpm_2": Sampler("edm", edm.dpm_2, _CHURN, published=True, euler_first=True),
        "edm_dpm_2_a": Sampler("edm", edm_random.dpm_2_a, _ANCESTRAL, published=True, euler_first=True),
        "edm_lms": Sampler("edm", edm.lms, ("order",), published=True),
        "edm_dpm++_2s_a": Sampler("edm", edm_random.dpmpp_2s_a, _ANCESTRAL, published=True),
        "edm_dpm++_sde": Sampler("edm", edm_random.dpmpp_sde, _ANCESTRAL, published=True),
        "edm_dpm++_2m": Sampler("edm", edm.dpmpp_2m),
        "edm_dpm++_2m_sde": Sampler("edm", edm_random.dpmpp_2m_sde, _ANCESTRAL),
        "edm_dpm++_3m_sde": Sampler("edm", edm_random.dpmpp_3m_sde, _ANCESTRAL, published=True),
    }
)
"""By the names that DiffBIR gives them."""

_STEP_OPTIONS = (*_CHURN, "eta", "order")


@dataclass(frozen=True)
class Sampling:
    """How to get from noise to a picture.

    Attributes:
        sampler: one of `SAMPLERS`.
        steps: how many, from 1 to the number of timesteps.
        guidance: scale of the prompt over no prompt, or over a negative one; 1: the prompt alone.
        rescale_guidance: let the scale rise from 1 to 1 + ``guidance`` on the way, where it is above 1.
        s_churn: noise that edm_euler, edm_heun and edm_dpm_2 add over all steps.
        s_tmin: lowest sigma at which they do.
        s_tmax: highest.
        s_noise: factor of the noise of these and of the samplers that ``eta`` is for.
        eta: share of the noise that is renewed, for the ancestral and stochastic samplers of the edm family.
        order: of edm_lms; 1: as edm_euler.
        published: keep to the published code: its grids and labels of timesteps, its draws that are not used, its rounding in
            float32, and the weight in edm_dpm++_3m_sde that makes it of second order; options that the sampler does not take
            are ignored. Else see `pnp_irib.diffusion.samplers.grids`; and edm_heun, edm_dpm_2 and edm_dpm_2_a take one
            Euler step first where they begin at pure noise.

    Raises:
        ConfigError: there is no such sampler, an option has a value that is impossible, or the sampler does not take it.
    """

    sampler: str = "edm_dpm++_3m_sde"
    steps: int = 10
    guidance: float = 1.0
    rescale_guidance: bool = False
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 300.0
    s_noise: float = 1.0
    eta: float = 1.0
    order: int = 1
    published: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            hint = did_you_mean(str(self.sampler), SAMPLERS)
            raise ConfigError(f"no sampler {self.sampler!r:.60}. {hint}Known: {', '.join(SAMPLERS)}.")
        check_number("steps", self.steps, whole=True)
        check_number("order", self.order, whole=True)
        for name in ("guidance", "eta", *_CHURN):
            check_number(name, getattr(self, name), zero=True)
        if self.s_tmin > self.s_tmax:
            raise ConfigError(
                f"s_tmin={self.s_tmin:g}, s_tmax={self.s_tmax:g}: expected s_tmin up to s_tmax, between which noise is added."
            )
        takes = SAMPLERS[self.sampler].takes
        usual = {f.name: f.default for f in fields(self)}
        stray = [name for name in _STEP_OPTIONS if name not in takes and getattr(self, name) != usual[name]]
        if stray and not self.published:
            known = f"It takes {', '.join(takes)}." if takes else "It takes none of them."
            raise ConfigError(f"{self.sampler} does not take {stray[0]}={getattr(self, stray[0])!r}. {known}")


@dataclass(frozen=True)
class _Plan:
    """Levels as the walk sees them, and what a level means."""

    levels: tuple[Any, ...]
    alpha: Callable[[Any], float]
    timestep: Callable[[Any], float]
    scale: Callable[[Any], float]  # of a latent, over one of variance about 1


def _plan(sampling: Sampling, alphas: Numbers, prediction: Prediction) -> _Plan:
    grids.check_prediction(alphas, prediction)
    grid, published = SAMPLERS[sampling.sampler].grid, sampling.published
    if grid != "edm":
        found: tuple[Level, ...]
        if grid == "spaced":
            found = grids.spaced_levels(sampling.steps, alphas)
        else:
            levels_of = grids.ddim_levels if grid == "ddim" else grids.solver_levels
            found = levels_of(sampling.steps, alphas, published=published)
        return _Plan(found, lambda level: level.alpha, lambda level: level.timestep, lambda _: 1.0)
    sigmas = grids.edm_sigmas(sampling.steps, alphas, published=published)
    label = partial(grids.nearest_timestep, steps=sampling.steps) if published else grids.timestep_of
    return _Plan(sigmas, lambda s: 1 / (1 + s**2), lambda s: label(s, alphas=alphas), lambda s: math.sqrt(1 + s**2))


def step_count(sampling: Sampling, alphas: Numbers, prediction: Prediction) -> int:
    """How many steps there are: those asked for, but for a published ddim whose grid has more.

    Raises:
        ConfigError: see `sample`.
    """
    return len(_plan(sampling, alphas, prediction).levels) - 1


def guidance_at(sampling: Sampling, timestep: float, total: int = 1000) -> float:
    """The guidance scale at a timestep."""
    scale = sampling.guidance
    falls_too = sampling.published and sampling.sampler == "dpm++_m2" and scale != 1
    if sampling.rescale_guidance and (scale > 1 or falls_too):
        return rescaled_guidance(scale, timestep, total)
    return scale


def sample(
    sampling: Sampling,
    alphas: Numbers,
    prediction: Prediction,
    predict: Predict,
    latent: Tensor,
    noise: NoiseSource,
    *,
    kept: int | None = None,
    each: Callable[[int, Tensor, Tensor], None] | None = None,
    guide: Guide | None = None,
) -> Tensor:
    """All steps, under the caller's grad mode.

    With gradients, the network's inner values are not kept but computed again in the backward pass, call by call. Between the
    calls the latent is float32, or float64 where ``latent`` is.

    Args:
        sampling: sampler, steps and options.
        alphas: see `pnp_irib.diffusion.samplers.tables.alphas_of`, (T,).
        prediction: what the network predicts.
        predict: asks the network.
        latent: of the last timestep, of variance about 1, (N, C, H, W).
        noise: for the samplers that draw any. One that is a `PathSource` gives increments of Brownian paths too; others
            are made from normal numbers.
        kept: gradients pass through so many of the last steps; None: all.
        each: told in every step its number, the latent that the network is asked about first (by the edm samplers in units
            where the picture has weight 1, see `pnp_irib.diffusion.samplers.edm`) and the picture estimated from it.
        guide: changes every estimate of the picture.

    Returns:
        The picture's latent, (N, C, H, W).

    Raises:
        ConfigError: more steps than timesteps, a number of steps that the published code cannot take, or an eps model with
            alphas that end at 0.
    """
    plan, sampler = _plan(sampling, alphas, prediction), SAMPLERS[sampling.sampler]
    state = latent.to(torch.promote_types(latent.dtype, torch.float32))

    def denoise(x: Tensor, level: Any) -> Tensor:
        alpha, timestep = plan.alpha(level), plan.timestep(level)
        seen, scale = x / plan.scale(level), guidance_at(sampling, timestep, len(alphas))
        if torch.is_grad_enabled():
            output = cast(Tensor, checkpoint(predict, seen, timestep, scale, use_reentrant=False))
        else:
            output = predict(seen, timestep, scale)
        return picture_from(seen, output.to(seen.dtype), alpha, prediction)

    def guided(found: Tensor, level: Any, number: int) -> Tensor:
        assert guide is not None
        here, there = (plan.alpha(at) for at in plan.levels[number : number + 2])
        return guide(found, plan.timestep(level) + 1, posterior(here, there)[0])

    def draw() -> Tensor:
        return noise.normal(tuple(state.shape), device=state.device, dtype=state.dtype)

    return walk(
        _configured(sampler, sampling, alphas),
        state * plan.scale(plan.levels[0]),
        plan.levels,
        denoise,
        draw=draw,
        increment=increments(noise, draw, state),
        kept=kept,
        each=each,
        guide=guided if guide is not None else None,
    )


def _configured(sampler: Sampler, sampling: Sampling, alphas: Numbers) -> Callable[..., Tensor]:
    """The step with its options."""
    options: dict[str, Any] = {name: getattr(sampling, name) for name in sampler.takes}
    if sampler.published:
        options["published"] = sampling.published
    if sampler.euler_first:
        options["euler_first"] = not sampling.published and alphas[-1] <= 0
    if sampler.grid == "solver":
        options["first_order_end"] = sampling.steps < 10 or not sampling.published
    return partial(sampler.step, **options)
