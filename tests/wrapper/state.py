"""The state of a module and of the random generators, to compare before and after."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def snapshot(module: nn.Module) -> list[Any]:
    state: list[Any] = [(key, value.clone()) for key, value in module.state_dict().items()]
    state += [(name, p.requires_grad, p.grad is None, id(p)) for name, p in module.named_parameters()]
    state += [
        (name, m.training, list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
        for name, m in module.named_modules()
    ]
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def generators() -> list[Any]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state(), list(numpy_state[1]), numpy_state[2], random.getstate()]
