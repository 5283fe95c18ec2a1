"""Schedules of many steps: against diffusers, against closed forms, and what passes gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.schedule import KeepsLastSteps, Step, ancestral_step, leading, noised, sample, steps_of, trailing
from pnp_irib.errors import ConfigError
from pnp_irib.restorer import MultiStepRestorer

OPTIONS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def scheduler(spacing: str, count: int) -> Any:
    from diffusers import DDPMScheduler

    found: Any = DDPMScheduler(**OPTIONS, timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0)
    found.set_timesteps(count)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 20, 50, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_timesteps_are_those_of_diffusers(spacing: str, count: int) -> None:
    found = (leading if spacing == "leading" else trailing)(count)
    assert list(found) == scheduler(spacing, count).timesteps.tolist()


@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_steps_are_those_of_diffusers(spacing: str, count: int) -> None:
    other = scheduler(spacing, count)
    steps = steps_of(other.alphas_cumprod, (leading if spacing == "leading" else trailing)(count))
    generator = torch.Generator().manual_seed(0)
    latent, predicted = torch.randn(2, 2, 4, 5, 6, generator=generator)
    for step in steps:
        expected = other.step(predicted, step.timestep, latent, generator=torch.Generator().manual_seed(1))
        drawn = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
        found = ancestral_step(latent, predicted, step, drawn)
        torch.testing.assert_close(found, expected.prev_sample, atol=2e-5, rtol=1e-4)
    assert steps[-1].target == 1.0
    assert all(a.target == b.alpha for a, b in itertools.pairwise(steps))


def test_steps_of_equal_length_lead_below_the_first_timestep() -> None:
    alphas = torch.linspace(0.99, 0.01, 1000)
    steps = steps_of(alphas, trailing(3), stride=333)
    assert [s.timestep for s in steps] == [999, 666, 332]
    assert [s.target for s in steps] == [alphas[666].item(), alphas[333].item(), 1.0]


def test_more_steps_than_timesteps_are_refused() -> None:
    assert trailing(1000) == tuple(range(999, -1, -1))
    for spaced, most in ((leading, 999), (trailing, 1000)):  # there is none above the last, where the first is 1
        for count in (0, most + 1):
            with pytest.raises(ConfigError, match=f"1 to {most}"):
                spaced(count)


def test_a_perfect_denoiser_of_gaussian_data_keeps_its_moments() -> None:
    # For data N(2, 0.5^2) the best prediction of the noise is known; all steps together must sample that distribution.
    mean, spread, alphas = 2.0, 0.5, torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    steps = steps_of(alphas, trailing(200))
    generator = torch.Generator().manual_seed(0)

    def predict(latent: Tensor, timestep: int) -> Tensor:
        alpha = alphas[timestep].item()
        variance = alpha * spread**2 + 1 - alpha
        found: Tensor = (1 - alpha) ** 0.5 * (latent - alpha**0.5 * mean) / variance
        return found

    start = noised(torch.full((1, 1, 200, 200), mean), torch.randn(1, 1, 200, 200, generator=generator), steps[0].alpha)
    found = sample(start, steps, predict, lambda shape: torch.randn(shape, generator=generator))
    assert found.mean().item() == pytest.approx(mean, abs=0.02)
    assert found.std().item() == pytest.approx(spread, abs=0.03)


class Scaled(KeepsLastSteps):
    """Predicts a share of the latent; counts its calls."""

    def __init__(self) -> None:
        self.share = torch.tensor(0.3, requires_grad=True)
        self.calls = 0
        self.steps = [Step(9 - k, 0.5, 0.6) for k in range(4)]

    def run(self, latent: Tensor) -> Tensor:
        def predict(x: Tensor, timestep: int) -> Tensor:
            self.calls += 1
            return self.share * x

        zeros = torch.zeros
        return sample(latent, self.steps, predict, zeros, kept=self.kept_steps)


def by_hand(latent: Tensor, share: Tensor, kept: int) -> Tensor:
    step = Step(0, 0.5, 0.6)
    for left in range(4, 0, -1):
        latent = ancestral_step(latent, (share if left <= kept else share.detach()) * latent, step, torch.zeros(()))
        if left > kept:
            latent = latent.detach()
    return latent


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_gradients_pass_through_the_last_steps_only(kept: int) -> None:
    restorer = Scaled()
    assert isinstance(restorer, MultiStepRestorer)
    latent = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    with restorer.gradients_through(kept):
        found = restorer.run(latent)
    assert restorer.kept_steps is None
    share = torch.tensor(0.3, requires_grad=True)
    expected = by_hand(latent, share, kept)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(expected.sum(), share)
    found.sum().backward()
    torch.testing.assert_close(restorer.share.grad, gradient)
    assert restorer.calls == 4 + kept  # what was not kept is computed again


def test_without_gradients_nothing_is_computed_twice_and_steps_are_told() -> None:
    restorer, seen = Scaled(), []
    with torch.no_grad():
        sample(
            torch.ones(1, 1, 2, 2),
            restorer.steps,
            lambda x, t: 0.5 * x,
            torch.zeros,
            each=lambda number, predicted, latent: seen.append((number, latent.shape)),
        )
    assert seen == [(n, (1, 1, 2, 2)) for n in range(4)]
    for wrong in (0, 1.5):
        with pytest.raises(ConfigError, match="steps="), restorer.gradients_through(wrong):  # type: ignore[arg-type]
            pass


def test_noise_is_drawn_for_every_step_but_the_last() -> None:
    drawn: list[tuple[int, ...]] = []

    def draw(shape: tuple[int, ...]) -> Tensor:
        drawn.append(shape)
        return torch.ones(shape)

    steps = [Step(5, 0.2, 0.5), Step(3, 0.5, 1.0)]
    with torch.no_grad():
        plain = sample(torch.ones(1, 1, 1, 1), steps, lambda x, t: 0 * x, draw)
        assert len(drawn) == 1
        stray = sample(torch.ones(1, 1, 1, 1), steps, lambda x, t: 0 * x, draw, stray_noise=True)
    assert len(drawn) == 3
    assert (stray - plain).abs().max() < 1e-9
