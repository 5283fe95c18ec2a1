"""DiffBIR as a restorer: what holds without `compat`, and its options."""

from __future__ import annotations

import copy
import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib import load_restorer, wrap
from pnp_irib.cli.main import restorer_options
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.model import ZERO_SNR_V
from pnp_irib.diffusion.samplers.sampling import SAMPLERS
from pnp_irib.diffusion.vae import PublishedTiles
from pnp_irib.errors import ConfigError, InputError, WeightsError
from pnp_irib.noise import SeededNoise
from pnp_irib.profile import PRESETS
from pnp_irib.projectors import PixelArchitecture, PixelProjector
from pnp_irib.prompts import Prompt
from pnp_irib_diffbir.cleaners.loading import cleaner_from
from pnp_irib_diffbir.cleaners.sizes import enlarged_as_published
from pnp_irib_diffbir.guidance import RestorationGuidance
from pnp_irib_diffbir.prompts import NEGATIVE, NEGATIVE_V2, POSITIVE
from pnp_irib_diffbir.restorer import DiffBIR
from pnp_irib_diffbir.versions import VERSIONS
from tests.adapters.diffbir.cleaner_models import LOAD, NAMES, cleaner, save, tensors
from tests.adapters.diffbir.models import BASE, CONTROLNET, TOKENIZER, build, file, heads, loaded, restorer, swinir
from tests.hub.server import HubServer

SWINIR = "realesrgan_s4_swinir_100k.pth"


