"""Memory of SUPIR by accounting, and the working memory of its networks as measured; prints Markdown.

    python -m benchmarks.supir_memory [--widths 320 640 1280] [--measure --device cpu --sides 32 64 96]

By accounting: weights and working memory of each stage at the sizes of the results, from networks on the meta device. A stage
is alone on the device where the budget says so, so that the largest stage is the peak, beside the pictures themselves. With
``--measure`` networks of random weights are run on one latent of each side, and the peak above the weights is set beside what
the accounting takes for it.
"""

from __future__ import annotations

import argparse
import platform
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.side_by_side import peak
from pnp_irib.diffusion.offload import unet_bytes, vae_bytes
from pnp_irib_supir.connectors import Attended, Modulated
from pnp_irib_supir.networks import Networks, empty_control_branch, places
from pnp_irib_supir.restorer import CONTROL_SHARE

TILE = 128  # latent pixels on a side
TEXT, POOLED, NUMBER = 2048, 1280, 256  # widths


def planned(widths: list[int]) -> tuple[Networks, Any, nn.ModuleList]:
    """UNet with all that steers it, VAE, and text encoders, on the meta device; the UNet of these widths."""
    unet: Any = UNet2DConditionModel(
        block_out_channels=tuple(widths),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=tuple(width // 64 for width in widths),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=NUMBER,
        projection_class_embeddings_input_dim=POOLED + 6 * NUMBER,
    )
    control = empty_control_branch(unet, source="SUPIR")
    connectors = nn.ModuleList(
        Attended(*place.widths) if place.kind == "attended" else Modulated(*place.widths, hidden=128) for place in places(unet)
    )
    vae: Any = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    small = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    large = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=POOLED
    )
    return Networks(unet, control, connectors), vae, nn.ModuleList([CLIPTextModel(small), CLIPTextModelWithProjection(large)])


def held(module: nn.Module, *, matrices: int = 2) -> int:
    """Bytes of weights: bfloat16, ``matrices`` bytes for a number of those with more than one dimension."""
    return sum(p.numel() * (matrices if p.ndim > 1 else 2) for p in module.parameters())


def account(networks: Networks, vae: Any, texts: nn.ModuleList) -> None:
    """A row for each size and kind of weights."""
    robust = held(vae.encoder)
    print("| result | weights | networks, GB | VAE, GB | text encoders, GB | pictures, GB | peak, GB |")
    print("|---|---|---|---|---|---|---|")
    for side in (1024, 2048):
        latent = min(side // 8, TILE) ** 2
        vae_all = held(vae) + robust + max(vae_bytes(vae, side**2, 2, decoder=half) for half in (False, True))
        pictures = 3 * 12 * side**2  # as it is seen, cleaned, and restored; float32
        for name, matrices in (("bfloat16", 2), ("float8", 1)):
            networks_all = held(networks, matrices=matrices) + CONTROL_SHARE * unet_bytes(networks.unet, latent, 2)
            stages = [networks_all, vae_all, held(texts)]
            shown = " | ".join(f"{value / 1e9:.2f}" for value in (*stages, pictures, max(stages) + pictures))
            print(f"| {side}x{side} | {name} | {shown} |")


@torch.no_grad()
def measure(networks: Networks, device: str, sides: list[int]) -> None:
    """A row for each side of a latent."""
    torch.set_num_threads(1)
    networks.to_empty(device=device)
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=0.01)
    print("\n| latent | measured, MiB | accounted, MiB | measured / accounted |")
    print("|---|---|---|---|")
    for side in sides:
        latent = torch.randn(1, 4, side, side, device=device)
        text, vector = torch.randn(1, 77, TEXT, device=device), torch.randn(1, POOLED + 6 * NUMBER, device=device)
        run = partial(networks, latent, 500.0, text, vector, latent)
        run()
        found, accounted = peak(run, cpu=device == "cpu"), CONTROL_SHARE * unet_bytes(networks.unet, side**2, 4) / 2**20
        print(f"| {side}x{side} | {found:.0f} | {accounted:.0f} | {found / accounted:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs=3, default=[320, 640, 1280], help="of the UNet's levels")
    parser.add_argument("--measure", action="store_true", help="run the networks, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 96], help="of latents to measure")
    args = parser.parse_args()
    with torch.device("meta"):
        parts = planned(args.widths)
    print(f"widths {args.widths}, batches of one latent, {platform.machine()}, torch {torch.__version__}\n")
    account(*parts)
    if args.measure:
        measure(parts[0], args.device, args.sides)


if __name__ == "__main__":
    main()
