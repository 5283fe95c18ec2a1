"""HQ crops and their degraded partners, as a pure function of (seed, step): resuming needs no state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.degrade import degrade, draw, mean_channel
from pnp_irib.errors import ConfigError
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.train.config import MixtureEntry, ReferenceConfig, TrainConfig

__all__ = ["Batch", "Pictures", "make_batch"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
SCALE = 4  # HQ over LQ


class Pictures:
    """The HQ pictures of a folder, decoded once and kept as 8 bit."""

    def __init__(self, folder: Path, *, smallest: int) -> None:
        self.paths = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
        )
        if not self.paths:
            raise ConfigError(f"no pictures under {folder}. Looked for {', '.join(sorted(SUFFIXES))}.")
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
    """

    hq: Tensor
    elq: Tensor
    reference: Tensor
    gate: Tensor
    severe: tuple[int, ...]


def make_batch(pictures: Pictures, config: TrainConfig, step: int, *, rank: int = 0) -> Batch:
    """Batch number ``step`` of process ``rank``; depends on nothing but its arguments."""
    random = np.random.default_rng([config.seed, step, rank])
    hq = torch.stack([_crop(pictures, config, random) for _ in range(config.batch)])
    shares = np.array([entry.share for entry in config.mixture])
    chosen = random.choice(len(shares), size=config.batch, p=shares / shares.sum())
    entries = [config.mixture[i] for i in chosen]
    seeds = [int(s) for s in random.integers(0, 2**62, size=2 * config.batch)]
    elq = _degraded(hq, entries, seeds[: config.batch])
    reference = _reference(hq, config.reference, seeds[config.batch :])
    keep = torch.tensor([entry.target == "input" for entry in entries])
    reference = torch.where(keep[:, None, None, None], elq, reference)
    gate = torch.tensor([float("nan") if entry.gate is None else float(entry.gate) for entry in entries])
    severe = tuple(i for i, entry in enumerate(entries) if entry.target == "reference")
    return Batch(hq, elq, reference, gate, severe)


def _crop(pictures: Pictures, config: TrainConfig, random: np.random.Generator) -> Tensor:
    """A random crop in one of the eight orientations, (3, crop, crop) in [0, 1]."""
    picture = pictures.pixels[int(random.integers(len(pictures)))]
    crop = config.data.crop
    height, width = picture.shape[-2:]
    scale = max(float(random.uniform(*config.data.scales)), crop / min(height, width))
    side = min(height, width, round(crop / scale))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    part = picture[:, top : top + side, left : left + side].float() / 255
    if side != crop:
        part = resize(part[None], (crop, crop))[0].clamp(0, 1)
    part = torch.rot90(part, int(random.integers(4)), (1, 2))
    return part.flip(2) if random.integers(2) else part


def _degraded(hq: Tensor, entries: Sequence[MixtureEntry], seeds: Sequence[int]) -> Tensor:
    parts = []
    for picture, entry, seed in zip(hq, entries, seeds, strict=True):
        if entry.profile is None:
            parts.append(area(picture[None]))
        else:
            parts.append(degrade(picture[None], entry.profile, seeds=[seed], scale=SCALE))
    return torch.cat(parts)


def _reference(hq: Tensor, config: ReferenceConfig, seeds: Sequence[int]) -> Tensor:
    if config.profile is None:
        return area(hq)
    if config.channel == "sample":
        return degrade(hq, config.profile, seeds=seeds, scale=SCALE)
    return mean_channel(hq, [draw(config.profile, hq.shape[-2:], seed, scale=SCALE) for seed in seeds])


def area(hq: Tensor) -> Tensor:
    """HQ pictures reduced to the LQ grid by averaging."""
    return F.avg_pool2d(hq, SCALE)
