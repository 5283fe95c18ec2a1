from __future__ import annotations

import collections
import functools
import itertools
import math

import pytest

from pnp_irib.degrade import BlurStep, JpegStep, NoiseStep, Plan, ResizeStep, draw
from pnp_irib.degrade.stream import Stream, generator_for
from pnp_irib.errors import ConfigError, InputError
from pnp_irib.profile import PRESETS, Order

DRAWS = 3000
HQ = (1600, 2000)  # large, so that rounding of sizes hardly moves the factors
LQ = (400, 500)
TWO_ORDERS = [name for name, profile in PRESETS.items() if len(profile.orders) == 2]


@functools.cache
def plans(name: str) -> list[Plan]:
    return [draw(name, HQ, seed) for seed in range(DRAWS)]


def halves(plan: Plan) -> tuple[list[object], list[object]]:
    """Steps of both orders: the first one ends with its JPEG."""
    end = next(i for i, step in enumerate(plan.steps) if isinstance(step, JpegStep)) + 1
    return list(plan.steps[:end]), list(plan.steps[end:])


def near(count: int, p: float, n: int) -> bool:
    return abs(count - n * p) <= 4.5 * math.sqrt(n * p * (1 - p)) + 1e-9


def fills(values: list[float], low: float, high: float, *, margin: float = 0.02) -> bool:
    """All inside, and the ends nearly reached."""
    span = (high - low) * margin
    return low - 1e-9 <= min(values) <= low + span and high - span <= max(values) <= high + 1e-9


def check_order(order: Order, steps: list[list[object]], reference: tuple[int, int]) -> None:
    """One order's steps (its blur, resize, noise, JPEG; no tail) of every draw against the profile."""
    blurs = [step.kernel for picture in steps for step in picture if isinstance(step, BlurStep)]
    assert near(len(blurs), order.blur.p, DRAWS)
    assert {kernel.size for kernel in blurs} == set(range(order.blur.size[0], order.blur.size[1] + 1, 2))
    smooth = [kernel for kernel in blurs if kernel.family != "sinc"]
    assert near(len(blurs) - len(smooth), order.blur.sinc.p if order.blur.sinc else 0, len(blurs))
    families = collections.Counter(kernel.family for kernel in smooth)
    for family, p in order.blur.families.items():
        assert near(families[family], p, len(smooth)), family
    assert fills([kernel.sigma[0] for kernel in smooth], *order.blur.sigma)
    assert sum(kernel.sigma[0] for kernel in smooth) / len(smooth) == pytest.approx(sum(order.blur.sigma) / 2, rel=0.04)
    for kernel in smooth:
        assert kernel.family.endswith("aniso") or (kernel.sigma[0] == kernel.sigma[1] and kernel.theta == 0)
    assert fills([kernel.theta for kernel in smooth if kernel.family.endswith("aniso")], -math.pi, math.pi)
    assert fills([kernel.sigma[1] for kernel in smooth if kernel.family == "aniso"], *order.blur.sigma, margin=0.05)
    for prefix, bounds in (("generalized", order.blur.beta_generalized), ("plateau", order.blur.beta_plateau)):
        betas = [kernel.beta for kernel in smooth if kernel.family.startswith(prefix)]
        if betas:
            assert fills(betas, *bounds, margin=0.05)
            assert near(sum(beta <= 1 for beta in betas), 0.5, len(betas))
    for small in (True, False):
        cutoffs = [k.cutoff for k in blurs if k.family == "sinc" and (k.size < 13) == small]
        if cutoffs and order.blur.sinc:
            bounds = (order.blur.sinc.cutoff_small if small else None) or order.blur.sinc.cutoff
            assert fills(cutoffs, *bounds, margin=0.15)

    resizes = [next(s for s in picture if isinstance(s, ResizeStep)) for picture in steps]
    factors = [step.size[0] / reference[0] for step in resizes]
    slack = 1 / reference[0]
    assert all(order.resize.factor[0] - slack <= f <= order.resize.factor[1] for f in factors)
    assert min(factors) <= order.resize.factor[0] * 1.05 + slack
    assert all(abs(s.size[1] / reference[1] - f) <= slack for s, f in zip(resizes, factors, strict=True))
    if order.resize.p_keep or order.resize.p_up:
        kept = sum(s.size == reference for s in resizes)
        ups = sum(f > 1 for f in factors)
        assert near(ups, order.resize.p_up, DRAWS) or abs(ups / DRAWS - order.resize.p_up) < 0.03
        assert abs(kept / DRAWS - order.resize.p_keep) < 0.03
    modes = collections.Counter(step.mode for step in resizes)
    assert set(modes) == set(order.resize.modes)
    assert all(near(count, 1 / len(order.resize.modes), DRAWS) for count in modes.values())

    noises = [step for picture in steps for step in picture if isinstance(step, NoiseStep)]
    assert len(noises) == DRAWS
    assert len({step.seed for step in noises}) == DRAWS
    gaussian = [step.amount for step in noises if step.kind == "gaussian"]
    poisson = [step.amount for step in noises if step.kind == "poisson"]
    assert near(len(gaussian), order.noise.p_gaussian, DRAWS)
    assert near(sum(step.grey for step in noises), order.noise.p_grey, DRAWS)
    assert fills(gaussian, *order.noise.sigma)
    if poisson:
        assert fills(poisson, *order.noise.poisson_scale)

    qualities = [step.quality for picture in steps for step in picture if isinstance(step, JpegStep)]
    assert len(qualities) == DRAWS
    assert fills(qualities, *order.jpeg)
    assert all(q.is_integer() for q in qualities) == order.jpeg_whole


