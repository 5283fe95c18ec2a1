"""What a bench run found: JSON, Markdown, and a grid of pictures."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pnp_irib.bench.metrics import METRICS, Metric
from pnp_irib.bench.statistics import Interval, paired_bootstrap
from pnp_irib.images.atomic import atomic_file
from pnp_irib.images.io import to_pil
from pnp_irib.images.resize import resize

__all__ = ["PictureRecord", "Report", "Shown"]

Values = dict[str, float]
CELL = 288  # largest side of a picture in the grid, pixels
CAPTION = 28
GAP = 6
COLUMNS = ("input, bicubic", "restorer alone", "projected LQ", "wrapped", "HQ")


@dataclass(frozen=True)
class PictureRecord:
    """Metrics and times of one picture with one seed."""

    name: str
    seed: int
    bicubic: Values
    alone: Values
    wrapped: Values
    seconds_alone: Values
    seconds_wrapped: Values


@dataclass(frozen=True, eq=False)
class Shown:
    """A row of the grid; (1, 3, H, W) in [0, 1]."""

    name: str
    bicubic: Tensor
    alone: Tensor
    lq: Tensor
    wrapped: Tensor
    hq: Tensor


@dataclass(frozen=True, eq=False)
class Report:
    """All that was measured."""

    config: dict[str, Any]
    profile: dict[str, Any]
    records: list[PictureRecord]
    environment: dict[str, str | int | None]
    models: dict[str, str | int | None]
    peak_mib: dict[str, float]
    total_seconds: float
    shown: list[Shown]

    def difference(self, metric: Metric) -> Interval:
        """Wrapped minus alone, over pictures."""
        by_picture: dict[str, list[float]] = {}
        for record in self.records:
            by_picture.setdefault(record.name, []).append(record.wrapped[metric.key] - record.alone[metric.key])
        return paired_bootstrap(list(by_picture.values()))

    def mean(self, column: str, metric: Metric) -> float:
        """Mean of a metric over the records; ``column`` is bicubic, alone or wrapped."""
        return statistics.fmean(getattr(record, column)[metric.key] for record in self.records)

    def markdown(self) -> str:
        """The table, with all that is needed to judge it."""
        pictures = len({record.name for record in self.records})
        seeds = ", ".join(str(seed) for seed in self.config["seeds"])
        e, m = self.environment, self.models
        lines = [
            f"# {m['restorer']} on `{self.config['preset']}`",
            "",
            f"{pictures} pictures, seeds {seeds}; difference = wrapped - alone with its paired bootstrap 95 % interval over pictures.",
            "",
            "| metric | better | bicubic | alone | wrapped | difference | relative |",
            "|---|---|---|---|---|---|---|",
        ]
        for metric in METRICS:
            alone, d = self.mean("alone", metric), self.difference(metric)
            name = f"{metric.title}, {metric.unit}" if metric.unit else metric.title
            relative = f"{100 * d.mean / alone:+.1f} %" if alone else "-"
            lines.append(
                f"| {name} | {'higher' if metric.higher_is_better else 'lower'} | {self.mean('bicubic', metric):.3f} "
                f"| {alone:.3f} | {self.mean('wrapped', metric):.3f} | {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}] | {relative} |"
            )
        lines += [
            "",
            f"Projector: {m['projector']}, {_millions(m['projector_parameters'])} parameters, {m['projector_steps']} steps. "
            f"Restorer: {_millions(m['restorer_parameters'])} parameters, {m['dtype']}.",
            "",
            "| stage | seconds a picture, median |",
            "|---|---|",
        ]
        for stage in ("project", "restore"):
            seconds = statistics.median(record.seconds_wrapped[stage] for record in self.records)
            lines.append(f"| {stage} | {seconds:.3f} |")
        peak = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in self.peak_mib.items()) or "not measured on this system"
        lines += [
            "",
            f"Peak memory of the process: {peak}. Machine: {e['cpu']}, {e['threads']} threads, {e['system']}; "
            f"pnp_irib {e['pnp_irib']} ({e['commit']}), torch {e['torch']}, Python {e['python']}.",
        ]
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Everything, each picture included."""
        return {
            "config": self.config,
            "profile": self.profile,
            "environment": self.environment,
            "models": self.models,
            "peak_mib": self.peak_mib,
            "total_seconds": self.total_seconds,
            "metrics": {
                metric.key: {
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                    **{column: self.mean(column, metric) for column in ("bicubic", "alone", "wrapped")},
                    "difference": asdict(self.difference(metric)),
                }
                for metric in METRICS
            },
            "pictures": [asdict(record) for record in self.records],
        }

    def grid(self) -> Image.Image:
        """Rows of input, alone, projected, wrapped and HQ."""
        rows = [[_cell(p, row.hq) for p in (row.bicubic, row.alone, row.lq, row.wrapped, row.hq)] for row in self.shown]
        width = len(COLUMNS) * (CELL + GAP) + GAP
        height = CAPTION + sum(max(cell.height for cell in row) + GAP for row in rows)
        sheet = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(size=16)
        for column, title in enumerate(COLUMNS):
            pen.text((GAP + column * (CELL + GAP), 5), title, fill="black", font=font)
        top = CAPTION
        for row in rows:
            for column, cell in enumerate(row):
                sheet.paste(cell, (GAP + column * (CELL + GAP), top))
            top += max(cell.height for cell in row) + GAP
        return sheet

    def write(self, folder: Path) -> list[Path]:
        """Write ``bench.json``, ``bench.md`` and ``grid.png``, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [folder / name for name in ("bench.json", "bench.md", "grid.png")]
        with atomic_file(names[0]) as file:
            file.write((json.dumps(self.as_json(), indent=1) + "\n").encode())
        with atomic_file(names[1]) as file:
            file.write(self.markdown().encode())
        with atomic_file(names[2]) as file:
            self.grid().save(file, "PNG", optimize=True)
        return names


def _cell(picture: Tensor, like: Tensor) -> Image.Image:
    height, width = like.shape[-2:]
    factor = min(1.0, CELL / max(height, width))
    return to_pil(resize(picture, (round(height * factor), round(width * factor))))


def _millions(count: str | int | None) -> str:
    return f"{count / 1e6:.2f} M" if isinstance(count, int) else "unknown"
