"""The published files at full size, without their values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib_s3diff.checkpoint import Trained
from pnp_irib_s3diff.estimator import DegradationEstimator


@pytest.fixture(scope="module")
def manifest(shared_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((shared_dir / "upstream" / "s3diff_keys.json.gz").read_bytes()))
    return found


def test_the_published_checkpoint_fits(manifest: dict[str, Any]) -> None:
    content: dict[str, Any] = {}
    for path, (shape, dtype) in manifest["files"]["s3diff.pkl"]["tensors"].items():
        *parts, name = path.split("/")
        place = content
        for part in parts:
            place = place.setdefault(part, {})
        place[name] = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
    with torch.device("meta"):
        trained = Trained(content, source="s3diff.pkl")
    assert (len(trained.unet.names), len(trained.vae.names)) == (257, 31)
    assert sum(p.numel() for p in trained.parameters()) == 34_475_184
    for lora, side in ((trained.unet, "unet"), (trained.vae, "vae")):
        assert dict(zip(lora.names, lora.blocks, strict=True)) == manifest[f"{side}_lora_layers_to_block_index"]
    with torch.device("meta"):
        of_unet, of_vae = trained.matrices(torch.empty(3, 2))
    assert of_unet.shape == (3, 10, 32, 32)
    assert of_vae.shape == (3, 6, 16, 16)


def test_the_published_estimator_fits(manifest: dict[str, Any]) -> None:
    planned = manifest["files"]["de_net.pth"]["tensors"]
    tensors: dict[str, Tensor] = {name: torch.zeros(shape) for name, (shape, _) in planned.items()}
    estimator = DegradationEstimator.load(tensors, source="de_net.pth")
    assert sum(p.numel() for p in estimator.parameters()) == 2_351_362
    assert estimator(torch.rand(2, 3, 20, 31)).tolist() == [[0.5, 0.5], [0.5, 0.5]]
