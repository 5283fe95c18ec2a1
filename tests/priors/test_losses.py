"""The losses on Gaussian data, for which the best denoiser and every score are known.

For z ~ N(m, s^2), the best denoiser is D(x, sigma) = (s^2 x + sigma^2 m) / (s^2 + sigma^2), and the noise that it finds in
z + sigma n differs from n by (sigma (z - m) - s^2 n) / (s^2 + sigma^2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.errors import InputError
from pnp_irib.priors import GaussianDenoiser, PixelDenoiser
from pnp_irib.priors.pixel import score_distillation_loss, score_matching_loss, variational_score_loss

MEAN, SPREAD = 0.4, 0.2
SIZE = 3 * 4 * 5


def best(mean: float = MEAN, spread: float = SPREAD) -> GaussianDenoiser:
    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.view(-1, 1, 1, 1).square()
        return (spread**2 * noisy + variance * mean) / (spread**2 + variance)

    return denoise


@pytest.fixture
def drawn() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    pictures, noise = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in "zn")
    sigma = torch.tensor([0.05, 0.7], dtype=torch.float64)
    return {"pictures": MEAN + SPREAD * pictures, "noise": noise, "sigma": sigma}


def residual(pictures: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    at = sigma.view(-1, 1, 1, 1)
    return (at * (pictures - MEAN) - SPREAD**2 * noise) / (SPREAD**2 + at**2)


def value_and_gradient(loss: Callable[[Tensor], Tensor], pictures: Tensor) -> tuple[Tensor, Tensor]:
    given = pictures.clone().requires_grad_()
    found = loss(given)
    assert found.shape == (len(pictures),)
    return found.detach(), torch.autograd.grad(found.sum(), given)[0]


def test_score_matching_in_closed_form(drawn: dict[str, Tensor]) -> None:
    found, gradient = value_and_gradient(
        lambda z: score_matching_loss(z, best(), sigma=drawn["sigma"], noise=drawn["noise"]), drawn["pictures"]
    )
    expected = residual(**drawn)
    torch.testing.assert_close(found, expected.square().mean((1, 2, 3)))
    at = drawn["sigma"].view(-1, 1, 1, 1)
    torch.testing.assert_close(gradient, 2 * expected * at / (SPREAD**2 + at**2) / SIZE)


def test_score_distillation_in_closed_form(drawn: dict[str, Tensor]) -> None:
    found, gradient = value_and_gradient(
        lambda z: score_distillation_loss(z, best(), sigma=drawn["sigma"], noise=drawn["noise"]), drawn["pictures"]
    )
    expected = residual(**drawn)
    torch.testing.assert_close(found, 0.5 * expected.square().mean((1, 2, 3)))
    torch.testing.assert_close(gradient, expected / SIZE)


def test_score_distillation_is_on_average_the_score_of_the_noisy_pictures() -> None:
    sigma = torch.full((4000,), 0.3, dtype=torch.float64)
    pictures = torch.full((4000, 3, 1, 1), 0.7, dtype=torch.float64)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, gradient = value_and_gradient(lambda z: score_distillation_loss(z, best(), sigma=sigma, noise=noise), pictures)
    score = -(0.7 - MEAN) / (SPREAD**2 + 0.3**2)  # of N(MEAN, SPREAD^2 + sigma^2)
    assert 3 * gradient.mean().item() == pytest.approx(-0.3 * score, rel=0.03)


def test_variational_distillation_is_the_difference_of_two_scores(drawn: dict[str, Tensor]) -> None:
    """With a critic that knows N(0.9, s^2), it is the same everywhere, whatever the noise."""
    found, gradient = value_and_gradient(
        lambda z: variational_score_loss(z, best(), best(0.9), sigma=drawn["sigma"], noise=drawn["noise"]), drawn["pictures"]
    )
    expected = drawn["sigma"] * (0.9 - MEAN) / (SPREAD**2 + drawn["sigma"].square())
    torch.testing.assert_close(gradient, (expected / SIZE).view(-1, 1, 1, 1).expand_as(gradient))
    torch.testing.assert_close(found, 0.5 * expected.square())


def test_variational_distillation_in_closed_form_where_spreads_differ(drawn: dict[str, Tensor]) -> None:
    _, gradient = value_and_gradient(
        lambda z: variational_score_loss(z, best(), best(MEAN, 0.5), sigma=drawn["sigma"], noise=drawn["noise"]),
        drawn["pictures"],
    )
    at = drawn["sigma"].view(-1, 1, 1, 1)
    centred = drawn["pictures"] + at * drawn["noise"] - MEAN
    expected = centred * (0.25 / (0.25 + at**2) - 0.04 / (0.04 + at**2)) / at
    torch.testing.assert_close(gradient, expected / SIZE)


def test_gradients_of_score_matching_pass_finite_differences(denoiser: PixelDenoiser, drawn: dict[str, Tensor]) -> None:
    denoiser.double()
    assert torch.autograd.gradcheck(
        lambda z: score_matching_loss(z, denoiser, sigma=drawn["sigma"], noise=drawn["noise"]),
        (drawn["pictures"].clone().requires_grad_(),),
    )


class _Trap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noisy: Tensor) -> Tensor:
        return noisy.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise AssertionError("a gradient came through the denoiser")


def trap(noisy: Tensor, sigma: Tensor) -> Tensor:
    caught: Tensor = _Trap.apply(noisy)  # type: ignore[no-untyped-call]
    return 0.5 * caught


def test_distillation_passes_no_gradient_through_the_denoisers(drawn: dict[str, Tensor]) -> None:
    options = {"sigma": drawn["sigma"], "noise": drawn["noise"]}
    for loss in (
        lambda z: score_distillation_loss(z, trap, **options),
        lambda z: variational_score_loss(z, trap, trap, **options),
    ):
        _, gradient = value_and_gradient(loss, drawn["pictures"])
        assert gradient.isfinite().all()
    with pytest.raises(AssertionError, match="came through"):  # the trap closes
        value_and_gradient(lambda z: score_matching_loss(z, trap, **options), drawn["pictures"])


def test_a_denoiser_that_changes_the_shape_is_told(drawn: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=r"\(2, 1, 4, 5\).*\(2, 3, 4, 5\)"):
        score_matching_loss(
            drawn["pictures"], lambda x, _: x.mean(1, keepdim=True), sigma=drawn["sigma"], noise=drawn["noise"]
        )
