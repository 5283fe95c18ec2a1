"""The published files of RAM and DAPE in a folder of the user's."""

from __future__ import annotations

from pathlib import Path

from pnp_irib.errors import WeightsError
from pnp_irib.ram_files import DAPE, RAM, TAGS, THRESHOLDS
from pnp_irib.spec import WeightsFile

__all__ = ["find", "find_published"]


def find(folder: Path, file: WeightsFile) -> Path:
    """One of the files in a folder, or in its sub-folder ``data``, where the repositories keep the lists.

    Raises:
        WeightsError: it is in neither; says where it is published.
    """
    for path in (folder / file.name, folder / "data" / file.name):
        if path.is_file():
            return path
    raise WeightsError(
        f"{folder} holds no {file.name}, nor does its sub-folder data. It is not part of this library; put it there: "
        f"{file.name} is found at {' or '.join(file.places)}"
    )


def find_published(folder: Path, *, lora: bool) -> dict[str, Path]:
    """The files of a folder by their published names: RAM, the two lists and, with ``lora``, DAPE.

    Raises:
        WeightsError: one is missing.
    """
    wanted = [RAM, *([DAPE] if lora else []), TAGS, THRESHOLDS]
    if lora and not (folder / DAPE.name).is_file() and (folder / RAM.name).is_file():
        raise WeightsError(
            f"{folder} holds no {DAPE.name}, which is found at {DAPE.places[0]} (see its README). Without it this is plain "
            f"RAM, for pictures that are not degraded: write ram:{folder}"
        )
    return {file.name: find(folder, file) for file in wanted}
