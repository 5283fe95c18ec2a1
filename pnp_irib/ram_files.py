"""The files that RAM and DAPE are published as. None of them is part of this library, and none is downloaded by itself."""

from __future__ import annotations

from typing import Final

from pnp_irib.spec import WeightsFile

__all__ = ["DAPE", "FILES", "RAM", "TAGS", "THRESHOLDS"]

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
"""Apache-2.0 says its repository, which says nothing of the weights; about 5.6 GB."""

DAPE: Final = WeightsFile(name="DAPE.pth", places=(_SEESR_REPOSITORY,))
"""Apache-2.0, "project and weights" says the README, which links two folders of cloud drives; about 7 MB."""

TAGS: Final = _list("ram_tag_list.txt", 41904, "5d96d2f7225527480ad773aaac76b6e5c08a18adf6eae9ca7d2ab923d5e7bd8b")
THRESHOLDS: Final = _list(
    "ram_tag_list_threshold.txt", 22016, "b6f81d0de1bc7f9c251af512c413eae976c77dbfbadf700d4e3d90510f4c6447"
)
FILES: Final = (RAM, DAPE, TAGS, THRESHOLDS)
