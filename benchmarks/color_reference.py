"""Whose colours a restored picture should have: those of the input, or of what the projector made of it. Prints Markdown.

    python benchmarks/color_reference.py DATA/dev [-r RESTORER] [--preset extreme] [--seed 0] [--limit N]

Differences to the result as the restorer gives it, each with the paired bootstrap 95 % interval over pictures.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from pnp_irib import wrap
from pnp_irib.bench.metrics import METRICS, Judge
from pnp_irib.bench.statistics import paired_bootstrap
from pnp_irib.degrade import degrade
from pnp_irib.images.color import ColorMatch, match_color
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.noise import picture_seed

METHODS: tuple[ColorMatch, ...] = ("adain", "wavelet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--restorer", "-r", default="realesrgan-x4plus")
    parser.add_argument("--preset", default="extreme")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    robust, judge = wrap(args.restorer), Judge()
    found: dict[str, list[dict[str, float]]] = {}
    paths = sorted(args.data.glob("*.webp"))[: args.limit]
    for path in paths:
        hq = read_picture(path).rgb
        hq = hq[..., : hq.shape[-2] // 4 * 4, : hq.shape[-1] // 4 * 4]
        elq = degrade(hq, args.preset, seeds=[picture_seed(args.seed, path.name)], scale=4)
        result = robust(elq)
        size = (hq.shape[-2], hq.shape[-1])
        restored = {"as restored": result.restored}
        for name, reference in (("input", elq), ("projector", result.lq)):
            enlarged = resize(reference, size).clamp(0, 1)
            for method in METHODS:
                restored[f"{method}, {name}"] = match_color(result.restored, enlarged, method).clamp(0, 1)
        for name, values in judge(hq, restored).items():
            found.setdefault(name, []).append(values)
    print(f"`{args.restorer}`, {args.preset}, seed {args.seed}, {len(paths)} pictures; torch {torch.__version__},", end=" ")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads\n")
    metrics = [metric for metric in METRICS if metric.key != "top1"]
    print("| colours of | " + " | ".join(metric.title for metric in metrics) + " |")
    print("|---|" + "---|" * len(metrics))
    own = found["as restored"]
    for name, listed in found.items():
        cells = []
        for metric in metrics:
            if name == "as restored":
                cells.append(f"{sum(v[metric.key] for v in listed) / len(listed):.4g}")
            else:
                interval = paired_bootstrap([[v[metric.key] - o[metric.key]] for v, o in zip(listed, own, strict=True)])
                cells.append(f"{interval.mean:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
