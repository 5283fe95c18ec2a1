"""A training step of the latent projector through OSEDiff with a prior, all on one base of random weights; prints Markdown.

    python -m benchmarks.latent_training TOKENIZER [--model medium] [--device cpu] [--size 512] [--batches 1 4] [--rounds 3]

TOKENIZER is the folder of a CLIP tokenizer. Speed and memory do not depend on the values of the weights.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import time

import torch

from benchmarks.osediff_speed import PROMPT
from benchmarks.random_models import MODELS, random_base, random_checkpoint
from benchmarks.side_by_side import peak
from pnp_irib.priors import LatentPrior, LatentPriorConfig
from pnp_irib.projectors import LatentArchitecture, LatentProjector
from pnp_irib_osediff.restorer import OSEDiff


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--model", choices=MODELS, default="medium")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=512, help="side of the HQ pictures")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    args = parser.parse_args()
    torch.manual_seed(0)
    base = random_base(args.tokenizer, **MODELS[args.model])
    restorer = OSEDiff(base, random_checkpoint(base), merged=False, process_size=64, device=args.device, dtype="float32")
    projector = LatentProjector(LatentArchitecture(base="random"), base).to(args.device)
    prior = LatentPrior(LatentPriorConfig(kind="vsd"), base)
    cpu = args.device == "cpu"
    print(f"{args.model} model on {platform.machine() if cpu else torch.cuda.get_device_name()}, ", end="")
    print(
        f"{'bfloat16 autocast' if args.bf16 else 'float32'}, {args.size}x{args.size}, {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"torch {torch.__version__}; median of {args.rounds} after one to warm up\n")
    print("| batch | checkpointing | seconds a step | GB above the weights |")
    print("|---|---|---|---|")
    for batch in args.batches:
        elq = torch.rand(batch, 3, args.size // 4, args.size // 4, device=args.device)
        hq = torch.rand(batch, 3, args.size, args.size, device=args.device)
        for checkpointing in (False, True):

            def step(elq: torch.Tensor = elq, hq: torch.Tensor = hq, on: bool = checkpointing) -> None:
                prompts = [PROMPT] * len(elq)
                generators = [torch.Generator().manual_seed(i) for i in range(len(elq))]
                with base.checkpointing() if on else contextlib.nullcontext():
                    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
                        restored = restorer.restore(projector(elq, prompts), scale=1, prompts=prompts)
                        loss = (restored - hq).square().mean() + prior(restored, prompts, generators).mean()
                    loss.backward()
                    projector.zero_grad(set_to_none=True)
                    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
                        critic = prior.follow(generators).mean()
                    critic.backward()
                    prior.critic.zero_grad(set_to_none=True)

            seconds = []
            for number in range(args.rounds + 1):
                start = time.perf_counter()
                step()
                if not cpu:
                    torch.cuda.synchronize()
                seconds += [time.perf_counter() - start] if number else []
            memory = peak(step, cpu=cpu) / 1024
            shown = "yes" if checkpointing else "no"
            print(f"| {batch} | {shown} | {statistics.median(seconds):.2f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
