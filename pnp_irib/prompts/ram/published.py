"""The files that RAM and DAPE are published as. None of them is part of this library, and none is downloaded by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pnp_irib.errors import WeightsError
from pnp_irib.spec import Licence, WeightsFile

__all__ = [
    "CODE_LICENCE",
    "DAPE",
    "DAPE_LICENCE",
    "FILES",
    "PAPERS",
    "RAM",
    "RAM_LICENCE",
    "TAGS",
    "THRESHOLDS",
    "find",
    "find_published",
]

PAPERS: Final = {"ram": "https://arxiv.org/abs/2306.03514", "dape": "https://arxiv.org/abs/2311.16518"}
CODE_LICENCE: Final = Licence(name="Apache-2.0", commercial=True)  # of both repositories
DAPE_LICENCE: Final = Licence(name="Apache-2.0", commercial=True)  # "project and weights", says the README of SeeSR
RAM_LICENCE: Final = Licence(name="Apache-2.0", commercial=None)  # of the repository, which says nothing of the weights

_RAM_REPOSITORY = "https://github.com/xinyu1205/recognize-anything"
_SEESR_REPOSITORY = "https://github.com/cswry/SeeSR"


def _list(name: str, size: int, sha256: str) -> WeightsFile:
    """A text file of the model, the same to the byte in both repositories."""
    places = tuple(f"{repository}/raw/main/ram/data/{name}" for repository in (_RAM_REPOSITORY, _SEESR_REPOSITORY))
    return WeightsFile(name=name, places=places, size=size, sha256=sha256)


RAM: Final = WeightsFile(
    name="ram_swin_large_14m.pth",
    places=(
        "https://huggingface.co/spaces/xinyu1205/Recognize_Anything-Tag2Text",
        "https://huggingface.co/spaces/xinyu1205/recognize-anything",
    ),
)
DAPE: Final = WeightsFile(name="DAPE.pth", places=(_SEESR_REPOSITORY,))  # its README links two folders of cloud drives
TAGS: Final = _list("ram_tag_list.txt", 41904, "5d96d2f7225527480ad773aaac76b6e5c08a18adf6eae9ca7d2ab923d5e7bd8b")
THRESHOLDS: Final = _list(
    "ram_tag_list_threshold.txt", 22016, "b6f81d0de1bc7f9c251af512c413eae976c77dbfbadf700d4e3d90510f4c6447"
)
FILES: Final = (RAM, DAPE, TAGS, THRESHOLDS)


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
