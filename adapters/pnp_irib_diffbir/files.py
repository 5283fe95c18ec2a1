"""DiffBIR's published files: where they are found, and reading those of the second stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pnp_irib.errors import WeightsError
from pnp_irib.spec import RestorerSpec, WeightsFile
from pnp_irib.weights import find_place, load_checkpoint, resolve_file
from pnp_irib_diffbir.networks import controlnet_from

__all__ = ["published_file", "read_controlnet", "read_tensors"]


def published_file(given: str | Path | None, file: WeightsFile, *, spec: RestorerSpec) -> Path:
    """Where a published file is on this machine.

    Args:
        given: a path, or ``hf-hub:owner/repo/file``; None: as the Hub's cache has it, or fetched from its public place.
        file: which one.
        spec: of the restorer that needs it.

    Raises:
        WeightsError: it is not there and cannot be fetched, or its public place is not the Hub.
    """
    if given is not None:
        return resolve_file(given, spec=spec)
    if (found := find_place(file)) is not None:
        return found[1]
    place = file.places[0]
    if not place.startswith("hf-hub:"):
        raise WeightsError(f"{spec.name} needs {file.name}. Download {place} and give its path.")
    return resolve_file(place, spec=spec)


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
