"""The one call: what the network and the hooks are told, what is drawn, gradients, and options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.samplers.grids import edm_sigmas, edm_timesteps, solver_levels, spaced_levels
from pnp_irib.diffusion.samplers.sampling import SAMPLERS, Sampling, guidance_at, sample, step_count
from pnp_irib.diffusion.samplers.tables import Prediction, alphas_of, posterior, scaled_linear_betas, zero_snr_betas
from pnp_irib.errors import ConfigError
from pnp_irib.noise import SeededNoise

PLAIN = alphas_of(scaled_linear_betas())
ZERO = alphas_of(zero_snr_betas(scaled_linear_betas()))
TWICE = ("edm_heun", "edm_dpm_2", "edm_dpm_2_a", "edm_dpm++_2s_a", "edm_dpm++_sde")  # ask the network twice a step
DRAWS = {  # in six steps, where nothing is drawn in vain
    "spaced": 5,
    "edm_euler_a": 5,
    "edm_dpm_2_a": 5,
    "edm_dpm++_2s_a": 5,
    "edm_dpm++_sde": 10,
    "edm_dpm++_2m_sde": 5,
    "edm_dpm++_3m_sde": 5,
}


class Counted(SeededNoise):
    """Noise that counts the draws."""

    def __init__(self) -> None:
        super().__init__([3])
        self.draws = 0

    def normal(self, shape: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
        self.draws += 1
        return super().normal(shape, device=device, dtype=dtype)


class Network:
    """A small network that is not linear, and remembers what it was told."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = (torch.randn(4, 4, generator=generator, dtype=torch.float64) * 0.4).to(dtype)
        self.condition = torch.randn(1, 4, 2, 3, generator=generator, dtype=torch.float64).to(dtype)
        self.told: list[tuple[float, float]] = []
        self.dtypes: set[torch.dtype] = set()

    def __call__(self, seen: Tensor, timestep: float, guidance: float) -> Tensor:
        self.told.append((timestep, guidance))
        self.dtypes.add(seen.dtype)
        mixed = torch.einsum("oc,nchw->nohw", self.weights, seen.to(self.weights.dtype))
        return torch.tanh(mixed + self.condition * (1 + timestep / 1000)) * guidance


