"""Tiny models and pictures of these tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource
from pnp_irib.spec import Licence, RestorerSpec

ANYONE = Licence(name="MIT", commercial=True)


class Doubler(nn.Module):
    """A tiny network with batch norm (running statistics) and dropout; twofold."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        torch_state = torch.get_rng_state()
        torch.manual_seed(5)
        self.factor = factor
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 3, 1))
        torch.set_rng_state(torch_state)

    def forward(self, lq: Tensor) -> Tensor:
        enlarged: Tensor = F.interpolate(lq + 0.1 * self.body(lq), scale_factor=float(self.factor), mode="nearest")
        return enlarged


class Stated:
    """A Restorer by protocol only: nearest enlargement at any scale or a native one; draws noise; remembers its inputs."""

    def __init__(self, **facts: Any) -> None:
        self.spec = RestorerSpec(
            **{"name": "stated", "title": "Stated", "scale": 2, "code_licence": ANYONE, "weights_licence": ANYONE, **facts}
        )
        self.seen: list[Tensor] = []
        self.prompts: list[Any] = []

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        return self

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        self.seen.append(lq.clone())
        self.prompts.append(prompts)
        factor = scale or self.spec.scale or 1
        size = (max(1, round(lq.shape[-2] * factor)), max(1, round(lq.shape[-1] * factor)))
        out = F.interpolate(lq, size=size, mode="nearest")
        return (
            out
            if noise is None or self.spec.deterministic
            else out + 0.01 * noise.normal(tuple(out.shape), device=lq.device, dtype=lq.dtype)
        )


def draw(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def counting() -> Callable[[Tensor], list[str]]:
    calls = iter(range(100))
    return lambda pictures: [f"word{next(calls)}"]
