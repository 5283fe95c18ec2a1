"""What use leaves behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pnp_irib.any_size import restore_any_size
from pnp_irib.noise import SeededNoise
from pnp_irib.restorer import Restorer
from pnp_irib.testing.problem import Problem
from pnp_irib.testing.subject import Subject

__all__ = ["check_state"]


def check_state(subject: Subject) -> Iterator[Problem]:
    """Use leaves no trace: in the input, the restorer, its modules, the process; and results are the caller's own."""
    lq = subject.picture(subject.side, subject.side)
    given, modules = lq.clone(), subject.modules()
    before, generators = _state(subject.restorer, modules), _generators()
    with torch.no_grad():
        prompts = [subject.prompt] if subject.prompt is not None else None
        restored = restore_any_size(subject.restorer, given, prompts=prompts, noise=SeededNoise([0]))
        moved = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        kept = restored.clone() if isinstance(restored, Tensor) else restored
        if not isinstance(restored, Tensor):
            yield Problem("state", f"restore returns a {type(restored).__name__}", "return a torch.Tensor (N, 3, h, w)")
            return
        restore_any_size(subject.restorer, 1 - given, prompts=prompts, noise=SeededNoise([1]))
    after = _state(subject.restorer, modules)
    changed = [name for name in before.keys() | after.keys() if name not in before or name not in after]
    if changed := sorted(changed) + [name for name in before.keys() & after.keys() if not _same(before[name], after[name])]:
        yield Problem(
            "state",
            f"restoring changed {len(changed)} things, the first: {changed[0]}",
            "use pnp_irib.runtime.frozen(module) around the network, and keep nothing from call to call",
        )
    if not all(_same(a, b) for a, b in zip(generators, _generators(), strict=True)):
        yield Problem("state", "restoring moves a global random generator", "draw from noise= only")
    if not torch.equal(given, lq):
        yield Problem("state", "restoring changes the picture that it is given", "work on a copy: lq.clone()")
    if restored.data_ptr() == given.data_ptr():
        yield Problem("state", "the result shares its memory with the input", "return a tensor of its own")
    elif not torch.equal(restored, kept):
        yield Problem("state", "a result changes when the next picture is restored", "return a copy of what is kept")
    if moved:
        yield Problem("state", "the grad mode is another afterwards", "use it as a context manager: with torch.no_grad():")


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def _state(restorer: Restorer, modules: list[nn.Module]) -> dict[str, Any]:
    state: dict[str, Any] = {"deterministic algorithms": torch.are_deterministic_algorithms_enabled()}
    for name, value in getattr(restorer, "__dict__", {}).items():
        if isinstance(value, int | float | str | bool | None):
            state[f"its attribute {name}"] = value
    for number, module in enumerate(modules):
        title = f"{type(module).__name__} {number}" if len(modules) > 1 else type(module).__name__
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            state[f"{name} of {title}"] = value.detach().clone()
        for name, value in module.named_parameters():
            state[f"requires_grad of {name} of {title}"] = (value.requires_grad, value.grad is None)
        for name, child in module.named_modules():
            hooks = [list(getattr(child, kind, ())) for kind in HOOKS]
            state[f"training or hooks of {name or 'the whole'} of {title}"] = (child.training, hooks)
    return state


def _generators() -> list[Any]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state(), torch.from_numpy(np.asarray(numpy_state[1]).astype(np.int64)), random.getstate()]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)
