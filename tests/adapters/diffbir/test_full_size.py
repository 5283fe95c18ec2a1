"""The published files of the second stage at full size, without their values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.ldm import unet_names, vae_names
from pnp_irib.diffusion.single_file import TEXT, UNET, VAE, parts_of
from pnp_irib.errors import WeightsError
from pnp_irib_diffbir.networks import Networks, controlnet_from, controlnet_names

SD, CONTROLNET = "v2-1_512-ema-pruned.ckpt", "v2.pth"


@pytest.fixture(scope="module")
def manifest(shared_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((shared_dir / "upstream" / "diffbir_keys.json.gz").read_bytes()))
    return found["files"]  # type: ignore[no-any-return]


def tensors(manifest: dict[str, Any], file: str) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, (shape, *_) in manifest[file]["keys"].items()}


def named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def parts(manifest: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Text encoder, VAE and UNet."""
    return parts_of(tensors(manifest, SD), None, dtype=torch.float32, source=SD)


def millions(network: Any) -> float:
    return sum(value.numel() for value in network.state_dict().values()) / 1e6  # type: ignore[no-any-return]


def test_every_tensor_has_its_place(manifest: dict[str, Any], parts: tuple[Any, Any, Any]) -> None:
    encoder, vae, unet = parts
    assert [len(named(tensors(manifest, SD), prefix)) for prefix in (UNET, VAE, TEXT)] == [686, 248, 294]
    assert (len(unet.state_dict()), len(vae.state_dict())) == (686, 248)
    assert [millions(network) for network in (unet, vae)] == pytest.approx([865.9, 83.7], abs=0.05)
    assert unet.config.attention_head_dim == [5, 10, 20, 20]
    assert unet.config.down_block_types == [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]
    sizes = encoder.config
    assert (sizes.num_hidden_layers, sizes.num_attention_heads, sizes.hidden_size) == (23, 16, 1024)
    assert (sizes.intermediate_size, sizes.max_position_embeddings, sizes.vocab_size) == (4096, 77, 49408)
    assert all(value.device.type == "cpu" for value in encoder.buffers())  # no value is left out
    for key in ("betas", "model_ema.decay"):
        assert key not in manifest[SD]["keys"]


def test_the_names_are_those_that_diffusers_knows(manifest: dict[str, Any], parts: tuple[Any, Any, Any]) -> None:
    from diffusers.loaders import single_file_utils as known

    _, vae, unet = parts
    controlnet = controlnet_from(tensors(manifest, CONTROLNET), unet, source=CONTROLNET)

    def numbered(file: str) -> dict[str, Any]:
        """Of its tensors, shapes that no other has."""
        return {name: torch.empty(0, i) for i, name in enumerate(tensors(manifest, file))}

    def keys(converted: dict[str, Tensor], file: str) -> dict[str, str]:
        order = list(numbered(file))
        return {name: order[value.shape[1]] for name, value in converted.items()}

    found = keys(known.convert_ldm_unet_checkpoint(numbered(SD), unet.config), SD)
    assert found == {name: f"{UNET}{key}" for name, key in unet_names(unet.state_dict(), 2).items()}
    found = keys(known.convert_ldm_vae_checkpoint(numbered(SD), vae.config), SD)
    assert found == {name: f"{VAE}{key}" for name, key in vae_names(vae.state_dict()).items()}
    converted = known.convert_controlnet_checkpoint(numbered(CONTROLNET), controlnet.config)
    converted = {name: value for name, value in converted.items() if value is not None}
    assert keys(converted, CONTROLNET) == controlnet_names(controlnet)
    assert len(controlnet.state_dict()) == 324
    assert millions(controlnet) == pytest.approx(363.2, abs=0.05)


@pytest.mark.parametrize(
    "name",
    [
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.out_layers.3.weight",
        "input_blocks.6.0.op.weight",
        "middle_block.1.proj_in.weight",
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "output_blocks.5.2.conv.bias",
        "out.2.weight",
    ],
)
def test_what_is_missing_is_named(manifest: dict[str, Any], parts: tuple[Any, Any, Any], name: str) -> None:
    given = tensors(manifest, SD)
    del given[f"{UNET}{name}"]
    with pytest.raises(WeightsError, match=rf"^{SD} .*miss.* {UNET}{name}"):
        parts_of(given, None, dtype=torch.float32, source=SD)
    given = tensors(manifest, CONTROLNET)
    if name in given:
        del given[name]
        with pytest.raises(WeightsError, match=rf"missing {name}\.$"):
            controlnet_from(given, parts[2], source=CONTROLNET)


@pytest.mark.parametrize("name", ["ln_final.weight", "positional_embedding", "transformer.resblocks.11.attn.in_proj_bias"])
def test_what_is_missing_of_the_text_encoder_is_named(manifest: dict[str, Any], name: str) -> None:
    given = named(tensors(manifest, SD), "")
    del given[f"{TEXT}{name}"]
    with pytest.raises(WeightsError, match=rf"miss.* {TEXT}{name}"):
        parts_of(given, None, dtype=torch.float32, source=SD)


def test_they_run_together(manifest: dict[str, Any], parts: tuple[Any, Any, Any]) -> None:
    _, vae, unet = parts
    networks = Networks(unet, controlnet_from(tensors(manifest, CONTROLNET), unet, source=CONTROLNET))
    with torch.device("meta"), torch.no_grad():
        latent, text = torch.empty(2, 4, 64, 64), torch.empty(2, 77, 1024)
        assert networks(latent, 998.5, text, latent).shape == (2, 4, 64, 64)
        down, _ = networks.control(latent, 998.5, text, latent)
        assert len(down) == 12
        assert vae.encoder(torch.empty(1, 3, 512, 512)).shape == (1, 8, 64, 64)
        assert vae.decoder(latent).shape == (2, 3, 512, 512)