def picture(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def restored(lq: Tensor, version: str = "v2.1", *, seed: int = 0, **options: Any) -> Tensor:
    with torch.no_grad():
        return restorer(version, **options).restore(lq, noise=SeededNoise([seed]))


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_cleaner_size_and_scale(name: str) -> None:
    small = DiffBIR(*build(), cleaner(name), process_size=64, num_inference_steps=1, dtype="float32")
    for size, scale in (((1, 1), None), ((5, 9), 2.5), ((13, 30), 1)):
        with torch.no_grad():
            found = small.restore(picture(*size), scale=scale)
        factor = 4 if scale is None else scale
        assert found.shape == (1, 3, round(size[0] * factor), round(size[1] * factor))
        assert found.isfinite().all()


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_a_picture_is_the_same_in_a_batch(compat: Any) -> None:
    small = restorer(compat=compat)
    one, other = picture(16, 17, seed=1), picture(16, 17, seed=2)
    cat = Prompt("a cat")
    with torch.no_grad():
        both = small.restore(torch.cat((one, other)), prompts=[cat, None], noise=SeededNoise([3, 4]))
        alone = small.restore(other, prompts=[None], noise=SeededNoise([4]))
        prompted = small.restore(other, prompts=[cat], noise=SeededNoise([4]))
        reseeded = small.restore(other, prompts=[None], noise=SeededNoise([5]))
    torch.testing.assert_close(both[1:], alone, atol=1.01 / 255 if compat else 1e-4, rtol=0)
    assert differ(prompted, alone)
    assert differ(reseeded, alone)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_sampler_takes_few_steps(sampler: str, steps: int) -> None:
    """With one, three or nine the published code stops."""
    assert (
        restored(picture(16, 16), "v2" if steps == 1 else "v2.1", sampler=sampler, num_inference_steps=steps).isfinite().all()
    )


def test_halves_and_tiles_in_one_call_or_in_turn_are_the_same() -> None:
    lq, calls, results = picture(17, 17), {}, []
    for batch in (1, 2, 5):
        small = restorer(batch=batch, latent_tile=12, latent_overlap=4, num_inference_steps=1)
        seen: list[int] = []
        hook = small.networks.register_forward_hook(lambda _, given, out, seen=seen: seen.append(len(given[0])))
        with torch.no_grad():
            results.append(small.restore(lq))
        hook.remove()
        calls[batch] = max(seen)
        assert sum(seen) == 2 * 4  # halves, tiles
    assert calls == {1: 1, 2: 2, 5: 4}
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(results[0], results[2], atol=1e-4, rtol=0)
    assert not torch.equal(results[0], restored(lq, num_inference_steps=1))  # in one piece


def test_a_memory_budget_changes_the_way_and_not_the_result() -> None:
    lq = picture(*LEAST)
    options: dict[str, Any] = {"latent_tile": 12, "latent_overlap": 4, "batch": 8, "process_size": 64, "dtype": "float32"}
    options |= {"num_inference_steps": 2}

    def small(**more: Any) -> DiffBIR:  # behind a cleaner whose strips give the same
        return DiffBIR(*build(), cleaner_from(tensors("bsrnet"), source="bsrnet"), **options | more)

    with torch.no_grad():
        expected = small().restore(lq)
        guided = small(restoration_guidance={"scale": 0.01}).restore(lq)
    assert differ(expected, guided)
    limited = small(memory=0.0005)
    calls: list[int] = []
    hook = limited.networks.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a budget that small is exceeded
        found = limited.restore(lq)
        limited.restoration_guidance = RestorationGuidance(scale=0.01)
        pulled = limited.restore(lq)
        assert limited.base.offload is not None
        assert limited.base.offload.present == ("vae",)
    hook.remove()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(pulled, guided, atol=1e-3, rtol=0)
    assert max(calls) == 1


LEAST = (16, 24)  # of smaller ones, the tiny networks have one number a channel at their lowest level


@functools.cache
def usual(version: str = "v2.1") -> Tensor:
    return restored(picture(*LEAST), version)


@pytest.mark.parametrize(
    "changed",
    [
        {"guidance_scale": 1.0},
        {"rescale_guidance": True},
        {"sampler": "edm_euler"},
        {"sampler_options": {"eta": 0.3}},
        {"conditioning_scale": 0.5},
        {"added_prompt": "a wall"},
        {"negative_prompt": "sharp"},
        {"noise_augmentation": 200},
        {"color": "none"},
        {"num_inference_steps": 3},
        {"restoration_guidance": {"scale": 0.1, "loss": "mse", "space": "latent"}},
        {"process_size": 128},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_options_have_an_effect(changed: dict[str, Any]) -> None:
    assert differ(restored(picture(*LEAST), **changed), usual())


def test_what_it_starts_from() -> None:
    assert differ(restored(picture(*LEAST), "v2", start="cond"), usual("v2"))
    found = restored(picture(*LEAST), start="cond")
    torch.testing.assert_close(found, usual(), atol=1e-3, rtol=0)  # from pure noise either way


def test_restoration_guidance_leads_to_the_cleaned_picture() -> None:
    lq = picture(16, 16)
    off: dict[float, float] = {}
    for scale in (0.0, 0.02, 0.05):
        small = restorer("v2", color="none", num_inference_steps=4, restoration_guidance={"scale": scale, "loss": "mse"})
        with torch.no_grad():
            seen = small.clean(lq, (64, 64)).clamp(0, 1)
            off[scale] = (small.restore(lq) - seen).square().mean().item()
    assert off[0.0] > off[0.02] > off[0.05]


def test_gradients_are_those_of_finite_differences() -> None:
    small = restorer("v2", num_inference_steps=2, sampler="ddim", guidance_scale=1.5, color="none")
    lq, direction = 0.3 + 0.4 * picture(16, 16), torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    given = lq.clone().requires_grad_()
    (small.restore(given) * weight).sum().backward()
    assert given.grad is not None
    with torch.enable_grad():  # strips of the VAE sum up in another order
        ends = [(small.restore(lq + s * 1e-3 * direction) * weight).sum().item() for s in (1, -1)]
    assert (given.grad * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=0.05)
    kept = lq.clone().requires_grad_()
    with small.gradients_through(1):
        (small.restore(kept) * weight).sum().backward()
    assert kept.grad is not None
    assert kept.grad.abs().max() > 0
    assert not torch.allclose(kept.grad, given.grad)
    modules = (*small.base.modules, small.networks, small.cleaner)
    assert not [p for module in modules for p in module.parameters() if p.requires_grad or p.grad is not None]


def test_half_precision_comes_close() -> None:
    lq = picture(16, 24)
    expected = restored(lq, guidance_scale=1.5)
    options: dict[str, Any] = {"process_size": 64, "num_inference_steps": 2, "guidance_scale": 1.5, "dtype": "float32"}
    small = DiffBIR(*copy.deepcopy(build()), swinir(), **options).to(dtype="bfloat16")
    assert {p.dtype for module in (*small.base.modules, small.networks) for p in module.parameters()} == {torch.bfloat16}
    assert small.cleaner.dtype == torch.float32
    with torch.no_grad():
        found = small.restore(lq, noise=SeededNoise([0]))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.02 < 0.1 < (restored(lq, seed=1) - expected).abs().mean()


def test_published_steps_around_the_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those recorded with SwinIR, runs of both stages are slow ones."""
    small = restorer(compat="upstream", cleaner_tile=64)
    monkeypatch.setattr(small, "denoise", lambda pictures, texts, noise: pictures * 2 - 1)
    seen: list[tuple[int, ...]] = []
    hook = small.cleaner.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    lq = picture(24, 24)
    found = small.restore(lq)
    hook.remove()
    assert seen == [(1, 3, 64, 64)] * 4
    with torch.no_grad():
        whole, tiled = (
            small.cleaner.as_published(enlarged_as_published(lq, 4), tile=tile, shortest=64) for tile in (None, 64)
        )
    eight = (found * 255).round()
    assert (eight - tiled.clamp(0, 1) * 255).abs().max() < 1.01  # truncated
    assert (eight - tiled.clamp(0, 1) * 255).mean() < -0.4
    assert differ(whole, tiled)


def test_tiles_of_the_vae_may_be_a_mapping() -> None:
    """As on the command line. What it leaves out stays in one piece, and so does what is narrower than a tile."""
    for text, expected in (
        ("{encoder: 64, decoder: 8}", PublishedTiles(64, 8, narrow_whole=True)),
        ("{encoder: 64}", PublishedTiles(64, None, narrow_whole=True)),
        ("{decoder: 8, narrow_whole: false}", PublishedTiles(None, 8)),
        ("{}", PublishedTiles(None, None, narrow_whole=True)),
    ):
        given = restorer_options([f"vae_tiles={text}", "compat=upstream"])
        assert restorer(**given).vae_mode == expected
    assert restorer(compat="upstream", vae_tiles=PublishedTiles(64)).vae_mode == PublishedTiles(64)
    of_mapping, of_object, whole = (
        restored(picture(36, 36), compat="upstream", num_inference_steps=1, vae_tiles=tiles)
        for tiles in ({"encoder": 64, "decoder": 8}, PublishedTiles(64, 8, narrow_whole=True), None)
    )
    assert torch.equal(of_mapping, of_object)
    assert differ(of_mapping, whole)


def test_versions_have_their_settings() -> None:
    base, networks = build()
    first = swinir()
    newest = DiffBIR(base, networks, first, dtype="float32")
    assert (newest.sampling.sampler, newest.sampling.steps, newest.sampling.guidance) == ("edm_dpm++_3m_sde", 10, 8.0)
    assert (newest.added_prompt, newest.negative_prompt, newest.upscale) == (POSITIVE, NEGATIVE, 4.0)
    assert newest.texts(1, [Prompt("A Cat")])[0].startswith("a cat, cinematic")
    for version in ("v2", "v1"):
        older = DiffBIR(*build(version), first, version=version, task="denoise", dtype="float32")
        assert (older.sampling.sampler, older.sampling.steps, older.sampling.guidance) == ("spaced", 50, 4.0)
        assert (older.added_prompt, older.negative_prompt, older.upscale) == ("", NEGATIVE_V2, 1.0)
        assert older.texts(2, None) == ["", ""]
        assert older.spec.lq_profile is not None
        assert older.spec.lq_profile.name == "codeformer"
        assert older.spec.title == f"DiffBIR {version} (denoise)"
    names = {
        (version, task): [
            f.name for f in DiffBIR(*build(version), first, version=version, task=task, dtype="float32").spec.weights
        ]
        for version in ("v2.1", "v2", "v1")
        for task in ("sr", "denoise", "face")
    }
    zero_snr = "sd2.1-base-zsnr-laionaes5.ckpt"
    assert names == {
        ("v2.1", "sr"): [zero_snr, "DiffBIR_v2.1.pt", SWINIR],
        ("v2.1", "denoise"): [zero_snr, "DiffBIR_v2.1.pt", SWINIR],
        ("v2.1", "face"): [zero_snr, "DiffBIR_v2.1.pt", "face_swinir_v1.ckpt"],
        ("v2", "sr"): ["v2.pth", "BSRNet.pth"],
        ("v2", "denoise"): ["v2.pth", "scunet_color_real_psnr.pth"],
        ("v2", "face"): ["v2.pth", "face_swinir_v1.ckpt"],
        ("v1", "sr"): ["v1_general.pth", "general_swinir_v1.ckpt"],
        ("v1", "denoise"): ["v1_general.pth", "general_swinir_v1.ckpt"],
        ("v1", "face"): ["v1_face.pth", "face_swinir_v1.ckpt"],
    }


def test_it_is_loaded_from_the_published_files() -> None:
    base, _ = loaded()
    found: Any = load_restorer(
        "diffbir",
        base=base,
        control=file(CONTROLNET),
        cleaner=file(SWINIR),
        process_size=64,
        num_inference_steps=2,
        guidance_scale=1.5,
        dtype="float32",
    )
    lq = picture(16, 16)
    with torch.no_grad():  # the shared ones may have other layouts
        torch.testing.assert_close(found.restore(lq), restored(lq, guidance_scale=1.5), atol=1e-4, rtol=0)
    files = [source.name for origin in found.origins for source in origin.files]
    assert files[:2] == [file(SWINIR).name, file(CONTROLNET).name]


def test_what_is_not_named_comes_from_the_hub(hub: HubServer) -> None:
    names = (BASE, CONTROLNET, SWINIR)
    hub.add_repo("lxq007/DiffBIR-v2", {name: file(name).read_bytes() for name in names})
    base = StableDiffusion.load(VERSIONS["v2.1"].base, tokenizer=TOKENIZER, heads=heads(), noise=ZERO_SNR_V)
    found: Any = load_restorer("diffbir", base=base, process_size=64, num_inference_steps=1)
    assert found.restore(picture(8, 8)).shape == (1, 3, 32, 32)
    assert {origin.place for origin in found.origins} == {"hf-hub:lxq007/DiffBIR-v2"}
    assert {source.name for origin in found.origins for source in origin.files} == set(names)


def test_other_degradations_of_a_projector_are_told() -> None:
    projector = PixelProjector(PixelArchitecture(widths=(8, 8), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,)))
    projector.provenance = projector.provenance.model_copy(update={"lq_profile": PRESETS["standard"]})
    for version, told in (("v2.1", False), ("v1", True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wrap(restorer(version), projector=projector)
        assert bool([w for w in caught if "maps onto pictures degraded as in 'standard'" in str(w.message)]) is told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v3"}, "version='v3'; expected v2.1, v2 or v1"),
        ({"task": "upscale"}, "task='upscale'; expected sr, denoise or face"),
        ({"steps": 3}, "diffbir has no option 'steps'"),
        ({"sampler": "euler"}, "no sampler 'euler'"),
        ({"sampler_options": {"churn": 1}}, "no 'churn'; expected s_churn"),
        ({"sampler": "spaced", "sampler_options": {"eta": 0.5}}, "spaced does not take eta=0.5"),
        ({"sampler_options": "eta"}, "sampler_options='eta': expected a mapping, such as {eta: 0.5}"),
        ({"guidance_scale": -1}, "guidance_scale=-1: expected"),
        ({"num_inference_steps": 0}, "num_inference_steps=0: expected"),
        ({"noise_augmentation": 1000}, "noise_augmentation"),
        ({"cleaner_tile": 256}, "cleaner_tile is for compat"),
        ({"vae_tiles": PublishedTiles()}, "vae_tiles are for compat"),
        ({"vae_tiles": {"encoder": 64}}, "vae_tiles are for compat"),
        ({"compat": "upstream", "vae_tiles": 512}, "vae_tiles=512: expected a mapping, such as {encoder: 512, decoder: 64}"),
        ({"compat": "upstream", "vae_tiles": {"encode": 64}}, "vae_tiles has no option 'encode'. Did you mean 'encoder'"),
        (
            {"compat": "upstream", "vae_tiles": {8: 64}},
            "vae_tiles has no option 8. Its options: encoder, decoder, narrow_whole",
        ),
        (
            {"compat": "upstream", "vae_tiles": {"encoder": "64"}},
            "VAE tiles of '64' pixels: expected a whole number, at least 8",
        ),
        (
            {"compat": "upstream", "vae_tiles": {"decoder": 0}},
            "VAE tiles of 0 latent pixels: expected a whole number, at least 1",
        ),
        ({"added_prompt": 3}, "added_prompt=3: expected a text"),
        ({"negative_prompt": False}, "negative_prompt=False: expected a text"),
        ({"compat": "upstream", "sampler": "ddim", "num_inference_steps": 3}, "the published ddim"),
        ({"compat": "upstream", "restoration_guidance": {"scale": 1}}, "the published restoration guidance is for"),
        ({"restoration_guidance": {"scale": 1, "spaces": "rgb"}}, "restoration_guidance has no option 'spaces'"),
        ({"restoration_guidance": 0.05}, "restoration_guidance=0.05: expected a mapping with scale"),
        ({"restoration_guidance": {"loss": "mse"}}, "expected a mapping with scale, such as {scale: 0.05}"),
        ({"version": "v2"}, "DiffBIR v2 needs a base model of"),
    ],
)
def test_options_that_are_impossible(options: dict[str, Any], message: str) -> None:
    base, _ = loaded()
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        load_restorer("diffbir", base=base, control=file(CONTROLNET), cleaner=swinir(), **options)


def test_a_base_of_other_betas_is_refused() -> None:
    base, networks = build("v2")
    base.alphas = base.alphas**1.1
    with pytest.raises(ConfigError, match="the base model was trained with other noise levels"):
        DiffBIR(base, networks, swinir(), version="v2")


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    base, _ = loaded()
    with pytest.raises(WeightsError, match="no weight file at"):
        load_restorer("diffbir", base=base, control=tmp_path / "none.pt", cleaner=swinir())
    with pytest.raises(WeightsError, match=r"diffbir needs BSRNet.pth. Download https://github.com"):
        load_restorer("diffbir", version="v2", base=base)
    with pytest.raises(InputError, match="1 prompts for 2 pictures"):
        restorer().restore(torch.cat([picture(8, 8)] * 2), prompts=[None])


def test_cleaners_alone_and_within_are_the_same(tmp_path: Path) -> None:
    alone: Any = LOAD["swinir"](save("swinir", tmp_path), dtype="float32")
    lq = picture(24, 24)
    with torch.no_grad():
        torch.testing.assert_close(alone.restore(lq, scale=4), restorer().clean(lq, (96, 96)))


def test_long_pictures_are_not_enlarged_without_bounds() -> None:
    small = restorer(process_size=32, num_inference_steps=1)
    assert (small.shortest(8, 128), small.shortest(128, 8)) == (32, 32)
    assert small.shortest(1, 100) == 13
    with torch.no_grad():
        assert small.clean(picture(1, 100), (1, 100)).shape[-2:] == (13, 1300)
        assert small.restore(picture(1, 100), scale=1).shape[-2:] == (1, 100)


def test_gradients_do_not_go_with_parts_that_take_turns_elsewhere() -> None:
    limited = restorer(memory=1)
    assert limited.base.offload is not None
    limited.base.offload.device = torch.device("cuda")
    with pytest.raises(ConfigError, match="memory= moves parts away that the backward pass needs"):
        limited.finished(picture(64, 64).requires_grad_(), (64, 64), lambda x: x)
