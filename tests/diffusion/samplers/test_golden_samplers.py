"""What DiffBIR's published code recorded of its samplers, as far as it needs no network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.samplers.grids import (
    ddim_levels,
    edm_sigmas,
    edm_timesteps,
    solver_levels,
    spaced_levels,
)
from pnp_irib.diffusion.samplers.sampling import SAMPLERS, Sampling, guidance_at, sample, step_count
from pnp_irib.diffusion.samplers.steps import ddpm, half_log_snr
from pnp_irib.diffusion.samplers.tables import Prediction, alphas_of, posterior, scaled_linear_betas, zero_snr_betas
from pnp_irib.diffusion.samplers.walk import At, walk
from pnp_irib.errors import ConfigError
from tests.diffusion.samplers.recorded import STEP_OPTIONS, Recorded
from tests.golden import Case, cases_of, check, missing

PLAIN = scaled_linear_betas()
BETAS = {"v1": PLAIN, "v2": PLAIN, "v2.1": zero_snr_betas(PLAIN)}
ALPHAS = {version: alphas_of(betas) for version, betas in BETAS.items()}
# States and estimates of every step are recorded for these alone, and a step that asks the network twice cannot be followed.
FOLLOWED = {"sampler_v2_edm_euler", "sampler_v21_edm_euler", "sampler_v21_edm_dpm++_3m_sde"}
GUIDED = {"guidance_latent_mse", "guidance_latent_mse_repeat", "guidance_rgb_w_mse"}
KINDS = {"stage2": 59, "guidance_v2.0": 3, "tables": 1}


def some(kind: str) -> list[Any]:
    found = [p for p in cases_of("diffbir") if p.values[0] is None or p.values[0].kind == kind]
    assert len(found) == KINDS[kind] or found[0].values[0] is None
    return found


def sampling_of(case: Case) -> Sampling:
    """Of a case, and what of the published code it holds to."""
    given = case.options
    return Sampling(
        sampler=given["sampler"],
        steps=given["steps"],
        guidance=given["cfg_scale"],
        rescale_guidance=given["rescale_cfg"],
        published=True,
        **{name: given[name] for name in STEP_OPTIONS},
    )


def prediction_of(case: Case) -> Prediction:
    return "v" if case.options["version"] == "v2.1" else "eps"


def known_tables() -> dict[str, Tensor]:
    found: dict[str, Any] = {}
    for version in ("v2", "v2.1"):
        alphas = ALPHAS[version]
        found |= {f"f64_betas_{version}": BETAS[version], f"f64_alphas_cumprod_{version}": alphas}
        for count in (6, 10, 50):
            name = f"{version}_{count}"
            levels = spaced_levels(count, alphas)[::-1]
            there, here = [level.alpha for level in levels[:-1]], [level.alpha for level in levels[1:]]
            of_picture, of_latent, variance = zip(*map(posterior, here, there), strict=True)
            found |= {
                f"spaced_posterior_mean_coef1_{name}": of_picture,
                f"spaced_posterior_mean_coef2_{name}": of_latent,
                f"spaced_posterior_variance_{name}": variance,
                f"spaced_sqrt_alphas_cumprod_{name}": np.sqrt(here),
                f"spaced_sqrt_one_minus_alphas_cumprod_{name}": np.sqrt(1 - np.array(here)),
            }
            ddim = [level.alpha for level in ddim_levels(count, alphas, published=True)[::-1]]
            found |= {f"ddim_alphas_{name}": ddim[1:], f"ddim_alphas_prev_{name}": ddim[:-1]}
            found[f"edm_sigmas_{name}"] = edm_sigmas(count, alphas, published=True)
            solver = solver_levels(count, alphas, published=True)
            labels = np.array([level.timestep for level in solver])
            found[f"dpm_model_t_{name}"] = labels
            found[f"dpm_t_{name}"] = labels / 1000 + 1 - labels[0] / 1000  # time 1 is that of the highest label
            found[f"dpm_log_alpha_{name}"] = [0.5 * math.log(level.alpha) for level in solver]
            found[f"dpm_lambda_{name}"] = [half_log_snr(level.alpha) for level in solver]
    return {name: torch.as_tensor(np.asarray(value, dtype=np.float64)) for name, value in found.items()}


@pytest.mark.parametrize("case", some("tables"))
def test_tables(case: Case | None) -> None:
    if case is None:
        return missing("diffbir")
    check(case, known_tables())
    known = case.facts["json"]
    named = 0
    for version, count in itertools.product(("v2", "v2.1"), (6, 10, 50)):
        alphas, name = ALPHAS[version], f"{version}_{count}"
        spaced, ddim = spaced_levels(count, alphas), ddim_levels(count, alphas, published=True)
        assert [level.timestep for level in spaced[-2::-1]] == known[f"spaced_t_{name}"]
        assert [level.timestep for level in ddim[-2::-1]] == known[f"ddim_t_{name}"]
        assert [*edm_timesteps(count), 0] == known[f"edm_t_{name}"]
        named += 3
    for version in ("v2", "v2.1"):  # the highest label is (1 - 1/N) * 1000
        label = solver_levels(6, ALPHAS[version], published=True)[0].timestep
        assert round(1 / (1 - label / 1000)) == known[f"dpm_total_N_{version}"]
        named += 1
    for scale, timestep, expected in known["rescaled_cfg"]:
        sampling = Sampling("spaced", 10, guidance=scale, rescale_guidance=True, published=True)
        assert guidance_at(sampling, timestep) == pytest.approx(expected, rel=1e-12)
    for steps in known["ddim_steps_that_raise_IndexError"]:
        with pytest.raises(ConfigError, match="the published ddim would ask for timestep 10"):
            ddim_levels(steps, ALPHAS["v2"], published=True)
        assert len(ddim_levels(steps, ALPHAS["v2"])) == steps + 1
    for steps in set(range(1, 1001)) - set(known["ddim_steps_that_raise_IndexError"]):
        ddim_levels(steps, ALPHAS["v2"], published=True)
    assert named + 2 == len(known)


@pytest.mark.parametrize("case", some("stage2"))
def test_draws_are_those_recorded(case: Case | None) -> None:
    """How many draws there are, in which order, of what kind, and of which Brownian intervals; and which do nothing."""
    if case is None:
        return missing("diffbir")
    sampling, noise = sampling_of(case), Recorded(case)
    alphas, prediction = ALPHAS[case.options["version"]], prediction_of(case)
    states: dict[int, Tensor] = {}

    def each(number: int, state: Tensor, _: Tensor) -> None:
        states[number] = state

    start = case.tensors["noise_00"].float()
    found = sample(sampling, alphas, prediction, lambda seen, t, s: seen * 0.1, start, noise, each=each)
    assert noise.left == []
    assert found.isfinite().all()
    assert len(states) == step_count(sampling, alphas, prediction)
    recorded = [int(name[6:]) for name in case.outputs if name.startswith("state_")]
    if len(recorded) > 1:
        assert len(recorded) == len(states)
    if 0 in recorded and sampling.sampler != "ddim":
        expected = case.outputs["state_00"].double()
        assert (states[0] - expected).abs().max() <= case.facts["tolerance"]["state_00"]


def test_the_cases_whose_steps_can_be_followed() -> None:
    cases = [p.values[0] for p in some("stage2")]
    if cases == [None]:
        return missing("diffbir")
    complete = {c.folder.name for c in cases if {"denoised_00", "denoised_01", "latent"} <= set(c.outputs)}
    assert complete - {"sampler_v21_edm_dpm++_sde"} == FOLLOWED
    return None


@pytest.mark.parametrize("case", [p for p in some("stage2") if p.values[0] is None or p.id in FOLLOWED])
def test_every_state_follows_from_the_recorded_estimates(case: Case | None) -> None:
    if case is None:
        return missing("diffbir")
    sampling, noise, known = sampling_of(case), Recorded(case), case.tensors
    sampler = SAMPLERS[sampling.sampler]
    sigmas = edm_sigmas(sampling.steps, ALPHAS[case.options["version"]], published=True)
    names = iter(range(sampling.steps))
    states: list[Tensor] = []
    latent = walk(
        partial(sampler.step, published=True, **{name: getattr(sampling, name) for name in sampler.takes}),
        known["state_00"],
        sigmas,
        lambda x, sigma: known[f"denoised_{next(names):02d}"],
        draw=lambda: torch.zeros(()),
        increment=lambda a, b: noise.increment((1, 4, 8, 16), a, b, device=torch.device("cpu"), dtype=torch.float32),
        each=lambda number, state, _: states.append(state),
    )
    assert len(states) == sampling.steps
    for number, state in enumerate([*states, latent]):
        name = f"state_{number:02d}" if number < sampling.steps else "latent"
        # Tighter than the tolerance of the case: no network is between. The digits lost at 1e4 are the published ones.
        assert (state - known[name]).abs().max() <= 2e-6 * max(1.0, known[name].abs().max().item()), name
    return None


@pytest.mark.parametrize("case", some("guidance_v2.0"))
def test_guided_steps(case: Case | None) -> None:
    """The steps of which the estimate before and after guidance is recorded; and when guidance is asked for."""
    if case is None:
        return missing("diffbir")
    alphas, given, known = ALPHAS[case.options["version"]], case.options, case.tensors
    levels = spaced_levels(given["steps"], alphas)
    drawn = [known[d["name"]] for d in case.facts["noise"] if d["where"] == "v2.0 spaced p_sample" and d["used"]]
    for number, name in ((0, "state_01"), (5, "latent")):
        estimate = known[f"x0_after_{number:02d}"]
        at = At(levels, partial(lambda found, *_: found, estimate), partial(drawn.__getitem__, number), no_path, number)
        found = ddpm(at, known[f"state_{number:02d}"], published=number < len(drawn))
        assert (found - known[name]).abs().max() <= case.facts["tolerance"][name]

    asked: list[tuple[float, float]] = []

    def guide(picture: Tensor, t_now: float, weight: float) -> Tensor:
        if given["g_stop"] < t_now < given["g_start"]:
            asked.extend([(t_now, weight)] * given["g_repeat"])
        return picture

    sampling = Sampling("spaced", given["steps"], published=True)
    start = known["state_00"].float()
    sample(sampling, alphas, "eps", lambda seen, t, s: seen, start, Zeros(), guide=guide)
    losses = known["losses"].double()
    assert [t for t, _ in asked] == losses[:, 0].tolist()
    for number, row in ((0, 0), (5, -1)):
        if not {"latent", 1} <= {given.get("g_space"), given["g_repeat"]}:
            continue
        # The squared change is that of one gradient step on the recorded mean square, whatever the target.
        change = (known[f"x0_after_{number:02d}"] - known[f"x0_before_{number:02d}"]).double()
        rate = 2 * 3000 * given["g_scale"] / change.numel() / asked[row][1]
        assert change.square().mean().item() == pytest.approx(rate**2 * losses[row, 1].item(), rel=1e-3)
    return None


def no_path(start: float, end: float) -> Tensor:
    raise AssertionError("no sampler here follows a path")


class Zeros:
    """No noise at all."""

    def normal(self, shape: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(tuple(shape), device=device, dtype=dtype)
