"""Models of random weights: speed and memory do not depend on the values of the weights."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.lora import UNET_LAYERS, layers_named
from pnp_irib.diffusion.model import fingerprint_of
from pnp_irib.diffusion.text import TextEmbedder
from pnp_irib.prompts.ram import RamTags
from pnp_irib.prompts.ram.architecture import RamArchitecture
from pnp_irib.prompts.ram.model import RamModel
from pnp_irib.prompts.ram.network import RamNetwork
from pnp_irib.prompts.ram.tags import Labels
from pnp_irib_osediff.checkpoint import UNET_ADAPTERS, Checkpoint
from pnp_irib_seesr.networks import Networks, add_image_attention

MODELS: dict[str, dict[str, Any]] = {
    "medium": {"unet": (128, 256, 512, 512), "heads": (2, 4, 8, 8), "vae": (32, 64, 128, 128), "text": (256, 4, 12)},
    "full": {"unet": (320, 640, 1280, 1280), "heads": (5, 10, 20, 20), "vae": (128, 256, 512, 512), "text": (1024, 16, 23)},
}
TAGGERS = {
    "medium": RamArchitecture(embed_dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), head_width=256, head_mlp=1024),
    "full": RamArchitecture(),
}
THRESHOLD = 0.85  # some tags of the thousands pass it; the published ones lie between 0.45 and 1
Tagger = TypeVar("Tagger", bound=RamTags)


def random_base(
    tokenizer: str, unet: tuple[int, ...], heads: tuple[int, ...], vae: tuple[int, ...], text: tuple[int, int, int]
) -> StableDiffusion:
    """A Stable Diffusion 2.1 of other widths."""
    width, text_heads, layers = text
    cross = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    network: Any = UNet2DConditionModel(
        block_out_channels=unet,
        cross_attention_dim=width,
        attention_head_dim=heads,
        use_linear_projection=True,
        down_block_types=cross,
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        norm_num_groups=min(32, math.gcd(*unet) // 4),
    )
    autoencoder: Any = AutoencoderKL(
        block_out_channels=vae,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=32,
    )
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=text_heads,
        vocab_size=49408,
    )
    words = CLIPTokenizer.from_pretrained(tokenizer)
    encoder = CLIPTextModel(config)
    for part in (network, autoencoder, encoder):
        part.eval().requires_grad_(False)
    scheduler: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    first = copy.deepcopy(network.conv_in)
    fingerprint = fingerprint_of(autoencoder, network)
    return StableDiffusion(
        TextEmbedder(words, encoder), autoencoder, network, scheduler.alphas_cumprod, fingerprint, "random", first
    )


def random_checkpoint(base: StableDiffusion, rank: int = 4) -> Checkpoint:
    """OSEDiff's LoRA on its layers."""
    names = layers_named(base.unet, (*UNET_LAYERS, "conv_in"))
    parts = {
        "unet_lora_encoder_modules": [n for n in names if n.startswith("down_blocks.") or n == "conv_in"],
        "unet_lora_decoder_modules": [n for n in names if n.startswith("up_blocks.") or n == "conv_out"],
        "unet_lora_others_modules": [n for n in names if n.startswith("mid_block.")],
        "vae_lora_encoder_modules": [
            n
            for n in layers_named(base.vae, (*UNET_LAYERS, "conv_in", "quant_conv"))
            if n.startswith("encoder.") or n == "quant_conv"
        ],
    }
    unet = {f"conv_in.base_layer.{key}": value for key, value in base.unet.conv_in.state_dict().items()}
    for adapter, key in UNET_ADAPTERS.items():
        unet |= lora(base.unet, parts[key], adapter, rank)
    vae = lora(base.vae, parts["vae_lora_encoder_modules"], "default_encoder", rank)
    return Checkpoint({key: tuple(value) for key, value in parts.items()}, rank, rank, unet, vae)


def lora(module: torch.nn.Module, names: list[str], adapter: str, rank: int) -> dict[str, Tensor]:
    tensors = {}
    for name in names:
        weight = module.get_submodule(name).get_parameter("weight")
        tensors[f"{name}.lora_A.{adapter}.weight"] = 0.01 * torch.randn(rank, *weight.shape[1:])
        tensors[f"{name}.lora_B.{adapter}.weight"] = 0.01 * torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2))
    return tensors


def random_networks(base: StableDiffusion) -> Networks:
    """SeeSR's two: the UNet of the base, which gets image attention in place, and a ControlNet like it."""
    controlnet: Any = ControlNetModel.from_unet(base.unet, load_weights_from_unet=False)
    for network in (base.unet, controlnet):
        add_image_attention(network)
        network.eval().requires_grad_(False)
    base.fingerprint = None
    return Networks(base.unet, controlnet)


def random_tagger(architecture: RamArchitecture, *kinds: type[Tagger]) -> list[Tagger]:
    """Taggers of these classes, of the same weights."""
    network = RamNetwork(architecture).eval().requires_grad_(False)
    names = tuple(f"thing {number}" for number in range(architecture.labels))
    model = RamModel(network, Labels(names, torch.full((len(names),), THRESHOLD)), lora=True, sources=(), files=())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.safetensors")
        model.save(path)
        return [kind(path).to("cpu") for kind in kinds]  # which reads the file
