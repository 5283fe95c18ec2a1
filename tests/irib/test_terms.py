"""The terms of the objective against values computed by hand or by others."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pnp_irib.degrade import draw, mean_channel
from pnp_irib.errors import MissingExtraError
from pnp_irib.images.similarity import ms_ssim
from pnp_irib.irib import (
    DegradeBack,
    GateSupervision,
    HQFidelity,
    HQPerceptual,
    HQStructure,
    LQReconstruction,
    Objective,
    ObjectiveConfig,
    ReferenceConfig,
    load_perceptual,
)


@pytest.mark.parametrize(("norm", "expected"), [("l1", 0.2), ("l2", 0.04)])
def test_constant_difference_is_the_same_plain_and_blurred(norm: str, expected: float) -> None:
    a = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = LQReconstruction(lambda_blur=3.0, tau=2.0, norm=norm)(a + 0.2, a)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, torch.full((2,), expected * (1 + 3.0)))


def test_blurred_comparison_forgives_noise_but_not_a_shift_of_brightness() -> None:
    generator = torch.Generator().manual_seed(1)
    flat = torch.full((1, 3, 64, 64), 0.5)
    noisy = flat + 0.1 * torch.randn(flat.shape, generator=generator)
    plain = LQReconstruction(lambda_blur=0, tau=3.0)(noisy, flat)
    both = LQReconstruction(lambda_blur=1, tau=3.0)(noisy, flat)
    # The variance left behind a Gaussian of sigma 3 is 1 / (4 pi sigma^2) of the noise.
    assert ((both - plain) / plain).item() == pytest.approx(1 / (4 * math.pi * 9), rel=0.5)


def test_hq_fidelity_is_a_mean_per_picture() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    b[1] = 0.5
    assert HQFidelity("l2")(a, b).tolist() == [0.0, 0.25]


def test_structure_agrees_with_the_index_where_there_is_one_scale() -> None:
    a, b = torch.rand(2, 2, 3, 20, 16, generator=torch.Generator().manual_seed(3)).unbind()
    b = a + 0.3 * (b - a)
    expected = [1 - ms_ssim(a[i : i + 1], b[i : i + 1]) for i in range(2)]
    assert HQStructure()(a, b).tolist() == pytest.approx(expected, abs=5e-5)  # the published weights sum to 1.0001
    assert HQStructure()(a, a).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_structure_counts_lost_contrast_at_every_scale_and_survives_bfloat16() -> None:
    picture = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(4))
    losses = [HQStructure()(0.5 + contrast * (picture - 0.5), picture).item() for contrast in (1.0, 0.8, 0.4)]
    assert losses[0] < losses[1] < losses[2]
    with torch.autocast("cpu", torch.bfloat16):
        assert HQStructure()(0.5 + 0.8 * (picture - 0.5), picture).item() == losses[1]
    flat = torch.full((1, 3, 192, 192), 0.5, requires_grad=True)
    HQStructure()(flat, picture).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_gate_supervision_ignores_unlabelled_pictures() -> None:
    logits = torch.tensor([2.0, -1.0, 5.0])
    loss = GateSupervision()(logits, torch.tensor([1.0, 0.0, float("nan")]))
    expected = F.binary_cross_entropy_with_logits(logits[:2], torch.tensor([1.0, 0.0]), reduction="none")
    torch.testing.assert_close(loss[:2], expected)
    assert loss[2] == 0
    logits = logits.requires_grad_()
    GateSupervision()(logits, torch.tensor([1.0, 0.0, float("nan")])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[2] == 0
    assert (logits.grad[:2] != 0).all()


def test_weights_multiply_and_zero_switches_off() -> None:
    a, b = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    objective = Objective(ObjectiveConfig(lq=2.0, lambda_blur=0, hq=3.0, hq_perceptual=0, gate=0))
    assert objective.lq_terms(a, b)["lq"].item() == pytest.approx(1.0)
    assert objective.hq_terms(a, b).keys() == {"hq"}
    assert objective.hq_terms(a, b)["hq"].item() == pytest.approx(1.5)
    assert objective.gate_terms(torch.zeros(1), torch.ones(1)) == {}


def test_the_blur_is_in_pixels_of_the_lq_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    estimate, reference = (torch.rand(1, 3, 24, 24, generator=generator) for _ in "ab")
    found = Objective(ObjectiveConfig(tau=1.0)).lq_terms(estimate, reference, enlargement=2)
    expected = Objective(ObjectiveConfig(tau=2.0)).lq_terms(estimate, reference)
    assert torch.equal(found["lq"], expected["lq"])


def pictures(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_every_term_passes_finite_differences_in_both_pictures(norm: str) -> None:
    a, b = (pictures(2, 3, 6, 5, seed=seed).requires_grad_() for seed in (2, 3))
    for term in (
        LQReconstruction(lambda_blur=0.7, tau=1.0, norm=norm),  # type: ignore[arg-type]
        HQFidelity(norm),  # type: ignore[arg-type]
        HQStructure(),
        HQPerceptual(lambda x, y: (x.cos() - y.cos()).square().mean((1, 2, 3))),
    ):
        assert torch.autograd.gradcheck(term, (a, b))
    logits = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: GateSupervision()(x, labels), (logits,))


def test_blurred_comparison_is_that_of_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    a, b = pictures(1, 3, 30, 26), pictures(1, 3, 30, 26, seed=3)
    blurred = gaussian_filter((a - b).numpy(), sigma=(0, 0, 1.5, 1.5), mode="reflect", truncate=6)
    inner = LQReconstruction(lambda_blur=2.0, tau=1.5)(a, b) - LQReconstruction(lambda_blur=0)(a, b)
    assert inner.item() == pytest.approx(2 * (blurred**2).mean(), rel=0.05)  # borders and lengths of the kernels differ


def test_perceptual_distance_is_taken_within_the_range() -> None:
    seen = []
    term = HQPerceptual(lambda x, y: seen.append((x, y)) or (x - y).abs().mean((1, 2, 3)))  # type: ignore[func-returns-value]
    assert term(torch.full((1, 3, 2, 2), 1.5), torch.ones(1, 3, 2, 2)).item() == 0
    assert seen[0][0].max() == 1


def test_perceptual_networks_by_name() -> None:
    distance = load_perceptual("efficientnet-lite0", torch.device("cpu"))
    a = pictures(2, 3, 64, 64, dtype=torch.float32)
    assert distance(a, a).tolist() == [0, 0]
    assert distance(a, a.flip(0)).min() > 0.1
    with pytest.raises(MissingExtraError, match=r"pnp-irib\[lpips\]"):
        load_perceptual("lpips-alex", torch.device("cpu"))


@pytest.mark.parametrize("channel", ["sample", "mean"])
def test_degrade_back_is_the_degradation_and_passes_gradients(channel: str) -> None:
    hq = pictures(2, 3, 16, 12).requires_grad_()
    back = DegradeBack(ReferenceConfig(profile="standard", channel=channel), 4)
    lq = back(hq, [5, 6])
    assert lq.shape == (2, 3, 4, 3)
    if channel == "mean":
        plans = [draw("standard", (16, 12), seed) for seed in (5, 6)]
        torch.testing.assert_close(lq, mean_channel(hq, plans))
        assert torch.autograd.gradcheck(lambda x: back(x, [5, 6]), (hq,))
    else:
        assert torch.equal((lq * 255).round() / 255, lq)
    lq.sum().backward()
    assert hq.grad is not None
    assert (hq.grad.flatten(1).abs().sum(1) > 0).all()
    assert not torch.equal(back(hq, [7, 6])[0], lq[0])
    assert torch.equal(back(hq, [7, 6])[1], lq[1])  # a draw of its own for each


def test_area_reduction_is_a_mean_of_blocks() -> None:
    hq = pictures(1, 3, 8, 4)
    lq = DegradeBack(ReferenceConfig(), 4)(hq, [0])
    torch.testing.assert_close(lq[0, :, 1, 0], hq[0, :, 4:, :4].mean((1, 2)))


def test_the_cycle_term_reaches_estimate_and_restored_picture() -> None:
    objective = Objective(ObjectiveConfig(lq=0, lq_cycle=2.0, lambda_blur=0, norm="l2"))
    estimate, restored = pictures(1, 3, 4, 4).requires_grad_(), pictures(1, 3, 16, 16, seed=4).requires_grad_()
    back = DegradeBack(ReferenceConfig(), 4)(restored, [0])
    term = objective.cycle_terms(estimate, back)["lq_cycle"]
    term.sum().backward()
    assert estimate.grad is not None
    assert restored.grad is not None
    difference = estimate.detach() - back.detach()
    torch.testing.assert_close(term.detach(), 2 * difference.square().mean((1, 2, 3)))
    torch.testing.assert_close(estimate.grad, 4 * difference / 48)
    torch.testing.assert_close(restored.grad, (-4 * difference / 48 / 16).repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_without_a_restorer_only_what_needs_none_is_left() -> None:
    config = ObjectiveConfig(lq=0.5, lq_cycle=1, hq=1, hq_structure=1, hq_perceptual=1, hq_prior=1, lq_perceptual=0.1)
    left = config.without_restorer()
    assert not left.uses_restorer
    assert (left.lq, left.lq_perceptual, left.gate) == (0.5, 0.1, config.gate)
    with pytest.raises(ValueError, match="not given"):
        Objective(config)
