"""Gaussian data, for which the best network is known, and so is what every sampler must arrive at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.samplers.brownian import BrownianPath
from pnp_irib.diffusion.samplers.sampling import SAMPLERS, Sampling, sample
from pnp_irib.diffusion.samplers.tables import alphas_of, scaled_linear_betas
from pnp_irib.noise import SeededNoise

ALPHAS = alphas_of(scaled_linear_betas())
SPREAD = 0.7  # of the data, around 0
RANDOM = ("spaced", "edm_euler_a", "edm_dpm_2_a", "edm_dpm++_2s_a", "edm_dpm++_sde", "edm_dpm++_2m_sde", "edm_dpm++_3m_sde")


def best(seen: Tensor, timestep: float, _: float) -> Tensor:
    """The noise to be expected in a latent; alpha between two timesteps as the solver takes it."""
    below = int(timestep)
    above = min(below + 1, len(ALPHAS) - 1)
    root = (1 - timestep + below) * ALPHAS[below] ** 0.5 + (timestep - below) * ALPHAS[above] ** 0.5
    alpha = root**2
    return seen * float((1 - alpha) ** 0.5 / (alpha * SPREAD**2 + 1 - alpha))


def start(*size: int) -> Tensor:
    noise = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return noise * float((ALPHAS[-1] * SPREAD**2 + 1 - ALPHAS[-1]) ** 0.5)


def spread_of(name: str, steps: int, latent: Tensor) -> Tensor:
    """Of the result, over that of the start."""
    found = sample(Sampling(name, steps), ALPHAS, "eps", best, latent, SeededNoise([3]))
    return found.std() / latent.std()


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(RANDOM)))
def test_deterministic_samplers_follow_the_flow(name: str) -> None:
    """The flow scales a latent by the ratio of the spreads; more steps come closer."""
    latent = start(4, 4)
    wanted = SPREAD / (ALPHAS[-1] * SPREAD**2 + 1 - ALPHAS[-1]) ** 0.5
    off = [abs(spread_of(name, steps, latent).item() / wanted - 1) for steps in (5, 20, 80)]
    assert off[2] < off[0]
    assert off[2] < 0.03, off


@pytest.mark.parametrize("name", RANDOM)
def test_random_samplers_arrive_at_the_spread_of_the_data(name: str) -> None:
    found = sample(Sampling(name, 100), ALPHAS, "eps", best, start(128, 128), SeededNoise([3]))
    assert found.std().item() == pytest.approx(SPREAD, rel=0.06)
    assert abs(found.mean().item()) < 0.03


def test_gradients_are_those_of_the_last_steps() -> None:
    latent = start(2, 2).requires_grad_()
    factor = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def scaled(seen: Tensor, timestep: float, guidance: float) -> Tensor:
        return factor * best(seen, timestep, guidance)

    def run(kept: int | None) -> Tensor:
        return sample(Sampling("edm_dpm++_2m", 6), ALPHAS, "eps", scaled, latent, SeededNoise([3]), kept=kept).sum()

    whole = torch.autograd.grad(run(None), (latent, factor))
    step = 1e-5
    with torch.no_grad():
        factor += step
        above = run(None)
        factor -= 2 * step
        below = run(None)
        factor += step
    assert whole[1].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-5)
    last = torch.autograd.grad(run(1), (latent, factor), allow_unused=True)
    assert last[0] is None
    assert last[1].abs() < whole[1].abs()


def test_a_brownian_path_remembers() -> None:
    generator = torch.Generator().manual_seed(7)
    path = BrownianPath(lambda: torch.randn(40_000, generator=generator, dtype=torch.float64))
    whole, first, second = path.increment(9, 1), path.increment(9, 7), path.increment(7, 1)
    torch.testing.assert_close(8**0.5 * whole, 2**0.5 * first + 6**0.5 * second)
    for one in (whole, first, second):
        assert one.std().item() == pytest.approx(1, abs=0.02)
    assert (first * second).mean().item() == pytest.approx(0, abs=0.02)
    assert (whole * first).mean().item() == pytest.approx((2 / 8) ** 0.5, abs=0.02)
    torch.testing.assert_close(path.increment(1, 9), -whole)
