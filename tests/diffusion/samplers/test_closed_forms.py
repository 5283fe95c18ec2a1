"""Gaussian data, for which the best estimate is known, and so is what every sampler must arrive at, and how fast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.samplers import edm, edm_random, steps
from pnp_irib.diffusion.samplers.brownian import BrownianPath
from pnp_irib.diffusion.samplers.edm_random import ancestral
from pnp_irib.diffusion.samplers.grids import Level, edm_sigmas
from pnp_irib.diffusion.samplers.sampling import SAMPLERS, Sampling, sample
from pnp_irib.diffusion.samplers.tables import Numbers, Prediction, alphas_of, scaled_linear_betas, zero_snr_betas
from pnp_irib.diffusion.samplers.walk import At, walk
from pnp_irib.noise import SeededNoise

PLAIN = alphas_of(scaled_linear_betas())
ZERO = alphas_of(zero_snr_betas(scaled_linear_betas()))
MEAN, SPREAD = 0.3, 0.7  # of the data
RANDOM = ("spaced", "edm_euler_a", "edm_dpm_2_a", "edm_dpm++_2s_a", "edm_dpm++_sde", "edm_dpm++_2m_sde", "edm_dpm++_3m_sde")
DETERMINISTIC = tuple(sorted(set(SAMPLERS) - set(RANDOM)))


def denoise(x: Tensor, sigma: float) -> Tensor:
    """The picture to be expected in picture + sigma * noise."""
    return (x * SPREAD**2 + MEAN * sigma**2) / (SPREAD**2 + sigma**2)


def flowed(x: Tensor, sigma: float, target: float) -> Tensor:
    """Where the flow leads exactly."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + target**2) / (SPREAD**2 + sigma**2))


def no_noise(*_: float) -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def error(step: Callable[[At[float], Tensor], Tensor], count: int) -> float:
    """After so many steps, even in log sigma."""
    sigmas = [20 * (0.05 / 20) ** (k / count) for k in range(count + 1)]
    start = torch.tensor([-15.0, 0.1, 27.0], dtype=torch.float64)
    found = walk(step, start, sigmas, denoise, draw=no_noise, increment=no_noise)
    return (found - flowed(start, 20, 0.05)).abs().max().item()


def error_of_solver(count: int) -> float:
    """The same of the solver on latents of variance about 1."""
    times = [20 * (0.05 / 20) ** (k / count) for k in range(count + 1)]
    levels = [Level(0.0, 1 / (1 + sigma**2)) for sigma in times]
    start = torch.tensor([-15.0, 0.1, 27.0], dtype=torch.float64)

    def estimate(x: Tensor, level: Level) -> Tensor:
        return denoise(x / level.alpha**0.5, ((1 - level.alpha) / level.alpha) ** 0.5)

    step = partial(steps.dpm_solver_2m, first_order_end=False)
    found = walk(step, start * levels[0].alpha ** 0.5, levels, estimate, draw=no_noise, increment=no_noise)
    off: float = (found / levels[-1].alpha ** 0.5 - flowed(start, 20, 0.05)).abs().max().item()
    return off


ORDERS: list[tuple[Callable[[At[float], Tensor], Tensor], float]] = [
    (edm.euler, 1),
    (edm.heun, 2),
    (edm.dpm_2, 2),
    (partial(edm.lms, order=1), 1),
    (partial(edm.lms, order=2), 2),
    (partial(edm.lms, order=3), 3),
    (edm.dpmpp_2m, 2),
    (partial(edm_random.euler_a, eta=0.0), 1),
    (partial(edm_random.dpm_2_a, eta=0.0), 2),
    (partial(edm_random.dpmpp_2s_a, eta=0.0), 2),
    (partial(edm_random.dpmpp_sde, eta=0.0), 2),
    (partial(edm_random.dpmpp_2m_sde, eta=0.0), 2),
    (partial(edm_random.dpmpp_3m_sde, eta=0.0, published=True), 2),
]


