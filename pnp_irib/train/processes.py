"""Several processes that train one model: how long they wait for each other, and what they agree on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from pnp_irib.errors import ConfigError

__all__ = ["agreed", "check_start", "make_accelerator", "means"]

PATIENCE = timedelta(days=1)
"""The main process validates and saves while the others wait, perhaps for longer than the ten minutes that NCCL gives it."""


def make_accelerator(precision: str, *handlers: Any) -> Any:
    """The accelerator of a run.

    Args:
        precision: of its autocast, "no" or "bf16".
        handlers: more of accelerate's settings.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    return Accelerator(mixed_precision=precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE), *handlers])


def agreed(accelerator: Any, vote: bool) -> bool:
    """Whether any process says so, so that all do the same."""
    return means(accelerator, [float(vote)])[0] > 0


def means(accelerator: Any, values: Sequence[float]) -> list[float]:
    """Means over the processes, the same in all of them."""
    if accelerator.num_processes == 1:
        return list(values)
    found: list[float] = accelerator.reduce(torch.tensor(values, device=accelerator.device), "mean").tolist()
    return found


def check_start(accelerator: Any, start: int) -> None:
    """Check that all processes go on from the same step.

    Raises:
        ConfigError: they do not.
    """
    starts = accelerator.gather(torch.tensor([start], device=accelerator.device)).tolist()
    if len(set(starts)) > 1:
        raise ConfigError(
            f"the processes find checkpoints of different steps, {starts}. All machines must see the same run directory."
        )
