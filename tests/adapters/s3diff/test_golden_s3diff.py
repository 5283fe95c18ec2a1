"""Every recorded case of the published S3Diff."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.diffusion.latents import gaussian_window, plan_latent_tiles
from pnp_irib.diffusion.published import eight_bits, recolor, truncated
from pnp_irib.diffusion.samplers.tables import picture_from_eps
from pnp_irib.diffusion.vae import PublishedTiles, decode, encode
from pnp_irib.diffusion.vae_published import plan_tiles
from pnp_irib.noise import ReplayedNoise
from pnp_irib_s3diff.modulation import Bound, sinusoids
from pnp_irib_s3diff.restorer import S3Diff
from tests.adapters.s3diff.models import loaded, restorer
from tests.golden import Case, cases_of, golden_folder

Outputs = dict[str, Any]


def published(case: Case, **more: Any) -> S3Diff:
    """The restorer of a case: upstream's names of the options, upstream's defaults."""
    o = case.options
    tiles = PublishedTiles(encoder=o.get("vae_encoder_tiled_size", 1024), decoder=o.get("vae_decoder_tiled_size", 224))
    names = {"pos_prompt": "added_prompt", "neg_prompt": "negative_prompt", "guidance_scale": "guidance_scale"}
    names |= {"latent_tiled_size": "latent_tile", "latent_tiled_overlap": "latent_overlap"}
    given = {ours: o[theirs] for theirs, ours in names.items() if theirs in o}
    color = o.get("align_method", "wavelet")
    given["color"] = color if color in ("wavelet", "adain") else "none"
    return restorer(compat="upstream", vae_tiles=tiles, **given | more)


def recorded_noise(case: Case) -> ReplayedNoise:
    return ReplayedNoise([case.tensors[drawn["tensor"]] for drawn in case.facts["noise"]])


def pictures(eight: Tensor) -> Tensor:
    eight = eight if eight.ndim == 4 else eight[None]
    return eight.permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def text(case: Case) -> Outputs:
    embedder, prompts = loaded()[0].text, case.options["prompts"]
    return {"out.input_ids": embedder.tokens(prompts), "out.text_embedding": embedder(prompts)}


def degradation_scores(case: Case) -> Outputs:
    built, image = restorer(), pictures(case.tensors["image"])
    alone = torch.cat([loaded()[2](image)])
    torch.testing.assert_close(built.degradation(image), alone)
    return {"out.scores": alone}


def modulation(case: Case) -> Outputs:
    trained, scores = loaded()[1], case.tensors["scores"]
    of_unet, of_vae = trained.matrices(scores)
    phases = sinusoids(scores, trained.frequencies)
    found: Outputs = {"out.fourier": phases}
    for name, modulator, lora, matrices in (
        ("unet", trained.of_unet, trained.unet, of_unet),
        ("vae", trained.of_vae, trained.vae, of_vae),
    ):
        found[f"out.{name}_score_code"] = modulator.of_scores(phases).relu()
        found[f"out.{name}_block_code"] = modulator.of_blocks(modulator.blocks).relu()
        found[f"out.{name}_flat"] = matrices.flatten(2)
        blocks = dict(zip(lora.names, lora.blocks, strict=True))
        found |= {f"out.M.{name}.{layer}": matrices[:, block] for layer, block in blocks.items()}
    return found


def lora_layer(case: Case) -> Outputs:
    o, t, (base, trained, _) = case.options, case.tensors, loaded()
    network, lora = (base.unet, trained.unet) if o["net"] == "unet" else (base.vae, trained.vae)
    number, layer = lora.names.index(o["layer"]), network.get_submodule(o["layer"])
    pair = lora.down[number], lora.up[number]
    found = Bound(layer, *pair, t["M"])(t["x"])
    for n in range(len(t["x"])):  # in another weight, and beside the layer
        one = Bound(layer, *pair, t["M"][n : n + 1])
        for alone in (one(t["x"][n : n + 1]), one.merged()(t["x"][n : n + 1])):
            torch.testing.assert_close(alone[0], found[n], atol=2e-5, rtol=0)
    return {"out.base": layer(t["x"]), "out.y": found}


@torch.no_grad()
def vae_encode(case: Case) -> Outputs:
    built, image = published(case), pictures(case.tensors["image"]) * 2 - 1
    _, of_vae = built.trained.matrices(case.tensors["scores"])
    pairs = zip(image.split(1), of_vae.split(1), strict=True)
    found = [encode(built.trained.vae.bound(built.base.vae, m, merged=True), x, built.vae_mode) for x, m in pairs]
    moments = torch.cat([torch.cat(one, 1) for one in found])
    return {"out.moments": moments, "out.z": built.encode(image, of_vae, recorded_noise(case))}


@torch.no_grad()
def unet(case: Case) -> Outputs:
    built, t = published(case, guidance_scale=1.0), case.tensors
    of_unet, _ = built.trained.matrices(t["scores"])
    prompts = case.options.get("prompts", [built.added_prompt] * len(t["z"]))
    return {"out.eps": built.predict(t["z"], of_unet, built.base.embed([*prompts, ""]))}


@torch.no_grad()
def guidance(case: Case) -> Outputs:
    t, found = case.tensors, {}
    scale = case.options["guidance_scale"]
    for name, at in (("out.eps", scale), ("out.eps_pos", 1.0), ("out.eps_neg", 0.0)):
        built = published(case, guidance_scale=at)
        of_unet, _ = built.trained.matrices(t["scores"])
        words = built.base.embed([*built.texts(len(t["z"]), None), built.negative_prompt])
        found[name] = built.predict(t["z"], of_unet, words)
    return found | {"out.x0": picture_from_eps(t["z"], found["out.eps"], loaded()[0].alphas[999].item())}


def scheduler(case: Case) -> Outputs:
    alphas, t = loaded()[0].alphas, case.tensors
    steps = {"out.sched_timesteps": torch.tensor([999]), "out.used_timestep": torch.tensor([999])}
    return {"out.alphas_cumprod": alphas, "out.x0": picture_from_eps(t["z"], t["eps"], alphas[999].item())} | steps


@torch.no_grad()
def tiled_latents(case: Case) -> Outputs:
    found, tiles = guidance(case), {}
    if "out.tiles_pos" in case.facts["outputs"]:
        seen: list[Tensor] = []
        for name, at in (("out.tiles_pos", 1.0), ("out.tiles_neg", 0.0)):
            built, t = published(case, guidance_scale=at, batch=1), case.tensors
            of_unet, _ = built.trained.matrices(t["scores"])
            words = built.base.embed([*built.texts(len(t["z"]), None), built.negative_prompt])
            noise, seen = built._noise, []

            def watched(*given: Any, noise: Any = noise, seen: list[Tensor] = seen) -> Tensor:
                seen.append(noise(*given))
                return seen[-1]

            built.__dict__["_noise"] = watched
            built.predict(t["z"], of_unet, words)
            of_one = seen if at == 1 else seen[::2]  # at 0, the halves take turns, that without prompt first
            count = len(t["z"])
            tiles[name] = torch.stack([torch.cat(of_one[n : n + count]) for n in range(0, len(of_one), count)])
    return found | tiles


def latent_plan(case: Case) -> Outputs:
    for plan in case.facts["plans"]:
        tiles = plan_latent_tiles(plan["h"], plan["w"], tile=plan["tile"], overlap=plan["overlap"], compat=True)
        assert plan["tiled"] == (tiles is not None)
        if tiles is not None:
            assert [list(corner) for corner in tiles.corners] == plan["tiles_y0_x0_in_call_order"]
            assert [tiles.height, tiles.width] == plan["tile_size_used"]
    return {}


def latent_weights(case: Case) -> Outputs:
    return {f"out.w{side}": gaussian_window(side, side, symmetric=False) for side in case.options["tile_sizes"]}


def vae_plan(case: Case) -> Outputs:
    for plan in case.facts["plans"]:
        decoder = plan["side"] == "decoder"
        tiles = plan_tiles(plan["h"], plan["w"], plan["tile"], decoder=decoder)
        assert plan["tiled"] == (tiles is not None)
        for number, tile in enumerate(tiles or ()):
            (top, bottom, left, right), core = tile.read, tile.core
            assert [left, right, top, bottom] == plan["input_x1_x2_y1_y2"][number]
            found = [8 * side if decoder else side // 8 for side in (core[2], core[3], core[0], core[1])]
            assert found == plan["output_x1_x2_y1_y2"][number]
    return {}


@torch.no_grad()
def vae_decode(case: Case) -> Outputs:
    built = published(case)
    vae = built.base.vae
    return {"out.y_unclamped": decode(vae, case.tensors["x0"] / vae.config.scaling_factor, built.vae_mode)}


@torch.no_grad()
def forward(case: Case) -> Outputs:
    built, t = published(case), case.tensors
    image, noise = pictures(t["image"]) * 2 - 1, recorded_noise(case)
    result = built.step(image, t["scores"], built.texts(len(image), None), noise)
    assert noise.left == 0
    inside = Case(case.folder)
    inside.__dict__["tensors"] = t | {"z": result.latent}
    inside.__dict__["facts"] = case.facts | {"options": case.options | {"guidance_scale": 1.07}}
    halves = guidance(inside)
    encoded = vae_encode(case)
    return {
        "out.moments": encoded["out.moments"],
        "out.z": result.latent,
        "out.eps_pos": halves["out.eps_pos"],
        "out.eps_neg": halves["out.eps_neg"],
        "out.eps": result.noise,
        "out.x0": result.denoised,
        "out.y": result.picture,
    }


def color(case: Case) -> Outputs:
    given = case.tensors["content"].numpy(), case.tensors["style"].numpy()
    return {"out.image": torch.from_numpy(recolor(*given, case.options["method"]))}


@torch.no_grad()
def end_to_end(case: Case) -> Outputs:
    built, found = published(case), {}
    step, noise = built.step, recorded_noise(case)

    def watched(seen: Tensor, scores: Tensor, *given: Any) -> Any:
        result = step(seen, scores, *given)
        found.update({"out.x": seen, "out.scores": scores, "out.z": result.latent, "out.eps": result.noise})
        found.update({"out.x0": result.denoised, "out.y": result.picture})
        return result

    built.__dict__["step"] = watched
    lq = pictures(case.tensors["image"])
    done = built.restore(lq, scale=case.options["sf"], noise=noise)
    assert noise.left == 0
    height, width = done.shape[-2:]
    before = truncated(found["out.y"][0, :, :height, :width] * 0.5 + 0.5)
    eight = torch.from_numpy(eight_bits(done)[0])
    return found | {"out.image": eight, "out.image_before_colour_fix": torch.from_numpy(before)}


def gradient(case: Case) -> Outputs:
    o = case.options
    more: dict[str, Any] = {} if o["net"] == "tile" else {"latent_tile": 1000}
    built = published(case, score_gradient=o["scores"] == "attached", **more)
    lq = pictures(case.tensors["image"]).requires_grad_()
    height, width = (side * o["sf"] for side in lq.shape[-2:])
    seen = F.interpolate(lq, size=(height, width), mode="bilinear", align_corners=False)
    seen = F.pad((seen * 2 - 1).clamp(-1, 1), (0, -width % 64, 0, -height % 64), mode="reflect")
    result = built.step(seen, built.degradation(lq), built.texts(len(lq), None), recorded_noise(case))
    out = result.picture[..., :height, :width] * 0.5 + 0.5
    loss = (out * case.tensors["w"]).sum()
    return {"out.loss": loss[None], "out.v": out, "out.grad": torch.autograd.grad(loss, lq)[0]}


KINDS = {
    "text": text,
    "degradation_scores": degradation_scores,
    "modulation": modulation,
    "lora_layer": lora_layer,
    "vae_encode": vae_encode,
    "unet": unet,
    "guidance": guidance,
    "scheduler": scheduler,
    "tiled_latents": tiled_latents,
    "latent_plan": latent_plan,
    "latent_weights": latent_weights,
    "vae_plan": vae_plan,
    "vae_decode": vae_decode,
    "forward": forward,
    "color": color,
    "end_to_end": end_to_end,
    "gradient": gradient,
}


@pytest.mark.parametrize("case", cases_of("s3diff"))
def test_a_recorded_case(case: Case) -> None:
    found = KINDS[case.kind](case)
    assert case.facts["outputs"] or case.facts["plans"]
    for name in case.facts["outputs"]:
        expected, tolerance = case.tensors[name], case.facts["tolerance"][name]
        value = torch.as_tensor(found[name]).detach().reshape(expected.shape)
        off = (value.double() - expected.double()).abs()
        assert off.max() <= tolerance["max_abs"], f"{name}: {off.max()}"
        assert (off > 0).double().mean() <= tolerance.get("max_fraction_of_values_differing", 1.0), name


def test_all_cases_are_there() -> None:
    assert len(list((golden_folder("s3diff") / "cases").iterdir())) == 58