def latent(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_number_of_steps_works(name: str, prediction: Prediction) -> None:
    alphas = ZERO if prediction == "v" else PLAIN
    for count in (1, 2, 3, 9, 10, 36):
        network, sampling = Network(), Sampling(name, count)
        steps: list[int] = []
        found = sample(
            sampling, alphas, prediction, network, latent(), Counted(), each=lambda n, *_, into=steps: into.append(n)
        )
        assert found.isfinite().all()
        assert steps == list(range(count))
        assert step_count(sampling, alphas, prediction) == count
        early = 2 if SAMPLERS[name].euler_first and alphas is ZERO else 1
        again = max(0, count - early) if name in TWICE else 0
        assert len(network.told) == count + again
        assert network.told[0] == (999, 1)
        assert all(0 <= timestep <= 999 for timestep, _ in network.told)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_gives_the_estimate(name: str) -> None:
    estimates: list[Tensor] = []
    found = sample(
        Sampling(name, 1), ZERO, "v", Network(), latent(), Counted(), each=lambda n, x, picture: estimates.append(picture)
    )
    torch.testing.assert_close(found, estimates[0])
    torch.testing.assert_close(found, -Network()(latent(), 999, 1), rtol=2e-4, atol=2e-4)  # v at pure noise is - the picture


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_what_is_used_is_drawn(name: str) -> None:
    noise = Counted()
    sample(Sampling(name, 6), PLAIN, "eps", Network(), latent(), noise)
    assert noise.draws == DRAWS.get(name, 0)
    if "eta" in SAMPLERS[name].takes:
        quiet = Counted()
        sample(Sampling(name, 6, eta=0.0), PLAIN, "eps", Network(), latent(), quiet)
        assert quiet.draws == 0


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"spaced", "ddim"}))
def test_options_have_an_effect(name: str) -> None:
    def run(**options: Any) -> Tensor:
        return sample(Sampling(name, 6, **options), PLAIN, "eps", Network(), latent(), Counted())

    usual: dict[str, Any] = {"s_churn": 3.0} if "s_churn" in SAMPLERS[name].takes else {}
    others: dict[str, Any] = {"s_churn": 1.5, "s_tmin": 2.0, "s_tmax": 3.0, "s_noise": 0.9, "eta": 0.5, "order": 3}
    for option, value in others.items():
        if option in SAMPLERS[name].takes:
            assert (run(**usual | {option: value}) - run(**usual)).abs().max() > 1e-4, option
        else:
            with pytest.raises(ConfigError, match=rf"{name.replace('+', '[+]')} does not take {option}={value}"):
                Sampling(name, 6, **{option: value})
            assert Sampling(name, 6, published=True, **{option: value}).steps == 6  # it ignores them


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no sampler 'edm_eular'.*Did you mean 'edm_euler'"):
        Sampling("edm_eular")
    for options in ({"steps": 0}, {"order": 0}, {"eta": -0.1}, {"guidance": math.nan}, {"steps": 2.5}, {"s_noise": -1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Sampling("edm_euler_a", **options)
    with pytest.raises(ConfigError, match=r"s_tmin=3, s_tmax=2\.5: expected s_tmin up to s_tmax"):
        Sampling("edm_euler", s_churn=1.0, s_tmin=3, s_tmax=2.5)
    assert Sampling("edm_euler", s_tmin=2, s_tmax=2).s_tmin == 2
    with pytest.raises(ConfigError, match="zero-SNR"):
        sample(Sampling("ddim"), ZERO, "eps", Network(), latent(), Counted())
    with pytest.raises(ConfigError, match="1001 steps; expected 1 to 1000"):
        sample(Sampling("spaced", 1001), PLAIN, "eps", Network(), latent(), Counted())


def test_guidance() -> None:
    network = Network()
    sampling = Sampling("ddim", 5, guidance=4.0)
    sample(sampling, PLAIN, "eps", network, latent(), Counted())
    assert {scale for _, scale in network.told} == {4.0}
    rising = Network()
    sampling = Sampling("ddim", 5, guidance=4.0, rescale_guidance=True)
    sample(sampling, PLAIN, "eps", rising, latent(), Counted())
    scales = [scale for _, scale in rising.told]
    assert scales[0] == 1  # the prompt alone
    assert scales == sorted(scales)
    assert scales == [guidance_at(sampling, timestep) for timestep, _ in rising.told]
    # Where it is not above 1 it stays, but for one published sampler, which does not ask.
    for name, published, changed in (("dpm++_m2", True, True), ("dpm++_m2", False, False), ("ddim", True, False)):
        low = Sampling(name, 5, guidance=0.5, rescale_guidance=True, published=published)
        assert (guidance_at(low, 100) != 0.5) == changed
    assert guidance_at(Sampling("dpm++_m2", 5, rescale_guidance=True, published=True), 100) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_hook_of_restoration_guidance(name: str) -> None:
    """It changes every estimate, and is told the timestep and the picture's weight in the next latent."""
    asked: list[tuple[float, float]] = []

    def guide(picture: Tensor, t_now: float, weight: float) -> Tensor:
        asked.append((t_now, weight))
        return torch.full_like(picture, 2.5)

    network = Network()
    seen: list[Tensor] = []
    found = sample(
        Sampling(name, 4),
        PLAIN,
        "eps",
        network,
        latent(),
        Counted(),
        guide=guide,
        each=lambda n, x, picture: seen.append(picture),
    )
    torch.testing.assert_close(found, torch.full_like(found, 2.5))  # the last step leads to the picture
    assert all((picture == 2.5).all() for picture in seen)
    assert [t for t, _ in asked] == [timestep + 1 for timestep, _ in network.told]
    assert asked[-1][1] == pytest.approx(1)
    assert all(0 < weight <= 1 + 1e-12 for _, weight in asked)
    if name == "spaced":
        levels = spaced_levels(4, PLAIN)
        assert [w for _, w in asked] == [posterior(a.alpha, b.alpha)[0] for a, b in itertools.pairwise(levels)]
    if name == "edm_euler":
        assert [t for t, _ in asked] == pytest.approx([t + 1 for t in edm_timesteps(4)])
        sigmas = edm_sigmas(4, PLAIN)
        expected = [(1 - (low / high) ** 2) / (1 + low**2) ** 0.5 for high, low in itertools.pairwise(sigmas)]
        assert [w for _, w in asked] == pytest.approx(expected)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_latent_stays_float32(name: str, dtype: torch.dtype) -> None:
    network = Network(dtype)
    found = sample(Sampling(name, 4), ZERO, "v", network, latent(torch.float16), Counted())
    assert found.dtype == torch.float32
    assert network.dtypes == {torch.float32}
    exact = sample(Sampling(name, 4), ZERO, "v", Network(), latent(torch.float16).double(), Counted())
    assert (found - exact).abs().max() < (0.02 if dtype == torch.float16 else 0.15)


def gradients(name: str, kept: int | None, count: int = 5) -> tuple[Tensor | None, ...]:
    """Of a sum of the result, by the start and by what the network is given beside it."""
    network, start = Network(), latent().requires_grad_()
    network.condition.requires_grad_()
    found = sample(Sampling(name, count), PLAIN, "eps", network, start, Counted(), kept=kept)
    if not found.requires_grad:
        return None, None
    return torch.autograd.grad((found * found.cos()).sum(), (start, network.condition), allow_unused=True)


@pytest.mark.parametrize("name", ["spaced", "edm_dpm++_3m_sde", "edm_heun"])
def test_gradients_are_right(name: str) -> None:
    found = gradients(name, None)
    generator = torch.Generator().manual_seed(4)
    for which in range(2):
        direction = torch.randn(1, 4, 2, 3, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-6, -1e-6):
            network, start = Network(), latent()
            (network.condition if which else start).add_(step * direction)
            with torch.no_grad():
                result = sample(Sampling(name, 5), PLAIN, "eps", network, start, Counted())
            values.append((result * result.cos()).sum().item())
        gradient = found[which]
        assert gradient is not None
        assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_through_the_last_steps(name: str) -> None:
    whole = gradients(name, None)
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in whole)
    same = gradients(name, 5)
    for one, other in zip(whole, same, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    start, condition = gradients(name, 2)
    assert start is None
    # The same as when the network is given a constant in the steps before.
    network, looks, border = Network(), list[Tensor](), list[int]()
    moving, constant = network.condition.clone().requires_grad_(), network.condition

    def look(seen: Tensor, timestep: float, guidance: float) -> Tensor:
        looks.append(seen)
        return network(seen, timestep, guidance)

    def predict(seen: Tensor, timestep: float, guidance: float) -> Tensor:
        network.condition = constant if any(torch.equal(seen, early) for early in looks[: border[0]]) else moving
        return network(seen, timestep, guidance)

    def each(number: int, *_: Tensor) -> None:
        if number == 3:
            border.append(len(looks) - 1)

    with torch.no_grad():
        sample(Sampling(name, 5), PLAIN, "eps", look, latent(), Counted(), each=each)
    found = sample(Sampling(name, 5), PLAIN, "eps", predict, latent(), Counted())
    (expected,) = torch.autograd.grad((found * found.cos()).sum(), moving)
    assert condition is not None
    torch.testing.assert_close(condition, expected)
    assert (condition - whole[1]).abs().max() > 1e-3  # type: ignore[operator]


def test_networks_are_asked_again_instead_of_kept() -> None:
    network, start = Network(), latent().requires_grad_()
    found = sample(Sampling("edm_dpm++_2m", 5), PLAIN, "eps", network, start, Counted(), kept=3)
    assert len(network.told) == 5
    network.condition.requires_grad_()
    assert not found.requires_grad  # the last three steps depend on a constant
    network.told.clear()
    found = sample(Sampling("edm_dpm++_2m", 5), PLAIN, "eps", network, start, Counted(), kept=3)
    found.sum().backward()
    assert [t for t, _ in network.told[5:]] == [t for t, _ in network.told[4:1:-1]]
    network.told.clear()
    with torch.no_grad():
        assert not sample(Sampling("edm_dpm++_2m", 5), PLAIN, "eps", network, start, Counted()).requires_grad
    assert len(network.told) == 5


def test_an_infinite_sigma_is_left_by_euler_for_samplers_that_would_multiply_errors() -> None:
    """Two estimates that differ by 1e-3 there would else move the latent by a multiple of it."""

    def predict(seen: Tensor, timestep: float, _: float) -> Tensor:
        return torch.full_like(seen, 1e-3 if timestep > 990 else 0.0)

    for name in ("edm_heun", "edm_dpm_2", "edm_dpm_2_a"):
        states: list[Tensor] = []

        def second(number: int, state: Tensor, _: Tensor, into: list[Tensor] = states) -> None:
            if number == 1:
                into.append(state)

        for published in (False, True):
            sample(
                Sampling(name, 6, published=published),
                ZERO,
                "v",
                predict,
                torch.zeros(1, 1, 1, 1),
                SeededNoise([1]),
                each=second,
            )
        mended, published_one = (state.item() for state in states)
        assert abs(mended) < (1e-2 if name != "edm_dpm_2_a" else 20), name
        assert abs(published_one - mended) > 0.02, name


@pytest.mark.parametrize("count", [9, 10])
def test_the_published_solver_ends_in_first_order_below_ten_steps(count: int) -> None:
    states, pictures = list[Tensor](), list[Tensor]()

    def each(_: int, state: Tensor, picture: Tensor) -> None:
        states.append(state)
        pictures.append(picture)

    found = sample(Sampling("dpm++_m2", count, published=True), PLAIN, "eps", Network(), latent(), Counted(), each=each)
    here, there = (level.alpha for level in solver_levels(count, PLAIN, published=True)[-2:])
    ratio = math.sqrt((1 - there) / (1 - here))  # first order is DDIM's step
    first = ratio * states[-1] + (there**0.5 - ratio * here**0.5) * pictures[-1]
    assert ((found - first).abs().max() < 1e-9) == (count < 10)
