"""Stages that take turns on a device within one memory budget.

Weights move in when a stage begins, and out when another needs the room.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from pnp_irib.convolution import FEWEST_PRODUCTS, MOST_TILES
from pnp_irib.diffusion.vae_strips import STRIP_ELEMENTS

__all__ = ["Offload", "unet_bytes", "vae_bytes"]


class Offload:
    """Moves modules between the CPU, where they wait, and the device that they work on.

    Args:
        stages: modules by the name of their stage.
        device: to work on.
        memory: bytes that weights and working memory may take on the device together.
    """

    def __init__(self, stages: Mapping[str, nn.Module], device: torch.device, memory: int) -> None:
        self.device = device
        self.memory = memory
        self._stages = dict(stages)
        self._present: list[str] = []  # the one that was used last comes last
        for module in self._stages.values():
            nn.Module.to(module, "cpu")

    @property
    def present(self) -> tuple[str, ...]:
        """Stages whose weights are on the device; the one that was used last comes last."""
        return tuple(self._present)

    def room(self, name: str) -> int:
        """Bytes that are left for working memory when a stage is alone on the device."""
        return self.memory - _weights(self._stages[name])

    @contextlib.contextmanager
    def stage(self, name: str, working: int = 0) -> Iterator[None]:
        """Have a stage's weights on the device inside. Those of others leave, the longest unused first, where room is needed.

        Args:
            name: of the stage.
            working: bytes of working memory that it will need.
        """
        needed = working + _weights(self._stages[name])
        for other in [other for other in self._present if other != name]:
            if needed + sum(_weights(self._stages[n]) for n in self._present if n != name) <= self.memory:
                break
            nn.Module.to(self._stages[other], "cpu")
            self._present.remove(other)
        if needed > self.memory:
            warnings.warn(
                f"{name} needs about {needed / 1e9:.2f} GB, the budget is {self.memory / 1e9:.2f} GB; it is exceeded.",
                stacklevel=3,
            )
        # Also where the stage is there: layers that were exchanged meanwhile may have been left behind.
        nn.Module.to(self._stages[name], self.device)
        self._present = [*(other for other in self._present if other != name), name]
        yield


def _weights(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def vae_bytes(vae: nn.Module, pixels: int, itemsize: int, *, decoder: bool) -> int:
    """Working memory of the VAE in strips, beside the pictures, as measured on CPUs.

    These are the feature maps at full size that are whole at a time, some strips, and a kernel for Winograd's products with
    the blocks that it goes over.
    """
    channels: tuple[int, ...] = vae.config.block_out_channels  # type: ignore[union-attr, assignment]
    first, second, widest = channels[0], channels[1], channels[-1]
    maps = pixels * (second + 2 * first if decoder else 2 * first)
    strips = 5 * min(STRIP_ELEMENTS["cpu"], pixels * first)
    kernels = 36 * widest * (widest + 3 * MOST_TILES) if itemsize == 4 and widest**2 >= FEWEST_PRODUCTS else 0
    return itemsize * (maps + strips + kernels)


def unet_bytes(unet: nn.Module, positions: int, itemsize: int) -> int:
    """Working memory of the UNet for latents of so many positions in all, as measured."""
    return 56 * positions * itemsize * int(unet.config.block_out_channels[0])  # type: ignore[union-attr, index]
