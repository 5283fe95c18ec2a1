"""Distil a frozen restorer into a compact one that stands in for it while a projector trains.

    python recipes/realesrgan-x4plus/distill.py --projector local-dir:runs/lq/projector --data DIR --out student.safetensors

The student is an SRVGGNetCompact that starts from realesr-animevideov3 and costs about a twentieth of x4plus. It learns the
restorer's answers to what the restorer will be given: projections of degraded pictures, pictures of its own training
range, and area-reduced ones. The restorer's answers are computed once; the student then passes over them many times.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pnp_irib.classifiers import EfficientNetLite, feature_distance
from pnp_irib.degrade import degrade
from pnp_irib.hub import load_projector
from pnp_irib.registry import load_restorer
from pnp_irib.train.data import SCALE, Pictures, area

SIDE = 56  # LQ crop, pixels
MARGIN = 4  # border of the answers that is not compared, LQ pixels: crops end where pictures go on


def collect(pictures: Pictures, count: int, projector_name: str, restorer_name: str, seed: int) -> tuple[Tensor, Tensor]:
    """LQ crops (count, 3, SIDE, SIDE) and the restorer's answers, 8 bit."""
    projector = load_projector(projector_name)
    restorer = load_restorer(restorer_name)
    generator = torch.Generator().manual_seed(seed)
    given, answers = [], []
    began = time.monotonic()
    for i in range(count):
        picture = pictures.pixels[int(torch.randint(len(pictures), (1,), generator=generator))].float()[None] / 255
        top, left = (int(torch.randint(n - SIDE * SCALE + 1, (1,), generator=generator)) for n in picture.shape[-2:])
        hq = picture[..., top : top + SIDE * SCALE, left : left + SIDE * SCALE]
        kind = float(torch.rand(1, generator=generator))
        if kind < 0.1:
            lq = area(hq)
        elif kind < 0.25:
            lq = degrade(hq, "standard", seeds=[seed + i])
        else:
            elq = degrade(hq, "extreme" if kind < 0.85 else "standard", seeds=[seed + i])
            lq = projector.project(elq).clamp(0, 1)
            if kind < 0.55:
                # Beyond the blurred estimates of an early projector: towards the reduced HQ picture, and sharpened.
                lq = torch.lerp(lq, area(hq), float(torch.rand(1, generator=generator)))
                blurred = F.avg_pool2d(F.pad(lq, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
                lq = (lq + 0.7 * float(torch.rand(1, generator=generator)) * (lq - blurred)).clamp(0, 1)
        given.append(lq[0])
        answers.append((restorer.restore(lq).clamp(0, 1)[0] * 255).round().to(torch.uint8))
        if i % 50 == 49:
            sys.stderr.write(f"{i + 1}/{count} answers, {(time.monotonic() - began) / (i + 1):.2f} s each\n")
    return torch.stack(given), torch.stack(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--projector", required=True)
    parser.add_argument("--restorer", default="realesrgan-x4plus")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--perceptual", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with torch.no_grad():
        given, answers = collect(
            Pictures(args.data, smallest=SIDE * SCALE), args.pairs, args.projector, args.restorer, args.seed
        )
    held = max(20, args.pairs // 20)
    torch.manual_seed(args.seed)
    student = load_restorer("realesr-animevideov3", dtype="float32").network.train().requires_grad_(True)
    features = EfficientNetLite.from_package("lite0")
    optimizer = torch.optim.Adam(student.parameters(), lr=args.lr)
    inner = slice(MARGIN * SCALE, -MARGIN * SCALE)

    def compare(index: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = student(given[index]).float()[..., inner, inner]
            target = answers[index].float()[..., inner, inner] / 255
            return (out - target).abs().mean(), feature_distance(features, out.clamp(0, 1), target).mean()

    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 50) * (1 - step / args.steps) ** 0.5
        pixel, deep = compare(held + torch.randint(args.pairs - held, (args.batch,)))
        optimizer.zero_grad()
        (pixel + args.perceptual * deep).backward()
        optimizer.step()
        if step % 200 == 0 or step == args.steps - 1:
            with torch.no_grad():
                parts = [compare(part) for part in torch.arange(held).split(10)]
            means = [torch.stack(values).mean().item() for values in zip(*parts, strict=True)]
            sys.stderr.write(f"step {step}: held-out L1 {means[0]:.4f}, feature distance {means[1]:.3f}\n")
            save_file({key: value.contiguous() for key, value in student.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
