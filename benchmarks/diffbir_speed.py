"""DiffBIR 2.1 beside its published procedure, on one machine and over the same modules of random weights; prints Markdown.

    python -m benchmarks.diffbir_speed TOKENIZER [--steps 10] [--tiled] [--model medium] [--device cpu] [--sizes 128 256]

TOKENIZER is the folder of a CLIP tokenizer. Speed does not depend on the values of the weights, and one step costs as much as
any other. The published procedure cleans the picture in one piece; encodes both prompts of every picture, and the picture
once for each; and asks the networks for the halves of guidance, and for tiles, one after the other. With ``--tiled`` it takes
the tiles that its graphical interface takes: 512 pixels every 256, 256 for the VAE and 512 for the cleaner. Every picture has
a prompt of its own on both sides.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_models import MODELS, random_base
from benchmarks.side_by_side import arguments, compare, lay_out_as_loaded
from pnp_irib.diffusion.model import ZERO_SNR_V
from pnp_irib.diffusion.vae import PublishedTiles
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource
from pnp_irib.spandrel_import import import_spandrel
from pnp_irib_diffbir.cleaners.cleaner import Cleaner
from pnp_irib_diffbir.cleaners.loading import cleaner_from
from pnp_irib_diffbir.networks import Networks, empty_controlnet
from pnp_irib_diffbir.restorer import DiffBIR

CLEANERS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 12, "depths": [2], "num_heads": [2]},
    "medium": {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4},
    "full": {"embed_dim": 180, "depths": [6] * 8, "num_heads": [6] * 8},
}


class PublishedDiffBIR(DiffBIR):
    """Encodes the picture for both prompts, though one is used."""

    def denoise(self, pictures: Tensor, texts: Sequence[str], noise: NoiseSource) -> Tensor:
        self.condition(pictures.to(device=self.device, dtype=self.dtype))
        return super().denoise(pictures, texts, noise)


def random_networks(unet: Any) -> Networks:
    """The UNet of a base, and IRControlNet beside it."""
    controlnet = empty_controlnet(unet, source="random").to_empty(device="cpu")
    for parameter in controlnet.parameters():
        parameter.data.normal_(std=0.02)
    return Networks(unet, controlnet)


def random_cleaner(model: str) -> Cleaner:
    """SwinIR as the first stage has it, or a narrower one."""
    import_spandrel()
    from spandrel.architectures.SwinIR import SwinIR

    sizes: dict[str, Any] = {"window_size": 8, "img_size": 64, "mlp_ratio": 2.0, "upscale": 8, "start_unshuffle": 8}
    state = dict(SwinIR(upsampler="nearest+conv", **sizes | CLEANERS[model]).state_dict())
    for kind in ("weight", "bias"):
        state[f"conv_first.1.{kind}"] = state.pop(f"conv_first.{kind}")
    return cleaner_from(state, source="random")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tiled", action="store_true", help="the published side takes tiles")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    base = random_base(args.tokenizer, **MODELS[args.model])
    base.noise, base.alphas = ZERO_SNR_V, ZERO_SNR_V.alphas
    networks, cleaner = random_networks(base.unet), random_cleaner(args.model)
    # Two copies of what is laid out differently; the other weights are shared.
    shared = (*base.modules, networks)
    flat = {id(weight): weight for module in shared for weight in module.parameters() if weight.ndim != 4}
    plain, plain_networks = copy.deepcopy((base, networks), flat)
    for module in (*plain.modules, plain_networks):
        lay_out_as_loaded(module)
    options: dict[str, Any] = {"num_inference_steps": args.steps, "device": args.device, "dtype": args.dtype}
    tiles: dict[str, Any] = {}
    if args.tiled:
        tiles = {"latent_tile": 64, "latent_overlap": 32, "vae_tiles": PublishedTiles(256, 32, narrow_whole=True)}
        tiles["cleaner_tile"] = 512
    published = PublishedDiffBIR(plain, plain_networks, cleaner, compat="upstream", batch=1, **options | tiles)
    ours = DiffBIR(base, networks, cleaner, **options)
    numbers = itertools.count()

    def prompt() -> list[Prompt]:
        return [Prompt(f"picture {next(numbers)}")]

    def as_published(lq: Tensor) -> Tensor:
        published.base.text.forget()
        return published.restore(lq, prompts=prompt(), noise=SeededNoise([0]))

    def as_here(lq: Tensor) -> Tensor:
        return ours.restore(lq, prompts=prompt(), noise=SeededNoise([0]))

    kind = "in tiles as published" if args.tiled else "in one piece as published"
    compare(args, as_published, as_here, f"{args.steps} step{'s' * (args.steps > 1)} (each costs alike), {kind}, ")


if __name__ == "__main__":
    main()
