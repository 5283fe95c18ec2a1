"""What a bench run found: JSON, Markdown, and a grid of pictures."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pnp_irib.bench.metrics import METRICS, Metric
from pnp_irib.bench.statistics import BOOTSTRAP_SEED, RESAMPLES, Interval, paired_bootstrap, relative_change
from pnp_irib.files import atomic_file
from pnp_irib.hub.card import Measured, MeasuredMetric
from pnp_irib.images.io import to_pil
from pnp_irib.images.resize import resize

__all__ = ["BenchReport", "GridRow", "PictureRecord", "Stage", "evenly", "measured_of"]

Values = dict[str, float]
COLUMNS = ("bicubic", "alone", "wrapped")
CAPTIONS = ("ELQ, enlarged", "restorer alone", "LQ of the projector, enlarged", "wrapped", "HQ")
CELL = 288  # largest side of a picture in the grid, pixels
CAPTION = 28
GAP = 6
MAX_GRID_BYTES = 6_000_000
FEW = 20  # pictures below which the percentile bootstrap is noticeably too narrow; for ten it covers 90 %, not 95 %


class Stage(StrEnum):
    """What time and memory are counted under."""

    READ = "read HQ"
    DEGRADE = "degrade"
    ALONE = "alone: restore"
    PROJECT = "wrapped: project"
    RESTORE = "wrapped: restore"


@dataclass(frozen=True)
class PictureRecord:
    """Metrics and times of one picture with one seed. Sizes are height and width; times by `Stage`."""

    name: str
    seed: int
    degradation_seed: int
    hq_size: tuple[int, int]
    lq_size: tuple[int, int]
    bicubic: Values
    alone: Values
    wrapped: Values
    seconds: Values


@dataclass(frozen=True, eq=False)
class GridRow:
    """A row of the grid, already small: whole pictures of all rows would not fit into memory."""

    name: str
    cells: tuple[Image.Image, ...]

    @classmethod
    def of(cls, name: str, pictures: Sequence[Tensor]) -> Self:
        """From one picture (1, 3, H, W) in [0, 1] for each of `CAPTIONS`, HQ last; all are brought to its shape."""
        height, width = pictures[-1].shape[-2:]
        factor = min(1.0, CELL / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        return cls(name, tuple(to_pil(resize(picture.float(), size).clamp(0, 1)) for picture in pictures))


@dataclass(frozen=True, eq=False)
class BenchReport:
    """All that was measured."""

    config: dict[str, Any]
    profile: dict[str, Any]
    records: list[PictureRecord]
    environment: dict[str, str | int | None]
    models: dict[str, str | int | None]
    peak_mib: dict[str, float]
    peak_rise_mib: dict[str, float]
    total_seconds: float
    rows: list[GridRow]

    @cached_property
    def pictures(self) -> int:
        """How many pictures were measured; seeds do not count."""
        return len({record.name for record in self.records})

    @cached_property
    def differences(self) -> dict[str, Interval]:
        """Wrapped minus alone over pictures, by metric key."""
        result = {}
        for metric in METRICS:
            by_picture: dict[str, list[float]] = {}
            for record in self.records:
                by_picture.setdefault(record.name, []).append(record.wrapped[metric.key] - record.alone[metric.key])
            result[metric.key] = paired_bootstrap(list(by_picture.values()))
        return result

    def mean(self, column: str, metric: Metric) -> float:
        """Mean of a metric over the records; ``column`` is bicubic, alone or wrapped."""
        return statistics.fmean(getattr(record, column)[metric.key] for record in self.records)

    def relative(self, metric: Metric) -> float | None:
        """The difference as a fraction of the restorer alone; None where that is zero."""
        return relative_change(self.mean("alone", metric), self.differences[metric.key].mean)

    def markdown(self) -> str:
        """The tables, with all that is needed to judge them."""
        m, seeds = self.models, ", ".join(str(seed) for seed in self.config["seeds"])
        sha256 = f", sha256 {str(m['projector_sha256'])[:12]}" if m["projector_sha256"] else ""
        lines = [
            f"# {m['restorer']} on `{self.config['preset']}`, x{self.config['scale']}",
            "",
            f"{_counted(self.pictures, 'picture')}, seeds {seeds}; look forward {self.config['lfo']}. "
            f"Difference: wrapped - alone, with its paired bootstrap 95 % interval over pictures.",
            "",
            "| metric | better | bicubic | alone | wrapped | difference [95 % interval] | relative |",
            "|---|---|---|---|---|---|---|",
            *(self._line(metric) for metric in METRICS),
            "",
            *([f"With fewer than {FEW} pictures the intervals are too narrow.", ""] if self.pictures < FEW else []),
            f"Projector: {m['projector']}, {_millions(m['projector_parameters'])} parameters, "
            f"{m['projector_steps'] or 0} training steps{sha256}. "
            f"Restorer: {_millions(m['restorer_parameters'])} parameters, {m['dtype']}.",
            "",
            "| stage | seconds a picture, median | peak memory of the process, MiB | above the start of the stage, MiB |",
            "|---|---|---|---|",
        ]
        for stage in Stage:
            seconds = statistics.median(record.seconds[stage] for record in self.records if stage in record.seconds)
            memory = [f"{of[stage]:.0f}" if stage in of else "not measured" for of in (self.peak_mib, self.peak_rise_mib)]
            lines.append(f"| {stage} | {seconds:.3f} | {' | '.join(memory)} |")
        e = self.environment
        where = "on the largest picture" if self.peak_mib else "is measured on Linux only"
        lines += [
            "",
            f"Memory {where}.",
            "",
            f"Machine: {e['cpu']}, {_counted(int(e['threads'] or 0), 'thread')}, {e['system']}; pnp_irib {e['pnp_irib']} "
            f"({e['commit'] or 'no checkout'}), torch {e['torch']}, Python {e['python']}.",
        ]
        return "\n".join(lines) + "\n"

    def _line(self, metric: Metric) -> str:
        digits = 2 if metric.range[1] > 10 else 4
        name = f"{metric.title}, {metric.unit}" if metric.unit else metric.title
        means = " | ".join(f"{self.mean(column, metric):.{digits}f}" for column in COLUMNS)
        d, relative = self.differences[metric.key], self.relative(metric)
        interval = f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
        change = "-" if relative is None else f"{100 * relative:+.1f} %"
        return f"| {name} | {'higher' if metric.higher_is_better else 'lower'} | {means} | {interval} | {change} |"

    def as_json(self) -> dict[str, Any]:
        """Everything, each picture included."""
        return {
            "config": self.config,
            "profile": self.profile,
            "environment": self.environment,
            "bootstrap": {"resamples": RESAMPLES, "seed": BOOTSTRAP_SEED},
            "models": self.models,
            "picture_count": self.pictures,
            "peak_mib": self.peak_mib or "not measured",
            "peak_rise_mib": self.peak_rise_mib or "not measured",
            "total_seconds": self.total_seconds,
            "metrics": {
                metric.key: {
                    "title": metric.title,
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                    "range": metric.range,
                    **{column: self.mean(column, metric) for column in COLUMNS},
                    "difference": asdict(self.differences[metric.key]),
                    "relative": self.relative(metric),
                }
                for metric in METRICS
            },
            "pictures": [asdict(record) for record in self.records],
        }

    def grid(self, *, cell: int = CELL) -> Image.Image:
        """A row for each shown picture under the captions; ``cell`` is the largest side of a picture, at most 288 pixels."""
        rows = [[_shrunk(picture, cell) for picture in row.cells] for row in self.rows]
        font = ImageFont.load_default(size=16 * cell / CELL)
        sheet = Image.new(
            "RGB",
            (len(CAPTIONS) * (cell + GAP) + GAP, CAPTION + sum(max(c.height for c in row) + GAP for row in rows)),
            "white",
        )
        pen = ImageDraw.Draw(sheet)
        for column, title in enumerate(CAPTIONS):
            pen.text((GAP + column * (cell + GAP), 5), title, fill="black", font=font)
        top = CAPTION
        for row in rows:
            for column, picture in enumerate(row):
                sheet.paste(picture, (GAP + column * (cell + GAP), top))
            top += max(c.height for c in row) + GAP
        return sheet

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``bench.json``, ``bench.md`` and ``grid.png`` (below 6 MB), each whole or not at all; returns their paths.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        folder = Path(folder)
        contents = {
            # strict JSON: a NaN would make the file unreadable for most other programs
            "bench.json": (json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n").encode(),
            "bench.md": self.markdown().encode(),
            "grid.png": self._grid_png(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with atomic_file(folder / name) as file:
                file.write(content)
        return [folder / name for name in contents]

    def _grid_png(self) -> bytes:
        cell = CELL
        while True:
            buffer = io.BytesIO()
            self.grid(cell=cell).save(buffer, "PNG", optimize=True)
            if buffer.tell() <= MAX_GRID_BYTES:
                return buffer.getvalue()
            # Bytes go about with the area; a little less, so that the next attempt fits.
            cell = int(cell * 0.97 * math.sqrt(MAX_GRID_BYTES / buffer.tell()))


def measured_of(report: Mapping[str, Any]) -> Measured:
    """The summary of a ``bench.json`` that goes with the projector that was measured."""
    config, environment, models = report["config"], report["environment"], report["models"]
    metrics = [
        MeasuredMetric(
            key=key,
            title=f"{m['title']}, {m['unit']}" if m["unit"] else m["title"],
            alone=m["alone"],
            wrapped=m["wrapped"],
            difference=m["difference"]["mean"],
            low=m["difference"]["low"],
            high=m["difference"]["high"],
        )
        for key, m in report["metrics"].items()
    ]
    return Measured(
        preset=config["preset"],
        restorer=config["restorer"],
        data=Path(config["data"]).name,
        data_sha256=config["data_sha256"],
        pictures=report["picture_count"],
        seeds=tuple(config["seeds"]),
        machine=f"{environment['cpu']}, torch {environment['torch']}",
        weights_sha256=models["projector_sha256"],
        metrics=tuple(metrics),
    )


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices below ``count``, evenly spread, the first and the last among them."""
    if count <= wanted or wanted < 2:
        return list(range(min(count, wanted)))
    return [round(index * (count - 1) / (wanted - 1)) for index in range(wanted)]


def _shrunk(picture: Image.Image, cell: int) -> Image.Image:
    factor = cell / CELL
    if factor >= 1:
        return picture
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _millions(count: str | int | None) -> str:
    return f"{count / 1e6:.2f} M" if isinstance(count, int) else "unknown"
