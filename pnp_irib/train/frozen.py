"""Proof that training left alone what it should: frozen parts have the bytes that they had."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pnp_irib.errors import PnPIribError
from pnp_irib.runtime import modules_held_by

__all__ = ["FrozenParts"]


class FrozenParts:
    """Hashes of everything in some modules that is not trained.

    Args:
        holders: what holds modules, by a name that a message would use. A module that several hold counts once, and one that
            is trained as a whole not at all.
        trained: modules whose parameters are trained, which may lie inside the others.
    """

    def __init__(self, holders: Mapping[str, object], trained: Iterable[nn.Module]) -> None:
        self._trained = {id(p) for module in trained for p in module.parameters()}
        self._modules: dict[str, nn.Module] = {}
        seen: set[int] = set()
        for holder, thing in holders.items():
            for module in modules_held_by(thing):
                if id(module) not in seen and any(id(value) not in self._trained for _, value in _tensors(module)):
                    seen.add(id(module))
                    name = f"{holder} ({type(module).__name__})"
                    count = sum(known.startswith(name) for known in self._modules)
                    self._modules[f"{name} {count + 1}" if count else name] = module
        self._hashes = {name: self._hashed(module) for name, module in self._modules.items()}

    def check(self) -> list[str]:
        """Compare.

        Returns:
            The names of the parts, all of them unchanged.

        Raises:
            PnPIribError: one changed.
        """
        changed = [name for name, module in self._modules.items() if self._hashed(module) != self._hashes[name]]
        if changed:
            raise PnPIribError(
                f"training changed what was to stay frozen: {', '.join(changed)}. The projector fits weights that are gone. A "
                f"restorer must not change itself when it is used; pnp_irib.testing.check_adapter looks into that."
            )
        return list(self._modules)

    def _hashed(self, module: nn.Module) -> str:
        digest = hashlib.sha256()
        for name, value in _tensors(module):
            if id(value) not in self._trained:
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
