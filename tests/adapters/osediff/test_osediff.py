from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib import wrap
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.lora import active, adapter_names
from pnp_irib.diffusion.model import ZERO_SNR_V
from pnp_irib.diffusion.vae import PublishedTiles
from pnp_irib.errors import ConfigError, PnPIribError, WeightsError
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt, Tag
from pnp_irib_osediff.checkpoint import Checkpoint
from pnp_irib_osediff.restorer import OSEDiff, load_osediff, load_osediff_face, prompt_text


def build(model: Path, **options: Any) -> OSEDiff:
    """Small: pictures of at least 32 pixels instead of 512."""
    small: dict[str, Any] = {"process_size": 32, "dtype": "float32"}
    return load_osediff(model / "sd21base", model / "osediff.pkl", **small | options)


@pytest.fixture(scope="module")
def restorer(model: Path) -> OSEDiff:
    return build(model)


def picture(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [None, 1, 2.5, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (17, 16), (13, 40)])
def test_every_size_and_scale(restorer: OSEDiff, size: tuple[int, int], scale: float | None) -> None:
    with torch.no_grad():
        restored = restorer.restore(picture(*size), scale=scale)
    factor = 4 if scale is None else scale
    assert restored.shape == (1, 3, round(size[0] * factor), round(size[1] * factor))
    assert restored.isfinite().all()


def test_tiles_of_the_vae_may_be_a_mapping(model: Path) -> None:
    assert build(model, compat="upstream", vae_tiles={"encoder": 64}).vae_mode == PublishedTiles(64, 224)


def test_a_picture_is_the_same_in_a_batch(restorer: OSEDiff) -> None:
    one, other = picture(9, 12, seed=1), picture(9, 12, seed=2)
    prompts = [Prompt("cat, dog"), None]
    with torch.no_grad():
        both = restorer.restore(torch.cat((one, other)), prompts=prompts, noise=SeededNoise([3, 4]))
        alone = restorer.restore(other, prompts=[None], noise=SeededNoise([4]))
        prompted = restorer.restore(other, prompts=[Prompt("sky")], noise=SeededNoise([4]))
        reseeded = restorer.restore(other, prompts=[None], noise=SeededNoise([5]))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
    assert (prompted - alone).abs().max() > 1e-4
    assert (reseeded - alone).abs().max() > 1e-5


def test_merged_and_active_lora_agree(model: Path, restorer: OSEDiff) -> None:
    lq = picture(10, 11)
    separate = build(model, merged=False)
    with torch.no_grad():
        torch.testing.assert_close(separate.restore(lq), restorer.restore(lq), atol=1e-4, rtol=0)
    assert not adapter_names(restorer.base.unet)
    assert adapter_names(separate.base.unet) == {"default_encoder", "default_decoder", "default_others"}


def test_a_memory_budget_changes_the_way_and_not_the_result(model: Path, restorer: OSEDiff) -> None:
    lq = picture(30, 52)
    options = {"latent_tile": 12, "latent_overlap": 4}
    limited = build(model, memory=0.0005, **options)
    calls: list[int] = []
    limited.base.unet.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a budget that small is exceeded
        found = limited.restore(lq, prompts=[Prompt("cat")])
    with torch.no_grad():
        torch.testing.assert_close(found, build(model, **options).restore(lq, prompts=[Prompt("cat")]), atol=1e-5, rtol=0)
    assert max(calls) == 1  # instead of four tiles
    assert limited.base.offload is not None
    assert limited.base.offload.present == ("vae",)
    with pytest.raises(ConfigError, match="above 0"):
        build(model, memory=-1)


def test_the_published_steps_take_batches_too(model: Path) -> None:
    published = build(model, compat="upstream")
    both, prompts = torch.cat((picture(8, 9, seed=1), picture(8, 9, seed=2))), [Prompt("cat"), Prompt("dog")]
    with torch.no_grad():
        found = published.restore(both, prompts=prompts, noise=SeededNoise([3, 4]))
        alone = published.restore(both[1:], prompts=prompts[1:], noise=SeededNoise([4]))
    assert found.shape == (2, 3, 32, 32)  # multiples of 8
    assert (found[1:] - alone).abs().max() <= 3.1 / 255  # matching the colours amplifies a level


