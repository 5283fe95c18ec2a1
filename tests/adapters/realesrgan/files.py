"""Files of the data package, and weights to compare."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import find_place
from pnp_irib_realesrgan.restorer import RealESRGAN
from pnp_irib_realesrgan.spec import ANIME, ANIME_VIDEO, X4PLUS

SPECS = (ANIME_VIDEO, ANIME, X4PLUS)
NAMES = tuple(spec.name for spec in SPECS)


def local_files(spec: RestorerSpec) -> tuple[Path, Path]:
    place = find_place(spec.weights[0])
    assert place is not None, "the data package of the [demo] extra is not installed"
    return place[1].with_suffix(".param"), place[1]


def contiguous_state(restorer: RealESRGAN) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in restorer.network.state_dict().items()}


def same_weights(a: RealESRGAN, b: RealESRGAN) -> bool:
    theirs = b.network.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.network.state_dict().items())
