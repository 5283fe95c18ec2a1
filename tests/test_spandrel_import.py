from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch

from pnp_irib import spandrel_import as module
from pnp_irib.errors import MissingExtraError
from pnp_irib.spandrel_import import import_spandrel


def test_a_missing_spandrel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "spandrel" else find(name))
    with pytest.raises(MissingExtraError, match=r"spandrel is not installed. Run: pip install 'pnp-irib\[spandrel\]'"):
        import_spandrel()


def test_a_spandrel_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("cannot import name 'resize' from 'torchvision'")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingExtraError, match=r"spandrel \S+ cannot be imported: cannot import name 'resize'.*Install what"):
        import_spandrel()


def test_what_is_lent_instead_of_torchvision() -> None:
    import_spandrel()
    assert module.FUNCTIONS not in sys.modules
    lq = torch.rand(2, 3, 4, 4)
    expected = (lq - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(module._normalize(lq, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), expected)
    with pytest.raises(MissingExtraError, match="needs torchvision"):
        module._rotate(lq, 3.0)
