"""SUPIR as a restorer: options, prompts, memory, gradients, files."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pnp_irib import load_restorer, wrap
from pnp_irib.cli.restore import Job, Model, run
from pnp_irib.diffusion.published import eight_bits
from pnp_irib.diffusion.xl import StableDiffusionXL
from pnp_irib.errors import ConfigError, InputError, WeightsError
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib_supir.checkpoint import read_supir
from pnp_irib_supir.prompts import POSITIVE, joined, pieces
from pnp_irib_supir.restorer import Supir
from pnp_irib_supir.sampling import Schedule
from tests.adapters.supir.models import CHECKPOINT, SDXL, fresh, loaded, restorer


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Tensor:
    """(1, 3, 64, 96) in [0, 1]."""
    return resize(read_picture(shared_dir / "data" / "dev" / "kodak_05.webp").rgb, (64, 96)).clamp(0, 1)


@pytest.fixture
def alone() -> tuple[Any, ...]:
    """Modules that no other test shares."""
    return copy.deepcopy(loaded())


@torch.no_grad()
def restored(lq: Tensor, built: Supir, **given: Any) -> Tensor:
    return built.restore(lq, noise=SeededNoise(range(len(lq))), **given)


def test_it_is_loaded_from_the_published_files(photo: Tensor) -> None:
    options: dict[str, Any] = {"process_size": 64, "num_inference_steps": 2, "dtype": "float32"}
    found = load_restorer("supir", base=SDXL, checkpoint=CHECKPOINT, **options)
    assert isinstance(found, Supir)
    assert found.spec.weights_licence.commercial is False
    assert found.spec.lq_profile is not None
    assert next(file.name for origin in found.origins for file in origin.files) == "SUPIR-v0Q.ckpt"
    torch.testing.assert_close(restored(photo, found), restored(photo, restorer()), atol=1e-4, rtol=0)
    assert "variant F" in load_restorer("supir", variant="F", base=SDXL, checkpoint=CHECKPOINT, **options).spec.title
    with pytest.raises(ConfigError, match=r"variant='G'; expected Q or F"):
        load_restorer("supir", variant="G", base=SDXL, checkpoint=CHECKPOINT)
    with pytest.raises(ConfigError, match=r"supir has no option 'guidence_scale'. Did you mean 'guidance_scale'"):
        load_restorer("supir", base=SDXL, checkpoint=CHECKPOINT, guidence_scale=3)


def test_its_licence_is_said_and_recorded(photo: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://github.com/Fanghua-Yu/SUPIR/blob/master/LICENSE (no commercial use)"
    robust = wrap(restorer(num_inference_steps=1), projector=None)
    assert robust(photo).used.weights_licence == address
    assert address in " ".join(repr(robust).split())

    def fetched(*_: Any, licence: str) -> None:
        raise WeightsError(licence)

    monkeypatch.setattr("pnp_irib.weights.fetch", fetched)
    with pytest.raises(WeightsError, match=re.escape(f"{address} for the weights of supir, Apache-2.0 for its code")):
        load_restorer("supir", base=SDXL)


def test_the_robust_encoder_is_laid_out_as_the_other() -> None:
    base, _, robust = loaded()
    for name, one in robust.encoder.state_dict().items():
        assert one.stride() == base.vae.encoder.state_dict()[name].stride(), name


def test_the_command_line_has_it_read_in_its_dtype(tmp_path: Path, photo: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    load = StableDiffusionXL.load

    def watched(place: Path, *, dtype: torch.dtype, **given: Any) -> StableDiffusionXL:
        asked.append(dtype)
        return load(place, dtype=dtype, **given)

    monkeypatch.setattr(StableDiffusionXL, "load", watched)
    Image.fromarray(eight_bits(photo)[0]).save(tmp_path / "photo.png")
    job = Job([tmp_path / "photo.png"], tmp_path / "out.png", None, False, False, False, False, as_json=True)
    files = {"base": str(SDXL), "checkpoint": str(CHECKPOINT), "process_size": 64, "num_inference_steps": 1}
    assert run(job, Model("supir", files, "none", None, "cpu", "bfloat16"), {"lfo": 0, "strength": 1.0, "prompt": None}) == 0
    assert asked == [torch.bfloat16]
    assert (tmp_path / "out.png").exists()


def test_what_is_unknown_in_the_file_is_named_and_what_is_missing_too(tmp_path: Path) -> None:
    tensors = torch.load(CHECKPOINT, weights_only=True)
    base = loaded()[0]

    def read(**changed: Any) -> None:
        torch.save({**tensors, **{name: value for name, value in changed.items() if value is not None}}, tmp_path / "q.ckpt")
        read_supir(tmp_path / "q.ckpt", base.unet, base.vae, dtype=torch.float32)

    with pytest.warns(UserWarning, match=r"q.ckpt holds what is not known and not used: more.$"):
        read(more=torch.zeros(1))
    with pytest.raises(
        WeightsError, match=r"controlnet_cond_embedding.weight has the shape \(32, 5, 3, 3\), expected \(32, 4"
    ):
        read(**{"model.control_model.input_hint_block.0.weight": torch.zeros(32, 5, 3, 3)})
    for name in (
        "model.control_model.input_hint_block.0.weight",
        "model.diffusion_model.project_modules.7.attn.to_q.weight",
        "first_stage_model.denoise_encoder.conv_in.weight",
    ):
        held = tensors.pop(name)
        with pytest.raises(WeightsError, match=f"missing {name}"):
            read()
        tensors[name] = held
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"other.ckpt holds no SUPIR: it holds conv.weight"):
        read_supir(tmp_path / "other.ckpt", base.unet, base.vae, dtype=torch.float32)


EFFECTS: dict[str, dict[str, Any]] = {
    "sampler": {"sampler": "dpm++_2m_sde"},
    "num_inference_steps": {"num_inference_steps": 3},
    "guidance_scale": {"guidance_scale": 2.0},
    "guidance_start": {"guidance_start": 3.0},
    "conditioning_scale": {"conditioning_scale": 0.5},
    "conditioning_start": {"conditioning_start": 0.2},
    "restoration_guidance": {"restoration_guidance": 1.0},
    "s_churn": {"s_churn": 0.0},
    "s_noise": {"s_noise": 1.5},
    "added_prompt": {"added_prompt": "sharp"},
    "negative_prompt": {"negative_prompt": "red"},
    "process_size": {"process_size": 96},
    "color": {"color": "adain"},
    "no color": {"color": "none"},
    "latent_tile": {"latent_tile": 8, "latent_overlap": 4},
    "compat": {"compat": "upstream"},
}


@pytest.mark.parametrize("name", EFFECTS)
def test_options_have_an_effect(name: str, photo: Tensor) -> None:
    few: dict[str, Any] = {"num_inference_steps": 3} if name.startswith("s_") else {}  # noise is added in the second step
    parts = copy.deepcopy(loaded()) if name == "compat" else None
    usual, changed = restorer(**few), restorer(parts, **few | EFFECTS[name])
    assert (restored(photo, usual) - restored(photo, changed)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampler": "euler"}, r"sampler='euler'; expected edm or dpm\+\+_2m_sde"),
        ({"weights": "int4"}, "weights='int4'; expected None or float8"),
        ({"num_inference_steps": 1000}, "num_inference_steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"batch": 0}, "batch"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_start": "low"}, "guidance_start"),
        ({"conditioning_start": -0.5}, "conditioning_start"),
        ({"restoration_guidance": 0}, "restoration_guidance"),
        ({"s_noise": float("nan")}, "s_noise"),
        ({"negative_prompt": None}, "negative_prompt"),
        ({"vae_tiles": {"encoder": 512}}, "vae_tiles are for compat='upstream'"),
        ({"upscale": 0}, "upscale"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        restorer(**options)


def test_a_size_of_which_nothing_is_left_is_refused(photo: Tensor) -> None:
    built = restorer(copy.deepcopy(loaded()), compat="upstream", process_size=8)
    with pytest.raises(
        ConfigError, match=r"64 x 96 pixels, 0.1 times enlarged, of at least 8: the published script leaves none"
    ):
        restored(photo, built, scale=0.1)


@pytest.mark.parametrize("size", [(64, 64), (45, 70), (1, 3), (130, 40)])
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
def test_every_size_and_scale(size: tuple[int, int], scale: float, photo: Tensor) -> None:
    built = restorer(num_inference_steps=1)
    result = restored(resize(photo, size).clamp(0, 1), built, scale=scale)
    assert result.shape[-2:] == output_size(*size, scale)
    assert torch.isfinite(result).all()


def test_connectors_at_zero_leave_stable_diffusion_by_itself(photo: Tensor) -> None:
    networks, t = loaded()[1], torch.Generator().manual_seed(0)
    latent, text = torch.randn(2, 4, 8, 8, generator=t), torch.randn(2, 77, 16, generator=t)
    pooled, condition = torch.randn(2, 12, generator=t), torch.randn(2, 4, 8, 8, generator=t)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2)}
    with torch.no_grad():
        stock = networks.unet(latent, 500, encoder_hidden_states=text, added_cond_kwargs=added).sample
        found = networks(latent, 500, text, networks.vector(pooled), condition, 0.0)
        steered = networks(latent, 500, text, networks.vector(pooled), condition)
    torch.testing.assert_close(found, stock, atol=1e-5, rtol=0)
    assert (steered - stock).abs().max() > 0.01


def test_noise_is_not_added_beyond_what_the_network_knows() -> None:
    alphas = loaded()[0].noise.numbers
    for steps in (1, 2, 7, 50):
        schedule = Schedule(alphas, steps=steps)
        asked = [schedule.churned(sigma) for sigma in schedule.sigmas[:-1]]
        assert max(asked) <= schedule.noisiest
        assert all(1 <= more / sigma <= 2**0.5 for more, sigma in zip(asked, schedule.sigmas, strict=False))
        assert min(schedule.known(sigma)[1] for sigma in asked) >= 0.0
        assert schedule.known(asked[0])[0] == pytest.approx(14.6146, abs=1e-4)
        assert schedule.known(asked[0])[1] == pytest.approx(999)
    assert Schedule(alphas, steps=50, published=True).churned(14.6146) == pytest.approx(16.076, abs=1e-3)
    assert Schedule(alphas, steps=50).churned(5.0) == pytest.approx(5.5)


def test_estimates_are_pulled_towards_what_the_encoder_sees(photo: Tensor) -> None:
    estimates: dict[float | None, list[Tensor]] = {}
    for power in (None, 1.0):
        built = restorer(restoration_guidance=power, num_inference_steps=3)
        told = estimates.setdefault(power, [])
        built.on_step = lambda _, __, found, told=told: told.append(found)
        restored(photo, built)
    with torch.no_grad():
        known = built.known(built._decoded(built.condition(photo)), SeededNoise([]))
    free, pulled = estimates[None], estimates[1.0]
    torch.testing.assert_close(pulled[0], known)  # at the noisiest level, all the way
    assert (pulled[1] - free[1]).abs().mean() > 0.01
    share = built.schedule.pull_at(built.schedule.sigmas[1])
    assert share == pytest.approx(built.schedule.sigmas[1] / built.schedule.sigmas[0])
    assert built.schedule.sigmas[-1] < 0.05  # the last step is free


def test_long_captions_keep_the_words_of_quality() -> None:
    built = restorer()
    length = built.base.text.length
    short = Prompt("a red boat.")
    assert built.texts(2, [short, None]) == [[f"a red boat. {POSITIVE}"], [POSITIVE]]
    caption = " ".join(f"house number {n}" for n in range(60))
    ((*parts, last),) = built.texts(1, [Prompt(caption)])
    assert last == POSITIVE
    assert " ".join(parts) == caption
    assert all(length(part) <= 75 for part in parts)
    assert all(length(f"{a} {b.split()[0]}") > 75 for a, b in itertools.pairwise(parts))

    words = built.words([[*parts, last], [POSITIVE]])
    assert words.hidden.shape == (3, 77 * (len(parts) + 1), 16)
    alone = built.words([[POSITIVE]])
    torch.testing.assert_close(words.hidden[0, -77:], alone.hidden[0])
    torch.testing.assert_close(words.hidden[1:, :77], alone.hidden)
    torch.testing.assert_close(words.pooled[1:], alone.pooled)
    torch.testing.assert_close(words.pooled[:1], built.words([[parts[0]]]).pooled[:1])


def test_all_of_a_long_negative_prompt_is_read(photo: Tensor) -> None:
    ending = ["red", "blue"]
    few: dict[str, Any] = {"num_inference_steps": 1, "guidance_start": 4.0}
    first, second = (restored(photo, restorer(negative_prompt=f"{'wet sand, ' * 60}{end}", **few)) for end in ending)
    assert (first - second).abs().max() > 1e-3
    built = restorer(negative_prompt="wet sand, " * 60)
    words = built.words([[POSITIVE], [POSITIVE, POSITIVE, POSITIVE, POSITIVE, POSITIVE]])
    assert words.lengths == (77 * 3, 77 * 5)
    torch.testing.assert_close(words.hidden[0, 77 : 2 * 77], words.hidden[0, 2 * 77 : 3 * 77])  # filled up with nothing
    assert restorer(negative_prompt="wet sand, " * 60, compat="upstream").words([[POSITIVE]]).lengths == (77,)


def test_a_caption_without_blanks_is_parted() -> None:
    built, caption = restorer(), "一艘红色的渔船停在湿沙上。" * 20
    *parts, last = built.texts(1, [Prompt(caption)])[0]
    assert last == POSITIVE
    assert "".join(parts) == caption
    assert all(0 < built.base.text.length(part) <= 75 for part in parts)


def test_pieces_of_texts() -> None:
    def count(text: str) -> int:
        return len(text.split())

    assert joined("", "fine") == "fine"
    assert joined("a boat", "") == "a boat"
    assert joined(" a boat ", "fine") == "a boat, fine"
    assert joined("a boat!", "fine") == "a boat! fine"
    assert pieces("", "", length=count, most=3) == [""]
    assert pieces("a b", "c", length=count, most=3) == ["a b, c"]
    assert pieces("a b c d", "e f", length=count, most=3) == ["a b c", "d", "e f"]
    assert pieces("a b c d", "", length=len, most=1) == ["a", "b", "c", "d"]
    assert pieces("long b", "c", length=len, most=2) == ["lo", "ng", "b", "c"]
    assert pieces("long", "c", length=lambda text: 3 * len(text), most=2) == ["l", "o", "n", "g", "c"]


def test_prompts_must_be_as_many_as_pictures(photo: Tensor) -> None:
    with pytest.raises(InputError, match="2 prompts for 1 pictures"):
        restorer().restore(photo, prompts=[None, None])


def test_prompts_change_their_own_picture_only(photo: Tensor) -> None:
    built, two = restorer(), torch.cat([photo, photo.flip(3)])
    plain = restored(two, built)
    prompted = restored(two, built, prompts=[None, Prompt(" ".join(["a boat on wet sand"] * 30))])
    torch.testing.assert_close(plain[0], prompted[0], atol=1e-3, rtol=0)
    assert (plain[1] - prompted[1]).abs().max() > 1e-2


def test_how_much_is_worked_on_at_a_time_changes_nothing(photo: Tensor) -> None:
    one, many = (restorer(batch=batch, latent_tile=8, latent_overlap=2) for batch in (1, 16))
    torch.testing.assert_close(restored(photo, one), restored(photo, many), atol=2e-4, rtol=0)


@pytest.mark.parametrize("side", [1, 7, 10])
@pytest.mark.parametrize("compat", [None, "upstream"])
def test_tiles_of_sides_that_cannot_be_halved(side: int, compat: str | None, photo: Tensor) -> None:
    networks, t = loaded()[1], torch.Generator().manual_seed(0)
    latent, text, pooled = (torch.randn(shape, generator=t) for shape in ((1, 4, side, 9), (1, 77, 16), (1, 12)))
    with torch.no_grad():
        found = networks(latent, 500, text, networks.vector(pooled), latent)
    assert found.shape == latent.shape
    if side > 1:
        small = resize(photo, (64, 64)).clamp(0, 1)
        assert torch.isfinite(restored(small, restorer(latent_tile=side, num_inference_steps=1, compat=compat))).all()


def test_tiles_as_large_as_the_picture_change_nothing(photo: Tensor) -> None:
    whole, tiled = restorer(), restorer(latent_tile=12)
    torch.testing.assert_close(restored(photo, whole), restored(photo, tiled))


def test_a_budget_moves_parts_and_changes_nothing(photo: Tensor, alone: tuple[Any, ...]) -> None:
    expected = restored(photo, restorer())
    built = restorer(alone, memory=0.2)
    offload = built.base.offload
    assert offload is not None
    torch.testing.assert_close(restored(photo, built), expected, atol=1e-4, rtol=0)
    assert offload.present[-1] == "vae"
    with pytest.warns(UserWarning, match="the budget is"):
        restored(photo, restorer(copy.deepcopy(loaded()), memory=0.001))


def test_weights_in_eight_bits(photo: Tensor, alone: tuple[Any, ...]) -> None:
    def held(module: nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters())

    def layers(module: nn.Module) -> int:
        kinds = (nn.Linear, nn.Conv2d)
        return sum(m.weight.nbytes for m in module.modules() if isinstance(m, kinds))

    before, large = held(alone[1]), layers(alone[1])
    # The golden weights are float8 already, so that they lose nothing; others do.
    noise = torch.Generator().manual_seed(0)
    for parameter in alone[1].parameters():
        parameter.data.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=noise))
    exact = restored(photo, restorer(alone))
    built = restorer(alone, weights="float8")
    found = restored(photo, built)
    assert held(built.networks) < before - 0.6 * large
    assert {p.dtype for p in built.base.vae.parameters()} == {torch.float32}
    assert {p.dtype for p in built.base.text.encoder.parameters()} == {torch.float32}
    off = (found - exact).abs().mean()
    assert 1e-4 < off < 0.1
    torch.testing.assert_close(restored(photo, built), found)  # nothing is lost from call to call
    assert built.dtype == torch.float32
    assert not built.spec.differentiable
    assert not built.restore(photo.clone().requires_grad_()).requires_grad
    for dtype in ("bfloat16", "float32"):  # as the command line does, which loads first
        built.to("cpu", dtype)
        assert built.dtype == getattr(torch, dtype)
        assert {p.dtype for p in built.networks.parameters()} == {torch.uint8, built.dtype}
        assert held(built.networks) < before - 0.6 * large
        assert (restored(photo, built) - found).abs().mean() < 0.05


def test_weights_are_in_eight_bits_before_they_move(alone: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[set[torch.dtype]] = []

    def settle(built: Supir, **_: Any) -> None:
        kinds.append({layer.weight.dtype for layer in built.networks.control.mid_block.modules() if type(layer) is nn.Linear})

    monkeypatch.setattr(Supir, "settle", settle)
    restorer(alone, weights="float8")
    assert kinds == [{torch.uint8}]


def test_a_copy_with_weights_in_eight_bits_is_on_its_own(photo: Tensor, alone: tuple[Any, ...]) -> None:
    built = restorer(alone, weights="float8", num_inference_steps=1)
    expected = restored(photo, built)
    other = copy.deepcopy(built)
    torch.testing.assert_close(restored(photo, other), expected)
    for parameter in other.networks.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(restored(photo, built), expected)
    assert (restored(photo, other) - expected).abs().max() > 0.01


def test_weights_stay_in_eight_bits_where_a_layer_fails(photo: Tensor, alone: tuple[Any, ...]) -> None:
    built = restorer(alone, weights="float8")
    layer = built.networks.unet.mid_block.resnets[0].conv1
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 1, 2, 2))
    assert layer.weight.dtype == torch.uint8


def test_sigmas_are_rounded_to_the_dtype_that_it_is_in(alone: tuple[Any, ...]) -> None:
    built = restorer(alone, compat="upstream", dtype="bfloat16")
    assert built.schedule.sigmas[0] == 14.625
    built.to(dtype="float32")
    assert built.schedule.sigmas[0] == pytest.approx(14.6146, abs=1e-4)
    assert built.to("cpu", "bfloat16").schedule.sigmas[0] == 14.625
    mended = restorer(copy.deepcopy(loaded()), dtype="bfloat16")
    assert mended.schedule.sigmas[0] == pytest.approx(14.6146, abs=1e-4)


def test_bfloat16(photo: Tensor, alone: tuple[Any, ...]) -> None:
    expected = restored(photo, restorer())
    built = restorer(alone, dtype="bfloat16")
    assert {p.dtype for part in (built.networks, built.robust_vae) for p in part.parameters()} == {torch.bfloat16}
    found = restored(photo, built)
    assert found.dtype == photo.dtype
    assert (found - expected).abs().mean() < 0.1


def test_every_step_is_told(photo: Tensor) -> None:
    built, told = restorer(num_inference_steps=3), []
    built.on_step = lambda number, latent, estimate: told.append((number, latent.shape, estimate.shape))
    restored(photo, built)
    assert told == [(number, (1, 4, 8, 12), (1, 4, 8, 12)) for number in range(3)]


@pytest.mark.parametrize("kept", [1, 2])
def test_gradients_are_those_of_finite_differences(kept: int, photo: Tensor) -> None:
    built = copy.deepcopy(restorer(restoration_guidance=2.0, num_inference_steps=2))
    for part in (built.networks, built.base.vae, built.base.text.encoder, built.robust_vae.encoder):
        part.double()
    lq = resize(photo, (64, 64)).double().clamp(0.05, 0.95)
    generator = torch.Generator().manual_seed(0)
    weight, direction = (torch.randn(lq.shape, generator=generator, dtype=lq.dtype) for _ in range(2))

    def loss(x: Tensor) -> Tensor:
        return (weight * built.restore(x, noise=SeededNoise([0]))).sum()

    x = lq.clone().requires_grad_()
    with built.gradients_through(kept):
        (gradient,) = torch.autograd.grad(loss(x), x)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    if kept < 2:
        return  # what is cut off shows in finite differences
    step = 1e-3  # colours are given back in float32
    with torch.no_grad():
        slope = (loss(lq + step * direction) - loss(lq - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=5e-3)


def test_each_is_loaded_anew() -> None:
    assert fresh()[1] is not loaded()[1]
