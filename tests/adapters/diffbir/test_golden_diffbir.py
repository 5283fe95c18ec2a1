"""Every recorded case of the published DiffBIR that runs both stages, the second alone, or backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.diffusion.published import eight_bits
from pnp_irib.diffusion.samplers.tables import picture_from
from pnp_irib.diffusion.text_cleaning import cleaned
from pnp_irib.diffusion.vae import PublishedTiles, decode
from pnp_irib.images.color import wavelet
from pnp_irib.noise import ReplayedNoise
from pnp_irib_diffbir.restorer import DiffBIR
from pnp_irib_diffbir.versions import VERSIONS
from tests.adapters.diffbir.cleaner_models import cleaner
from tests.adapters.diffbir.models import build
from tests.diffusion.samplers.recorded import STEP_OPTIONS, Recorded
from tests.golden import Case, cases_of, check, missing

KINDS = {"stage2": 59, "pipeline": 9, "gradient": 2, "wavelet": 3}
OF_FILES = {"BSRNet.pth": "bsrnet", "scunet_color_real_psnr.pth": "scunet"}  # others are SwinIR
FAST = {"pipe_v2_sr"}  # the others are of stages that are tested by themselves
CROPPED = {"tiled_all": (60, 100, 100, 148)}  # rows and columns that are recorded


def some(kind: str) -> list[Any]:
    found = [p for p in cases_of("diffbir") if p.values[0] is None or p.values[0].kind == kind]
    assert len(found) == KINDS[kind] or found[0].values[0] is None
    return found


def published(case: Case, first: str = "swinir", **more: Any) -> DiffBIR:
    """The restorer of a case, from upstream's options."""
    given = case.options
    base, networks = build(given["version"])
    tiles: dict[str, Any] = {}
    if given.get("vae_encoder_tiled") or given.get("vae_decoder_tiled"):
        tiles["vae_tiles"] = PublishedTiles(
            encoder=given["vae_encoder_tile_size"] if given["vae_encoder_tiled"] else None,
            decoder=given["vae_decoder_tile_size"] // 8 if given["vae_decoder_tiled"] else None,
            narrow_whole=True,
        )
    if given.get("cldm_tiled"):
        tile, stride = given["cldm_tile_size"] // 8, given["cldm_tile_stride"] // 8
        tiles |= {"latent_tile": tile, "latent_overlap": tile - stride}
    if given.get("cleaner_tiled"):
        assert given["cleaner_tile_stride"] * 2 == given["cleaner_tile_size"]
        tiles["cleaner_tile"] = given["cleaner_tile_size"]
    return DiffBIR(
        base,
        networks,
        cleaner(first),
        version=given["version"],
        task=given.get("task", "sr"),
        compat="upstream",
        sampler=given["sampler"],
        num_inference_steps=given["steps"],
        guidance_scale=given["cfg_scale"],
        rescale_guidance=given["rescale_cfg"],
        sampler_options={name: given[name] for name in STEP_OPTIONS},
        conditioning_scale=given["strength"],
        added_prompt=given["pos_prompt"],
        negative_prompt=given["neg_prompt"],
        start=given["start_point_type"],
        noise_augmentation=given["noise_aug"],
        upscale=given.get("upscale"),
        batch=2 * given.get("batch", 1),
        dtype="float32",
        **tiles | more,
    )


def pictures(eight: Tensor, count: int = 1) -> Tensor:
    return (eight.permute(2, 0, 1).float() / 255).expand(count, -1, -1, -1)


@pytest.mark.parametrize("case", some("stage2"))
@torch.no_grad()
def test_second_stage(case: Case | None) -> None:
    if case is None:
        return missing("diffbir")
    restorer, noise = published(case), Recorded(case, start=True)
    found: dict[str, Tensor] = {}

    def each(number: int, state: Tensor, estimate: Tensor) -> None:
        found[f"state_{number:02d}"], found[f"denoised_{number:02d}"] = state, estimate

    restorer.on_step = each
    seen = pictures(case.tensors["cond_img_u8"], case.options["batch"])
    condition = restorer.condition(restorer.padded_as_published(seen))
    latent = restorer.generate(condition, restorer.texts(len(seen), None), noise)
    decoded = decode(restorer.base.vae, latent / restorer.base.vae.config.scaling_factor, restorer.vae_mode)
    decoded = decoded[..., : seen.shape[-2], : seen.shape[-1]]
    if case.folder.name in CROPPED:
        top, bottom, left, right = CROPPED[case.folder.name]
        decoded = decoded[..., top:bottom, left:right]
    assert noise.left == []
    whole = case.tensors["latent"].clone()  # recorded with its padding, which is cut off here; the states have it as well
    whole[..., : latent.shape[-2], : latent.shape[-1]] = latent
    check(case, found | {"c_img": condition, "latent": whole, "decoded": decoded})
    return None


