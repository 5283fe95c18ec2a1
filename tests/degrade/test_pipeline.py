from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pnp_irib.degrade import BlurStep, JpegStep, Kernel, NoiseStep, Plan, ResizeStep, Step, apply, degrade, draw, mean_channel
from pnp_irib.degrade.jpeg import jpeg
from pnp_irib.errors import ConfigError, InputError
from pnp_irib.profile import PRESETS

ALL = pytest.mark.parametrize("name", list(PRESETS))


def batch(scene: Tensor) -> Tensor:
    return torch.cat([scene, scene.flip(3), 1 - scene, scene.flip(2)])


@ALL
def test_a_picture_alone_and_in_a_batch_is_the_same(name: str, scene: Tensor) -> None:
    pictures, seeds = batch(scene), [11, 5, 11, 90]
    together = degrade(pictures, name, seeds=seeds)
    assert together.shape == (4, 3, 16, 24)
    for i, seed in enumerate(seeds):
        assert torch.equal(together[i : i + 1], degrade(pictures[i : i + 1], name, seeds=[seed]))
    backwards = degrade(pictures.flip(0), name, seeds=seeds[::-1])
    assert torch.equal(together, backwards.flip(0))


@ALL
def test_seeds_decide(name: str, scene: Tensor) -> None:
    first, again, other = (degrade(scene, name, seeds=[seed]) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@ALL
def test_result_is_8_bit(name: str, scene: Tensor) -> None:
    levels = degrade(batch(scene), name, seeds=range(4)) * 255
    assert float(levels.min()) >= 0
    assert float(levels.max()) <= 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_global_randomness_is_neither_used_nor_moved(scene: Tensor) -> None:
    torch.manual_seed(1)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]  # noqa: NPY002
    first = degrade(scene, "standard", seeds=[3])
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(2)
    assert torch.equal(first, degrade(scene, "standard", seeds=[3]))


@ALL
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40), (7, 9), (33, 17), (50, 61)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_any_size(name: str, size: tuple[int, int], scale: int) -> None:
    hq = torch.rand((3, 3, *size), generator=torch.Generator().manual_seed(0))
    lq = degrade(hq, name, seeds=range(3), scale=scale)
    assert lq.shape == (3, 3, max(1, round(size[0] / scale)), max(1, round(size[1] / scale)))
    assert bool(lq.isfinite().all())


def test_the_input_is_left_alone(scene: Tensor) -> None:
    kept = scene.clone()
    degrade(scene, "extreme", seeds=[1])
    assert torch.equal(scene, kept)


def test_steps_are_applied_in_the_order_of_the_plan(scene: Tensor) -> None:
    blur, code = BlurStep(Kernel("iso", 21, sigma=(3.0, 3.0))), JpegStep(5.0)

    def run(*steps: Step) -> Tensor:
        return apply(scene, [Plan("mine", 0, (64, 96), (64, 96), steps)])

    coded_last = run(blur, code)
    recoded = (jpeg(coded_last, torch.tensor([5.0])) * 255).round() / 255
    assert float((recoded - coded_last).abs().mean()) < 0.004  # coding twice changes little
    assert float((run(code, blur) - coded_last).abs().mean()) > 0.008


def test_a_plan_fits_other_pictures(scene: Tensor) -> None:
    noise = NoiseStep("gaussian", 10.0, grey=False, seed=77)
    plan = Plan("mine", 0, (64, 96), (64, 96), (noise,))
    one, other = apply(scene, [plan]) - scene, apply(scene.flip(3), [plan]) - scene.flip(3)
    torch.testing.assert_close(one, other, rtol=0, atol=1.01 / 255)  # the same field, each rounded to 8 bits
    assert float(one.std()) * 255 == pytest.approx(10, rel=0.05)


@ALL
def test_mean_channel_is_linear_and_keeps_brightness(name: str, scene: Tensor) -> None:
    pictures = batch(scene)
    plans = [draw(name, (64, 96), seed) for seed in range(4)]
    low = mean_channel(pictures, plans)
    torch.testing.assert_close(mean_channel(0.5 * pictures + 0.1, plans), 0.5 * low + 0.1, rtol=0, atol=1e-5)
    flat = torch.full_like(pictures, 0.37)
    torch.testing.assert_close(mean_channel(flat, plans), torch.full_like(low, 0.37), rtol=0, atol=1e-5)


