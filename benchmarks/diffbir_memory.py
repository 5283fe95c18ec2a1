"""Peak memory of DiffBIR over the size of the picture, within one budget; prints Markdown.

    python -m benchmarks.diffbir_memory TOKENIZER [--memory 0.5] [--sizes 256 1024] [--device cpu]

TOKENIZER is the folder of a CLIP tokenizer. The networks are narrow ones of random weights: where memory goes does not depend
on the values. One step, four times enlarged. Shown is the peak above what was held before, and how much more than the
smallest picture the others take, in pictures: float32, of the size of the result.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from functools import partial

import torch

from benchmarks.diffbir_speed import random_cleaner, random_networks
from benchmarks.random_models import random_base
from benchmarks.side_by_side import peak
from pnp_irib.diffusion.model import ZERO_SNR_V
from pnp_irib.noise import SeededNoise
from pnp_irib_diffbir.restorer import DiffBIR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="folder of a CLIP tokenizer")
    parser.add_argument("--memory", type=float, default=0.5, help="budget of the restorer, gigabytes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024], help="sides of the LQ pictures")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("error", UserWarning)  # a budget that is exceeded
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    base = random_base(args.tokenizer, unet=(32, 64, 64, 64), heads=(1, 2, 2, 2), vae=(32, 32, 32, 32), text=(32, 2, 2))
    base.noise, base.alphas = ZERO_SNR_V, ZERO_SNR_V.alphas
    restorer = DiffBIR(
        base,
        random_networks(base.unet),
        random_cleaner("tiny"),
        num_inference_steps=1,
        memory=args.memory,
        device=args.device,
    )
    print(f"memory={args.memory:g} GB, float32 on {platform.machine()}, one thread, torch {torch.__version__}\n")
    print("| LQ | result | peak, MiB | above the smallest, MiB | in pictures |")
    print("|---|---|---|---|---|")
    smallest = float("nan")
    for size in args.sizes:
        lq = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        run = partial(restorer.restore, lq, noise=SeededNoise([0]))
        with torch.no_grad():
            found = peak(run, cpu=args.device == "cpu")
        smallest = found if size == args.sizes[0] else smallest
        picture = 12 * (4 * size) ** 2 / 2**20
        above = found - smallest
        print(f"| {size}x{size} | {4 * size}x{4 * size} | {found:.0f} | {above:.0f} | {above / picture:.1f} |", flush=True)


if __name__ == "__main__":
    main()