@pytest.mark.parametrize(
    "case", [pytest.param(*p.values, id=p.id, marks=() if p.id in FAST else pytest.mark.slow) for p in some("pipeline")]
)
def test_both_stages(case: Case | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if case is None:
        return missing("diffbir")
    given, known = case.options, case.facts["json"]
    version = VERSIONS[given["version"]]
    files = {version.cleaners[given["task"]].name, version.controls[given["task"]].name}
    assert files < set(known["files"])
    assert version.noise.prediction == known["parameterization"]
    first = OF_FILES.get(version.cleaners[given["task"]].name, "swinir")
    restorer, noise = published(case, first), Recorded(case, start=True)
    stages: dict[str, Tensor] = {}

    def denoised(picture: Tensor, texts: Sequence[str], drawn: Recorded) -> Tensor:
        stages["decoded"] = denoise(picture, texts, drawn)
        return stages["decoded"]

    def padded(seen: Tensor) -> Tensor:
        stages["cond_img"] = seen
        return pad(seen)

    denoise, pad = restorer.denoise, restorer.padded_as_published
    monkeypatch.setattr(restorer, "denoise", denoised)
    monkeypatch.setattr(restorer, "padded_as_published", padded)
    lq = pictures(case.tensors["lq_u8"], given["n_samples"])
    eight = eight_bits(restorer.restore(lq, noise=noise))
    assert noise.left == []
    assert list(stages["cond_img"].shape) == known["cond_img_shape"]
    found: dict[str, Any] = {name + "_mean16": F.avg_pool2d(value, 16) for name, value in stages.items()}
    for number, picture in enumerate(torch.from_numpy(one) for one in eight):
        assert list(picture.shape) == known[f"output_shape_{number}"]
        found[f"output_u8_{number}"] = picture
        found[f"output_u8_crop_{number}"] = picture[200:296, 150:270]
        found[f"output_mean16_{number}"] = F.avg_pool2d(picture.permute(2, 0, 1)[None].float(), 16)
    check(case, found)
    return None


@pytest.mark.parametrize("case", some("gradient"))
def test_gradients(case: Case | None) -> None:
    """From the restored picture through the last step, or all of them, and through the condition of every step, to the LQ."""
    if case is None:
        return missing("diffbir")
    usual = {"rescale_cfg": False, "strength": 1.0, "start_point_type": "noise", "noise_aug": 0}
    usual |= dict.fromkeys(STEP_OPTIONS, 0) | {"order": 1}
    case.options.update(usual | case.options)
    restorer, known = published(case), case.tensors
    lq = pictures(known["lq_u8"]).requires_grad_()
    seen = restorer.cleaner(lq)
    condition, start, texts = restorer.condition(seen), known["latent_in"].float(), restorer.texts(1, None)
    if case.options["sampler"] == "ddim":
        latent = restorer.generate(condition, texts, ReplayedNoise([start] * 5))
    else:
        words = restorer.base.embed([*texts, cleaned(restorer.negative_prompt)])
        output = restorer.predictor(condition, words, None)(start, 0, case.options["cfg_scale"])
        latent = picture_from(start, output, restorer.base.noise.numbers[0], restorer.base.noise.prediction)
    decoded = decode(restorer.base.vae, latent / restorer.base.vae.config.scaling_factor)
    picture = wavelet(decoded * 0.5 + 0.5, seen)
    picture = F.interpolate(picture, size=(48, 56), mode="bicubic", antialias=True).clamp(0, 1)
    loss = (known["w"].float() * picture).sum()
    loss.backward()
    check(case, {"c_img": condition, "z": latent, "output": picture, "loss": loss, "grad_lq": lq.grad})
    return None


@pytest.mark.parametrize("case", some("wavelet"))
def test_colours(case: Case | None) -> None:
    if case is None:
        return missing("diffbir")
    picture, reference = (case.tensors[name].float() for name in ("sample", "cond_img"))
    check(case, {"out": wavelet(picture, reference), "low": wavelet(torch.zeros_like(picture), picture)})
    return None
