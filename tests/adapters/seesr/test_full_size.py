"""The published files at full size, without their values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pnp_irib.errors import WeightsError
from pnp_irib.weights import load_strictly
from pnp_irib_seesr.networks import Networks, empty_network, own_names, published_name

FILES = {
    "seesr/unet/diffusion_pytorch_model.safetensors": ("UNet2DConditionModel", 1126.8, 260.8, 416),
    "seesr/controlnet/diffusion_pytorch_model.safetensors": ("ControlNetModel", 489.0, 124.8, 182),
}


def built(facts: dict[str, Any], kind: str) -> Any:
    return empty_network(facts["config.json (derived)"], kind, source="the manifest")


@pytest.fixture(scope="module")
def manifest(shared_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((shared_dir / "upstream" / "seesr_keys.json.gz").read_bytes()))
    return found["files"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("file", FILES)
def test_the_published_files_fit(manifest: dict[str, Any], file: str) -> None:
    kind, millions, of_images, count = FILES[file]
    network = built(manifest[file], kind)
    own = {published_name(name): value for name, value in network.state_dict().items()}
    published = {name: torch.empty(shape, device="meta") for name, (shape, *_) in manifest[file]["keys"].items()}
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in published.items()}
    load_strictly(network, own_names(network, published), source=file)
    del published["conv_in.bias"]
    with pytest.raises(WeightsError, match=r"missing conv_in\.bias"):
        load_strictly(network, own_names(network, published), source=file)
    images = {name: value for name, value in own.items() if "image_attentions" in name}
    assert len(images) == count
    assert sum(value.numel() for value in own.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert sum(value.numel() for value in images.values()) / 1e6 == pytest.approx(of_images, abs=0.05)


def test_they_run_together(manifest: dict[str, Any]) -> None:
    unet, controlnet = (built(manifest[file], kind) for file, (kind, *_) in FILES.items())
    networks = Networks(unet, controlnet)
    with torch.device("meta"), torch.no_grad():
        maps = networks.read(torch.empty(2, 3, 512, 512))
        found = networks(torch.empty(2, 4, 64, 64), 981, torch.empty(2, 77, 1024), torch.empty(2, 145, 512), maps)
    assert maps.shape == (2, 320, 64, 64)
    assert found.shape == (2, 4, 64, 64)
