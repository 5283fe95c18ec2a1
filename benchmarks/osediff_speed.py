"""OSEDiff beside its published procedure, on one machine and over the same modules of random weights; prints Markdown.

    python benchmarks/osediff_speed.py TOKENIZER [--model medium] [--device cpu] [--dtype float32] [--sizes 128 256]

TOKENIZER is the folder of a CLIP tokenizer. Speed does not depend on the values of the weights. The published procedure keeps
LoRA beside the weights, encodes the prompt of every picture, and goes through tiles one after the other.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pnp_irib.bench.memory import PeakMemory
from pnp_irib.diffusion.base import StableDiffusion, fingerprint_of
from pnp_irib.diffusion.lora import UNET_LAYERS, layers_named
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib_osediff.checkpoint import UNET_ADAPTERS, Checkpoint
from pnp_irib_osediff.restorer import OSEDiff

MODELS: dict[str, dict[str, Any]] = {
    "medium": {"unet": (128, 256, 512, 512), "heads": (2, 4, 8, 8), "vae": (32, 64, 128, 128), "text": (256, 4, 12)},
    "full": {"unet": (320, 640, 1280, 1280), "heads": (5, 10, 20, 20), "vae": (128, 256, 512, 512), "text": (1024, 16, 23)},
}
PROMPT = Prompt("street, car, building, night, person, umbrella, rain, traffic light, wet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--model", choices=MODELS, default="medium")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="of the LQ pictures, a quarter of the HQ")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    base = random_base(args.tokenizer, **MODELS[args.model])
    checkpoint = random_checkpoint(base)
    where = {"device": args.device, "dtype": args.dtype}
    plain = copy.deepcopy(base)
    for part in plain.modules:  # as diffusers loads them
        for parameter in part.parameters():
            parameter.data = parameter.data.contiguous()
    published = OSEDiff(plain, checkpoint, merged=False, compat="upstream", tile_batch=1, **where)
    ours = OSEDiff(base, checkpoint, **where)
    cpu = args.device == "cpu"
    print(f"{args.model} model, {args.dtype} on {torch.cuda.get_device_name() if not cpu else platform.machine()}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; median of {args.rounds} after one to warm up\n")
    print("| LQ | published, s | here, s | published / here | published, MiB | here, MiB |")
    print("|---|---|---|---|---|---|")
    for size in args.sizes:
        lq = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(args.device)

        def as_published(lq: Tensor = lq) -> None:
            published.base.text.forget()
            published.restore(lq, prompts=[PROMPT], noise=SeededNoise([0]))

        def as_here(lq: Tensor = lq) -> None:
            ours.restore(lq, prompts=[PROMPT], noise=SeededNoise([0]))

        with torch.no_grad():
            seconds = in_turn([as_published, as_here], args.rounds, cpu=cpu)
            memory = [peak(run, cpu=cpu) for run in (as_published, as_here)]
        shown = " | ".join(f"{value:.0f}" for value in memory)
        print(f"| {size}x{size} | {seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[0] / seconds[1]:.2f} | {shown} |", flush=True)


def random_base(
    tokenizer: str, unet: tuple[int, ...], heads: tuple[int, ...], vae: tuple[int, ...], text: tuple[int, int, int]
) -> StableDiffusion:
    """A Stable Diffusion 2.1 of other widths."""
    from pnp_irib.diffusion.text import TextEmbedder

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
    """OSEDiff's LoRA on its layers, of random values."""
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


def in_turn(runs: list[Callable[[], None]], rounds: int, *, cpu: bool) -> list[float]:
    """Median seconds of each; they take turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for found, run in zip(seconds, runs, strict=True):
            start = time.perf_counter()
            run()
            if not cpu:
                torch.cuda.synchronize()
            if number:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


def peak(run: Callable[[], None], *, cpu: bool) -> float:
    """Largest memory above what was held at the start, MiB."""
    if not cpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    memory = PeakMemory()
    with memory.stage("run"):
        run()
    return memory.rise_mib.get("run", float("nan"))


if __name__ == "__main__":
    main()