@pytest.mark.parametrize("name", list(PRESETS))
def test_first_order_draws_what_the_profile_says(name: str) -> None:
    check_order(PRESETS[name].orders[0], [halves(plan)[0] for plan in plans(name)], HQ)


@pytest.mark.parametrize("name", TWO_ORDERS)
def test_second_order_draws_what_the_profile_says(name: str) -> None:
    order, final = PRESETS[name].orders[1], PRESETS[name].final_sinc
    assert final is not None
    bodies, sincs, lq_first = [], [], 0
    modes: collections.Counter[str] = collections.Counter()
    for plan in plans(name):
        second = halves(plan)[1]
        noise = next(i for i, step in enumerate(second) if isinstance(step, NoiseStep))
        body, tail = second[: noise + 1], second[noise + 1 :]
        assert sum(isinstance(step, ResizeStep) for step in tail) == 1
        coded = next(i for i, step in enumerate(tail) if isinstance(step, JpegStep))
        resized = next(i for i, step in enumerate(tail) if isinstance(step, ResizeStep))
        lq_first += resized < coded
        assert coded in (0, len(tail) - 1)
        final_resize = tail[resized]
        assert isinstance(final_resize, ResizeStep)
        assert final_resize.size == LQ == plan.lq_size
        modes[final_resize.mode] += 1
        filters = [step.kernel for step in tail if isinstance(step, BlurStep)]
        sincs += filters
        if filters:  # directly after the resize to the LQ grid
            assert isinstance(tail[resized + 1], BlurStep)
        bodies.append([*body, tail[coded]])
    check_order(order, bodies, LQ)
    assert near(lq_first, 0.5, DRAWS)
    assert set(modes) == {"area", "bilinear", "bicubic"}
    assert all(near(count, 1 / 3, DRAWS) for count in modes.values())
    assert near(len(sincs), final.p, DRAWS)
    assert {kernel.family for kernel in sincs} == {"sinc"}
    assert {kernel.size for kernel in sincs} == set(range(7, 22, 2))
    assert fills([kernel.cutoff for kernel in sincs], *final.cutoff)


@pytest.mark.parametrize(("name", "after"), [("light", False), ("standard", False), ("extreme", True), ("stress", True)])
def test_place_of_the_second_blur(name: str, after: bool) -> None:
    for plan in plans(name)[:200]:
        second = halves(plan)[1]
        noise = next(i for i, step in enumerate(second) if isinstance(step, NoiseStep))
        kinds = [type(step) for step in second[:noise]]
        assert kinds in ([ResizeStep, BlurStep] if after else [BlurStep, ResizeStep], [ResizeStep])


def test_codeformer_divides_uniformly_and_returns_to_the_hq_grid() -> None:
    divisors = []
    for plan in plans("codeformer"):
        blur, down, noise, coded, back, to_lq = plan.steps
        assert isinstance(blur, BlurStep)
        assert blur.kernel.size == 41
        assert isinstance(down, ResizeStep)
        divisors.append(HQ[0] / down.size[0])
        assert isinstance(noise, NoiseStep)
        assert isinstance(coded, JpegStep)
        assert (back, to_lq) == (ResizeStep(HQ, "bilinear"), ResizeStep(LQ, "area"))
    assert sum(divisors) / DRAWS == pytest.approx(6.5, abs=0.2)


def test_a_plan_is_reproducible_and_readable() -> None:
    assert draw("standard", (64, 64), 7) == draw("standard", (64, 64), 7)
    assert draw("standard", (64, 64), 7) != draw("standard", (64, 64), 8)
    text = str(draw("standard", (64, 96), 7))
    assert text.startswith("standard/7: blur ")
    assert text.count("jpeg") == 2
    assert "24x16" in text


@pytest.mark.parametrize(("size", "scale", "expected"), [((1, 1), 4, (1, 1)), ((255, 254), 4, (64, 64)), ((10, 7), 2, (5, 4))])
def test_lq_size_is_rounded(size: tuple[int, int], scale: int, expected: tuple[int, int]) -> None:
    assert draw("light", size, 0, scale=scale).lq_size == expected


def test_all_64_bits_of_a_seed_count() -> None:
    states = {generator_for(seed).get_state().numpy().tobytes() for seed in (0, 1, 1 << 32, (1 << 32) + 1, (1 << 64) - 1)}
    assert len(states) == 5


def test_neighbouring_seeds_are_unrelated() -> None:
    firsts = [Stream(seed).uniform(0, 1) for seed in range(4000)]
    mean = sum(firsts) / len(firsts)
    assert mean == pytest.approx(0.5, abs=0.02)
    lagged = sum((a - mean) * (b - mean) for a, b in itertools.pairwise(firsts)) / len(firsts)
    assert abs(lagged) * 12 < 0.06


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'extreme'"):
        draw("extrem", (8, 8), 0)
    with pytest.raises(InputError, match=r"seed=-1: .* from 0"):
        draw("light", (8, 8), -1)
    with pytest.raises(InputError, match="scale=0: must be 1 or more"):
        draw("light", (8, 8), 0, scale=0)
    with pytest.raises(InputError, match="at least 1 pixel"):
        draw("light", (8, 0), 0)
