"""The prior on latents, on a tiny Stable Diffusion."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.model import NoiseSchedule
from pnp_irib.errors import InputError, WeightsError
from pnp_irib.priors import LatentPrior, LatentPriorConfig, load_prior
from pnp_irib.prompts import Prompt
from tests.golden import golden_folder, missing

MODEL = golden_folder("osediff") / "model"
PLACE = str(MODEL / "sd21base")
PROMPTS = [Prompt("a cat"), None, Prompt("a boat")]


@pytest.fixture(scope="module")
def loaded() -> StableDiffusion:
    if not MODEL.is_dir():
        missing("osediff")
    return StableDiffusion.load(PLACE)


@pytest.fixture
def base(loaded: StableDiffusion) -> StableDiffusion:
    return copy.deepcopy(loaded)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def some_pictures() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", ["score-matching", "sds", "vsd"])
def test_a_batch_is_its_pictures_alone(base: StableDiffusion, kind: str) -> None:
    prior = LatentPrior(LatentPriorConfig.model_validate({"kind": kind, "guidance": 2.0}), base)
    with torch.no_grad():
        for parameter in prior.critic.parameters():
            parameter.add_(0.02)  # a critic that disagrees
    pictures = some_pictures().requires_grad_()
    together = prior(pictures, PROMPTS, generators(5, 6, 7))
    gradient = torch.autograd.grad(together.sum(), pictures)[0]
    followed = prior.follow(generators(8, 9, 10)) if kind == "vsd" else None
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    for i, seed in enumerate((5, 6, 7)):
        picture = pictures[i : i + 1].detach().requires_grad_()
        alone = prior(picture, PROMPTS[i : i + 1], generators(seed))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-5)
        scale = gradient[i].abs().max().item()
        torch.testing.assert_close(torch.autograd.grad(alone.sum(), picture)[0][0], gradient[i], rtol=0, atol=1e-2 * scale)
        if followed is not None:
            torch.testing.assert_close(prior.follow(generators(seed + 3))[0], followed[i], rtol=1e-3, atol=1e-5)


def test_first_the_timestep_then_noise_is_drawn_for_each_picture(
    base: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = LatentPrior(LatentPriorConfig(kind="score-matching", timesteps=(100, 900)), base)
    seen: list[tuple[Tensor, Tensor]] = []

    def found(latents: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        seen.append((latents, timesteps))
        return torch.zeros_like(latents)

    monkeypatch.setattr(prior, "_frozen", found)
    losses = prior(some_pictures(), None, generators(5, 6, 7))
    for i, generator in enumerate(generators(5, 6, 7)):
        assert seen[0][1][i] == torch.randint(100, 901, (1,), generator=generator)
        noise = torch.randn(seen[0][0].shape[1:], generator=generator)
        torch.testing.assert_close(losses[i], noise.square().mean())  # what a denoiser that finds nothing loses


def test_one_generator_a_picture_and_following_after_a_call(base: StableDiffusion) -> None:
    prior = LatentPrior(LatentPriorConfig(kind="vsd"), base)
    with pytest.raises(RuntimeError, match="the call before"):
        prior.follow(generators(1))
    with pytest.raises(InputError, match="2 generators for 3 pictures; give one each"):
        prior(some_pictures(), None, generators(1, 2))


def test_the_base_is_shared_where_it_is_the_same(base: StableDiffusion) -> None:
    for place in (None, PLACE, f"{PLACE}/../sd21base"):
        prior = load_prior(LatentPriorConfig(kind="sds", base=place), base=base)
        assert isinstance(prior, LatentPrior)
        assert prior.base is base
    other = load_prior(LatentPriorConfig(kind="sds", base=PLACE))
    assert isinstance(other, LatentPrior)
    assert other.base is not base
    assert other.base.fingerprint == base.fingerprint


def test_v_is_turned_into_noise(base: StableDiffusion, tmp_path: Path) -> None:
    latents, times = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([30, 700])
    words = base.embed(["a cat", ""])
    with torch.no_grad():
        v = LatentPrior(LatentPriorConfig(kind="sds"), base)._frozen(latents, times, words)
        base.noise = NoiseSchedule("v")
        noise = LatentPrior(LatentPriorConfig(kind="sds"), base)._frozen(latents, times, words)
    alphas = base.alphas[times][:, None, None, None]
    picture = (latents - (1 - alphas).sqrt() * noise) / alphas.sqrt()
    torch.testing.assert_close(alphas.sqrt() * noise - (1 - alphas).sqrt() * picture, v, atol=1e-3, rtol=1e-4)
    # A base that says so is loaded as such, and the other way round refused.
    folder = tmp_path / "sd21"
    folder.mkdir()
    for part in Path(PLACE).iterdir():
        if part.name != "scheduler":
            (folder / part.name).symlink_to(part)
    (folder / "scheduler").mkdir()
    facts = json.loads((Path(PLACE) / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(facts | {"prediction_type": "v_prediction"}))
    config = {"base": str(folder), "kind": "sds"}
    prior = load_prior(LatentPriorConfig.model_validate(config | {"prediction": "v"}))
    assert isinstance(prior, LatentPrior)
    assert prior.base.noise == NoiseSchedule("v")
    with pytest.raises(WeightsError, match="predicts 'v_prediction'; expected 'epsilon'"):
        load_prior(LatentPriorConfig.model_validate(config))