def test_a_base_in_use_is_not_changed_under_its_user(model: Path) -> None:
    for first in (True, False):
        used, lq = build(model, merged=first), picture(8, 8)
        state = torch.get_rng_state()
        with torch.no_grad():
            before = used.restore(lq)
            for merged in (True, False):
                with pytest.raises(ConfigError, match="in use"):
                    load_osediff_face(used.base, model / "osediff_face.pkl", merged=merged)
            assert torch.equal(used.restore(lq), before)
        assert torch.equal(torch.get_rng_state(), state)


def test_strips_and_gradients_go_the_same_way(restorer: OSEDiff) -> None:
    lq = torch.nn.functional.interpolate(picture(4, 6), size=(24, 36), mode="bicubic").clamp(0, 1)
    with torch.enable_grad():  # in one piece
        expected = restorer.restore(lq.clone().requires_grad_()).detach()
    with torch.no_grad():
        torch.testing.assert_close(restorer.restore(lq), expected, atol=1e-4, rtol=0)


def test_gradients_reach_the_picture(restorer: OSEDiff) -> None:
    lq = picture(9, 8).requires_grad_()
    with torch.enable_grad():
        restorer.restore(lq).sum().backward()
    assert lq.grad is not None
    assert lq.grad.abs().max() > 0
    assert not [p for module in restorer.base.modules for p in module.parameters() if p.requires_grad or p.grad is not None]


def test_it_is_wrapped_like_any_other(restorer: OSEDiff) -> None:
    robust = wrap(restorer)
    assert robust.projector is not None  # the bundled one: both know the same degradations
    lq = picture(7, 10)
    result = robust(lq, prompt="a cat", seed=3)
    assert result.restored.shape == (1, 3, 28, 40)
    again = robust(lq, prompt="a cat", seed=3)
    assert torch.equal(result.restored, again.restored)
    alone = wrap(restorer, projector=None)(lq, prompt="a cat", seed=3)
    with torch.inference_mode():
        expected = restorer.restore(lq, prompts=[Prompt("a cat")], noise=SeededNoise([3])).clamp(0, 1)
    assert torch.equal(alone.restored, expected)


def test_a_safetensors_copy_is_the_same(model: Path, restorer: OSEDiff, tmp_path: Path) -> None:
    copy = tmp_path / "osediff.safetensors"
    Checkpoint.read(model / "osediff.pkl").save(copy)
    again = load_osediff(model / "sd21base", copy, process_size=32, dtype="float32")
    lq = picture(8, 8)
    with torch.no_grad():
        assert torch.equal(again.restore(lq), restorer.restore(lq))


def test_prompts_are_joined_as_published() -> None:
    assert prompt_text(None) == ""
    assert prompt_text(Prompt.from_tags([Tag("cat"), Tag("dog")])) == "cat, dog, ,"
    assert prompt_text(Prompt("cat"), "sharp photo") == "cat, sharp photo,"


def test_the_face_model_keeps_size_and_colours(model: Path) -> None:
    face = load_osediff_face(model / "sd21base", model / "osediff_face.pkl", process_size=32, dtype="float32")
    assert (face.upscale, face.color, face.spec.name) == (1, "none", "osediff-face")
    with torch.no_grad():
        assert face.restore(picture(32, 40)).shape == (1, 3, 32, 40)


