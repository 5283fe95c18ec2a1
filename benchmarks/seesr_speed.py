"""SeeSR beside its published procedure, on one machine and over the same modules of random weights; prints Markdown.

    python -m benchmarks.seesr_speed TOKENIZER [--turbo] [--steps 4] [--model medium] [--device cpu] [--sizes 128 256]

TOKENIZER is the folder of a CLIP tokenizer. Speed does not depend on the values of the weights, and one step costs as much as
any other. The published procedure goes through the tagger twice, for tags and for the embedding, with the labels projected
anew and asked all at once; encodes both prompts of every picture; encodes the picture once for each half of guidance; reads
it anew for the ControlNet in every step; and takes tiles one after the other, and the halves of guidance too. (Its script has
both halves in one call, which needs more memory: ``--together``.) Every picture has a prompt of its own on both sides.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_models import MODELS, TAGGERS, random_base, random_networks, random_tagger
from benchmarks.side_by_side import arguments, compare, lay_out_as_loaded
from pnp_irib.diffusion.vae import encode
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib.prompts.ram import RamTags
from pnp_irib.restorer import NoiseSource
from pnp_irib_seesr.restorer import SeeSR
from pnp_irib_seesr.spec import SEESR, SEESR_TURBO


class PublishedTags(RamTags):
    """Tags and embedding in a pass each, with nothing kept from one picture to the next."""

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[tuple[Prompt, Tensor]]:
        network = self.network
        network.tagging_head.rows = network.architecture.labels * len(pictures)
        network.label_embed.add_(0)  # counts as a change, for which the labels are projected anew
        found = super().read(pictures)
        return [(prompt, network.embed(one)[0]) for (prompt, _), one in zip(found, pictures.split(1), strict=True)]


class PublishedSeeSR(SeeSR):
    """Encodes the picture for both halves of guidance, though one is used."""

    def denoise(self, pictures: Tensor, texts: Any, image: Tensor, noise: NoiseSource) -> Tensor:
        if self.guidance_scale > 1:
            encode(self.base.vae, pictures.to(self.device, self.dtype) * 2 - 1, self.vae_mode)
        return super().denoise(pictures, texts, image, noise)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turbo", action="store_true", help="without guidance, 2 steps unless --steps says otherwise")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--together", action="store_true", help="both halves of guidance in one call of the published side")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    base = random_base(args.tokenizer, **MODELS[args.model])
    networks = random_networks(base)
    # Two copies of what is laid out differently; the other weights are shared.
    shared = (*base.modules, networks)
    flat = {id(weight): weight for module in shared for weight in module.parameters() if weight.ndim != 4}
    plain, plain_networks = copy.deepcopy((base, networks), flat)
    for module in (*plain.modules, plain_networks):
        lay_out_as_loaded(module)
    tagger, published_tagger = random_tagger(TAGGERS[args.model], RamTags, PublishedTags)
    options: dict[str, Any] = {
        "spec": SEESR_TURBO if args.turbo else SEESR,
        "turbo": args.turbo,
        "num_inference_steps": args.steps,
        "device": args.device,
        "dtype": args.dtype,
    }
    published = PublishedSeeSR(
        plain, plain_networks, published_tagger, compat="upstream", batch=2 if args.together else 1, **options
    )
    ours = SeeSR(base, networks, tagger, **options)
    numbers = itertools.count()

    def prompt() -> list[Prompt]:
        return [Prompt(f"picture {next(numbers)}")]

    def as_published(lq: Tensor) -> Tensor:
        if published.guidance_scale > 1:  # else there is no negative prompt, and the other one is new anyway
            published.base.text.forget()
        return published.restore(lq, prompts=prompt(), noise=SeededNoise([0]))

    def as_here(lq: Tensor) -> Tensor:
        return ours.restore(lq, prompts=prompt(), noise=SeededNoise([0]))

    steps = len(ours.steps)
    kind = "without guidance" if args.turbo else "with guidance"
    compare(args, as_published, as_here, f"{steps} step{'s' if steps > 1 else ''} {kind} (each costs alike), ")


if __name__ == "__main__":
    main()