@pytest.mark.parametrize(("step", "order"), ORDERS)
def test_errors_fall_as_fast_as_the_order_says(step: Callable[[At[float], Tensor], Tensor], order: float) -> None:
    off = [error(step, count) for count in (80, 160, 320)]
    for more, less in itertools.pairwise(off):
        assert math.log2(more / less) == pytest.approx(order, abs=0.22)


def test_the_solver_is_of_second_order() -> None:
    off = [error_of_solver(count) for count in (80, 160, 320)]
    assert [math.log2(a / b) for a, b in itertools.pairwise(off)] == pytest.approx([2, 2], abs=0.1)
    assert off[0] == pytest.approx(error(edm.dpmpp_2m, 80), rel=1e-6)  # it is the same one


def test_three_estimates_integrate_a_parabola() -> None:
    """The third-order solver is exact for a parabola in log sigma once it has three estimates, for any share of noise."""

    def parabola(_: Tensor, sigma: float) -> Tensor:
        time = -math.log(sigma)
        return torch.tensor([1.0, time, time**2], dtype=torch.float64)

    def exact(x: Tensor, sigma: float, target: float, eta: float) -> Tensor:
        rate, t, s = 1 + eta, -math.log(target), -math.log(sigma)

        def primitive(u: float) -> Tensor:  # times exp(rate * u), of rate * exp(rate * u) * (1, u, u^2)
            return torch.tensor([1.0, u - 1 / rate, u**2 - 2 * u / rate + 2 / rate**2], dtype=torch.float64)

        fade = math.exp(rate * (s - t))
        return fade * x + primitive(t) - fade * primitive(s)

    sigmas = [9.0, 5.0, 4.0, 1.7, 0.8]
    for eta in (0.0, 0.6, 1.0):
        states: list[Tensor] = []
        walk(
            partial(edm_random.dpmpp_3m_sde, eta=eta),
            torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64),
            sigmas,
            parabola,
            draw=no_noise,
            increment=no_noise,
            each=lambda number, state, _, into=states: into.append(state),  # type: ignore[misc]
        )
        torch.testing.assert_close(states[3], exact(states[2], 4.0, 1.7, eta))
        assert (states[2] - exact(states[1], 5.0, 4.0, eta))[1].abs() < 1e-12  # of two, a line
    fast, slow = partial(edm_random.dpmpp_3m_sde, eta=0.0), partial(edm_random.dpmpp_3m_sde, eta=0.0, published=True)
    assert error(fast, 40) < 0.2 * error(slow, 40)


def test_weights_of_slopes_integrate_polynomials() -> None:
    sigmas = edm_sigmas(6, ZERO)
    for number, order in ((0, 1), (1, 2), (2, 3), (3, 4), (5, 4)):
        weights = edm.lms_weights(sigmas, number, order)
        begin, end = sigmas[number : number + 2]
        for power in range(order):
            # Around the step, so that 1e4 to a power does not hide what is asked.
            found = sum(w * (sigmas[number - k] - begin) ** power for k, w in enumerate(weights))
            assert found == pytest.approx((end - begin) ** (power + 1) / (power + 1), rel=1e-9)


