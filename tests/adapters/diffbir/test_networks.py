"""DiffBIR's second stage against the recorded outputs of the published code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.ldm import text_names, unet_names, vae_names
from pnp_irib.diffusion.single_file import TEXT, UNET, VAE
from pnp_irib.diffusion.text_cleaning import cleaned
from pnp_irib.diffusion.vae import PublishedTiles, VaeMode, decode, encode
from pnp_irib.diffusion.vae_published import plan_tiles
from pnp_irib.errors import WeightsError
from pnp_irib_diffbir.files import read_controlnet
from pnp_irib_diffbir.networks import Networks, controlnet_names
from pnp_irib_diffbir.prompts import NEGATIVE, NEGATIVE_V2, POSITIVE
from tests.adapters.diffbir.models import BASE, CONTROLNET, build, file
from tests.golden import Case, cases_of, check

LATENT_SCALE = 0.18215


def cases(kind: str) -> list[Any]:
    return [found for found in cases_of("diffbir") if not found.values[0] or found.values[0].kind == kind]


@pytest.fixture(scope="module")
def base() -> StableDiffusion:
    return build()[0]


@pytest.fixture(scope="module")
def networks() -> Networks:
    return build()[1]


def published(network: Any, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Its parameters under published names; what stands in one tensor there is put together again."""
    parts: dict[str, list[tuple[str, Tensor]]] = {}
    for name, value in network.state_dict().items():
        parts.setdefault(names[name], []).append((name, value))
    order = ["q_proj", "k_proj", "v_proj"]
    return {
        key: torch.cat([value for _, value in sorted(found, key=lambda part: order.index(part[0].split(".")[-2]))])
        if len(found) > 1
        else found[0][1]
        for key, found in parts.items()
    }


@pytest.mark.parametrize("case", cases("load"))
def test_every_tensor_arrives_where_it_belongs(case: Case, base: StableDiffusion, networks: Networks) -> None:
    controlnet, unet, vae, encoder = networks.controlnet, base.unet, base.vae, base.text.encoder
    layers = unet.config.layers_per_block
    content = torch.load(file(BASE), weights_only=True)["state_dict"]
    for part, prefix, network, names, unused in (
        ("unet", UNET, unet, unet_names(unet.state_dict(), layers), 0),
        ("vae", VAE, vae, vae_names(vae.state_dict()), 0),
        ("controlnet", None, controlnet, controlnet_names(controlnet), 0),
        ("clip", TEXT, encoder, text_names(encoder.state_dict()), 14),  # the last layer, and what makes one vector of a text
    ):
        known = case.tensors[f"f64_sums_{part}"]
        found = published(network, names)
        keys = sorted(found if prefix is None else (key.removeprefix(prefix) for key in content if key.startswith(prefix)))
        assert len(keys) == len(known) == case.facts["json"][f"{part}_n"] == len(found) + unused
        sums = {key: torch.stack([value.double().sum(), value.double().abs().sum()]) for key, value in found.items()}
        off = max((sums[key] - row).abs().max().item() for key, row in zip(keys, known, strict=True) if key in sums)
        assert off <= case.facts["tolerance"][f"f64_sums_{part}"], part


@pytest.mark.parametrize("case", cases("network"))
def test_the_networks_find_what_they_found(case: Case, base: StableDiffusion, networks: Networks) -> None:
    latent, condition, text = (case.tensors[name].float() for name in ("x", "c_img", "c_txt"))
    times = torch.tensor(case.options["t"])
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        down, middle = networks.control(latent, times, text, condition)
        for number, value in enumerate([*down, middle]):
            found[f"control_{number:02}"] = value[: len(case.outputs[f"control_{number:02}"])]
        for strength in case.options["strengths"]:
            found[f"model_out_strength_{strength}"] = networks(latent, times, text, condition, strength)
        found["model_out_no_control"] = networks(latent, times, text, condition, 0.0)
        check(case, found)
        # One after the other is the same, also at a time between two steps.
        strength = case.options["strengths"][1]
        single = [
            networks(latent[i, None], t, text[i, None], condition[i, None], strength) for i, t in enumerate(case.options["t"])
        ]
        check(case, found | {f"model_out_strength_{strength}": torch.cat(single)})


@pytest.mark.parametrize("case", cases("text"))
def test_prompts_are_read_as_published(case: Case, base: StableDiffusion) -> None:
    prompts = case.facts["json"]["prompts"]
    assert prompts[1:4] == [POSITIVE, NEGATIVE, NEGATIVE_V2]
    clean = [cleaned(prompt) for prompt in prompts]
    check(case, {"tokens": base.text.tokens(clean), "c_txt": base.embed(clean)})


def pictures(case: Case) -> Tensor:
    return case.tensors["image_u8"].permute(2, 0, 1)[None].float() / 255 * 2 - 1


@pytest.mark.parametrize("case", cases("vae"))
@pytest.mark.parametrize("mode", ["whole", "strips"])
def test_the_vae_is_the_published_one(case: Case, base: StableDiffusion, mode: VaeMode) -> None:
    with torch.no_grad():
        mean, logvar = encode(base.vae, pictures(case), mode)
        decoded = decode(base.vae, case.tensors["z_in"].float() / LATENT_SCALE, mode)
    check(case, {"moments": torch.cat([mean, logvar], 1), "z": mean * LATENT_SCALE, "decoded": decoded})
    assert base.vae.config.scaling_factor == LATENT_SCALE


