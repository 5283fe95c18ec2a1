"""How far faster forms of the Real-ESRGAN networks move single pixels; prints a Markdown table, /255.

    python benchmarks/realesrgan_precision.py DATA/dev [--pictures 6] [--size 64]

Crops of photographs, clean and degraded with `extreme`; against the direct float32 form, as gradients take it.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from pathlib import Path

import torch

from pnp_irib import load_restorer
from pnp_irib.degrade import degrade
from pnp_irib.images.io import read_picture
from pnp_irib_realesrgan.spec import ANIME, ANIME_VIDEO, X4PLUS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--size", type=int, default=64, help="side of the LQ crops")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # bfloat16 is called unsafe; how much so is what is measured
    paths = sorted(args.data.glob("*.webp"))
    paths = paths[:: max(1, len(paths) // args.pictures)][: args.pictures]
    side = 4 * args.size
    hq = [read_picture(path).rgb[..., :side, :side] for path in paths]
    kinds = {"clean": [torch.nn.functional.avg_pool2d(picture, 4) for picture in hq]}
    kinds["extreme"] = [degrade(picture, "extreme", seeds=[number]) for number, picture in enumerate(hq)]
    print(f"{len(paths)} crops of {args.size}x{args.size}, seeds 0 to {len(paths) - 1}; torch {torch.__version__}\n")
    print("| network | pictures | form | largest difference | mean |")
    print("|---|---|---|---|---|")
    for name in (X4PLUS.name, ANIME.name, ANIME_VIDEO.name):
        forms = {dtype: load_restorer(name, dtype=dtype) for dtype in ("float32", "bfloat16")}
        for kind, pictures in kinds.items():
            found: dict[str, list[torch.Tensor]] = defaultdict(list)
            for lq in pictures:
                direct = forms["float32"].restore(lq.clone().requires_grad_()).detach().clamp(0, 1)
                with torch.no_grad():
                    for form, restorer in forms.items():
                        found[form].append((restorer.restore(lq).clamp(0, 1) - direct).abs() * 255)
            for form, differences in found.items():
                everything = torch.stack([d.flatten() for d in differences])
                shown = "float32, inference" if form == "float32" else form
                print(f"| {name} | {kind} | {shown} | {everything.max():.3g} | {everything.mean():.2g} |", flush=True)


if __name__ == "__main__":
    main()
