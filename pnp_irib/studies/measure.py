"""What all studies on degraded pictures share: which pictures, how they are degraded, what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pnp_irib.bench import METRICS, Judge, Metric
from pnp_irib.bench.report import evenly
from pnp_irib.bench.runner import read_hq
from pnp_irib.consistency import consistency
from pnp_irib.degrade import degrade
from pnp_irib.files import sha256_of
from pnp_irib.images.folder import pictures_under
from pnp_irib.irib.references import area
from pnp_irib.noise import picture_seed
from pnp_irib.profile import DegradationProfile
from pnp_irib.studies.subjects import SCALE

__all__ = ["ALL_METRICS", "Sample", "measured", "samples"]

CONSISTENCY = Metric("consistency", "consistency error", "/255", False, (0.0, 255.0))
ALL_METRICS = (*METRICS, CONSISTENCY)


@dataclass(frozen=True)
class Sample:
    """An HQ picture of a study.

    Attributes:
        name: path below the folder.
        path: of the file.
    """

    name: str
    path: Path

    @property
    def item(self) -> str:
        """Names the content, so that a result of another file of this name is not taken for its own."""
        return f"{self.name} {sha256_of(self.path)[:12]}"

    def hq(self) -> Tensor:
        """(1, 3, H, W), sides multiples of four."""
        return read_hq(self.path, SCALE)

    def degradation_seed(self, seed: int) -> int:
        """As ``pnp-irib bench`` draws it."""
        return picture_seed(seed, self.path.name)

    def elq(self, hq: Tensor, profile: DegradationProfile | None, seed: int) -> Tensor:
        """The picture degraded, (1, 3, H / 4, W / 4); without a profile only reduced, by averaging."""
        if profile is None:
            return area(hq, SCALE)
        return degrade(hq, profile, seeds=[self.degradation_seed(seed)], scale=SCALE)


def samples(folder: Path, wanted: int | None, limit: int | None) -> list[Sample]:
    """The pictures of a study, evenly spread over the folder.

    Raises:
        ConfigError: there are none.
    """
    paths = pictures_under(folder)
    counts = [len(paths), *(count for count in (wanted, limit) if count is not None)]
    return [Sample(paths[i].relative_to(folder).as_posix(), paths[i]) for i in evenly(len(paths), min(counts))]


def measured(judge: Judge, hq: Tensor, elq: Tensor, restored: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Every metric of several restorations of one picture, by their names, rounded to six digits.

    The consistency error is the mean difference of the picture, degraded back, from the input, see `consistency`.
    """
    found = judge(hq, restored)
    for name, picture in restored.items():
        found[name][CONSISTENCY.key] = 255 * consistency(picture, elq).mean
    return {name: {key: float(f"{value:.6g}") for key, value in values.items()} for name, values in found.items()}
