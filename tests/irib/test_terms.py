"""The terms of the objective against values computed by hand or by others."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pnp_irib.bench.metrics import ms_ssim
from pnp_irib.irib import (
    Objective,
    ObjectiveConfig,
    gate_supervision,
    hq_fidelity,
    hq_structure,
    lq_reconstruction,
)


@pytest.mark.parametrize(("norm", "expected"), [("l1", 0.2), ("l2", 0.04)])
def test_constant_difference_is_the_same_plain_and_blurred(norm: str, expected: float) -> None:
    a = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = lq_reconstruction(a + 0.2, a, lambda_blur=3.0, tau=2.0, norm=norm)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, torch.full((2,), expected * (1 + 3.0)))


def test_blurred_comparison_forgives_noise_but_not_a_shift_of_brightness() -> None:
    generator = torch.Generator().manual_seed(1)
    flat = torch.full((1, 3, 64, 64), 0.5)
    noisy = flat + 0.1 * torch.randn(flat.shape, generator=generator)
    plain = lq_reconstruction(noisy, flat, lambda_blur=0, tau=3.0)
    both = lq_reconstruction(noisy, flat, lambda_blur=1, tau=3.0)
    # The variance left behind a Gaussian of sigma 3 is 1 / (4 pi sigma^2) of the noise.
    assert ((both - plain) / plain).item() == pytest.approx(1 / (4 * math.pi * 9), rel=0.5)


def test_hq_fidelity_is_a_mean_per_picture() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    b[1] = 0.5
    assert hq_fidelity(a, b, norm="l2").tolist() == [0.0, 0.25]


def test_structure_agrees_with_the_index_where_there_is_one_scale() -> None:
    a, b = torch.rand(2, 2, 3, 20, 16, generator=torch.Generator().manual_seed(3)).unbind()
    b = a + 0.3 * (b - a)
    expected = [1 - ms_ssim(a[i : i + 1], b[i : i + 1]) for i in range(2)]
    assert hq_structure(a, b).tolist() == pytest.approx(expected, abs=5e-5)  # the published weights sum to 1.0001
    assert hq_structure(a, a).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_structure_counts_lost_contrast_at_every_scale_and_survives_bfloat16() -> None:
    picture = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(4))
    losses = [hq_structure(0.5 + contrast * (picture - 0.5), picture).item() for contrast in (1.0, 0.8, 0.4)]
    assert losses[0] < losses[1] < losses[2]
    with torch.autocast("cpu", torch.bfloat16):
        assert hq_structure(0.5 + 0.8 * (picture - 0.5), picture).item() == losses[1]
    flat = torch.full((1, 3, 192, 192), 0.5, requires_grad=True)
    hq_structure(flat, picture).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_gate_supervision_ignores_unlabelled_pictures() -> None:
    logits = torch.tensor([2.0, -1.0, 5.0])
    loss = gate_supervision(logits, torch.tensor([1.0, 0.0, float("nan")]))
    expected = F.binary_cross_entropy_with_logits(logits[:2], torch.tensor([1.0, 0.0]), reduction="none")
    torch.testing.assert_close(loss[:2], expected)
    assert loss[2] == 0
    logits = logits.requires_grad_()
    gate_supervision(logits, torch.tensor([1.0, 0.0, float("nan")])).sum().backward()
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


def test_terms_pass_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    a = torch.rand(1, 3, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.rand(1, 3, 6, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: hq_structure(x, b), (a,))
    assert torch.autograd.gradcheck(lambda x: lq_reconstruction(x, b, lambda_blur=0.7, tau=1.0), (a,))


def test_the_blur_is_in_pixels_of_the_lq_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    estimate, reference = (torch.rand(1, 3, 24, 24, generator=generator) for _ in "ab")
    found = Objective(ObjectiveConfig(tau=1.0)).lq_terms(estimate, reference, enlargement=2)
    expected = Objective(ObjectiveConfig(tau=2.0)).lq_terms(estimate, reference)
    assert torch.equal(found["lq"], expected["lq"])
