"""Random numbers with one stream for each picture, so that batching changes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import random
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pnp_irib.runtime import BORROWING

__all__ = ["ReplayedNoise", "SeededNoise", "picture_seed", "seeded"]


def picture_seed(seed: int, name: str) -> int:
    """A picture's own seed: from the run's seed and its file name, so that neither order nor neighbours matter."""
    # Some systems store accents apart from their letters, and a name need not be valid Unicode at all.
    stated = f"{seed}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(stated).digest()[:7], "big")


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let what is drawn inside come from ``seed``: by torch (CPU and ``device``), numpy and Python. As before afterwards.

    One thread at a time, since these generators are the process's.
    """
    with BORROWING:
        yield from _seeded(seed, device)


def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - the one that models draw from
    try:
        for generator in generators:
            generator.manual_seed(seed)
        np.random.seed([seed % 2**32, seed // 2**32])  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


class SeededNoise:
    """A `NoiseSource` over one seed a picture. Numbers are drawn on the CPU, so that devices agree.

    Args:
        seeds: one a picture of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, shape: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers of ``shape``; its first entry is the number of pictures."""
        if shape[0] != len(self._generators):
            raise ValueError(f"noise for {shape[0]} pictures was asked of a source for {len(self._generators)}")
        drawn = [torch.randn(tuple(shape[1:]), generator=generator, dtype=torch.float32) for generator in self._generators]
        return torch.stack(drawn).to(device=device, dtype=dtype)

    def tile(self, number: int) -> SeededNoise:
        """Streams of their own for a tile of the pictures, so that tiles do not repeat each other's noise."""
        return SeededNoise([picture_seed(seed, f"tile {number}") for seed in self.seeds])


class ReplayedNoise:
    """A `NoiseSource` that gives recorded tensors in turn; for comparisons with other implementations.

    Args:
        tensors: in the order in which they are asked for, (N, ...) each.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._left = list(tensors)

    def normal(self, shape: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The next tensor.

        Raises:
            ValueError: none is left, or it has another shape.
        """
        if not self._left:
            raise ValueError(f"noise of {tuple(shape)} was asked for; all recorded tensors were used")
        if tuple(self._left[0].shape) != tuple(shape):
            raise ValueError(
                f"noise of {tuple(shape)} was asked for; the next recorded tensor is {tuple(self._left[0].shape)}"
            )
        return self._left.pop(0).to(device=device, dtype=dtype)

    @property
    def left(self) -> int:
        """How many tensors were not asked for yet."""
        return len(self._left)