def test_what_does_not_fit_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"osediff needs checkpoint=, the file osediff\.pkl"):
        load_osediff()
    with pytest.raises(WeightsError, match="is no Stable Diffusion model in the layout of diffusers: tokenizer"):
        load_osediff(tmp_path, model / "osediff.pkl")
    broken = tmp_path / "osediff.pkl"
    broken.write_bytes((model / "osediff.pkl").read_bytes()[:2000])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_osediff(model / "sd21base", broken)
    torch.save({"state_dict_unet": {}}, broken)
    with pytest.raises(WeightsError, match="is no checkpoint of OSEDiff: rank_unet, rank_vae"):
        load_osediff(model / "sd21base", broken)
    torch.save(torch.nn.Linear(2, 2), broken)
    with pytest.raises(WeightsError, match="could run code"):
        load_osediff(model / "sd21base", broken)
    content = torch.load(model / "osediff.pkl", weights_only=True)
    name = next(key for key in content["state_dict_unet"] if "lora_A" in key)
    del content["state_dict_unet"][name]
    torch.save(content, broken)
    with pytest.raises(WeightsError, match="1 missing"):
        load_osediff(model / "sd21base", broken)
    loaded = StableDiffusion.load(model / "sd21base")
    wrong: list[dict[str, Any]] = [{"compat": "yes"}, {"color": "blue"}, {"compat": "upstream", "upscale": 2.5}]
    wrong += [{"upscale": value} for value in (0, -1, float("nan"), "x", True)] + [{"process_size": "abc"}, {"tile_batch": 0}]
    wrong += [{"latent_tile": 0}, {"latent_overlap": 0.5}, {"memory": "8GB"}, {"dtype": "float8"}, {"device": "abc"}]
    wrong += [{"compat": "upstream", "vae_tiles": {"side": 64}}]
    for options in wrong:
        with pytest.raises(ConfigError):
            load_osediff(loaded, model / "osediff.pkl", **options)
        assert not adapter_names(loaded.unet)  # it can be used again
    with pytest.raises(ConfigError, match=r"needs a base model of .*'eps'.*; this one has .*'v'.*base="):
        load_osediff(dataclasses.replace(loaded, noise=ZERO_SNR_V), model / "osediff.pkl")
    assert not adapter_names(loaded.unet)
    predicting = tmp_path / "v"
    shutil.copytree(model / "sd21base", predicting)
    file = predicting / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(WeightsError, match="predicts 'v_prediction'"):
        load_osediff(predicting, model / "osediff.pkl")
    with pytest.raises(PnPIribError, match="whole numbers"):
        build(model, compat="upstream").restore(picture(8, 8), scale=1.5)


def test_adapters_are_chosen_and_given_back(model: Path) -> None:
    base = StableDiffusion.load(model / "sd21base")
    latent, embedding = torch.randn(1, 4, 8, 8), base.text(["cat"])

    def call() -> Tensor:
        with torch.no_grad():
            found: Tensor = base.unet(latent, 999, encoder_hidden_states=embedding).sample
        return found

    Checkpoint.read(model / "osediff.pkl").install(base.unet, base.vae)
    with active(base.unet, []):
        none = call()
    with active(base.unet, ["default_encoder", "default_decoder", "default_others"]):
        everything = call()
        with active(base.unet, ["default_others"]):
            some = call()
        assert torch.equal(call(), everything)
    assert not torch.equal(none, everything)
    assert not torch.equal(some, everything)
    assert not [p for p in base.unet.parameters() if p.requires_grad]


def test_texts_are_encoded_once(model: Path) -> None:
    text = StableDiffusion.load(model / "sd21base").text
    seen: list[int] = []
    text.encoder.register_forward_hook(lambda *_: seen.append(1))
    first = text(["cat", "dog", "cat"])
    assert len(seen) == 2
    assert torch.equal(first[0], first[2])
    assert torch.equal(text(["dog"])[0], first[1])
    assert len(seen) == 2
    with torch.autocast("cpu", torch.bfloat16):
        bird = text(["bird"])
    assert torch.equal(StableDiffusion.load(model / "sd21base").text(["bird"]), bird)
    seen.pop()
    text.encoder.to(torch.float64)
    assert text(["dog"]).dtype == torch.float64
    assert len(seen) == 3