def test_ancestral_steps_keep_the_variance_and_are_ddpm() -> None:
    for sigma, target, eta in ((9.0, 4.0, 1.0), (9.0, 4.0, 0.3), (1e4, 9.46, 1.0), (2.0, 0.0, 1.0)):
        down, up = ancestral(sigma, target, eta)
        assert down**2 + up**2 == pytest.approx(target**2)
        rounded = ancestral(sigma, target, eta, published=True)
        assert rounded[0] == pytest.approx(down, rel=0.1 if sigma > 1e3 else 1e-5)
        assert rounded[1] == pytest.approx(up, rel=1e-6)
    assert ancestral(9.0, 4.0, 0.0) == (4.0, 0.0)
    # Euler below the target, then noise, is the posterior of DDPM.
    x, noise = torch.randn(2, 6, dtype=torch.float64)
    high, low = 3.0, 1.1
    at = At([high, low, 0.0], denoise, lambda: noise, no_noise)
    alphas = [1 / (1 + sigma**2) for sigma in (high, low)]
    levels = [Level(0.0, alpha) for alpha in (*alphas, 1.0)]
    other = At(levels, lambda z, level: denoise(z / level.alpha**0.5, high), lambda: noise, no_noise)
    torch.testing.assert_close(
        edm_random.euler_a(at, x) * alphas[1] ** 0.5, steps.ddpm(other, x * alphas[0] ** 0.5), rtol=1e-10, atol=1e-10
    )


def test_a_ddim_step_is_one_of_euler() -> None:
    x = torch.randn(6, dtype=torch.float64)
    alphas = [1 / (1 + sigma**2) for sigma in (3.0, 1.1)]
    at = At([Level(0.0, a) for a in alphas], lambda z, level: denoise(z / level.alpha**0.5, 3.0), no_noise, no_noise)
    found = steps.ddim(at, x * alphas[0] ** 0.5) / alphas[1] ** 0.5
    torch.testing.assert_close(found, edm.euler(At([3.0, 1.1], denoise, no_noise, no_noise), x))