@pytest.mark.parametrize("case", cases("tiled_vae"))
def test_the_vae_in_tiles_is_the_published_one(case: Case, base: StableDiffusion) -> None:
    tiles = PublishedTiles(case.options["encoder_tile_size"], case.options["decoder_tile_size_latent"])
    with torch.no_grad():
        whole, tiled = (encode(base.vae, pictures(case), mode)[0] * LATENT_SCALE for mode in ("whole", tiles))
        decoded = decode(base.vae, case.tensors["z_in"].float() / LATENT_SCALE, tiles)
    top, bottom, left, right = case.facts["json"]["decoded_rows_cols"]
    found = {"z_untiled": whole, "z_tiled": tiled, "decoded_tiled_crop": decoded[..., top:bottom, left:right]}
    check(case, found | {"decoded_tiled_mean8": torch.nn.functional.avg_pool2d(decoded, 8)})


def test_what_is_narrower_than_a_tile_may_stay_whole(base: StableDiffusion) -> None:
    draw = torch.Generator().manual_seed(2)
    picture, latent = torch.rand(1, 3, 56, 136, generator=draw), torch.randn(1, 4, 7, 31, generator=draw)
    tiles, narrow = PublishedTiles(64, 8), PublishedTiles(64, 8, narrow_whole=True)

    def means(x: Tensor, mode: VaeMode) -> Tensor:
        return encode(base.vae, x, mode)[0]

    def decoded(x: Tensor, mode: VaeMode) -> Tensor:
        return decode(base.vae, x, mode)

    runs: list[tuple[Tensor, Callable[[Tensor, VaeMode], Tensor]]] = [(picture, means), (latent, decoded)]
    with torch.no_grad():
        for of, run in runs:
            assert torch.equal(run(of, narrow), run(of, "whole"))
            assert not torch.allclose(run(of, tiles), run(of, "whole"), atol=1e-4)
            wide = torch.cat([of, of], 2)  # both sides are longer than a tile
            assert torch.equal(run(wide, narrow), run(wide, tiles))
            assert not torch.allclose(run(wide, narrow), run(wide, "whole"), atol=1e-4)


@pytest.mark.parametrize("case", cases("tile_plans"))
def test_the_vae_is_cut_as_published(case: Case) -> None:
    def box(of: tuple[int, int, int, int], factor: Callable[[int], int] = lambda x: x) -> list[int]:
        top, bottom, left, right = map(factor, of)
        return [left, right, top, bottom]

    for plan in case.facts["json"]["vae_split_tiles"]:
        decoder = plan["is_decoder"]
        tiles = plan_tiles(plan["h"], plan["w"], plan["tile_size"], decoder=decoder)
        assert tiles is not None
        assert [box(tile.read) for tile in tiles] == plan["input_boxes_x1x2y1y2"]
        outputs = [box(tile.core, (lambda x: x * 8) if decoder else (lambda x: x // 8)) for tile in tiles]
        assert outputs == plan["output_boxes_x1x2y1y2"]


def test_a_controlnet_that_does_not_fit_is_told(base: StableDiffusion, tmp_path: Path) -> None:
    content = {name: value.clone() for name, value in torch.load(file(CONTROLNET), weights_only=True).items()}

    def told(**changed: Tensor | None) -> str:
        path = tmp_path / "DiffBIR_v2.1.pt"
        names = {name.replace("__", "."): value for name, value in changed.items()}
        torch.save({name: value for name, value in (content | names).items() if value is not None}, path)
        with pytest.raises(WeightsError) as error:
            read_controlnet(path, base.unet)
        assert str(error.value).startswith(f"{path} ")
        return str(error.value)

    assert told(zero_convs__7__0__bias=None).endswith("does not fit ControlNetModel: missing zero_convs.7.0.bias.")
    assert told(input_hint_block__0__weight=torch.ones(1)).endswith("unexpected input_hint_block.0.weight.")
    assert "conv_in.bias has the shape (3,), expected (32,)" in told(input_blocks__0__0__bias=torch.ones(3))
    first = content["input_blocks.0.0.weight"][:, :4]
    assert "reads 4 channels; expected 8, the noisy latent and" in told(input_blocks__0__0__weight=first)
    with pytest.raises(
        WeightsError, match=r"ckpt holds no IRControlNet: it holds \S+, \S+, \S+, ...; expected .*DiffBIR_v2\.1\.pt"
    ):
        read_controlnet(file(BASE), base.unet)


def test_wrapped_files_are_the_same(base: StableDiffusion, networks: Networks, tmp_path: Path) -> None:
    content = torch.load(file(CONTROLNET), weights_only=True)
    path = tmp_path / "v2.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in content.items()}}, path)
    found = read_controlnet(path, base.unet)
    known = networks.controlnet.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in found.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    for parameter in found.parameters():  # the views of the file have become tensors of their own
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert parameter.is_contiguous()
