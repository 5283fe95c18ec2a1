"""The standard box beside what a preset draws, as Markdown.

python benchmarks/degradation_table.py --preset extreme --draws 2000
"""

from __future__ import annotations

import argparse
from collections import defaultdict

from pnp_irib.degrade import BlurStep, JpegStep, NoiseStep, ResizeStep, draw

HQ = (384, 384)


def drawn(preset: str, draws: int) -> dict[str, list[float]]:
    """Every number that was drawn, by axis."""
    values: dict[str, list[float]] = defaultdict(list)
    for seed in range(draws):
        seen: dict[str, int] = defaultdict(int)
        for step in draw(preset, HQ, seed).steps:
            name = type(step).__name__
            seen[name] += 1
            order = seen[name]
            if isinstance(step, BlurStep):
                values[f"kernel size {order}, taps"].append(step.kernel.size)
                if step.kernel.family != "sinc":
                    values[f"blur sigma {order}, px"] += step.kernel.sigma
            elif isinstance(step, ResizeStep) and order <= 2:
                reference = HQ[0] if order == 1 else HQ[0] / 4
                values[f"resize {order}, of the {'HQ' if order == 1 else 'LQ'} size"].append(step.size[0] / reference)
            elif isinstance(step, NoiseStep):
                unit = "sigma" if step.kind == "gaussian" else "scale"
                values[f"{step.kind} {unit} {order}"].append(step.amount)
            elif isinstance(step, JpegStep):
                values[f"JPEG quality {order}"].append(step.quality)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="extreme")
    parser.add_argument("--draws", type=int, default=2000)
    args = parser.parse_args()
    standard, other = drawn("standard", args.draws), drawn(args.preset, args.draws)
    print(f"| axis | standard box | drawn by `{args.preset}`: least | median | most |")
    print("|---|---|---|---|---|")
    for axis in sorted(standard.keys() | other.keys()):
        box = f"{min(standard[axis]):.2f} - {max(standard[axis]):.2f}" if standard[axis] else "-"
        found = sorted(other[axis])
        if found:
            print(f"| {axis} | {box} | {found[0]:.2f} | {found[len(found) // 2]:.2f} | {found[-1]:.2f} |")


if __name__ == "__main__":
    main()
