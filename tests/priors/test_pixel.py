"""The prior on pixels: its randomness, its critic, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pnp_irib.errors import ConfigError, InputError
from pnp_irib.priors import PixelDenoiser, PixelPrior, PixelPriorConfig, load_prior
from pnp_irib.prompts import Prompt

KINDS = ("score-matching", "sds", "vsd")


def config(kind: str = "vsd", **changes: object) -> PixelPriorConfig:
    return PixelPriorConfig.model_validate({"denoiser": "given", "kind": kind, **changes})


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def some_pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 9, 14, generator=torch.Generator().manual_seed(2))


def halved(noisy: Tensor, sigma: Tensor) -> Tensor:
    return 0.5 * noisy


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_pictures_alone(denoiser: PixelDenoiser, kind: str) -> None:
    prior = PixelPrior(config(kind), denoiser)
    with torch.no_grad():
        for parameter in prior.critic.parameters():
            parameter.add_(0.1)  # a critic that disagrees
    pictures = some_pictures().requires_grad_()
    together = prior(pictures, None, generators(5, 6, 7))
    gradient = torch.autograd.grad(together.sum(), pictures)[0]
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    for i, seed in enumerate((5, 6, 7)):
        picture = pictures[i : i + 1].detach().requires_grad_()
        alone = prior(picture, [Prompt("a boat")], generators(seed))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(torch.autograd.grad(alone.sum(), picture)[0][0], gradient[i], rtol=1e-3, atol=1e-7)


def test_first_sigma_then_noise_is_drawn_for_each_picture() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        seen.append((noisy, sigma))
        return noisy

    pictures = some_pictures(2)
    PixelPrior(config("sds", sigmas=(0.1, 0.4)), denoise)(pictures, None, generators(1, 2))
    noisy, sigma = seen[0]
    for i, generator in enumerate(generators(1, 2)):
        drawn = torch.rand(1, generator=generator, dtype=torch.float64).item()
        assert sigma[i].item() == pytest.approx(0.1 * 4**drawn)
        noise = torch.randn(3, 9, 14, generator=generator)
        torch.testing.assert_close(noisy[i], pictures[i] + sigma[i] * noise)


def test_sigmas_are_log_uniform_in_their_range() -> None:
    seen: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return noisy

    PixelPrior(config("sds", sigmas=(0.01, 1.0)), denoise)(torch.zeros(2000, 3, 1, 1), None, generators(*range(2000)))
    logs = seen[0].log() / math.log(10)
    assert -2 <= logs.min() < -1.99
    assert -0.01 < logs.max() <= 0
    assert logs.mean().item() == pytest.approx(-1, abs=0.04)
    assert logs.std().item() == pytest.approx(2 / math.sqrt(12), rel=0.05)


def test_one_generator_a_picture(denoiser: PixelDenoiser) -> None:
    prior = PixelPrior(config(), denoiser)
    with pytest.raises(InputError, match="2 generators for 3 pictures; give one each"):
        prior(some_pictures(), None, generators(1, 2))
    prior(some_pictures(), None, generators(1, 2, 3))
    with pytest.raises(InputError, match="1 generators for 3 pictures"):
        prior.follow(generators(1))


def test_a_young_critic_is_the_denoiser_and_leads_nowhere(denoiser: PixelDenoiser) -> None:
    prior = PixelPrior(config("vsd"), denoiser)
    pictures = some_pictures().requires_grad_()
    term = prior(pictures, None, generators(1, 2, 3))
    assert term.tolist() == [0, 0, 0]
    assert torch.autograd.grad(term.sum(), pictures)[0].abs().max() == 0


def test_a_critic_follows_and_everything_else_stays(denoiser: PixelDenoiser) -> None:
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    prior = PixelPrior(config("vsd", rank=8, alpha=16, sigmas=(0.2, 0.5)), denoiser)
    copied = {name: value.clone() for name, value in prior._follower.state_dict().items() if ".lora_" not in name}
    critic = list(prior.critic.parameters())
    assert critic
    assert all(parameter.requires_grad for parameter in critic)
    pictures = torch.full((4, 3, 12, 12), 0.9)
    pictures[:, :, ::2] = 0.1
    optimizer = torch.optim.Adam(critic, lr=2e-2)
    prior(pictures, None, generators(0, 1, 2, 3))
    losses = [prior.follow(generators(0, 1, 2, 3)).mean().item()]
    for step in range(1, 41):
        optimizer.zero_grad()
        prior.follow(generators(*range(4 * step, 4 * step + 4))).mean().backward()
        optimizer.step()
    losses.append(prior.follow(generators(0, 1, 2, 3)).mean().item())
    assert losses[1] < 0.6 * losses[0], losses
    # It sees the pictures where they are, so that the term leads away from there.
    given = pictures.clone().requires_grad_()
    assert torch.autograd.grad(prior(given, None, generators(0, 1, 2, 3)).sum(), given)[0].abs().max() > 1e-4
    assert denoiser.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    after = prior._follower.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in copied.items())
    assert all(p.requires_grad and p.grad is None for p in denoiser.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_denoiser_gets_no_gradients_and_stays_as_it_is(denoiser: PixelDenoiser, kind: str) -> None:
    denoiser.train()
    prior = PixelPrior(config(kind), denoiser)
    pictures = some_pictures(1).requires_grad_()
    prior(pictures, None, generators(1)).sum().backward()
    assert pictures.grad is not None
    assert all(p.requires_grad and p.grad is None for p in denoiser.parameters())
    assert denoiser.training


def test_a_critic_can_be_saved_and_taken_up_again(denoiser: PixelDenoiser) -> None:
    prior, other = (PixelPrior(config(), denoiser) for _ in "ab")
    with torch.no_grad():
        for parameter in prior.critic.parameters():
            parameter.add_(0.05)
    other.critic.load_state_dict(prior.critic.state_dict())
    assert torch.equal(prior(some_pictures(1), None, generators(4)), other(some_pictures(1), None, generators(4)))
    assert prior(some_pictures(1), None, generators(4)).item() > 0


def test_a_critic_needs_the_denoiser_of_this_library() -> None:
    with pytest.raises(ConfigError, match=r"vsd.*PixelDenoiser.*function.*score-matching or sds"):
        PixelPrior(config("vsd"), halved)


@pytest.mark.parametrize("kind", ["score-matching", "sds"])
def test_without_critic_nothing_is_trained(kind: str) -> None:
    prior = PixelPrior(config(kind), halved)
    assert not list(prior.critic.parameters())
    prior(some_pictures(1), None, generators(1))
    with pytest.raises(RuntimeError, match="only vsd"):
        prior.follow(generators(1))


def test_following_comes_after_a_call(denoiser: PixelDenoiser) -> None:
    with pytest.raises(RuntimeError, match="the call before"):
        PixelPrior(config(), denoiser).follow(generators(1))


def test_half_precision_pictures_are_judged_in_float32() -> None:
    pictures = some_pictures(2).bfloat16().requires_grad_()
    prior = PixelPrior(config("sds"), halved)
    term = prior(pictures, None, generators(1, 2))
    assert torch.equal(term, prior(pictures.detach().float(), None, generators(1, 2)))
    term.sum().backward()
    assert pictures.grad is not None


def test_loading_by_configuration(denoiser: PixelDenoiser, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = denoiser.save_pretrained(tmp_path_factory.mktemp("saved") / "denoiser")
    prior = load_prior(config("score-matching", denoiser=str(place)))
    expected = PixelPrior(config("score-matching"), denoiser)
    assert torch.equal(prior(some_pictures(1), None, generators(3)), expected(some_pictures(1), None, generators(3)))
