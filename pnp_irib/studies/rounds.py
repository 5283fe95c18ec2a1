"""Look Forward Once: rounds, what the prompts said, and whether it was they that helped."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pnp_irib
from pnp_irib.any_size import fit_grid
from pnp_irib.bench import Judge
from pnp_irib.bench.facts import projector_sha256, weights_sha256
from pnp_irib.look_forward import LookForwardOnce, LookForwardRound
from pnp_irib.profile import DegradationProfile
from pnp_irib.prompts import ImageNetTags, Prompt
from pnp_irib.revision import source_revision
from pnp_irib.runtime import evaluating
from pnp_irib.studies.budget import Budget
from pnp_irib.studies.config import LookForwardStudy, RestorerArm
from pnp_irib.studies.measure import ALL_METRICS, Sample, measured, samples
from pnp_irib.studies.page import Page, counted, digits_of, few, heading, interval, table
from pnp_irib.studies.pooling import pooled_interval
from pnp_irib.studies.store import Store
from pnp_irib.studies.subjects import SCALE, Restorers, wrapped_by_name
from pnp_irib.studies.tags import TOP, agreement, top1_found, top_tags
from pnp_irib.studies.training import digest
from pnp_irib.wrapper import WrappedRestorer

__all__ = ["CONTROLS", "look_forward"]

CONTROLS = {
    "repeat": "the prompt of K=0 again: a second pass without refinement; must equal K=0 bit for bit where nothing is random",
    "none": "no prompt at all",
    "shuffled": "the tags of the HQ picture of the next photograph: what a wrong prompt changes says whether prompts matter",
    "truth": "the tags of the HQ picture itself: what a perfect prompt would bring",
}
SHOWN = 12  # prompts that the page prints
DIGITS = 4

log = logging.getLogger("pnp_irib.studies")


def look_forward(study: LookForwardStudy, cache: Path, *, limit: int | None, budget: Budget) -> Page:
    """Measure every round and control.

    Raises:
        OutOfTimeError: the time was up; what was done is kept.
        PnPIribError: restorer or projector cannot be loaded, or a picture not be measured.
    """
    chosen = samples(study.data, study.pictures, None if limit is None else max(2, limit))
    arm = RestorerArm(restorer=study.restorer, options=study.options, projector=study.projector)
    measuring = _Measuring(study, wrapped_by_name(arm, Restorers()))
    store = Store(cache / "results")
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for condition, profile in study.conditions.items():
        log.info("looking forward on %s: %s", condition, counted(len(chosen), "picture"))
        found[condition] = []
        for number, sample in enumerate(chosen):
            of_sample = []
            for seed in study.seeds:
                other = chosen[(number + 1) % len(chosen)]
                stated = None if profile is None else profile.model_dump(mode="json")
                item = f"{digest([pnp_irib.__version__, stated])} {sample.item} {other.item} {seed}"
                known = store.get(measuring.key, item)
                if known is None:
                    budget.check()
                    known = measuring.measure(sample, other, profile, seed)
                    store.put(measuring.key, item, known)
                of_sample.append(known)
            found[condition].append(of_sample)
    return _page(study, measuring.wrapped, chosen, found)


class _Timed:
    """An extractor that notes how long it took."""

    name = "imagenet-tags"

    def __init__(self, tagger: ImageNetTags) -> None:
        self._tagger = tagger
        self.seconds: list[float] = []

    def __call__(self, pictures: Tensor, /) -> list[Prompt]:
        began = time.perf_counter()
        prompts = self._tagger(pictures)
        self.seconds.append(time.perf_counter() - began)
        return prompts


class _Measuring:
    """What stays the same from picture to picture."""

    def __init__(self, study: LookForwardStudy, wrapped: WrappedRestorer) -> None:
        assert wrapped.projector is not None
        self.wrapped = wrapped
        self._rounds = study.rounds
        self._extractor, self._probe = ImageNetTags(), ImageNetTags(top_k=TOP, min_score=0.0)
        self._extractor(torch.zeros(1, 3, 32, 32))  # loads its network, which no round is to be charged with
        self._judge = Judge()
        self._revision = source_revision() or "no checkout"
        spec = wrapped.restorer.spec
        weights = [spec.name, weights_sha256(spec, study.options), projector_sha256(wrapped.projector)]
        self.key = digest(["look-forward", study.rounds, *weights])

    @torch.no_grad()
    def measure(self, sample: Sample, other: Sample, profile: DegradationProfile | None, seed: int) -> dict[str, Any]:
        """All rounds and controls of one picture."""
        hq = sample.hq()
        elq = sample.elq(hq, profile, seed)
        drawn = sample.degradation_seed(seed)
        trace, seconds = self._look(elq)
        settled = [trace[min(k, len(trace) - 1)] for k in self._rounds]
        truth = self._extractor(hq)[0]
        prompts = {"repeat": trace[0].prompt, "none": None, "shuffled": self._extractor(other.hq())[0], "truth": truth}
        estimates = {f"K={k}": one.lq[None] for k, one in zip(self._rounds, settled, strict=True)}
        estimates |= {name: self._project(elq, prompt) for name, prompt in prompts.items()}
        restored = self._restored(elq, estimates, drawn)
        values = measured(self._judge, hq, elq, restored)
        first = estimates["K=0"]
        rows = {name: {"values": values[name], "change": _change(estimates[name], first)} for name in estimates}
        true_tags = top_tags(self._probe, hq)
        for k, one in zip(self._rounds, settled, strict=True):
            # The prompt of round k was read off the estimate before, that of round 0 off the input.
            seen = elq if one.index == 0 else trace[one.index - 1].lq[None]
            tags = top_tags(self._probe, seen)
            rows[f"K={k}"] |= {
                "prompt": one.prompt.text if one.prompt is not None else "",
                "tags": [[tag.name, round(tag.score, 5)] for tag in tags],
                "agreement": agreement(tags, true_tags),
                "top1": top1_found(tags, true_tags),
                "seconds": round(sum(seconds[: k + 1]), 5),
                "rounds": one.index,
            }
        identical = torch.equal(restored["repeat"], restored["K=0"])
        return {"rows": rows, "truth": truth.text, "repeat is K=0": identical, "revision": self._revision}

    def _look(self, elq: Tensor) -> tuple[tuple[LookForwardRound, ...], list[float]]:
        """The rounds, and the seconds of each: reading its prompt and projecting."""
        extractor = _Timed(self._extractor)
        projecting: list[float] = []

        def project(pictures: Tensor, prompts: Sequence[Prompt | None]) -> Tensor:
            began = time.perf_counter()
            estimate = self.wrapped.project(pictures, prompts=prompts)
            projecting.append(time.perf_counter() - began)
            return estimate

        assert self.wrapped.projector is not None
        with evaluating(self.wrapped.projector):
            trace = LookForwardOnce(max(self._rounds)).run(elq, project, extractor).trace[0]
        # A round that found nothing new read a prompt, but did not project.
        return trace, [a + b for a, b in zip(extractor.seconds, [*projecting, 0.0], strict=False)]

    def _project(self, elq: Tensor, prompt: Prompt | None) -> Tensor:
        assert self.wrapped.projector is not None
        with evaluating(self.wrapped.projector):
            return self.wrapped.project(elq, prompts=[prompt])

    def _restored(self, elq: Tensor, estimates: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Restored estimates; equal ones are restored once, but for the control that is about that."""
        alone = WrappedRestorer(self.wrapped.restorer, None, why="projected already")
        spec = self.wrapped.restorer.spec
        done: list[tuple[Tensor, Tensor]] = []
        restored: dict[str, Tensor] = {}
        for name, estimate in estimates.items():
            known = next((result for given, result in done if torch.equal(given, estimate)), None)
            if known is None or name == "repeat":
                given, scale = fit_grid(estimate, elq, spec, None if spec.scale == SCALE else float(SCALE))
                known = alone(given, seed=seed, scale=scale).restored.float()
                done.append((estimate, known))
            restored[name] = known
        return restored