def test_mean_channel_is_the_mean_over_noise(scene: Tensor) -> None:
    plan = Plan(
        "mine",
        0,
        (64, 96),
        (16, 24),
        (
            BlurStep(Kernel("iso", 9, sigma=(1.5, 1.5))),
            ResizeStep((32, 48), "area"),
            NoiseStep("gaussian", 8.0, grey=False, seed=0),
            JpegStep(95.0),
            ResizeStep((16, 24), "area"),
        ),
    )
    plans = [Plan("mine", i, plan.hq_size, plan.lq_size, tuple(_reseeded(step, i) for step in plan.steps)) for i in range(200)]
    mean = apply(scene.expand(200, -1, -1, -1), plans).mean(dim=0, keepdim=True)
    reference = mean_channel(scene, [plan])
    assert float((mean - reference).abs().mean()) < 1.0 / 255
    assert float((mean - apply(scene, [plan])).abs().mean()) > 2.0 / 255


def _reseeded(step: Step, seed: int) -> Step:
    return NoiseStep(step.kind, step.amount, step.grey, seed) if isinstance(step, NoiseStep) else step


def test_autocast_does_not_touch_it(scene: Tensor) -> None:
    expected = degrade(scene, "standard", seeds=[3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degrade(scene, "standard", seeds=[3]), expected)


def test_half_precision_is_computed_in_single(scene: Tensor) -> None:
    half = scene.bfloat16()
    expected = degrade(half.float(), "light", seeds=[3]).bfloat16()
    assert torch.equal(degrade(half, "light", seeds=[3]), expected)


def test_a_profile_of_my_own(scene: Tensor) -> None:
    mine = PRESETS["light"].model_copy(update={"name": "mine"})
    expected = degrade(scene, "light", seeds=[3])
    assert torch.equal(degrade(scene, mine, seeds=[3]), expected)
    assert torch.equal(degrade(scene, mine.model_dump(), seeds=[3]), expected)


@pytest.mark.parametrize(
    ("hq", "advice"),
    [
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\); expected \(N, 3, H, W\)"),
        (torch.zeros(1, 1, 8, 8), "expected"),
        (torch.zeros(1, 3, 0, 8), "not empty"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"From 8 bits use hq.float\(\) / 255"),
        (torch.full((1, 3, 8, 8), 1.5), r"\[0, 1\]; its range is \[1.5, 1.5\]"),
        (torch.full((1, 3, 8, 8), float("nan")), "range is"),
    ],
)
def test_wrong_pictures_are_refused(hq: Tensor, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        degrade(hq, "light", seeds=[0])


def test_wrong_plans_are_refused(scene: Tensor) -> None:
    with pytest.raises(InputError, match="2 seeds for 1 pictures"):
        degrade(scene, "light", seeds=[0, 1])
    with pytest.raises(InputError, match="0 plans for 1 pictures"):
        apply(scene, [])
    with pytest.raises(InputError, match=r"draw it with size=\(64, 96\)"):
        apply(scene, [draw("light", (64, 64), 0)])
    with pytest.raises(InputError, match="one LQ size"):
        apply(batch(scene)[:2], [draw("light", (64, 96), 0), draw("light", (64, 96), 0, scale=2)])


@pytest.mark.parametrize(
    ("arguments", "error", "found"),
    [
        ({"hq": [[1.0]]}, InputError, "hq is a list"),
        ({"seeds": 1}, InputError, "seeds=1: expected a list"),
        ({"seeds": [1.5]}, InputError, r"seed=1\.5: expected a whole number"),
        ({"scale": float("nan")}, InputError, "scale=nan"),
        ({"profile": 3}, ConfigError, "3 is no degradation; expected a preset"),
        ({"profile": None}, ConfigError, "None is no degradation"),
        ({"hq": torch.full((1, 3, 8, 8), float("inf")), "differentiable": True}, InputError, "must be finite"),
    ],
)
def test_arguments_of_another_kind_are_told(arguments: dict[str, Any], error: type[Exception], found: str) -> None:
    given: dict[str, Any] = {"hq": torch.rand(1, 3, 8, 8), "profile": "light", "seeds": [1]} | arguments
    with pytest.raises(error, match=found):
        degrade(given.pop("hq"), given.pop("profile"), **given)
