"""S3Diff beside its published procedure, on one machine and over the same modules of random weights; prints Markdown.

    python -m benchmarks.s3diff_speed TOKENIZER [--model medium] [--device cpu] [--dtype float32] [--sizes 64 128 256]

TOKENIZER is the folder of a CLIP tokenizer. Speed does not depend on the values of the weights. The published procedure keeps
the mixed LoRA beside the weights, encodes both prompts for every picture, and goes through the halves of guidance and through
tiles one after the other.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.random_models import MODELS, random_base
from benchmarks.side_by_side import arguments, compare, lay_out_as_loaded
from pnp_irib.diffusion.lora import UNET_LAYERS, layers_named
from pnp_irib.noise import SeededNoise
from pnp_irib_s3diff.checkpoint import Trained
from pnp_irib_s3diff.estimator import DegradationEstimator
from pnp_irib_s3diff.restorer import S3Diff

RANKS = {"unet": 32, "vae": 16}
ADAPTERS = {"unet": "default", "vae": "vae_skip"}
FREQUENCIES, CODE = 64, 64
LAYERS = (64, 64, 64, 64, 64, 64, (64, 128, 2), 128, 128)  # of the estimator, as published


def random_trained(unet: nn.Module, vae: nn.Module) -> Trained:
    """LoRA of the published ranks on the layers of a base, and what mixes it."""
    of_vae = [name for name in layers_named(vae, (*UNET_LAYERS, "conv_in")) if name.startswith("encoder.")]
    content: dict[str, object] = {"w": torch.randn(FREQUENCIES)}
    tables = {}
    for part, network, names in (("unet", unet, layers_named(unet, UNET_LAYERS)), ("vae", vae, of_vae)):
        rank, tensors = RANKS[part], {}
        for name in names:
            weight = network.get_submodule(name).get_parameter("weight")
            more = (1,) * (weight.ndim - 2)
            tensors[f"{name}.lora_A.{ADAPTERS[part]}.weight"] = 0.01 * torch.randn(rank, *weight.shape[1:])
            tensors[f"{name}.lora_B.{ADAPTERS[part]}.weight"] = 0.01 * torch.randn(weight.shape[0], rank, *more)
        if part == "unet":
            tensors |= {f"conv_in.{name}": value for name, value in unet.get_submodule("conv_in").state_dict().items()}
        content[f"state_dict_{part}"] = tensors
        for kind, width in (("de", 4 * FREQUENCIES), ("block", CODE)):
            linear = {"0.weight": torch.randn(width, width) / width**0.5, "0.bias": torch.zeros(width)}
            content[f"state_dict_{part}_{kind}_mlp"] = linear
        fuse = 0.1 * torch.randn(rank**2, 4 * FREQUENCIES + CODE)
        content[f"state_dict_{part}_fuse_mlp"] = {"weight": fuse, "bias": torch.zeros(rank**2)}
        tables[f"state_dict_{part}_block"] = {"weight": torch.randn(10 if part == "unet" else 6, CODE)}
    return Trained(content | {"state_embeddings": tables}, source="random weights")


def main() -> None:
    args = arguments(__doc__).parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    base = random_base(args.tokenizer, **MODELS[args.model])
    trained = random_trained(base.unet, base.vae)
    estimator = DegradationEstimator(LAYERS, 512).eval().requires_grad_(False)
    plain = copy.deepcopy((base, trained, estimator))
    for part in (*plain[0].modules, *plain[1:]):
        lay_out_as_loaded(part)
    published = S3Diff(*plain, compat="upstream", batch=1, device=args.device, dtype=args.dtype)
    ours = S3Diff(base, trained, estimator, device=args.device, dtype=args.dtype)

    def as_published(lq: Tensor) -> Tensor:
        published.base.text.forget()
        return published.restore(lq, noise=SeededNoise([0]))

    def as_here(lq: Tensor) -> Tensor:
        return ours.restore(lq, noise=SeededNoise([0]))

    compare(args, as_published, as_here)


if __name__ == "__main__":
    main()