def _change(estimate: Tensor, first: Tensor) -> float:
    """Mean absolute difference, grey levels of 255."""
    return float(f"{255 * (estimate - first).abs().mean().item():.6g}")


def _page(
    study: LookForwardStudy, wrapped: WrappedRestorer, chosen: list[Sample], found: dict[str, list[list[dict[str, Any]]]]
) -> Page:
    seeds = ", ".join(str(seed) for seed in study.seeds)
    lines = [
        f"{counted(len(chosen), 'picture')} of {study.data.name}, degradation seeds {seeds}; {wrapped.restorer.spec.name} "
        f"in float32 with {wrapped.describe_projector()}; prompts: imagenet-tags. K: rounds of looking forward; a round that "
        "reads the prompt it has ends them, so that later K are the same. Differences with the paired bootstrap "
        "95 % interval over pictures.",
        "",
        f"Agreement with the tags of the HQ picture: over the {TOP} likeliest tags of each, sum of the smaller scores over "
        f"sum of the larger ones, in [0, 1]. Top-1 found: the HQ picture's likeliest tag is among the {TOP} likeliest of what "
        "the prompt was read from. Seconds: reading all prompts and projecting, without the restorer.",
        "",
        *(f"- **{name}**: {told}." for name, told in CONTROLS.items()),
        "",
        *few(len(chosen)),
    ]
    data: dict[str, Any] = {
        "kind": "look-forward",
        "pictures": [s.name for s in chosen],
        "seeds": study.seeds,
        "conditions": {},
    }
    for condition, profile in study.conditions.items():
        lines += _condition(study, condition, profile, chosen, found[condition], data["conditions"])
    revisions = {one["revision"] for pictures in found.values() for picture in pictures for one in picture}
    return Page(study.title, lines, data, revisions=revisions)


