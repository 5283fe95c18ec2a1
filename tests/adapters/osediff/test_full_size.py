"""The published files at full size, without their values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib_osediff.checkpoint import UNET_ADAPTERS, Checkpoint

UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def empty(keys: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, (shape, _) in keys.items()}


def test_the_published_files_fit_stable_diffusion(shared_dir: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    manifest = json.loads(gzip.decompress((shared_dir / "upstream" / "osediff_keys.json.gz").read_bytes()))
    (parts,) = [facts for name, facts in manifest["base_models"].items() if not name.startswith("_")]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    module: Any
    for module, part in ((unet, "unet"), (vae, "vae")):
        expected = {name: tuple(shape) for name, (shape, _) in parts[part]["keys"].items()}
        assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == expected
    content = manifest["files"]["osediff.pkl"]["content"]
    checkpoint = Checkpoint(
        modules={key: tuple(value) for key, value in content.items() if key.endswith("_modules")},
        rank_unet=content["rank_unet"],
        rank_vae=content["rank_vae"],
        unet=empty(content["state_dict_unet"]),
        vae=empty(content["state_dict_vae"]),
    )
    with torch.device("meta"):
        checkpoint.install(unet, vae)
    trained = sum(value.numel() for value in (*checkpoint.unet.values(), *checkpoint.vae.values()))
    assert trained == 4_436_908  # the fact sheet's number at rank 4
    assert {name.split(".")[-2] for name in checkpoint.unet if ".lora_" in name} == set(UNET_ADAPTERS)


@pytest.mark.parametrize("lost", ["conv_in.base_layer.bias", "mid_block.attentions.0.proj_in.lora_A.default_others.weight"])
def test_a_lost_tensor_is_told(shared_dir: Path, lost: str) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from pnp_irib.errors import WeightsError

    manifest = json.loads(gzip.decompress((shared_dir / "upstream" / "osediff_keys.json.gz").read_bytes()))
    content = manifest["files"]["osediff.pkl"]["content"]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        tensors = empty(content["state_dict_unet"])
        del tensors[lost]
        checkpoint = Checkpoint(
            modules={key: tuple(value) for key, value in content.items() if key.endswith("_modules")},
            rank_unet=4,
            rank_vae=4,
            unet=tensors,
            vae=empty(content["state_dict_vae"]),
        )
        with pytest.raises(WeightsError, match="1 missing"):
            checkpoint.install(unet, vae)
