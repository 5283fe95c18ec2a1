"""Comparisons: arms, conditions, pictures and seeds to metrics; differences to a reference with paired intervals."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

import pnp_irib
from pnp_irib.bench import Judge, Metric
from pnp_irib.bench.report import evenly
from pnp_irib.images.io import to_pil
from pnp_irib.profile import DegradationProfile
from pnp_irib.revision import source_revision
from pnp_irib.studies.budget import Budget
from pnp_irib.studies.config import ComparisonStudy, FinetunedArm, TrainedArm
from pnp_irib.studies.grid import sheet, stacked
from pnp_irib.studies.measure import ALL_METRICS, Sample, measured, samples
from pnp_irib.studies.page import Page, counted, digits_of, few, heading, interval, table
from pnp_irib.studies.pooling import Runs, pooled_interval, run_means, spread
from pnp_irib.studies.store import Store
from pnp_irib.studies.subjects import Restorers, Subject, load_subjects
from pnp_irib.studies.training import TrainingRun, digest, make_run, planned_runs

__all__ = ["compare"]

log = logging.getLogger("pnp_irib.studies")

Found = dict[str, Any]
"""Of one picture: ``values``, ``seconds``, ``revision``."""


@dataclass
class _Results:
    """By condition, arm and training seed: for each picture what was found, one a degradation seed."""

    found: dict[tuple[str, str, int | None], list[list[Found]]] = field(default_factory=dict)

    def runs(self, condition: str, arm: str, metric: Metric) -> Runs:
        return {
            seed: [[one["values"][metric.key] for one in picture] for picture in pictures]
            for (of_condition, of_arm, seed), pictures in self.found.items()
            if (of_condition, of_arm) == (condition, arm)
        }


def compare(study: ComparisonStudy, cache: Path, *, limit: int | None, budget: Budget) -> Page:
    """Train what is to be trained, measure every arm, and compare.

    Raises:
        OutOfTimeError: the time was up; what was done is kept.
        PnPIribError: an arm cannot be trained, loaded or measured.
    """
    chosen = samples(study.data, study.pictures, limit)
    runs: dict[str, list[TrainingRun]] = {}
    for name, arm in study.arms.items():
        if isinstance(arm, TrainedArm | FinetunedArm):
            runs[name] = planned_runs(arm, cache / "training")
    for name, planned in runs.items():
        for run in planned:
            make_run(run, name, budget)
    restorers = Restorers()
    subjects = [s for name, arm in study.arms.items() for s in load_subjects(name, arm, runs.get(name, []), restorers)]
    measuring = _Measuring(study, subjects, Store(cache / "results"), cache / "cells", budget)
    results = _Results()
    shown = [chosen[i] for i in evenly(len(chosen), study.grid.pictures)]
    grid_condition = study.grid.condition or next(iter(study.conditions))
    for condition, profile in study.conditions.items():
        log.info("measuring %s: %s, %s", condition, counted(len(chosen), "picture"), counted(len(subjects), "run"))
        for sample in chosen:
            drawn = condition == grid_condition and sample in shown
            for seed in study.seeds:
                measuring.measure(sample, profile, seed, drawn=drawn and seed == study.seeds[0])
        for subject in subjects:
            results.found[condition, subject.arm, subject.seed] = [
                [measuring.get(subject, sample, profile, seed) for seed in study.seeds] for sample in chosen
            ]
    page = _page(study, subjects, chosen, results)
    page.picture = measuring.grid(shown, study.conditions[grid_condition])
    page.caption = (
        f"{', '.join(sample.name for sample in shown)}; condition {grid_condition}, degradation seed {study.seeds[0]}"
        + ("; below each picture where it contradicts the input" if study.grid.maps else "")
    )
    return page


class _Measuring:
    """What stays the same from picture to picture."""

    def __init__(self, study: ComparisonStudy, subjects: list[Subject], store: Store, cells: Path, budget: Budget) -> None:
        self._study, self._subjects, self._store, self._cells, self._budget = study, subjects, store, cells, budget
        self._judge: Judge | None = None
        self._revision = source_revision() or "no checkout"
        names = study.grid.arms or tuple(study.arms)
        self._columns = [next(s for s in subjects if s.arm == name) for name in names]

    def get(self, subject: Subject, sample: Sample, profile: DegradationProfile | None, seed: int) -> Found:
        """What was found, if it was."""
        found: Found = self._store.get(subject.key, self._item(sample, profile, seed))
        return found

    def measure(self, sample: Sample, profile: DegradationProfile | None, seed: int, *, drawn: bool) -> None:
        """Restore and judge one picture by every arm that has no result yet, or no cell of the grid where it is ``drawn``."""
        item = self._item(sample, profile, seed)
        missing = [
            subject
            for subject in self._subjects
            if self._store.get(subject.key, item) is None
            or (drawn and subject in self._columns and not self._cell(subject, item).exists())
        ]
        if not missing:
            return
        self._budget.check()
        hq = sample.hq()
        elq = sample.elq(hq, profile, seed)
        self._judge = self._judge or Judge()
        done = {number: s.restore(elq, hq, sample.degradation_seed(seed)) for number, s in enumerate(missing)}
        values = measured(self._judge, hq, elq, {str(number): picture for number, (picture, _) in done.items()})
        for number, subject in enumerate(missing):
            picture, seconds = done[number]
            if drawn and subject in self._columns:
                self._draw(subject, item, picture, elq)
            found = {"values": values[str(number)], "seconds": round(seconds, 4), "revision": self._revision}
            self._store.put(subject.key, item, found)

    def grid(self, shown: list[Sample], profile: DegradationProfile | None) -> Image.Image:
        """ELQ, every column, HQ; a row for each shown picture."""
        seed, maps = self._study.seeds[0], self._study.grid.maps
        rows = []
        for sample in shown:
            item = self._item(sample, profile, seed)
            hq = sample.hq()
            elq = sample.elq(hq, profile, seed)
            cells = []
            for subject in self._columns:
                with Image.open(self._cell(subject, item)) as cell:
                    cells.append(cell.convert("RGB"))
            first = to_pil(stacked(elq, elq, (hq.shape[-2], hq.shape[-1]), maps=False, blank=maps))
            last = to_pil(stacked(hq, elq, (hq.shape[-2], hq.shape[-1]), maps=maps))
            rows.append([first, *cells, last])
        return sheet(["ELQ", *(subject.arm for subject in self._columns), "HQ"], rows)

    def _draw(self, subject: Subject, item: str, picture: Tensor, elq: Tensor) -> None:
        cell = stacked(picture, elq, (picture.shape[-2], picture.shape[-1]), maps=self._study.grid.maps)
        self._cells.mkdir(parents=True, exist_ok=True)
        part = self._cell(subject, item).with_suffix(".part")
        to_pil(cell).save(part, "WEBP", lossless=True)
        part.replace(self._cell(subject, item))

    def _item(self, sample: Sample, profile: DegradationProfile | None, seed: int) -> str:
        condition = digest([pnp_irib.__version__, None if profile is None else profile.model_dump(mode="json")])
        return f"{condition} {sample.item} {seed}"

    def _cell(self, subject: Subject, item: str) -> Path:
        return self._cells / f"{digest([subject.key, item, self._study.grid.maps])}.webp"


def _page(study: ComparisonStudy, subjects: list[Subject], chosen: list[Sample], results: _Results) -> Page:
    lines = _method(study, chosen) + _arms(subjects)
    data: dict[str, Any] = {
        "kind": "comparison",
        "pictures": [sample.name for sample in chosen],
        "seeds": study.seeds,
        "metrics": [asdict(metric) for metric in ALL_METRICS],
        "arms": [{"arm": s.arm, "training_seed": s.seed, "key": s.key, **s.facts} for s in subjects],
        "conditions": {},
    }
    for condition, profile in study.conditions.items():
        compared = {
            name: {m.key: pooled_interval(*(results.runs(condition, arm, m) for arm in (name, against))) for m in ALL_METRICS}
            for name, against in ((name, study.against(name)) for name in study.arms)
            if name != against
        }
        lines += _tables(study, condition, profile, compared, results)
        data["conditions"][condition] = {
            "profile": None if profile is None else profile.model_dump(mode="json"),
            "differences": {
                name: {"against": study.against(name), **{key: asdict(found) for key, found in differences.items()}}
                for name, differences in compared.items()
            },
            "values": [
                {
                    "arm": s.arm,
                    "training_seed": s.seed,
                    **{
                        m.key: [
                            [one["values"][m.key] for one in picture] for picture in results.found[condition, s.arm, s.seed]
                        ]
                        for m in ALL_METRICS
                    },
                }
                for s in subjects
            ],
        }
    revisions = {one["revision"] for pictures in results.found.values() for picture in pictures for one in picture}
    return Page(study.title, lines, data, revisions=revisions)


def _method(study: ComparisonStudy, chosen: list[Sample]) -> list[str]:
    seeds = ", ".join(str(seed) for seed in study.seeds)
    return [
        f"{counted(len(chosen), 'picture')} of {study.data.name}, degradation seeds {seeds}; restorers in float32. "
        "Differences: arm - the one that it is compared with, with the paired bootstrap 95 % interval over pictures; training "
        "runs and degradation seeds of a picture count as their mean. Runs of the same training seed are paired; ± is "
        "the standard deviation over training runs.",
        "",
        *few(len(chosen)),
    ]


def _arms(subjects: list[Subject]) -> list[str]:
    rows = []
    for name in dict.fromkeys(subject.arm for subject in subjects):
        runs = [subject for subject in subjects if subject.arm == name]
        facts = runs[0].facts
        seconds = [run.facts.get("seconds") for run in runs]
        known = [value for value in seconds if value is not None]
        rows.append(
            [
                name,
                str(facts["restorer"]),
                str(facts.get("projector", "-")),
                ", ".join(str(run.seed) for run in runs if run.seed is not None) or "-",
                f"{facts['trained parameters']:,}" if facts["trained parameters"] else "-",
                *(f"{facts[key]:,}" if key in facts else "-" for key in ("steps", "pictures", "restored")),
                f"{sum(known) / len(known) / 60:.1f}" if known else ("unknown" if "seconds" in facts else "-"),
            ]
        )
    head = [
        "arm",
        "restorer",
        "projector",
        "training seeds",
        "trained parameters",
        "steps",
        "pictures seen",
        "pictures restored",
    ]
    return table([*head, "training, minutes a run"], rows)


def _tables(
    study: ComparisonStudy,
    condition: str,
    profile: DegradationProfile | None,
    compared: dict[str, dict[str, Any]],
    results: _Results,
) -> list[str]:
    told = "only reduced by averaging" if profile is None else f"{profile.origin}"
    lines = [f"## {condition}", "", f"Degradation: {told}.", ""]
    rows = []
    for name in study.arms:
        cells = [_value(results.runs(condition, name, metric), digits_of(metric)) for metric in ALL_METRICS]
        rows.append([name, *cells])
    lines += table(["arm", *(heading(metric) for metric in ALL_METRICS)], rows)
    rows = [
        [f"{name} - {study.against(name)}", *(interval(found[metric.key], digits_of(metric)) for metric in ALL_METRICS)]
        for name, found in compared.items()
    ]
    return lines + table(["difference", *(metric.title for metric in ALL_METRICS)], rows)


def _value(runs: Runs, digits: int) -> str:
    means, deviation = run_means(runs), spread(runs)
    text = f"{sum(means) / len(means):.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"
