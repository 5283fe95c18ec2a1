"""A restorer beside its published procedure: both in turn on one machine, as a Markdown table."""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.random_models import MODELS
from pnp_irib.bench.memory import PeakMemory


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every comparison is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="folder of a CLIP tokenizer")
    parser.add_argument("--model", choices=MODELS, default="medium")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="of the LQ pictures, a quarter of the HQ")
    parser.add_argument("--threads", type=int)
    return parser


def compare(
    args: argparse.Namespace, published: Callable[[Tensor], object], here: Callable[[Tensor], object], told: str = ""
) -> None:
    """Seconds and memory of both; prints a table.

    Args:
        args: see `arguments`.
        published: restores an LQ picture as published.
        here: as this library does.
        told: of the models, for the line above the table.
    """
    cpu = args.device == "cpu"
    place = platform.machine() if cpu else torch.cuda.get_device_name()
    print(f"{args.model} model, {told}{args.dtype} on {place}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}; median of {args.rounds} after one to warm up\n")
    print("| LQ | published, s | here, s | published / here | published, MiB | here, MiB |")
    print("|---|---|---|---|---|---|")
    for size in args.sizes:
        lq = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(args.device)
        runs: list[Callable[[], object]] = [functools.partial(run, lq) for run in (published, here)]
        with torch.no_grad():
            seconds = in_turn(runs, args.rounds, cpu=cpu)
            memory = [peak(run, cpu=cpu) for run in runs]
        shown = " | ".join(f"{value:.0f}" for value in memory)
        print(f"| {size}x{size} | {seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[0] / seconds[1]:.2f} | {shown} |", flush=True)


def lay_out_as_loaded(module: nn.Module) -> None:
    """Weights of convolutions as diffusers has them, in place."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()


def in_turn(runs: list[Callable[[], object]], rounds: int, *, cpu: bool) -> list[float]:
    """Median seconds of each; they take turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for found, run in zip(seconds, runs, strict=True):
            start = time.perf_counter()
            run()
            if not cpu:
                torch.cuda.synchronize()
            if number:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


def peak(run: Callable[[], object], *, cpu: bool) -> float:
    """Largest memory above what was held at the start, MiB."""
    if not cpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    memory = PeakMemory()
    with memory.stage("run"):
        run()
    return memory.rise_mib.get("run", float("nan"))
