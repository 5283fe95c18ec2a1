"""The losses on latents with denoisers that are linear, for which values and gradients can be written down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.distill import Denoiser, denoising_loss, score_distillation_loss, variational_score_loss

ALPHAS = torch.tensor([0.9, 0.64, 0.2])
TIMES = torch.tensor([1, 2])
SIZE = 4 * 3 * 5  # numbers of a picture's latents
GUIDANCE = 3.0


def linear(factor: float, *, hears: float = 0.0) -> Denoiser:
    """``factor`` times the latents, and ``hears`` times the mean of the embedding."""

    def denoise(noisy: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        return factor * noisy + hears * embedding.mean((1, 2)).view(-1, 1, 1, 1)

    return denoise


@pytest.fixture
def drawn() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    latents, noise = (torch.randn(2, 4, 3, 5, generator=generator) for _ in "zn")
    return {"latents": latents, "noise": noise, "timesteps": TIMES, "alphas": ALPHAS, "embedding": torch.ones(2, 7, 8)}


def roots(drawn: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Of alpha and 1 - alpha at the timesteps, and the noised latents."""
    alpha = torch.tensor([0.64, 0.2]).view(-1, 1, 1, 1)
    picture, noise = alpha.sqrt(), (1 - alpha).sqrt()
    return picture, noise, picture * drawn["latents"] + noise * drawn["noise"]


def gradient_of(loss: Tensor, latents: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), latents)[0]


def test_score_matching(drawn: dict[str, Tensor]) -> None:
    latents = drawn["latents"].requires_grad_()
    found = denoising_loss(**drawn | {"latents": latents}, denoiser=linear(0.5))
    picture, _, noisy = roots(drawn)
    residual = (0.5 * noisy - drawn["noise"]).detach()
    torch.testing.assert_close(found, residual.square().mean((1, 2, 3)))
    gradient = gradient_of(found, latents)
    torch.testing.assert_close(gradient, 2 * residual * 0.5 * picture / SIZE)
    # Finite differences, which a square has without error, however wide they are.
    step = torch.zeros_like(latents)
    step[0, 1, 2, 3] = 0.5
    ends = [denoising_loss(**drawn | {"latents": latents + sign * step}, denoiser=linear(0.5))[0] for sign in (1, -1)]
    assert (ends[0] - ends[1]).item() == pytest.approx(gradient[0, 1, 2, 3].item(), rel=1e-3)


def test_score_distillation_is_the_guided_residual_and_skips_the_denoiser(drawn: dict[str, Tensor]) -> None:
    latents = drawn["latents"].requires_grad_()
    negative = 0.25 * drawn["embedding"]
    loss = score_distillation_loss(**drawn, frozen=linear(0.5, hears=2.0), negative=negative, guidance=GUIDANCE)
    _, noise, noisy = roots(drawn)
    # 0.5 without the prompt, 2 with it: guidance leads three times as far.
    expected = noise.square() * (0.5 * noisy + 0.5 + GUIDANCE * 1.5 - drawn["noise"]).detach()
    torch.testing.assert_close(loss, 0.5 * expected.square().mean((1, 2, 3)))
    torch.testing.assert_close(gradient_of(loss, latents), expected / SIZE)


def test_variational_distillation_is_the_way_from_the_critic_to_the_frozen_one(drawn: dict[str, Tensor]) -> None:
    latents = drawn["latents"].requires_grad_()
    loss = variational_score_loss(
        **drawn, frozen=linear(0.5), critic=linear(0.2), negative=drawn["embedding"], guidance=GUIDANCE
    )
    picture, noise, noisy = (value.detach() for value in roots(drawn))
    followed, natural = ((1 - factor * noise) * noisy / picture for factor in (0.2, 0.5))
    away = (drawn["latents"].detach() - natural).abs().mean((1, 2, 3), keepdim=True)
    expected = (followed - natural) / away
    torch.testing.assert_close(loss, expected.square().mean((1, 2, 3)))
    torch.testing.assert_close(gradient_of(loss, latents), 2 * expected / SIZE)
