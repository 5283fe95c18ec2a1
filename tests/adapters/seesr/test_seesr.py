"""SeeSR as a restorer: what holds without `compat`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from pnp_irib import load_restorer, ram_files, wrap
from pnp_irib.diffusion.model import ZERO_SNR_V
from pnp_irib.diffusion.vae import PublishedTiles, encode
from pnp_irib.errors import ConfigError, InputError, WeightsError
from pnp_irib.noise import SeededNoise
from pnp_irib.priors import LatentPriorConfig, load_prior
from pnp_irib.profile import PRESETS
from pnp_irib.projectors import PixelArchitecture, PixelProjector
from pnp_irib.prompts import Prompt, Tag
from pnp_irib.ram_files import TAGS, THRESHOLDS
from pnp_irib_seesr.restorer import SeeSR
from pnp_irib_seesr.spec import SEESR, SEESR_TURBO
from tests.adapters.seesr.models import BASE, DAPE, MODEL, build, load
from tests.cli.run import pnp
from tests.hub.server import HubServer


def picture(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [None, 1, 2.5])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (13, 30)])
def test_every_size_and_scale(size: tuple[int, int], scale: float | None) -> None:
    with torch.no_grad():
        restored = build().restore(picture(*size), scale=scale)
    factor = 4 if scale is None else scale
    assert restored.shape == (1, 3, round(size[0] * factor), round(size[1] * factor))
    assert restored.isfinite().all()


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_a_picture_is_the_same_in_a_batch(compat: Any) -> None:
    restorer = build(compat=compat, color="none")
    one, other = picture(9, 12, seed=1), picture(9, 12, seed=2)
    user = Prompt("a cat")
    with torch.no_grad():
        both = restorer.restore(torch.cat((one, other)), prompts=[user, None], noise=SeededNoise([3, 4]))
        alone = restorer.restore(other, prompts=[None], noise=SeededNoise([4]))
        prompted = restorer.restore(other, prompts=[user], noise=SeededNoise([4]))
        reseeded = restorer.restore(other, prompts=[None], noise=SeededNoise([5]))
    torch.testing.assert_close(both[1:], alone, atol=1.01 / 255 if compat else 1e-5, rtol=0)
    assert (prompted - alone).abs().max() > 1e-4
    assert (reseeded - alone).abs().max() > 1e-4


def test_without_noise_it_is_that_of_seed_0() -> None:
    lq = picture(8, 9)
    with torch.no_grad():
        assert torch.equal(build().restore(lq), build().restore(lq, noise=SeededNoise([0])))


@pytest.mark.parametrize("turbo_model", [False, True])
def test_halves_and_tiles_in_one_call_or_in_turn_are_the_same(turbo: Path, turbo_model: bool) -> None:
    lq, calls = picture(20, 33), {}
    results = []
    for batch in (1, 2, 5):
        restorer = build(turbo if turbo_model else None, batch=batch, latent_tile=12, latent_overlap=4)
        seen: list[int] = []
        hook = restorer.networks.register_forward_hook(lambda _, given, out, seen=seen: seen.append(len(given[0])))
        with torch.no_grad():
            results.append(restorer.restore(lq))
        hook.remove()
        calls[batch] = max(seen)
        assert sum(seen) == 2 * (1 if turbo_model else 2) * 2  # steps, halves, tiles
    assert calls == {1: 1, 2: 2, 5: 2 if turbo_model else 4}
    torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=0)
    torch.testing.assert_close(results[0], results[2], atol=2e-5, rtol=0)


def test_guidance_leads_away_from_the_negative_prompt() -> None:
    lq = picture(8, 8)
    with torch.no_grad():
        found = {scale: build(guidance_scale=scale, color="none").restore(lq) for scale in (0.5, 1.0, 2.0, 5.0)}
        other = build(guidance_scale=2.0, negative_prompt="sharp", color="none").restore(lq)
    assert torch.equal(found[0.5], found[1.0])  # there is no negative prompt below 1
    assert (found[2.0] - found[1.0]).abs().max() > 1e-4
    assert (found[5.0] - found[2.0]).abs().max() > 1e-4
    assert (found[2.0] - other).abs().max() > 1e-5


def test_a_memory_budget_changes_the_way_and_not_the_result() -> None:
    lq = picture(20, 33)
    options: dict[str, Any] = {"latent_tile": 12, "latent_overlap": 4, "batch": 8}
    limited = load(memory=0.0005, **options)
    calls: list[int] = []
    limited.networks.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a budget that small is exceeded
        found = limited.restore(lq)
        assert limited.base.offload is not None
        assert limited.base.offload.present == ("vae",)
        limited.tagger(lq)  # as the extractor of Look Forward Once
        assert limited.base.offload.present == ("tagger",)
    with torch.no_grad():
        torch.testing.assert_close(found, build(**options).restore(lq), atol=2e-5, rtol=0)
    assert max(calls) == 1


def test_prompts_with_tags_or_embedding_stand_for_the_tagger() -> None:
    restorer, lq = build(), picture(16, 20)
    own = restorer.tagger(lq)[0]
    assert own.embedding is not None
    texts, image = restorer.read(lq, [None])
    assert texts == [f"{own.text}, clean, high-resolution, 8k"]
    assert torch.equal(image[0], own.embedding)
    texts, image = restorer.read(lq, [Prompt("a boat")])
    assert texts == [f"{own.text}, a boat, clean, high-resolution, 8k"]
    heads: list[Any] = []
    hook = restorer.tagger.network.tagging_head.register_forward_hook(lambda *given: heads.append(given))
    texts, image = restorer.read(lq, [Prompt.from_tags([Tag("boat"), Tag("sea")])])
    hook.remove()
    assert not heads  # nobody asked for its tags
    assert texts == ["boat, sea, clean, high-resolution, 8k"]
    assert torch.equal(image[0], own.embedding)
    other = Prompt("", embedding=2 * own.embedding)  # a tagger that found nothing
    texts, image = restorer.read(lq, [other])
    assert texts == ["clean, high-resolution, 8k"]
    assert torch.equal(image[0], 2 * own.embedding)
    with torch.no_grad():
        assert (restorer.restore(lq, prompts=[other]) - restorer.restore(lq)).abs().max() > 1e-4


def test_the_published_words_keep_their_empty_one() -> None:
    assert build(compat="upstream").prompt_text("cat") == "cat, ,clean, high-resolution, 8k"
    assert build(compat="upstream").prompt_text("cat", "sky") == "cat, sky,clean, high-resolution, 8k"
    assert build(added_prompt="").prompt_text("", "sky") == "sky"


def start_of(restorer: Any, lq: Tensor, noise: SeededNoise) -> Tensor:
    seen: list[Tensor] = []
    hook = restorer.networks.register_forward_pre_hook(lambda _, given: seen.append(given[0][:1].clone()))
    with torch.no_grad():
        restorer.denoise(lq, ["cat"], restorer.tagger(lq)[0].embedding[None], noise)
    hook.remove()
    return seen[0]


def test_the_start_has_the_noise_of_the_first_step() -> None:
    lq = picture(64, 64)
    drawn = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))[None]
    for options in ({"num_inference_steps": 2}, {"num_inference_steps": 7}, {"num_inference_steps": 2, "start": "noise"}):
        restorer = build(**options)
        with torch.no_grad():
            known = encode(restorer.base.vae, lq * 2 - 1)[0] * restorer.base.vae.config.scaling_factor
        alpha = restorer.base.alphas[restorer.steps[0].timestep].item()
        expected = drawn if "start" in options else alpha**0.5 * known + (1 - alpha) ** 0.5 * drawn
        torch.testing.assert_close(start_of(restorer, lq, SeededNoise([3])), expected, atol=1e-4, rtol=0)


def test_turbo_steps_lead_to_each_other(turbo: Path) -> None:
    ours = build(turbo, num_inference_steps=3).steps
    assert [s.timestep for s in ours] == [999, 666, 332]
    assert ours[1].target == ours[2].alpha
    assert build(turbo, num_inference_steps=3, compat="upstream").steps[1].target != ours[2].alpha  # one timestep beside it
    assert build(turbo).guidance_scale == 1.0
    assert (build().guidance_scale, len(build(num_inference_steps=None).steps)) == (5.5, 50)


def test_strips_and_gradients_go_the_same_way() -> None:
    lq = torch.nn.functional.interpolate(picture(4, 6), size=(24, 36), mode="bicubic").clamp(0, 1)
    with torch.enable_grad():
        expected = build().restore(lq.clone().requires_grad_()).detach()
    with torch.no_grad():
        torch.testing.assert_close(build().restore(lq), expected, atol=2e-4, rtol=0)


def test_gradients_are_those_of_finite_differences(turbo: Path) -> None:
    restorer = build(turbo, color="none")
    lq, direction = 0.3 + 0.4 * picture(8, 8), torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    prompt = [Prompt.from_tags([Tag("cat")])]  # else a tag may come or go
    given = lq.clone().requires_grad_()
    (restorer.restore(given, prompts=prompt) * weight).sum().backward()
    assert given.grad is not None
    with torch.no_grad():
        ends = [(restorer.restore(lq + s * 1e-4 * direction, prompts=prompt) * weight).sum() for s in (1, -1)]
    expected = (ends[0] - ends[1]).item() / 2e-4
    assert (given.grad * direction).sum().item() == pytest.approx(expected, rel=0.01)
    modules = (*restorer.base.modules, restorer.networks, restorer.tagger.network)
    assert not [p for module in modules for p in module.parameters() if p.requires_grad or p.grad is not None]


def test_gradients_can_be_kept_to_the_last_steps() -> None:
    restorer = build(num_inference_steps=4, color="none")
    lq = picture(8, 8)
    found: dict[int, Tensor] = {}
    calls: list[int] = []
    hook = restorer.networks.register_forward_pre_hook(lambda _, given: calls.append(1))
    for kept in (1, 2, 4):
        given = lq.clone().requires_grad_()
        with restorer.gradients_through(kept):
            restored = restorer.restore(given)
        before = len(calls)
        restored.sum().backward()
        assert len(calls) - before == kept  # only these are computed again
        assert given.grad is not None
        found[kept] = given.grad
        calls.clear()
    hook.remove()
    whole = lq.clone().requires_grad_()
    restorer.restore(whole).sum().backward()
    torch.testing.assert_close(found[4], whole.grad)
    assert not torch.allclose(found[1], found[2])
    assert not torch.allclose(found[2], found[4])


def test_look_forward_reads_the_estimate_and_its_embedding_reaches_the_unet() -> None:
    restorer = build()
    projector = PixelProjector(PixelArchitecture(widths=(8, 8), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,)))
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.normal_(0, 0.15, generator=torch.Generator().manual_seed(parameter.numel()))
    seen: list[Tensor] = []
    hook = restorer.networks.register_forward_hook(lambda _, given, out: seen.append(given[3][-1]))
    robust = wrap(restorer, projector=projector, lfo=1)  # its own tagger extracts
    result = robust(picture(16, 20), seed=1)
    hook.remove()
    first, second = (one.lq for one in result.trace)
    assert (first - second).abs().max() > 1e-3
    assert (first - result.picture.rgb[0]).abs().max() > 1e-2
    expected = restorer.tagger(first[None])[0]
    assert expected.embedding is not None
    assert all(torch.allclose(one, expected.embedding, atol=1e-5) for one in seen)
    assert result.prompt.text == expected.text


def test_the_published_steps_pass_no_gradients() -> None:
    restorer, lq = build(compat="upstream"), picture(8, 8)
    assert not restorer.spec.differentiable
    assert build().spec.differentiable
    with torch.no_grad():
        expected = restorer.restore(lq)
    found = restorer.restore(lq.clone().requires_grad_())
    assert not found.requires_grad
    assert torch.equal(found, expected)


def test_autocast_before_changes_nothing_after() -> None:
    restorer, lq = load(), picture(12, 12)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            texts, image = restorer.read(lq, [None])
            restorer.restore(lq)
        after = restorer.read(lq, [None])
        torch.testing.assert_close(restorer.restore(lq), build().restore(lq))
    assert texts == after[0]
    assert torch.equal(image, after[1])


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        ([None, None], "2 prompts for 1 pictures"),
        ([Prompt("", embedding=torch.zeros(10, 300))], r"is \(10, 300\); expected \(tokens, 512\)"),
        ([Prompt("", embedding=torch.zeros(512))], r"is \(512,\)"),
    ],
)
def test_prompts_that_do_not_fit_are_told(prompts: list[Prompt | None], match: str) -> None:
    with pytest.raises(InputError, match=match):
        build().restore(picture(8, 8), prompts=prompts)


def test_embeddings_of_several_lengths_are_told() -> None:
    prompts = [Prompt("", embedding=torch.zeros(tokens, 512)) for tokens in (10, 145)]
    with pytest.raises(InputError, match="several numbers of tokens"):
        build().restore(torch.rand(2, 3, 8, 8), prompts=prompts)


def test_nothing_of_another_model_is_put_on_its_unet() -> None:
    base = load().base
    assert base.fingerprint is None
    with pytest.raises(ConfigError, match="no Stable Diffusion to share as it was made"):
        load_prior(LatentPriorConfig(), base=base)


def test_a_base_of_other_noise_is_told() -> None:
    found = build()
    with pytest.raises(ConfigError, match=r"needs a base model of .*'eps'.*; this one has .*'v'.*base="):
        SeeSR(dataclasses.replace(found.base, noise=ZERO_SNR_V), found.networks, found.tagger)


def test_the_files_of_the_tagger_are_listed_with_its_own() -> None:
    for spec in (SEESR, SEESR_TURBO):
        named = {file.name: file for file in spec.weights}
        assert len(named) == 8
        assert all(named[file.name] is file for file in ram_files.FILES)
        assert {name for name, file in named.items() if file.sha256 and file.size} == {TAGS.name, THRESHOLDS.name}
        assert all(file.places for file in spec.weights)


def test_gradients_pass_within_a_memory_budget() -> None:
    lq, found = picture(8, 8), []
    for restorer in (build(), load(memory=0.0005)):
        given = lq.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a budget that small is exceeded
            restorer.restore(given).square().sum().backward()
        assert given.grad is not None
        found.append(given.grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-4 * found[0].abs().max().item(), rtol=0)


def test_other_degradations_of_a_projector_are_told() -> None:
    restorer = build()
    assert restorer.spec.lq_profile == PRESETS["standard"]
    projector = PixelProjector(PixelArchitecture(widths=(8, 8), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,)))
    for name, told in (("light", True), ("standard", False)):
        projector.provenance = projector.provenance.model_copy(update={"lq_profile": PRESETS[name]})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wrap(restorer, projector=projector)
        assert bool([w for w in caught if "maps onto pictures degraded as in 'light'" in str(w.message)]) is told


def test_in_bfloat16_it_comes_close() -> None:
    lq = picture(16, 16)
    with torch.no_grad():
        whole = load().restore(lq)
        low = load().to(dtype="bfloat16").restore(lq)
    assert low.dtype == torch.float32
    assert (low - whole).abs().mean() < 0.05


def another_text_encoder(folder: Path) -> Path:
    """The base with words of another width."""
    from transformers import CLIPTextConfig, CLIPTextModel

    other = folder / "other"
    shutil.copytree(BASE, other, copy_function=shutil.copyfile)
    shutil.rmtree(other / "text_encoder")
    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder: Any = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **sizes))
    encoder.save_pretrained(other / "text_encoder")
    return other


def test_tiles_of_the_vae_may_be_a_mapping() -> None:
    assert build(compat="upstream", vae_tiles={"decoder": 64}).vae_mode == PublishedTiles(1024, 64)
    assert build(compat="upstream").vae_mode == PublishedTiles()


@pytest.mark.parametrize("option", ["added_prompt", "negative_prompt"])
def test_prompts_that_are_no_texts_are_told(option: str) -> None:
    given: dict[str, Any] = {option: 3}
    with pytest.raises(ConfigError, match=f"^{option}=3: expected a text"):
        build(**given)


def test_what_is_missing_or_does_not_fit_is_told(tmp_path: Path, turbo: Path) -> None:
    def told(match: str, **options: Any) -> None:
        given: dict[str, Any] = {"base": BASE, "checkpoint": MODEL / "seesr", "dape": DAPE}
        with pytest.raises((WeightsError, ConfigError), match=match):
            load_restorer("seesr", **given | options)

    told("seesr needs checkpoint=, the folder with unet/ and controlnet/", checkpoint=None)
    told(r"seesr needs dape=, .*ram_swin_large_14m\.pth", dape=None)
    told("no folder at", checkpoint=tmp_path / "none")
    told("reads its base itself", base=build().base)
    told("these parts do not belong together: .*the text encoder 24, the UNet 16", base=another_text_encoder(tmp_path))
    told("pictures of no pixels", compat="upstream", upscale=3, process_size=8)
    told("expected a folder with the files of RAM and DAPE", dape=tmp_path / "none")
    told(r"controlnet/config\.json cannot be read", checkpoint=tmp_path)
    stock_only = tmp_path / "stock"
    shutil.copytree(MODEL / "seesr" / "controlnet", stock_only / "controlnet")
    shutil.copytree(turbo / "unet", stock_only / "unet")
    told("describes no UNet2DConditionModel with use_image_cross_attention", checkpoint=stock_only)
    told("has no option 'guidance'.*Did you mean", guidance=3)
    told("start='lq'; expected lr or noise", start="lq")
    told("whole numbers", compat="upstream", upscale=2.5)
    for options in ({"num_inference_steps": 0}, {"num_inference_steps": 1001}, {"guidance_scale": -1}, {"batch": 0}):
        told("=", **options)
    copy = tmp_path / "seesr"
    shutil.copytree(MODEL / "seesr", copy, copy_function=shutil.copyfile)
    weights = copy / "controlnet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    told("cannot be read as weights", checkpoint=copy)
    shutil.copyfile(MODEL / "seesr" / "unet" / weights.name, weights)
    told("does not fit ControlNetModel: missing .*unexpected", checkpoint=copy)
    config = copy / "controlnet" / "config.json"
    config.chmod(0o644)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [8, 16]}))
    told("describes no network that can be built", checkpoint=copy)
    narrow = tmp_path / "turbo"
    shutil.copytree(turbo, narrow, copy_function=shutil.copyfile)
    shutil.rmtree(narrow / "unet")
    stock = {k: v for k, v in json.loads((turbo / "unet" / "config.json").read_text()).items() if k[0] != "_"}
    made: Any = UNet2DConditionModel(**stock | {"block_out_channels": [8, 8, 8, 8], "attention_head_dim": 2})
    made.save_pretrained(narrow / "unet")
    with pytest.raises(WeightsError, match=r"unet on .* does not fit"):
        load_restorer("seesr-turbo", base=narrow, checkpoint=MODEL / "seesr", dape=DAPE)


def test_from_the_command_line(tmp_path: Path) -> None:
    Image.fromarray((picture(12, 10)[0].permute(1, 2, 0).numpy() * 255).astype("uint8")).save(tmp_path / "a.png")
    options = {"base": BASE, "checkpoint": MODEL / "seesr", "dape": DAPE, "process_size": 32, "num_inference_steps": 2}
    given = [part for key, value in options.items() for part in ("-O", f"{key}={value}")]
    done = pnp("restore", tmp_path / "a.png", "-o", tmp_path / "b.png", "-r", "seesr", "--projector", "none", *given)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "b.png") as made:
        assert made.size == (40, 48)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_the_hub_without_the_unet_of_the_base(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path))
    unused = {"unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"gigabytes"}
    hub.add_repo("some/sd", contents(BASE) | unused)
    hub.add_repo("some/seesr", contents(MODEL / "seesr"))
    options: dict[str, Any] = {"dape": DAPE, "process_size": 32, "num_inference_steps": 2, "dtype": "float32"}
    found: Any = load_restorer("seesr", base="hf-hub:some/sd", checkpoint="hf-hub:some/seesr", **options)
    with torch.no_grad():
        assert torch.equal(found.restore(picture(8, 8)), load().restore(picture(8, 8)))
    assert not [path for path in hub.gets() if "some/sd" in path and "/unet/" in path]
    assert {str(origin).partition("@")[0] for origin in found.origins} >= {"hf-hub:some/sd", "hf-hub:some/seesr"}
