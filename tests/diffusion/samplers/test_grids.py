"""The mended grids, for every number of steps; the published ones are tested on the golden tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pnp_irib.diffusion.samplers.grids import (
    INFINITE_SIGMA,
    Level,
    check_prediction,
    ddim_levels,
    edm_sigmas,
    edm_timesteps,
    nearest_timestep,
    solver_levels,
    spaced_levels,
    timestep_of,
)
from pnp_irib.diffusion.samplers.tables import (
    Numbers,
    alphas_of,
    picture_from,
    scaled_linear_betas,
    sigmas_of,
    zero_snr_betas,
)
from pnp_irib.errors import ConfigError

PLAIN = alphas_of(scaled_linear_betas())
ZERO = alphas_of(zero_snr_betas(scaled_linear_betas()))
COUNTS = (*range(1, 60), 99, 100, 101, 250, 251, 333, 334, 500, 501, 750, 998, 999, 1000)


@pytest.mark.parametrize("alphas", [PLAIN, ZERO], ids=["plain", "zero"])
@pytest.mark.parametrize("grid", [spaced_levels, ddim_levels, solver_levels])
def test_levels_fall_from_the_last_timestep_to_the_picture(
    grid: Callable[[int, Numbers], tuple[Level, ...]], alphas: Numbers
) -> None:
    for count in COUNTS:
        levels = grid(count, alphas)
        assert len(levels) == count + 1
        assert [levels[0].timestep, levels[0].alpha] == pytest.approx([999, alphas[-1]], rel=1e-12)
        assert levels[-1].alpha == 1
        assert all(a.timestep > b.timestep for a, b in itertools.pairwise(levels[:-1]))
        assert all(a.alpha < b.alpha for a, b in itertools.pairwise(levels))
        for level in levels[:-1]:  # the label is that of the noise
            below, above = alphas[int(level.timestep)], alphas[min(int(level.timestep) + 1, 999)]
            assert above <= level.alpha <= below or level.timestep == int(level.timestep)
            assert level.timestep != int(level.timestep) or level.alpha == pytest.approx(below, rel=1e-12)


@pytest.mark.parametrize("alphas", [PLAIN, ZERO], ids=["plain", "zero"])
def test_sigmas_fall_from_the_last_timestep_to_0(alphas: Numbers) -> None:
    first = INFINITE_SIGMA if alphas is ZERO else sigmas_of(PLAIN)[-1]
    assert first == pytest.approx(1e4 if alphas is ZERO else 14.6146, rel=1e-5)
    for count in COUNTS:
        sigmas, timesteps = edm_sigmas(count, alphas), edm_timesteps(count)
        assert len(sigmas) == count + 1
        assert sigmas[0] == first
        assert sigmas[-1] == 0
        assert all(a > b for a, b in itertools.pairwise(sigmas))
        assert [timestep_of(sigma, alphas) for sigma in sigmas[:-1]] == pytest.approx(timesteps, abs=1e-9)


@pytest.mark.parametrize("grid", [spaced_levels, ddim_levels, solver_levels, edm_sigmas])
@pytest.mark.parametrize("count", [0, 1001])
def test_impossible_counts_are_refused(grid: Callable[[int, Numbers], object], count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} steps; expected 1 to 1000"):
        grid(count, PLAIN)


def test_a_published_ddim_that_crashes_names_the_nearest_that_does_not() -> None:
    with pytest.raises(ConfigError, match=r"timestep 1000, the last is 999\. Take 35 steps"):
        ddim_levels(36, PLAIN, published=True)
    assert len(ddim_levels(35, PLAIN, published=True)) > 35
    with pytest.raises(ConfigError, match="Take 500 steps"):
        ddim_levels(501, PLAIN, published=True)


def test_a_sigma_between_two_timesteps_has_a_timestep_between() -> None:
    sigmas = sigmas_of(PLAIN)
    for below, above, part in ((10, 11, 0.25), (600, 601, 0.5), (998, 999, 0.75)):
        between = sigmas[below] ** (1 - part) * sigmas[above] ** part
        assert timestep_of(between, PLAIN) == pytest.approx(below + part, abs=1e-9)
    assert timestep_of(20.0, PLAIN) == timestep_of(1e9, PLAIN) == 999  # churn leads above
    assert timestep_of(0.0, PLAIN) == 0
    assert 998 < timestep_of(5000.0, ZERO) < 999


def test_the_published_label_is_that_of_the_nearest_sigma_of_the_grid() -> None:
    sigmas = edm_sigmas(6, PLAIN, published=True)
    timesteps = (*edm_timesteps(6), 0)
    for sigma, timestep in zip(sigmas, timesteps, strict=True):
        assert nearest_timestep(sigma, 6, PLAIN) == timestep
    for (high, low), (earlier, later) in zip(itertools.pairwise(sigmas), itertools.pairwise(timesteps), strict=True):
        assert nearest_timestep(0.51 * high + 0.49 * low, 6, PLAIN) == earlier
        assert nearest_timestep(0.49 * high + 0.51 * low, 6, PLAIN) == later
        assert nearest_timestep((high * low) ** 0.5, 6, PLAIN) == later  # half way in log sigma is nearer to the lower end


def test_zero_snr() -> None:
    betas = zero_snr_betas(scaled_linear_betas())
    assert betas[-1] == 1
    assert betas[0] == pytest.approx(0.00085, rel=1e-12)
    assert ZERO[-1] == 0
    roots = np.sqrt(ZERO)  # an even change of what the roots were
    slope = (roots[:-1] - roots[1:]) / (np.sqrt(PLAIN)[:-1] - np.sqrt(PLAIN)[1:])
    assert slope == pytest.approx(np.full(999, slope[0]), rel=1e-9)
    assert np.isinf(sigmas_of(ZERO)[-1])
    check_prediction(ZERO, "v")
    check_prediction(PLAIN, "eps")
    with pytest.raises(ConfigError, match="zero-SNR"):
        check_prediction(ZERO, "eps")


@pytest.mark.parametrize("alpha", [0.9991, 0.3, 0.0047, 0.0])
def test_what_a_network_says_of_the_picture(alpha: float) -> None:
    picture, noise = torch.randn(2, 1, 4, 5, 6, dtype=torch.float64)
    latent = alpha**0.5 * picture + (1 - alpha) ** 0.5 * noise
    v = alpha**0.5 * noise - (1 - alpha) ** 0.5 * picture
    torch.testing.assert_close(picture_from(latent, v, alpha, "v"), picture)
    if alpha:
        torch.testing.assert_close(picture_from(latent, noise, alpha, "eps"), picture)
