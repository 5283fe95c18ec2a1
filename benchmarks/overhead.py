"""What wrapping costs: the wrapper without a projector, and the projector itself, against the restorer; prints ratios.

python benchmarks/overhead.py [--restorer realesrgan-x4plus] [--size 96] [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from pnp_irib import PixelProjector, load_restorer, wrap
from pnp_irib.degrade import degrade


def in_turn(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each run; they take turns, and the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restorer", default="realesrgan-x4plus")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    restorer = load_restorer(args.restorer)
    plain = wrap(restorer, projector=None)
    projector = PixelProjector().eval()
    # Through the whole call: reading, checks and the result on one side, the bare restorer on the other.
    lq = torch.rand(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        medians = in_turn(
            {
                "restorer": lambda: restorer.restore(lq),
                "wrapped, no projector": lambda: plain(lq),
                "projector": lambda: projector.project(lq),
            },
            args.rounds,
        )
    alone = medians["restorer"]
    print(
        f"{args.restorer}, {args.size}x{args.size}, {args.threads} threads, torch {torch.__version__}, median of {args.rounds}"
    )
    for name, median in medians.items():
        print(f"  {name:22} {1000 * median:9.1f} ms  {median / alone:7.3f} of the restorer")
    extra = medians["wrapped, no projector"] - alone
    print(f"  the wrapper adds {1000 * extra:.1f} ms, {100 * extra / alone:.2f} %")

    hq = torch.rand(8, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    learner = PixelProjector()
    elq = degrade(hq, "extreme", seeds=range(8))

    def step() -> None:
        learner.project(elq).square().mean().backward()

    costs = in_turn({"degrade": lambda: degrade(hq, "extreme", seeds=range(8)), "step": step}, args.rounds)
    ratio = costs["degrade"] / costs["step"]
    print(
        f"a training batch of 8 x 256x256: degrading {1000 * costs['degrade']:.0f} ms, {ratio:.2f} of the projector's own step"
    )


if __name__ == "__main__":
    main()
