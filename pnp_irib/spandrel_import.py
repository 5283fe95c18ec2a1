"""The optional package spandrel, which brings the networks of many published restorers; it works without torchvision."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from pnp_irib.errors import MissingExtraError
from pnp_irib.runtime import BORROWING, require

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["import_spandrel"]

FUNCTIONS = "torchvision.transforms.functional"  # where spandrel takes names from


def import_spandrel() -> ModuleType:
    """The package spandrel.

    It takes three names from torchvision, for two of its forty architectures, and cannot be imported at all without them.
    Where torchvision cannot be imported, it is lent stand-ins: one for RestoreFormer, which does the same, and those for LaMa,
    which only say what is missing when they are called (LaMa needs a mask, and is no restorer).

    Raises:
        MissingExtraError: spandrel, or something that it needs, is not installed.
    """
    require("spandrel", "einops", extra="spandrel")
    with BORROWING, _torchvision():
        try:
            return importlib.import_module("spandrel")
        except ImportError as error:
            raise MissingExtraError(
                f"spandrel {version('spandrel')} cannot be imported: {error}. Install what it names, in the build that fits "
                f"your torch, or another release: pip install 'spandrel>=0.4.1,<0.5'"
            ) from error


@contextlib.contextmanager
def _torchvision() -> Iterator[None]:
    """Let what spandrel takes from torchvision be importable inside."""
    if "spandrel" in sys.modules:
        yield
        return
    try:
        importlib.import_module(FUNCTIONS)
    except Exception:  # a torchvision built for another torch raises RuntimeError
        pass
    else:
        yield
        return
    stand_in: Any = ModuleType(FUNCTIONS)
    stand_in.normalize, stand_in.rotate = _normalize, _rotate
    stand_in.InterpolationMode = SimpleNamespace(BILINEAR="bilinear")
    # Only this module, not the package above it: nothing else must take torchvision for installed.
    sys.modules[FUNCTIONS] = stand_in
    try:
        yield
    finally:
        del sys.modules[FUNCTIONS]


def _normalize(tensor: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, C, H, W) less the mean of each channel, divided by its deviation."""
    return (tensor - tensor.new_tensor(mean)[:, None, None]) / tensor.new_tensor(std)[:, None, None]


def _rotate(*arguments: object, **options: object) -> Tensor:
    raise MissingExtraError("this model needs torchvision, which cannot be imported. Install the build that fits your torch.")