def _condition(
    study: LookForwardStudy,
    condition: str,
    profile: DegradationProfile | None,
    chosen: list[Sample],
    found: list[list[dict[str, Any]]],
    data: dict[str, Any],
) -> list[str]:
    every = [one for picture in found for one in picture]
    names = [*(f"K={k}" for k in study.rounds), *CONTROLS]

    def column(name: str, key: str) -> list[list[float]]:
        """By picture, one a degradation seed."""
        return [[one["rows"][name][key] for one in picture] for picture in found]

    lines = [f"## {condition}", "", f"Degradation: {'only reduced by averaging' if profile is None else profile.origin}.", ""]
    rows, differences = [], {}
    for name in names:
        means = [f"{_mean(_metric(found, name, metric.key)):.{digits_of(metric)}f}" for metric in ALL_METRICS]
        rows.append([name, *means])
    lines += table(["prompts", *(heading(metric) for metric in ALL_METRICS)], rows)
    rows = []
    for name in names[1:]:
        differences[name] = {
            m.key: pooled_interval({None: _metric(found, name, m.key)}, {None: _metric(found, "K=0", m.key)})
            for m in ALL_METRICS
        }
        rows.append([f"{name} - K=0", *(interval(differences[name][m.key], digits_of(m)) for m in ALL_METRICS)])
    lines += table(["difference", *(metric.title for metric in ALL_METRICS)], rows)
    rows, agreements = [], {}
    for k in study.rounds:
        name = f"K={k}"
        agreements[name] = {
            key: pooled_interval({None: column(name, key)}, {None: column("K=0", key)}) for key in ("agreement", "top1")
        }
        told = [interval(agreements[name][key], DIGITS) if k else "-" for key in ("agreement", "top1")]
        rows.append(
            [
                name,
                f"{_mean(column(name, 'agreement')):.{DIGITS}f}",
                told[0],
                f"{_mean(column(name, 'top1')):.{DIGITS}f}",
                told[1],
                f"{sum(one['rows'][name]['rounds'] == k for one in every)} of {len(every)}",
                f"{_mean(column(name, 'change')):.3f}",
                f"{statistics.median(one['rows'][name]['seconds'] for one in every):.3f}",
            ]
        )
    head = ["prompts", "agreement", "difference to K=0", "top-1 found", "difference to K=0"]
    lines += table([*head, "went so many rounds", "estimate moved from K=0, /255", "seconds, median"], rows)
    same = sum(one["repeat is K=0"] for one in every)
    moved = ", ".join(f"{name} {_mean(column(name, 'change')):.3f}" for name in CONTROLS)
    lines += [
        f"Estimates moved from K=0, /255: {moved}. The repeated prompt gave K=0 bit for bit in {same} of {len(every)}: "
        + ("refinement cannot be mistaken for repetition." if same == len(every) else "something here is random."),
        "",
        *_prompts(study, chosen, found),
    ]
    data[condition] = {
        "profile": None if profile is None else profile.model_dump(mode="json"),
        "differences": {name: {key: asdict(i) for key, i in of.items()} for name, of in differences.items()},
        "agreement_differences": {name: {key: asdict(i) for key, i in of.items()} for name, of in agreements.items()},
        "found": [[{k: v for k, v in one.items() if k != "revision"} for one in picture] for picture in found],
    }
    return lines


def _prompts(study: LookForwardStudy, chosen: list[Sample], found: list[list[dict[str, Any]]]) -> list[str]:
    """What was said about the first pictures."""
    last = f"K={study.rounds[-1]}"
    rows = [
        [sample.name, *(_cell(text) for text in (one["rows"]["K=0"]["prompt"], one["rows"][last]["prompt"], one["truth"]))]
        for sample, (one, *_) in zip(chosen[:SHOWN], found, strict=False)
    ]
    return table(["picture", "prompt at K=0, read off the input", f"at {last}", "tags of the HQ picture"], rows)


def _cell(text: str) -> str:
    return text.replace("|", "/") or "(nothing)"


def _metric(found: list[list[dict[str, Any]]], name: str, key: str) -> list[list[float]]:
    return [[one["rows"][name]["values"][key] for one in picture] for picture in found]


def _mean(values: list[list[float]]) -> float:
    return statistics.fmean(value for picture in values for value in picture)
