"""Proof that training left alone what it should: frozen parts have the bytes that they had."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from pnp_irib.errors import PnPIribError

__all__ = ["FrozenParts"]


class FrozenParts:
    """Hashes of everything in some modules that is not trained.

    Args:
        modules: by a name that a message would use.
        trained: modules whose parameters are trained, which may lie inside the others.
    """

    def __init__(self, modules: dict[str, nn.Module], trained: Iterable[nn.Module]) -> None:
        self._modules = modules
        self._trained = {id(p) for module in trained for p in module.parameters()}
        self._hashes = {name: self._hashed(module) for name, module in modules.items()}

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
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if id(value) not in self._trained:
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()
