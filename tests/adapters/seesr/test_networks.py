"""SeeSR's networks at widths at which their convolutions take fewer products."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pnp_irib.convolution
from pnp_irib.convolution import in_fewer_products
from pnp_irib_seesr.networks import IMAGE_WIDTH, Networks, empty_network

SIZES: dict[str, Any] = {
    "use_image_cross_attention": True,
    "block_out_channels": [64, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 48,
    "attention_head_dim": 8,
    "norm_num_groups": 16,
}


def random(kind: str, **sizes: Any) -> Any:
    network = empty_network(SIZES | sizes, kind, source=kind).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5, generator=generator)
    return network.eval().requires_grad_(False)


def test_fewer_products_find_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = random("UNet2DConditionModel", up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
    networks = Networks(unet, random("ControlNetModel", conditioning_embedding_out_channels=[16, 32]))
    made: list[Any] = []

    class Counted(pnp_irib.convolution.Winograd):
        def __init__(self, *given: Any) -> None:
            made.append(given)
            super().__init__(*given)

    monkeypatch.setattr(pnp_irib.convolution, "Winograd", Counted)
    draw = torch.Generator().manual_seed(4)
    latent, text = torch.randn(2, 4, 32, 40, generator=draw), torch.randn(2, 7, 48, generator=draw)
    image, picture = torch.randn(2, 5, IMAGE_WIDTH, generator=draw), torch.rand(2, 3, 64, 80, generator=draw)
    with torch.no_grad():
        known = networks(latent, 500, text, image, networks.read(picture))
        assert not made
        with in_fewer_products(networks):
            found = networks(latent, 500, text, image, networks.read(picture))
    assert len(made) > 5
    assert known.std() > 0.05
    torch.testing.assert_close(found, known, atol=2e-4 * known.abs().max().item(), rtol=0)
