"""The learning curve: checkpoints in front of one restorer, on the same degraded pictures; prints a Markdown table.

    python recipes/realesrgan-x4plus/curve.py --data DATA/dev [--every 3] runs/5-structure/projector runs/6-features/projector

Differences are wrapped - alone, with the bench's paired bootstrap 95 % interval over pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pnp_irib import load_projector, load_restorer
from pnp_irib.bench.metrics import METRICS, Judge
from pnp_irib.bench.statistics import paired_bootstrap
from pnp_irib.degrade import degrade
from pnp_irib.images.io import read_picture
from pnp_irib.noise import picture_seed

SHOWN = ("psnr", "ms_ssim", "feature_distance", "colour_error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="of the pictures, every how many")
    parser.add_argument("--preset", default="extreme")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restorer", default="realesrgan-x4plus")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    restorer, judge = load_restorer(args.restorer), Judge()
    projectors = [load_projector(f"local-dir:{folder}").eval() for folder in args.checkpoints]
    paths = sorted(args.data.glob("*.webp"))[:: args.every]
    differences: list[dict[str, list[list[float]]]] = [{key: [] for key in SHOWN} for _ in projectors]
    with torch.inference_mode():
        for path in paths:
            hq = read_picture(path).rgb
            height, width = (side // 4 * 4 for side in hq.shape[-2:])
            hq = hq[..., :height, :width]
            elq = degrade(hq, args.preset, seeds=[picture_seed(args.seed, path.name)])
            results = {"alone": restorer.restore(elq).clamp(0, 1)}
            for number, projector in enumerate(projectors):
                results[str(number)] = restorer.restore(projector.project(elq).clamp(0, 1)).clamp(0, 1)
            judged = judge(hq, results)
            for number, found in enumerate(differences):
                for key in SHOWN:
                    found[key].append([judged[str(number)][key] - judged["alone"][key]])
    titles = {metric.key: metric.title for metric in METRICS}
    print(f"{len(paths)} pictures, `{args.preset}`, seed {args.seed}, {args.restorer}\n")
    print(f"| checkpoint | steps | {' | '.join(titles[key] for key in SHOWN)} |")
    print(f"|---|---|{'---|' * len(SHOWN)}")
    for folder, projector, found in zip(args.checkpoints, projectors, differences, strict=True):
        cells = []
        for key in SHOWN:
            d = paired_bootstrap(found[key])
            digits = 4 if key in ("ms_ssim", "feature_distance") else 2
            cells.append(f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]")
        print(f"| {folder} | {projector.provenance.steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
