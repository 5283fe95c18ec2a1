"""Restoration guidance against what the published code recorded, and for itself."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.offload import vae_bytes
from pnp_irib.diffusion.samplers.sampling import SAMPLERS, Guide, Sampling, sample
from pnp_irib.diffusion.text_cleaning import cleaned
from pnp_irib.diffusion.vae import decode, encode
from pnp_irib.errors import ConfigError
from pnp_irib.noise import ReplayedNoise, SeededNoise
from pnp_irib_diffbir.guidance import RestorationGuidance, flatness, guide
from tests.adapters.diffbir.models import build
from tests.golden import Case, cases_of, check

LATENT_SCALE = 0.18215


@pytest.fixture(scope="module")
def base() -> StableDiffusion:
    return build("v2")[0]


def target_of(case: Case) -> Tensor:
    """The cleaned picture, which needs no padding here."""
    return case.tensors["cond_img_u8"].permute(2, 0, 1)[None].float() / 255 * 2 - 1


def guidance_of(case: Case) -> RestorationGuidance:
    return RestorationGuidance(**{name.removeprefix("g_"): v for name, v in case.options.items() if name.startswith("g_")})


def recorded(case: Case) -> ReplayedNoise:
    """Draws in turn; one without effect is infinite, and must have none here."""
    drawn = case.facts["noise"]
    return ReplayedNoise([case.tensors[d["name"]].float() if d["used"] else torch.full(d["shape"], math.inf) for d in drawn])


def guided_cases() -> list[Any]:
    found = [p for p in cases_of("diffbir") if p.values[0] is None or p.values[0].kind == "guidance_v2.0"]
    assert len(found) in (1, 3)
    return found


@pytest.mark.parametrize("case", guided_cases())
@torch.no_grad()
def test_guided_sampling_is_the_published_one(case: Case) -> None:
    base, networks = build(case.options["version"])
    target, noise = target_of(case), recorded(case)
    condition = LATENT_SCALE * encode(base.vae, target)[0]
    text, negative = base.embed([cleaned(case.options[name]) for name in ("pos_prompt", "neg_prompt")]).split(1)
    found: dict[str, Tensor] = {}
    estimates: list[Tensor] = []
    losses: list[list[float]] = []

    def predict(seen: Tensor, timestep: float, scale: float) -> Tensor:
        along, without = (networks.forward(seen, timestep, words, condition) for words in (text, negative))
        return without + scale * (along - without)

    better = guide(
        guidance_of(case), base, target, noise, published=True, each=lambda t, loss: losses.append([t, loss.item()])
    )

    def watched(estimate: Tensor, t_now: float, weight: float) -> Tensor:
        estimates.append(estimate)
        return better(estimate, t_now, weight)

    def each(number: int, state: Tensor, estimate: Tensor) -> None:
        found[f"state_{number:02d}"], found[f"x0_after_{number:02d}"] = state, estimate

    sampling = Sampling("spaced", case.options["steps"], guidance=case.options["cfg_scale"], published=True)
    start = case.tensors["x_T"].float()
    found["latent"] = sample(sampling, base.alphas.double().numpy(), "eps", predict, start, noise, each=each, guide=watched)
    found |= {f"x0_before_{number:02d}": estimate for number, estimate in enumerate(estimates)}
    check(case, found | {"losses": torch.tensor(losses), "weight_map": flatness(target)})
    assert noise.left == 0
    # Closer than the tolerances, which are for losses of latents, and for estimates that guidance in rgb hardly changes.
    torch.testing.assert_close(torch.tensor(losses), case.tensors["losses"].float(), rtol=1e-3, atol=0)
    for number in (0, 5):
        change, known = (of[f"x0_after_{number:02d}"] - of[f"x0_before_{number:02d}"] for of in (found, case.tensors))
        assert (change - known).abs().max() <= 3e-5 + 1e-4 * known.abs().max()


def test_flatness_by_hand() -> None:
    """Grey is 0.2989 red, 0.587 green and 0.114 blue, each from 0 to 1 where the picture is from -1 to 1."""
    pictures = torch.full((4, 3, 6, 8), 0.3)
    pictures[0, :, :, 4:] += 0.1  # an edge between the third and the fourth column of blocks, up to the border
    pictures[1, 0, 2:] += 0.4  # one of red alone, lying down
    pictures[2, 1, 2, 2] += 0.2  # a green point
    expected = torch.ones(4, 3, 4)
    edge, red, point = 4 * 0.9999 * 0.05, 4 * 0.2989 * 0.2, 0.587 * 0.1
    expected[0, :, 1:3] = 1 - math.tanh(2 * edge)
    expected[1, :2] = 1 - math.tanh(2 * red)
    straight, across = 2 * point, math.sqrt(2) * point  # beside the point, and at its corners
    expected[2, 1, 1] = 1 - math.tanh(2 * straight + across)
    expected[2, 0, 1] = expected[2, 1, 0] = 1 - math.tanh(straight + across)
    expected[2, 0, 0] = 1 - math.tanh(across)
    blocks = expected.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    torch.testing.assert_close(flatness(pictures), blocks, rtol=0, atol=1e-6)


def some_pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_latents(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOTHING = ReplayedNoise([])  # nothing may be drawn


def test_in_latent_space_the_rest_of_the_way_shrinks(base: StableDiffusion) -> None:
    """The gradient of a mean square: what is left of the way to the target is a fixed share at every repeat."""
    target, estimate = some_pictures(2, 3, 16, 24), some_latents(2, 4, 2, 3)
    with torch.no_grad():
        known = LATENT_SCALE * encode(base.vae, target)[0]
    left = 1 - 2 * 3000 * 0.0004 / (4 * 2 * 3) / 0.25
    for repeat in (1, 3):
        heard: list[tuple[float, Tensor]] = []
        guidance = RestorationGuidance(0.0004, "mse", "latent", repeat=repeat)
        better = guide(guidance, base, target, NOTHING, published=False, each=lambda *told, to=heard: to.append(told))
        found = better(estimate, 7.5, 0.25)
        torch.testing.assert_close(found - known, left**repeat * (estimate - known), rtol=1e-4, atol=1e-5)
        assert [t for t, _ in heard] == [7.5] * repeat
        losses = [(left**k * (estimate - known)).square().mean((1, 2, 3)) for k in range(repeat)]
        torch.testing.assert_close(torch.stack([loss for _, loss in heard]), torch.stack(losses), rtol=1e-4, atol=0)


def of_vae(base: StableDiffusion, dtype: torch.dtype) -> StableDiffusion:
    """The base with a VAE of its own."""
    return dataclasses.replace(base, vae=copy.deepcopy(base.vae).to(dtype))


@pytest.mark.parametrize("loss", ["mse", "w_mse"])
@torch.no_grad()
def test_in_rgb_the_pull_is_the_gradient(base: StableDiffusion, loss: Any) -> None:
    wide = of_vae(base, torch.float64)
    target, estimate = some_pictures(2, 3, 16, 24).double(), some_latents(2, 4, 2, 3).double()
    weights = flatness(target) if loss == "w_mse" else torch.ones_like(target)

    def missed(latents: Tensor) -> Tensor:
        off = decode(wide.vae, latents / LATENT_SCALE) - target
        return (weights * off.square()).mean((1, 2, 3))

    heard: list[Tensor] = []
    guidance = RestorationGuidance(0.002, loss)
    better = guide(guidance, wide, target, NOTHING, published=True, each=lambda _, found: heard.append(found))
    pull = better(estimate, 1000, 0.25) - estimate
    torch.testing.assert_close(heard, [missed(estimate)])
    for seed in (2, 3):
        along = some_latents(2, 4, 2, 3, seed=seed).double()
        slope = (missed(estimate + 1e-6 * along) - missed(estimate - 1e-6 * along)) / 2e-6
        torch.testing.assert_close((pull * along).sum((1, 2, 3)), -3000 * 0.002 / 0.25 * slope, rtol=1e-5, atol=1e-8)


SPACES: list[tuple[Any, Any]] = [("mse", "latent"), ("w_mse", "rgb")]


@pytest.mark.parametrize(("loss", "space"), SPACES)
def test_where_it_acts(base: StableDiffusion, loss: Any, space: Any) -> None:
    target, estimate = some_pictures(1, 3, 16, 16), some_latents(1, 4, 2, 2)

    def better(scale: float, start: float = 1001, stop: float = -1) -> Guide:
        return guide(RestorationGuidance(scale, loss, space, start, stop), base, target, NOTHING, published=False)

    usual, within = better(0.01), better(0.01, 700, 200.5)
    assert all(within(estimate, t_now, 0.5) is estimate for t_now in (1000, 700, 200.5, 1))
    pulled = usual(estimate, 0, 0.5)
    assert not torch.equal(pulled, estimate)
    assert all(torch.equal(of(estimate, t_now, 0.5), pulled) for of, t_now in ((usual, 1000), (within, 699.5), (within, 201)))
    assert torch.equal(better(0)(estimate, 500, 0.5), estimate)


@pytest.mark.parametrize(("loss", "space"), SPACES)
def test_it_works_under_every_grad_mode_and_leaves_no_gradient(base: StableDiffusion, loss: Any, space: Any) -> None:
    own = of_vae(base, torch.float32)
    own.vae.requires_grad_(True)
    target, estimate = some_pictures(1, 3, 16, 16).requires_grad_(), some_latents(1, 4, 2, 2).requires_grad_()

    told: list[Tensor] = []

    def found() -> Tensor:
        guidance = RestorationGuidance(0.01, loss, space, repeat=2)
        better = guide(guidance, own, target, NOTHING, published=False, each=lambda _, losses: told.append(losses))
        return better(estimate * 2, 500, 0.5)

    with torch.no_grad():
        plain = found()
    with torch.inference_mode():
        torch.testing.assert_close(found(), plain)
    recorded = found()
    assert not any(value.requires_grad for value in (plain, *told))
    torch.testing.assert_close(recorded, plain)
    recorded.sum().backward()
    assert estimate.grad is not None
    assert torch.equal(estimate.grad, torch.full_like(estimate, 2))
    assert all(value.grad is None for value in (target, *own.vae.parameters()))


@torch.no_grad()
def test_estimates_keep_their_digits_where_the_vae_has_fewer(base: StableDiffusion) -> None:
    target, estimate = some_pictures(1, 3, 32, 32), some_latents(1, 4, 4, 4)
    for loss, space in SPACES:
        guidance = RestorationGuidance(0.01, loss, space)
        pulls = [
            guide(guidance, model, target, NOTHING, published=False)(estimate, 500, 0.5) - estimate
            for model in (base, of_vae(base, torch.float16))
        ]
        assert pulls[1].dtype == torch.float32
        assert torch.cosine_similarity(pulls[0].flatten(), pulls[1].flatten(), 0) > 0.99


@torch.no_grad()
def test_the_vae_takes_its_turn(base: StableDiffusion) -> None:
    target, estimate = some_pictures(1, 3, 16, 16), some_latents(1, 4, 2, 2)
    weights, strips = sum(p.nbytes for p in base.vae.parameters()), vae_bytes(base.vae, 256, 4, decoder=True)
    limited = dataclasses.replace(base)
    limited.limit_memory(weights + 10 * strips, torch.device("cpu"), other=torch.nn.Linear(4, 4))
    assert limited.offload is not None
    with limited.stage("other"):
        pass
    better = guide(RestorationGuidance(0.01, "mse", "latent"), limited, target, NOTHING, published=False)
    assert limited.offload.present[-1] == "vae"
    with limited.stage("other"):
        better(estimate, 500, 0.5)
    assert limited.offload.present[-1] == "other"  # the latent of the target is at hand
    better = guide(RestorationGuidance(0.01), limited, target, NOTHING, published=False)
    assert limited.offload.present[-1] == "other"
    with pytest.warns(UserWarning, match="vae needs about"):
        better(estimate, 500, 0.5)
    assert limited.offload.present == ("vae",)


@pytest.mark.parametrize("name", SAMPLERS)
@torch.no_grad()
def test_with_every_sampler_the_picture_comes_closer(name: str) -> None:
    base = build("v2.1")[0]
    target, start = some_pictures(2, 3, 16, 16), some_latents(2, 4, 2, 2)
    better = guide(RestorationGuidance(0.0002, "mse", "latent"), base, target, NOTHING, published=False)
    known = LATENT_SCALE * encode(base.vae, target)[0]

    def distance(guided: bool) -> Tensor:
        found = sample(
            Sampling(name, 4),
            base.alphas.double().numpy(),
            "v",
            lambda seen, timestep, scale: 0.1 * seen,
            start,
            SeededNoise([0, 1]),
            guide=better if guided else None,
        )
        return (found - known).square().mean((1, 2, 3)).sqrt()

    assert (distance(True) < 0.9 * distance(False)).all()


def test_what_is_impossible_is_told() -> None:
    for given, message in (
        ({"loss": "l1"}, r"^loss='l1'; expected mse or w_mse\.$"),
        ({"space": "pixel"}, r"^space='pixel'; expected latent or rgb\.$"),
        ({"scale": -1}, "^scale=-1: expected a number from 0"),
        ({"scale": math.nan}, "^scale=nan: "),
        ({"repeat": 0}, "^repeat=0: expected a whole number above 0"),
        ({"repeat": 1.5}, "^repeat=1.5: "),
        ({"start": 5, "stop": 5}, "^start=5, stop=5: expected two numbers, start above stop; guidance acts at the timesteps"),
        ({"start": math.nan}, "^start=nan, stop=-1: expected two"),
        ({"stop": "0"}, "^start=1001, stop='0': expected two"),
        ({"stop": False}, "^start=1001, stop=False: expected two"),
        ({"space": "latent"}, "^loss='w_mse' weighs pixels, .* Take space='rgb', or loss='mse'"),
    ):
        with pytest.raises(ConfigError, match=message):
            RestorationGuidance(**cast(dict[str, Any], {"scale": 0.1} | given))
