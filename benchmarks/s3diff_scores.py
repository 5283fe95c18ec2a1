"""Whose degradation S3Diff goes by, and what its scores add to the gradient of a projector. Prints Markdown.

    python -m benchmarks.s3diff_scores BASE CHECKPOINT DEGRADATION_NET PICTURES [--limit 16] [--seed 0]

For each picture: its middle, degraded as `extreme` (the input) and as `light` (what a perfect projector would make of it). The
loss is the mean squared error of the restored picture. Shown are means over the pictures with the bootstrap 95 % interval:
the scores; how far the results by the scores of the two are apart; and, for the gradient with respect to the projected
picture, how much the path through the scores changes it.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pnp_irib import load_restorer
from pnp_irib.bench.statistics import paired_bootstrap
from pnp_irib.degrade import degrade
from pnp_irib.images.io import read_picture
from pnp_irib.noise import SeededNoise, picture_seed
from pnp_irib_s3diff.restorer import S3Diff

SIDE = 256  # of the HQ pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("degradation_net", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = {"base": args.base, "checkpoint": args.checkpoint, "degradation_net": args.degradation_net}
    built: Any = {
        name: load_restorer("s3diff", **files, **options, color="none", dtype="float32")
        for name, options in (("attached", {}), ("detached", {"score_gradient": False}), ("input", {"scores": "input"}))
    }
    rows: dict[str, list[float]] = {}
    paths = sorted(args.pictures.glob("*.webp"))[: args.limit]
    for path in paths:
        hq = read_picture(path).rgb
        top, left = ((side - SIDE) // 2 for side in hq.shape[-2:])
        hq = hq[..., top : top + SIDE, left : left + SIDE]
        seed = picture_seed(args.seed, path.name)
        elq, lq = (degrade(hq, profile, seeds=[seed], scale=4) for profile in ("extreme", "light"))
        for name, value in measured(built, hq, elq, lq).items():
            rows.setdefault(name, []).append(value)
    print(
        f"{len(paths)} pictures of {SIDE}x{SIDE}, seed {args.seed}; float32, torch {torch.__version__}, {platform.machine()}\n"
    )
    print("| | mean | 95 % interval |\n|---|---|---|")
    for name, values in rows.items():
        found = paired_bootstrap([[value] for value in values], seed=args.seed)
        print(f"| {name} | {found.mean:.3f} | {found.low:.3f} to {found.high:.3f} |")


def measured(built: dict[str, S3Diff], hq: Tensor, elq: Tensor, lq: Tensor) -> dict[str, float]:
    """The numbers of one picture."""
    scores = {name: built["attached"].degradation(picture)[0] for name, picture in (("input", elq), ("projected", lq))}
    found = {f"{kind}, {name}": float(s[n]) for name, s in scores.items() for n, kind in enumerate(("blur", "noise"))}
    gradients, results = {}, {}
    for name, restorer in built.items():
        x = lq.clone().requires_grad_()
        with restorer.reading(elq):
            result = restorer.restore(x, noise=SeededNoise([0]))
        results[name] = result.detach()
        gradients[name] = torch.autograd.grad((result - hq).square().mean(), x)[0].flatten()
    plain, both = gradients["detached"], gradients["attached"]
    spread = results["attached"].std()
    return found | {
        "results apart, of their spread": float((results["input"] - results["attached"]).square().mean().sqrt() / spread),
        "gradient through the scores, of the whole": float((both - plain).norm() / both.norm()),
        "cosine with and without": float(torch.cosine_similarity(both, plain, 0)),
        "cosine, scores of the input": float(torch.cosine_similarity(both, gradients["input"], 0)),
    }


if __name__ == "__main__":
    main()
