"""The latent projector on a tiny Stable Diffusion, alone and beside an OSEDiff that uses the same base."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pnp_irib import wrap
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.vae import decode, encode
from pnp_irib.errors import InputError, WeightsError
from pnp_irib.images.padding import pad_to
from pnp_irib.images.resize import resize
from pnp_irib.noise import SeededNoise
from pnp_irib.projectors import LatentArchitecture, LatentProjector, Projector
from pnp_irib.prompts import Prompt
from pnp_irib_osediff.checkpoint import UNET_ADAPTERS, VAE_ADAPTER
from pnp_irib_osediff.restorer import OSEDiff, load_osediff
from tests.golden import golden_folder, missing

MODEL = golden_folder("osediff") / "model"
PLACE = str(MODEL / "sd21base")


@pytest.fixture(scope="module")
def loaded() -> StableDiffusion:
    if not MODEL.is_dir():
        missing("osediff")
    return StableDiffusion.load(PLACE)


@pytest.fixture
def base(loaded: StableDiffusion) -> StableDiffusion:
    return copy.deepcopy(loaded)


def osediff(base: StableDiffusion, *, merged: bool = False) -> OSEDiff:
    return load_osediff(base, MODEL / "osediff.pkl", merged=merged, process_size=16, dtype="float32")


def trained(base: StableDiffusion, timestep: int = 999, *, seed: int = 3, enlargement: int = 4) -> LatentProjector:
    """One whose LoRA is not zero."""
    projector = LatentProjector(LatentArchitecture(base=PLACE, timestep=timestep, enlargement=enlargement), base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return projector


def picture(*size: int, seed: int = 0) -> Tensor:
    small = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)


def test_a_fresh_one_at_a_small_timestep_is_the_vae_and_little_else(base: StableDiffusion) -> None:
    elq = picture(6, 7)
    enlarged = pad_to(resize(elq, (24, 28)).clamp(0, 1), multiple_of=8, min_size=64)
    with torch.no_grad():
        passed = decode(base.vae, encode(base.vae, enlarged * 2 - 1)[0]).clamp(-1, 1)[..., :24, :28] * 0.5 + 0.5
        near = LatentProjector(LatentArchitecture(base=PLACE, timestep=0), base).project(elq)
        far = LatentProjector(LatentArchitecture(base=PLACE, timestep=999), base).project(elq)
    assert near.shape == (1, 3, 24, 28)
    assert (near - passed).abs().mean() < 0.2 * (far - passed).abs().mean()


def test_a_restorer_on_the_same_base_notices_nothing(base: StableDiffusion) -> None:
    restorer, lq = osediff(base), picture(5, 8)
    size = sum(p.numel() for part in base.modules for p in part.parameters())
    with torch.no_grad():
        before = restorer.restore(lq, noise=SeededNoise([0]))
    kept = {name: value.clone() for name, value in base.unet.state_dict().items()}
    projector = trained(base)
    grown = sum(p.numel() for part in base.modules for p in part.parameters()) - size
    assert grown + sum(p.numel() for p in projector.conv_in.parameters()) == projector.parameter_count  # no second base
    robust = wrap(restorer, projector=projector)
    robust(lq)
    optimizer = torch.optim.SGD(projector.parameters(), lr=1.0)
    robust.restore(lq).mean().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(restorer.restore(lq, noise=SeededNoise([0])), before)
    assert torch.equal(wrap(restorer, projector=None)(lq).restored, before.clamp(0, 1))
    own = set(dict(base.unet.named_parameters())) - set(kept)
    assert all(torch.equal(value, base.unet.state_dict()[name]) for name, value in kept.items())
    assert all(".projector_0." in name for name in own)
    assert not any(p.grad is not None for name, p in base.unet.named_parameters() if name in kept)


@pytest.mark.parametrize("order", ["restorer first", "projector first"])
def test_one_that_takes_over_the_adapters_of_osediff_acts_like_it(base: StableDiffusion, order: str) -> None:
    elq = picture(16, 18)
    projector = None if order == "restorer first" else LatentProjector(LatentArchitecture(base=PLACE), base)
    restorer = osediff(base)
    projector = projector or LatentProjector(LatentArchitecture(base=PLACE), base)
    projector.copy_adapters(base, list(UNET_ADAPTERS), [VAE_ADAPTER])
    assert all(p.requires_grad for p in projector.parameters())
    enlarged = resize(elq, (64, 72)).clamp(0, 1) * 2 - 1
    with torch.no_grad():
        expected = restorer.step(enlarged, base.text(["cat"]), None).picture * 0.5 + 0.5
        found = projector.project(elq, prompts=[Prompt("cat")])
        other = projector.project(elq, prompts=[Prompt("night street")])
    torch.testing.assert_close(found.clamp(0, 1), expected, atol=1e-4, rtol=0)
    assert (other - found).abs().max() > 1e-4
    with pytest.raises(WeightsError, match="another rank"):
        LatentProjector(LatentArchitecture(base=PLACE, rank_unet=2), base).copy_adapters(
            base, list(UNET_ADAPTERS), [VAE_ADAPTER]
        )
    with pytest.raises(WeightsError, match="with the factor 2, the projector's with alpha / rank = 4"):
        LatentProjector(LatentArchitecture(base=PLACE, alpha=16), base).copy_adapters(base, list(UNET_ADAPTERS), [VAE_ADAPTER])


def test_its_pictures_are_not_clamped_and_pass_gradients_everywhere(base: StableDiffusion) -> None:
    projector = trained(base)
    with torch.no_grad():
        base.vae.decoder.conv_out.bias.add_(2)  # far above white
    estimate = projector.project(picture(5, 5))
    assert estimate.min() > 1
    estimate.mean().backward()
    gradients = [p.grad for p in projector.parameters() if p.grad is not None]
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0


def test_the_restorers_own_enlargement_is_kept_and_the_projectors_counts_for_the_cap(base: StableDiffusion) -> None:
    restorer = load_osediff(base, MODEL / "osediff.pkl", merged=False, process_size=16, dtype="float32", upscale=2)
    robust = wrap(restorer, projector=trained(base))
    assert robust(picture(6, 7)).restored.shape[-2:] == (12, 14)
    with pytest.raises(InputError, match="24x24"):  # on the way
        robust(picture(6, 6), max_output_pixels=300)


@pytest.mark.parametrize(("size", "scale"), [((1, 1), None), ((1, 1), 5), ((3, 9), 2.5), ((10, 5), 4), ((7, 6), 1)])
def test_every_size_before_restorers_of_any_scale_and_of_one(
    base: StableDiffusion, size: tuple[int, int], scale: float | None
) -> None:
    def thrice(lq: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(lq, scale_factor=3)

    elq, projector = picture(*size), trained(base)
    result = wrap(osediff(base), projector=projector)(elq, scale=scale)
    factor = 4 if scale is None else scale
    assert result.restored.shape[-2:] == result.lq.shape[-2:] == (round(size[0] * factor), round(size[1] * factor))
    result = wrap(thrice, projector=projector, scale=3)(elq, scale=scale)
    factor = 3 if scale is None else scale
    assert result.restored.shape[-2:] == (round(size[0] * factor), round(size[1] * factor))
    assert result.lq.shape[-2:] == size
    assert "e" in repr(result)


def test_strength_and_looking_forward(base: StableDiffusion) -> None:
    restorer, elq, projector = osediff(base), picture(6, 6), trained(base)
    robust = wrap(restorer, projector=projector, extractor=lambda pictures: ["a cat"] * len(pictures))
    assert torch.equal(robust(elq, strength=0).restored, wrap(restorer, projector=None)(elq, prompt="a cat").restored)
    half = robust(elq, prompt="x", strength=0.5)
    with torch.no_grad():
        whole = projector.project(elq, prompts=[Prompt("x")])
    torch.testing.assert_close(half.lq, torch.lerp(resize(elq, (24, 24)), whole, 0.5).clamp(0, 1))
    looked = robust(elq, prompt="x", lfo=1)
    assert looked.prompt == Prompt("a cat")
    assert looked.trace[1].change
    assert torch.equal(looked.restored, robust(elq, prompt="a cat").restored)


def test_it_is_the_same_in_a_batch(base: StableDiffusion) -> None:
    projector = trained(base)
    one, other = picture(6, 8, seed=1), picture(6, 8, seed=2)
    with torch.no_grad():
        both = projector.project(torch.cat((one, other)), prompts=[Prompt("cat"), None])
        torch.testing.assert_close(both[1:], projector.project(other), atol=1e-5, rtol=0)


def test_checkpointing_gives_the_same_gradients_through_projector_and_restorer(base: StableDiffusion) -> None:
    restorer, projector = osediff(base), trained(base)
    robust = wrap(restorer, projector=projector)

    def gradients() -> tuple[Tensor, list[Tensor]]:
        elq = picture(4, 6).requires_grad_()
        projector.zero_grad()
        robust.restore(elq).square().mean().backward()
        assert elq.grad is not None
        return elq.grad, [p.grad.clone() for p in projector.parameters() if p.grad is not None]

    expected, expected_own = gradients()
    with base.checkpointing():
        found, own = gradients()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)
    assert len(own) == len(expected_own) == len(list(projector.parameters()))
    for a, b in zip(own, expected_own, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_saved_are_the_lora_and_the_first_convolution(base: StableDiffusion, tmp_path: Path) -> None:
    restorer, elq, projector = osediff(base), picture(5, 6), trained(base)
    folder = projector.save_pretrained(tmp_path / "f")
    names = list(load_file(folder / "model.safetensors"))
    assert all(".lora_" in name or name.startswith("conv_in.") for name in names)
    assert not any("decoder" in name or "projector" in name for name in names if name.startswith("vae."))
    with torch.no_grad():
        expected = projector.project(elq)
        again = Projector.from_pretrained(folder)  # reads its own base
        assert isinstance(again, LatentProjector)
        assert torch.equal(again.project(elq), expected)
    robust = wrap(
        "osediff", base=PLACE, checkpoint=MODEL / "osediff.pkl", merged=False, dtype="float32", projector=f"local-dir:{folder}"
    )
    assert isinstance(robust.projector, LatentProjector)
    assert robust.projector.base is robust.restorer.base  # type: ignore[attr-defined]
    merged = wrap(osediff(StableDiffusion.load(PLACE), merged=True), projector=folder)
    assert isinstance(merged.projector, LatentProjector)
    assert merged.projector.base is not merged.restorer.base  # type: ignore[attr-defined]
    with torch.no_grad():
        assert torch.equal(robust.projector.project(elq), expected)
        assert torch.equal(merged.projector.project(elq), expected)
    assert restorer.base.fingerprint == json.loads((folder / "config.json").read_text())["architecture"]["fingerprint"]


def test_another_base_is_refused(base: StableDiffusion, tmp_path: Path) -> None:
    folder = trained(base).save_pretrained(tmp_path / "f")
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["fingerprint"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="fingerprint 0000000000000000"):
        Projector.from_pretrained(folder)
    config["architecture"]["base"] = str(tmp_path / "nowhere")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="nowhere"):
        Projector.from_pretrained(folder)
    changed = osediff(StableDiffusion.load(PLACE), merged=True).base
    with pytest.raises(WeightsError, match="merged=False"):
        LatentProjector(LatentArchitecture(base=PLACE), changed)


def test_fingerprints_tell_models_apart_but_not_dtypes(base: StableDiffusion) -> None:
    from pnp_irib.diffusion.model import fingerprint_of

    assert fingerprint_of(base.vae, base.unet) == base.fingerprint
    assert StableDiffusion.load(PLACE, dtype=torch.bfloat16).fingerprint == base.fingerprint
    with torch.no_grad():
        base.unet.conv_out.bias[0] += 0.01
    assert fingerprint_of(base.vae, base.unet) != base.fingerprint


def test_the_largest_weights_have_a_fingerprint() -> None:
    from pnp_irib.diffusion.model import fingerprint_of

    large = torch.nn.Linear(2**12, 2**12 + 2**11, bias=False)  # more values than float32 can count
    first = fingerprint_of(large)
    with torch.no_grad():
        large.weight[-1, -1] += 1
    assert fingerprint_of(large) != first