@pytest.mark.parametrize("step", [edm.euler, edm.heun, edm.dpm_2])
def test_churn_adds_what_it_says(step: Callable[..., Tensor]) -> None:
    """Of 2 over 4 steps, a share of 0.41 at most: between 0.5 and 5 sigma rises by it, and the noise makes up for it."""
    sigmas, seen, drawn = [8.0, 4.0, 2.0, 1.0, 0.0], list[tuple[float, float]](), list[Tensor]()

    def draw() -> Tensor:
        drawn.append(torch.randn(50_000, generator=torch.Generator().manual_seed(len(drawn)), dtype=torch.float64))
        return drawn[-1]

    def told(x: Tensor, sigma: float) -> Tensor:
        seen.append((sigma, x.std().item()))
        return torch.zeros_like(x)  # then the spread of a latent is its sigma

    start = 8 * torch.randn(50_000, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    options: dict[str, Any] = {"s_churn": 2.0, "s_tmin": 0.5, "s_tmax": 5.0}
    walk(partial(step, **options), start, sigmas, told, draw=draw, increment=no_noise)
    raised = [s for s, _ in seen if any(s == pytest.approx(2**0.5 * sigma) for sigma in (4.0, 2.0, 1.0))]
    assert len(raised) >= 3
    assert len(drawn) == 3
    for sigma, spread in seen:
        assert spread == pytest.approx(sigma, rel=0.02)
    drawn.clear()
    walk(partial(step, **options, published=True), start, sigmas, told, draw=draw, increment=no_noise)
    assert len(drawn) == 4
    louder = walk(partial(step, **options, s_noise=1.5), start, [2.0, 1.0], told, draw=draw, increment=no_noise)
    assert louder.std().item() == pytest.approx(math.sqrt(8**2 + 1.5**2 * (8 - 4)) / 8**0.5, rel=0.01)
    at = At([4.0, 2.0], told, draw, no_noise)
    more, sigma = edm.churned(at, torch.zeros(50_000), s_churn=0.2, s_tmin=0, s_tmax=9, s_noise=1.5, published=False)
    assert sigma == pytest.approx(4.8)
    assert more.std().item() == pytest.approx(1.5 * math.sqrt(4.8**2 - 4**2), rel=0.02)


def model(alphas: Numbers, prediction: Prediction) -> Callable[[Tensor, float, float], Tensor]:
    """The network that knows the data; alpha between two timesteps by log sigma, but beside the last as the root goes."""
    sigmas = [((1 - a) / a) ** 0.5 if a else 1e4 for a in alphas]

    def predict(seen: Tensor, timestep: float, _: float) -> Tensor:
        below = min(int(timestep), len(alphas) - 2)
        part = timestep - below
        sigma = sigmas[below] ** (1 - part) * sigmas[below + 1] ** part
        root, rest = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        picture = denoise(seen / root, sigma)
        eps = (seen - root * picture) / rest
        found: Tensor = eps if prediction == "eps" else root * eps - rest * picture
        return found

    return predict


KINDS = [("eps", PLAIN), ("v", PLAIN), ("v", ZERO)]


def start(alphas: Numbers, *size: int) -> Tensor:
    noise = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    alpha = float(alphas[-1])
    latent: Tensor = alpha**0.5 * MEAN + (alpha * SPREAD**2 + 1 - alpha) ** 0.5 * noise
    return latent


@pytest.mark.parametrize(("prediction", "alphas"), KINDS, ids=["eps", "v", "v zero"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_follow_the_flow(name: str, prediction: Prediction, alphas: Numbers) -> None:
    latent = start(alphas, 4, 4)
    alpha = float(alphas[-1])
    spread = SPREAD / (alpha * SPREAD**2 + 1 - alpha) ** 0.5
    wanted = MEAN + (latent - alpha**0.5 * MEAN) * spread
    off = []
    for count in (5, 20, 80):
        options: dict[str, Any] = {"order": 3} if name == "edm_lms" else {}
        found = sample(
            Sampling(name, count, **options), alphas, prediction, model(alphas, prediction), latent, SeededNoise([3])
        )
        off.append((found - wanted).abs().max().item())
    assert off[2] < 0.3 * off[0]
    assert off[2] < 0.05, off


@pytest.mark.parametrize(("prediction", "alphas"), KINDS, ids=["eps", "v", "v zero"])
@pytest.mark.parametrize("name", [*RANDOM, "edm_heun"])
def test_random_samplers_arrive_at_the_data(name: str, prediction: Prediction, alphas: Numbers) -> None:
    options: dict[str, Any] = {"s_churn": 20.0} if name == "edm_heun" else {}
    count = 160 if name in ("spaced", "edm_euler_a") else 80  # of first order
    found = sample(
        Sampling(name, count, **options),
        alphas,
        prediction,
        model(alphas, prediction),
        start(alphas, 100, 100),
        SeededNoise([3]),
    )
    assert found.std().item() == pytest.approx(SPREAD, rel=0.05)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)


def spread_along_paths(sigmas: Sequence[float]) -> float:
    """Of the result of dpm++_sde on many pictures."""
    generator = torch.Generator().manual_seed(11)

    def draw() -> Tensor:
        return torch.randn(200_000, generator=generator, dtype=torch.float64)

    first = MEAN + math.sqrt(SPREAD**2 + sigmas[0] ** 2) * draw()
    found = walk(edm_random.dpmpp_sde, first, sigmas, denoise, draw=draw, increment=BrownianPath(draw).increment)
    return found.std().item()


def test_noise_of_the_middle_goes_with_that_of_the_step() -> None:
    """The spread after one step, which hangs on how the two increments that overlap go together, to 0.3 %."""
    high, low = 3.0, 1.5
    middle = math.sqrt(high * low)

    def gain(sigma: float) -> float:
        return SPREAD**2 / (SPREAD**2 + sigma**2)

    down, up = ancestral(high, middle, 1.0)
    half, half_noise = down / high + (1 - down / high) * gain(high), up
    down, up = ancestral(high, low, 1.0)
    of_start = down / high + (1 - down / high) * gain(middle) * half
    of_half = (1 - down / high) * gain(middle) * half_noise
    together = math.sqrt((high - middle) / (high - low))
    variance = of_start**2 * (SPREAD**2 + high**2) + of_half**2 + up**2 + 2 * together * of_half * up
    assert spread_along_paths([high, low]) == pytest.approx(math.sqrt(variance), rel=0.006)
