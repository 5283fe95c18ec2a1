"""The published single file of Stable Diffusion XL at full size, without its values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.ldm import XL
from pnp_irib.diffusion.single_file import UNET, VAE
from pnp_irib.diffusion.xl_file import CLIP, OPENCLIP, xl_parts_of
from tests.diffusion.xl_models import at_its_place, parts_by_name

FILE = "sd_xl_base_1.0_0.9vae.safetensors"


@pytest.fixture(scope="module")
def manifest(shared_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((shared_dir / "upstream" / "supir_keys.json.gz").read_bytes()))
    return found


@pytest.fixture(scope="module")
def tensors(manifest: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, (shape, dtype) in manifest[FILE].items()
    }


@pytest.fixture(scope="module")
def parts(tensors: dict[str, Tensor]) -> tuple[Any, Any, Any]:
    """Text encoders, VAE and UNet."""
    return xl_parts_of(dict(tensors), dtype=torch.float16, source=FILE)


def identity(value: Tensor) -> tuple[Any, ...]:
    """Which memory a tensor is a view of, and how."""
    return value.untyped_storage()._cdata, value.storage_offset(), value.stride(), value.shape, value.dtype


def test_every_tensor_is_where_it_belongs(
    manifest: dict[str, Any], tensors: dict[str, Tensor], parts: tuple[Any, Any, Any]
) -> None:
    found = {(part, name): value for part, of in parts_by_name(*parts).items() for name, value in of.items()}
    unused = set()
    for key, uses in manifest["map"][FILE].items():
        if not uses:
            unused.add(key)
        for part, name, operation in uses:
            value = found.pop((part, name))
            assert identity(value) == identity(at_its_place(tensors[key], operation)), key
    assert not found
    assert unused == {f"{CLIP}embeddings.position_ids", f"{OPENCLIP}logit_scale"}


def test_the_shapes_tell_the_sizes(tensors: dict[str, Tensor], parts: tuple[Any, Any, Any]) -> None:
    (clip, openclip), vae, unet = parts
    assert sum(value.numel() for value in unet.parameters()) == 2_567_463_684
    expected = {
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    assert {name: unet.config[name] for name in expected} == expected
    assert unet.config.transformer_layers_per_block[1:] == [2, 10]
    assert vae.config.block_out_channels == [128, 256, 512, 512]
    assert vae.config.scaling_factor == XL.scaling == 0.13025
    for encoder, width, layers, heads, act in ((clip, 768, 12, 12, "quick_gelu"), (openclip, 1280, 32, 20, "gelu")):
        sizes = encoder.config
        assert (sizes.hidden_size, sizes.num_hidden_layers, sizes.num_attention_heads) == (width, layers, heads)
        assert (sizes.intermediate_size, sizes.max_position_embeddings, sizes.vocab_size) == (4 * width, 77, 49408)
        assert sizes.hidden_act == act
        assert all(value.device.type == "cpu" for value in encoder.buffers())  # no value is left out
    assert openclip.config.projection_dim == 1280
    assert [sum(name.startswith(prefix) for name in tensors) for prefix in (UNET, VAE, CLIP, OPENCLIP)] == [
        1680,
        248,
        197,
        390,
    ]
