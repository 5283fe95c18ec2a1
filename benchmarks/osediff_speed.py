"""OSEDiff beside its published procedure, on one machine and over the same modules of random weights; prints Markdown.

    python -m benchmarks.osediff_speed TOKENIZER [--model medium] [--device cpu] [--dtype float32] [--sizes 128 256]

TOKENIZER is the folder of a CLIP tokenizer. Speed does not depend on the values of the weights. The published procedure keeps
LoRA beside the weights, encodes the prompt of every picture, and goes through tiles one after the other.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.random_models import MODELS, random_base, random_checkpoint
from benchmarks.side_by_side import arguments, compare, lay_out_as_loaded
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib_osediff.restorer import OSEDiff

PROMPT = Prompt("street, car, building, night, person, umbrella, rain, traffic light, wet")


def main() -> None:
    args = arguments(__doc__).parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    base = random_base(args.tokenizer, **MODELS[args.model])
    checkpoint = random_checkpoint(base)
    where = {"device": args.device, "dtype": args.dtype}
    plain = copy.deepcopy(base)
    for part in plain.modules:
        lay_out_as_loaded(part)
    published = OSEDiff(plain, checkpoint, merged=False, compat="upstream", tile_batch=1, **where)
    ours = OSEDiff(base, checkpoint, **where)

    def as_published(lq: Tensor) -> Tensor:
        published.base.text.forget()
        return published.restore(lq, prompts=[PROMPT], noise=SeededNoise([0]))

    def as_here(lq: Tensor) -> Tensor:
        return ours.restore(lq, prompts=[PROMPT], noise=SeededNoise([0]))

    compare(args, as_published, as_here)


if __name__ == "__main__":
    main()
