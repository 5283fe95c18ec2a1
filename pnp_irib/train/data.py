"""HQ crops and their degraded partners, as a pure function of seed, step and number: resuming needs no state.

The pictures of a step are numbered through all its processes and micro-batches, so that two processes of four pictures see
what one of eight sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnp_irib.degrade import degrade
from pnp_irib.errors import ConfigError
from pnp_irib.images.folder import pictures_under
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.irib.references import DegradeBack, area
from pnp_irib.train.config import DataConfig, TrainConfig

__all__ = ["Batch", "Pictures", "crop_of", "make_batch", "picture_generators", "picture_random"]

SCALE = 4  # HQ over LQ


class Pictures:
    """The HQ pictures of a folder, decoded once and kept as 8 bit."""

    def __init__(self, folder: Path, *, smallest: int) -> None:
        self.paths = pictures_under(folder)
        self.pixels: list[Tensor] = []
        digest = hashlib.sha256()
        for path in self.paths:
            rgb = read_picture(path).rgb[0]
            if min(rgb.shape[-2:]) < smallest:
                raise ConfigError(
                    f"{path} is {rgb.shape[-1]}x{rgb.shape[-2]}, smaller than the crop of {smallest}. "
                    f"Remove it, or set data.crop lower."
                )
            self.pixels.append((rgb * 255).round().to(torch.uint8))
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        hq: (N, 3, 4H, 4W).
        elq: (N, 3, H, W), the degraded pictures.
        reference: (N, 3, H, W), what the projection is compared with.
        gate: (N,) label of the severity gate, NaN where there is none.
        severe: indices of the pictures whose target is the reference: those worth sending through the restorer.
        numbers: of the pictures among those of the step.
    """

    hq: Tensor
    elq: Tensor
    reference: Tensor
    gate: Tensor
    severe: tuple[int, ...]
    numbers: tuple[int, ...]


def make_batch(pictures: Pictures, config: TrainConfig, step: int, *, part: int = 0, parts: int = 1) -> Batch:
    """The pictures of a step whose numbers are ``part`` modulo ``parts``; depends on nothing but its arguments."""
    numbers = tuple(range(part, parts * config.batch, parts))
    shares = np.array([entry.share for entry in config.mixture])
    back = DegradeBack(config.reference, SCALE)
    hqs, elqs, references, severe, gate = [], [], [], [], []
    for place, number in enumerate(numbers):
        random = picture_random(config.seed, step, number)
        hq = crop_of(pictures, config.data, random)[None]
        entry = config.mixture[int(random.choice(len(shares), p=shares / shares.sum()))]
        seeds = [int(seed) for seed in random.integers(0, 2**62, size=2)]
        elq = area(hq, SCALE) if entry.profile is None else degrade(hq, entry.profile, seeds=seeds[:1], scale=SCALE)
        hqs.append(hq)
        elqs.append(elq)
        if entry.target == "reference":
            severe.append(place)
            references.append(back(hq, seeds[1:]))
        else:
            references.append(elq)
        gate.append(float("nan") if entry.gate is None else float(entry.gate))
    return Batch(torch.cat(hqs), torch.cat(elqs), torch.cat(references), torch.tensor(gate), tuple(severe), numbers)


def picture_random(seed: int, step: int, number: int, purpose: int = 0) -> np.random.Generator:
    """Randomness of one picture of a step."""
    return np.random.default_rng([seed, step, number, purpose])


def picture_generators(seed: int, step: int, numbers: Sequence[int], purpose: int) -> list[torch.Generator]:
    """The same for torch, one for each picture."""
    return [
        torch.Generator().manual_seed(int(picture_random(seed, step, number, purpose).integers(2**62))) for number in numbers
    ]


def crop_of(pictures: Pictures, config: DataConfig, random: np.random.Generator) -> Tensor:
    """A random crop in one of the eight orientations, (3, crop, crop) in [0, 1]."""
    picture = pictures.pixels[int(random.integers(len(pictures)))]
    crop = config.crop
    height, width = picture.shape[-2:]
    scale = max(float(random.uniform(*config.scales)), crop / min(height, width))
    side = min(height, width, round(crop / scale))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    part = picture[:, top : top + side, left : left + side].float() / 255
    if side != crop:
        part = resize(part[None], (crop, crop))[0].clamp(0, 1)
    part = torch.rot90(part, int(random.integers(4)), (1, 2))
    return part.flip(2) if random.integers(2) else part
