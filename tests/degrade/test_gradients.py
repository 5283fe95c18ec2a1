from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnp_irib.degrade import BlurStep, Kernel, NoiseStep, Plan, ResizeStep, apply, degrade, draw, mean_channel
from pnp_irib.degrade.jpeg import jpeg
from pnp_irib.errors import InputError
from pnp_irib.profile import PRESETS

ALL = pytest.mark.parametrize("name", list(PRESETS))


@ALL
def test_values_do_not_depend_on_gradients(name: str, scene: Tensor) -> None:
    plain = degrade(scene.expand(4, -1, -1, -1), name, seeds=range(4))
    recorded = degrade(scene.expand(4, -1, -1, -1).clone().requires_grad_(), name, seeds=range(4), differentiable=True)
    assert recorded.requires_grad
    assert torch.equal(plain, recorded.detach())


@ALL
def test_every_picture_gets_a_finite_gradient(name: str, scene: Tensor) -> None:
    hq = scene.repeat(6, 1, 1, 1).requires_grad_()
    degrade(hq, name, seeds=range(6), differentiable=True).square().sum().backward()
    assert hq.grad is not None
    assert bool(hq.grad.isfinite().all())
    assert bool((hq.grad.abs().sum(dim=(1, 2, 3)) > 0.1).all())


def test_nothing_is_recorded_unless_asked_for(scene: Tensor) -> None:
    assert not degrade(scene.requires_grad_(), "light", seeds=[0]).requires_grad


@ALL
def test_gradient_predicts_the_effect_of_brightening(name: str, scene: Tensor) -> None:
    # One pixel is rounded, their mean is not: finite differences of the mean see through JPEG and 8 bits.
    hq = (0.2 + 0.6 * scene.repeat(16, 1, 1, 1)).requires_grad_()
    degrade(hq, name, seeds=range(16), differentiable=True).mean().backward()
    assert hq.grad is not None
    step = 0.03
    with torch.no_grad():
        up, down = (degrade(hq + shift, name, seeds=range(16)).mean() for shift in (step, -step))
    assert float(hq.grad.sum()) == pytest.approx(float(up - down) / (2 * step), rel=0.06)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mean_channel_against_finite_differences(seed: int) -> None:
    plan = draw("standard", (12, 9), seed)
    hq = torch.rand((1, 3, 12, 9), dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mean_channel(x, [plan]), (hq,))


def test_smooth_steps_against_finite_differences() -> None:
    steps = (
        BlurStep(Kernel("aniso", 7, sigma=(2.0, 0.7), theta=0.4)),
        ResizeStep((7, 6), "bicubic"),
        NoiseStep("gaussian", 5.0, grey=True, seed=3),
        ResizeStep((3, 2), "area"),
    )
    plan = Plan("mine", 0, (12, 9), (3, 2), steps)
    generator = torch.Generator().manual_seed(0)
    hq = (0.3 + 0.4 * torch.rand((1, 3, 12, 9), dtype=torch.float64, generator=generator)).requires_grad_()
    weights = torch.rand((1, 3, 3, 2), dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((apply(hq, [plan], differentiable=True) * weights).sum(), hq)
    smooth = Plan("mine", 0, (12, 9), (3, 2), tuple(s for s in steps if not isinstance(s, NoiseStep)))
    (expected,) = torch.autograd.grad((mean_channel(hq, [smooth]) * weights).sum(), hq)
    torch.testing.assert_close(gradient, expected)  # noise and rounding are transparent, and gradcheck covers the rest


def test_clamped_pixels_get_no_gradient() -> None:
    hq = torch.full((1, 3, 8, 8), 0.5)
    hq[..., :4] = 1.4
    hq.requires_grad_()
    apply(hq, [Plan("mine", 0, (8, 8), (8, 8), ())], differentiable=True).sum().backward()
    assert hq.grad is not None
    assert torch.equal(hq.grad[..., :4], torch.zeros(1, 3, 8, 4))
    assert torch.equal(hq.grad[..., 4:], torch.ones(1, 3, 8, 4))


@pytest.mark.parametrize("quality", [5.0, 40.0, 95.0])
def test_jpeg_passes_gradients_straight_through(quality: float, scene: Tensor) -> None:
    # Weights constant over 2 x 2 pixels lie in the range of the chroma subsampling, so nothing of them is lost.
    x = (0.4 + 0.2 * scene).requires_grad_()
    weights = (
        torch.rand((1, 3, 32, 48), generator=torch.Generator().manual_seed(1)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    coded = jpeg(x, torch.tensor([quality]))
    assert float(coded.detach().min()) > 0
    assert float(coded.detach().max()) < 1
    (coded * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weights, rtol=0, atol=1e-4)


def test_overshoot_is_accepted_only_with_gradients(scene: Tensor) -> None:
    over = scene * 2 - 0.5
    lq = degrade(over, "light", seeds=[0], differentiable=True)
    assert float(lq.max()) <= 1
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        degrade(over, "light", seeds=[0])
    with pytest.raises(InputError, match="range is"):
        degrade(over * float("nan"), "light", seeds=[0], differentiable=True)
