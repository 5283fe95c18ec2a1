"""The standard box beside what a preset draws, as Markdown.

python benchmarks/degradation_table.py --preset extreme --draws 2000
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict

from pnp_irib.degrade import BlurStep, JpegStep, NoiseStep, ResizeStep, draw

HQ = (384, 384)
# Least and most over the two-order trainings of the published restorers.
STANDARD_BOX = {
    "blur 1: sigma, HQ px": "0.2 - 3",
    "blur 2: sigma, px": "0.2 - 1.5",
    "blur 1: kernel, taps": "7 - 21",
    "blur 2: kernel, taps": "7 - 21",
    "blur 2: share": "0.5 - 0.8",
    "sinc cut-off, of pi": "0.2 - 1",
    "beta, generalised Gaussian": "0.5 - 4",
    "beta, plateau": "1 - 2",
    "resize 1, of the HQ size": "0.15 - 1.5",
    "resize 2, of the LQ size": "0.3 - 1.2",
    "Gaussian 1: sigma, /255": "1 - 30",
    "Gaussian 2: sigma, /255": "1 - 25",
    "Poisson 1: scale": "0.05 - 3",
    "Poisson 2: scale": "0.05 - 2.5",
    "grey noise: share": "0.4",
    "JPEG 1: quality": "30 - 95",
    "JPEG 2: quality": "30 - 100",
    "final sinc: share": "0.8",
}


def drawn(preset: str, draws: int) -> dict[str, list[float]]:
    """Every number that was drawn, by axis; shares as zeros and ones."""
    values: dict[str, list[float]] = defaultdict(list)
    for seed in range(draws):
        noises = resizes = jpegs = 0
        blurs = set()
        for step in draw(preset, HQ, seed).steps:
            if isinstance(step, BlurStep):
                order = noises + 1  # after the second noise it is the final sinc
                blurs.add(order)
                kernel = step.kernel
                if kernel.family == "sinc":
                    values["sinc cut-off, of pi"].append(kernel.cutoff / math.pi)
                else:
                    values["blur 1: sigma, HQ px" if order == 1 else "blur 2: sigma, px"] += kernel.sigma
                    if kernel.family.startswith("generalized"):
                        values["beta, generalised Gaussian"].append(kernel.beta)
                    elif kernel.family.startswith("plateau"):
                        values["beta, plateau"].append(kernel.beta)
                if order < 3:
                    values[f"blur {order}: kernel, taps"].append(kernel.size)
            elif isinstance(step, ResizeStep):
                resizes += 1
                if resizes == 1:
                    values["resize 1, of the HQ size"].append(step.size[0] / HQ[0])
                elif resizes == 2:
                    values["resize 2, of the LQ size"].append(4 * step.size[0] / HQ[0])
            elif isinstance(step, NoiseStep):
                noises += 1
                unit = "sigma, /255" if step.kind == "gaussian" else "scale"
                values[f"{step.kind.capitalize()} {noises}: {unit}"].append(step.amount)
                values["grey noise: share"].append(step.grey)
            elif isinstance(step, JpegStep):
                jpegs += 1
                values[f"JPEG {jpegs}: quality"].append(step.quality)
        values["blur 2: share"].append(2 in blurs)
        values["final sinc: share"].append(3 in blurs)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="extreme")
    parser.add_argument("--draws", type=int, default=2000)
    args = parser.parse_args()
    values = drawn(args.preset, args.draws)
    print(f"| axis | standard box | drawn by `{args.preset}`: least | median | most |")
    print("|---|---|---|---|---|")
    for axis, box in STANDARD_BOX.items():
        found = sorted(values[axis])
        if not found:
            print(f"| {axis} | {box} | - | - | - |")
        elif axis.endswith("share"):
            print(f"| {axis} | {box} | | {sum(found) / len(found):.2f} | |")
        else:
            print(f"| {axis} | {box} | {found[0]:.2f} | {found[len(found) // 2]:.2f} | {found[-1]:.2f} |")


if __name__ == "__main__":
    main()
