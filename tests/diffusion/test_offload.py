"""Which parts are on the device; the device "meta" stands for one, since it can be told from the CPU everywhere."""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
from torch import nn

from pnp_irib.diffusion.offload import Offload

MEGABYTE = 2**20


class Weights(nn.Linear):
    """Of zeros, since nothing can be moved back from "meta"."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if self.weight.is_meta and not fn(torch.empty(0)).is_meta:
            self.weight = nn.Parameter(torch.zeros(self.weight.shape))
            return self
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def stages() -> dict[str, nn.Module]:
    """Weights of one, two and four megabytes."""
    return {name: Weights(2**18, n, bias=False) for name, n in (("text", 1), ("vae", 2), ("unet", 4))}


def on_device(offload: Offload, modules: dict[str, nn.Module]) -> set[str]:
    found = {name for name, module in modules.items() if next(module.parameters()).device == offload.device}
    assert found == set(offload.present)
    return found


def test_stages_stay_while_there_is_room() -> None:
    modules = stages()
    offload = Offload(modules, torch.device("meta"), 8 * MEGABYTE)
    assert on_device(offload, modules) == set()
    for name in ("text", "vae", "unet", "vae"):
        with offload.stage(name):
            assert name in on_device(offload, modules)
    assert offload.present == ("text", "unet", "vae")


def test_the_longest_unused_leaves_first_and_only_where_room_is_needed() -> None:
    modules = stages()
    offload = Offload(modules, torch.device("meta"), 7 * MEGABYTE)
    for name in ("vae", "text", "unet"):
        with offload.stage(name):
            pass
    assert on_device(offload, modules) == {"text", "vae", "unet"}
    with offload.stage("unet", working=MEGABYTE):
        assert on_device(offload, modules) == {"text", "unet"}  # the VAE was used before the text encoder
    with offload.stage("vae", working=2 * MEGABYTE):
        assert on_device(offload, modules) == {"vae"}  # neither of the others would fit beside it
    assert offload.room("unet") == 3 * MEGABYTE


def test_a_budget_that_is_too_small_is_told() -> None:
    modules = stages()
    offload = Offload(modules, torch.device("meta"), 3 * MEGABYTE)
    with offload.stage("vae"):
        pass
    with pytest.warns(UserWarning, match=r"unet needs about 0\.00 GB"), offload.stage("unet"):
        assert on_device(offload, modules) == {"unet"}


def test_layers_that_were_exchanged_are_not_left_behind() -> None:
    modules = stages()
    unet = modules["unet"] = nn.Sequential(modules["unet"])
    offload = Offload(modules, torch.device("meta"), 8 * MEGABYTE)
    with offload.stage("unet"):
        pass
    unet[0] = Weights(2**18, 4, bias=False)
    with offload.stage("unet"):
        assert on_device(offload, modules) == {"unet"}
