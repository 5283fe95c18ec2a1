"""The published checkpoint at full size, without its values; and what it takes in memory."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pnp_irib.diffusion.offload import unet_bytes, vae_bytes
from pnp_irib.diffusion.xl_file import xl_parts_of
from pnp_irib_supir.checkpoint import networks_from, robust_vae_from
from pnp_irib_supir.networks import Networks
from pnp_irib_supir.restorer import CONTROL_SHARE

BASE, FILE = "sd_xl_base_1.0_0.9vae.safetensors", "SUPIR-v0Q.ckpt"


@pytest.fixture(scope="module")
def manifest(shared_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((shared_dir / "upstream" / "supir_keys.json.gz").read_bytes()))
    return found


def planned(manifest: dict[str, Any], file: str) -> dict[str, Tensor]:
    return {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, (shape, dtype) in manifest[file].items()
    }


@pytest.fixture(scope="module")
def parts(manifest: dict[str, Any]) -> tuple[nn.Module, Any, Networks, Any]:
    """Text encoders, VAE, networks, VAE with the robust encoder: bfloat16."""
    texts, vae, unet = xl_parts_of(planned(manifest, BASE), dtype=torch.bfloat16, source=BASE)
    tensors = planned(manifest, FILE)
    networks = networks_from(tensors, unet, source=FILE, dtype=torch.bfloat16)
    robust = robust_vae_from(tensors, vae, source=FILE, dtype=torch.bfloat16)
    assert not tensors  # all are known
    return texts, vae, networks, robust


def numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_published_file_fits(manifest: dict[str, Any], parts: tuple[nn.Module, Any, Networks, Any]) -> None:
    _, vae, networks, robust = parts
    assert numbers(networks.control) == 1_243_378_880
    assert numbers(networks.connectors) == 54_797_440
    assert numbers(robust.encoder) == 34_163_592
    assert robust.quant_conv is vae.quant_conv
    assert robust.encoder is not vae.encoder
    own = {f"connectors.{name}": value for name, value in networks.connectors.state_dict().items()}
    own |= {f"control.{name}": value for name, value in networks.control.state_dict().items()}
    own |= {f"denoise_encoder.{name}": value for name, value in robust.encoder.state_dict().items()}
    for key, uses in manifest["map"][FILE].items():
        ((part, name, operation),) = uses
        if part == "project_modules":
            number, _, rest = name.partition(".")
            part, name = "connectors", f"{11 - int(number)}.{rest}"
        name = name.replace("input_hint_block.0", "controlnet_cond_embedding")
        value, (shape, _) = own.pop(f"{part}.{name}"), manifest[FILE][key]
        assert tuple(value.shape) == tuple(shape[:2] if operation == "squeeze_last_two_dims" else shape), key
    assert not own


@torch.no_grad()
def test_they_run_together(parts: tuple[nn.Module, Any, Networks, Any]) -> None:
    networks = parts[2]
    with torch.device("meta"):
        given = (torch.empty(2, 77, 2048, dtype=torch.bfloat16), torch.empty(2, 2816, dtype=torch.bfloat16))
        latent = torch.empty(2, 4, 128, 128, dtype=torch.bfloat16)
        found = networks(latent, 999.0, *given, latent)
    assert found.shape == latent.shape


@pytest.mark.parametrize(("side", "budget"), [(1024, 12e9), (2048, 16e9)])
@pytest.mark.parametrize("eight", [False, True])
def test_memory_by_accounting(side: int, budget: float, eight: bool, parts: tuple[nn.Module, Any, Networks, Any]) -> None:
    texts, vae, networks, robust = parts
    weights = sum(p.numel() * (1 if eight and p.ndim > 1 else 2) for p in networks.parameters())
    one = CONTROL_SHARE * unet_bytes(networks.unet, 128**2, 2)  # a tile, without or with prompt
    decoding = 2 * (numbers(vae) + numbers(robust.encoder)) + max(
        vae_bytes(vae, side**2, 2, decoder=decoder) for decoder in (True, False)
    )
    pictures = 3 * 3 * 4 * side**2  # the enlarged, the cleaned, the restored one
    assert weights == pytest.approx(3.87e9 if eight else 7.73e9, rel=0.01)
    assert max(weights + one, decoding, 2 * numbers(texts)) + pictures < budget
