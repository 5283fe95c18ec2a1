"""DiffBIR's published files of the second stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pnp_irib.weights import load_checkpoint
from pnp_irib_diffbir.networks import controlnet_from

__all__ = ["read_controlnet", "read_tensors"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a published file by name: wrapped in ``state_dict`` or not, from a model spread over devices or not.

    Raises:
        WeightsError: missing, damaged, or no tensors.
    """
    tensors = load_checkpoint(path)
    spread = "module." if next(iter(tensors), "").startswith("module.") else ""
    return {name.removeprefix(spread): value for name, value in tensors.items()}


def read_controlnet(path: Path, unet: Any) -> Any:
    """IRControlNet from ``DiffBIR_v2.1.pt``, ``v2.pth``, ``v1_general.pth`` or ``v1_face.pth``, frozen, in float32.

    Args:
        path: of the file.
        unet: that it belongs to; it has the same sizes.

    Raises:
        WeightsError: missing, damaged, or it does not fit the UNet.
    """
    return controlnet_from(read_tensors(path), unet, source=str(path))
