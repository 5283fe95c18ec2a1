"""What wrapping costs: parameters, operations, milliseconds and memory of every stage, the restorer alone and wrapped."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pnp_irib.bench.facts import parameter_count
from pnp_irib.bench.memory import PeakMemory
from pnp_irib.classifiers import EfficientNetLite
from pnp_irib.prompts import ImageNetTags
from pnp_irib.studies.budget import Budget
from pnp_irib.studies.config import OverheadStudy
from pnp_irib.studies.page import Page, table
from pnp_irib.studies.subjects import Restorers, wrapped_by_name
from pnp_irib.wrapper import WrappedRestorer

__all__ = ["in_turn", "overhead"]

PROJECT, TAGS, RESTORE, ALONE, WRAPPED = "project", "read tags", "restore", "alone, whole call", "wrapped, whole call"

log = logging.getLogger("pnp_irib.studies")


def overhead(study: OverheadStudy, cache: Path, *, limit: int | None, budget: Budget) -> Page:
    """Measure every restorer at every size; ``limit`` keeps the first sizes. Nothing is cached: times are of this run.

    Raises:
        OutOfTimeError: the time was up.
        PnPIribError: a restorer or projector cannot be loaded.
    """
    lines = [
        f"Random pictures; median of {study.repeats}, all stages in turn, the first round warms up. Operations: "
        "multiplications and additions, two each, of the networks in their plain form, by torch.utils.flop_counter; "
        "faster forms do fewer. Memory: peak of the process above the start of the stage. Reading tags "
        "is a cost of Look Forward Once alone: each of its rounds adds one reading and one projection.",
        "",
    ]
    data: dict[str, Any] = {"kind": "overhead", "repeats": study.repeats, "restorers": {}}
    restorers = Restorers()
    for name, arm in study.restorers.items():
        budget.check()
        wrapped = wrapped_by_name(arm, restorers)
        assert wrapped.projector is not None
        parameters = {
            PROJECT: wrapped.projector.parameter_count,
            TAGS: sum(p.numel() for p in EfficientNetLite.from_package("lite0").parameters()),
            RESTORE: parameter_count(wrapped.restorer),
        }
        lines += [f"## {name}", "", f"{wrapped.restorer.spec.name} with {wrapped.describe_projector()}.", ""]
        found = []
        for side in study.sizes[:limit]:
            budget.check()
            log.info("overhead of %s at %dx%d", name, side, side)
            found.append({"size": side, **_measure(wrapped, side, study.repeats)})
        lines += _tables(parameters, found)
        data["restorers"][name] = {"parameters": parameters, "sizes": found}
    return Page(study.title, lines, data)


def in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run; they take turns, and the first round, which warms up, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _measure(wrapped: WrappedRestorer, side: int, repeats: int) -> dict[str, dict[str, float]]:
    elq = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    alone = WrappedRestorer(wrapped.restorer, None, why="as asked")
    projector, tagger = wrapped.projector, ImageNetTags()
    assert projector is not None
    projector.eval()
    stages: dict[str, Callable[[], object]] = {
        PROJECT: lambda: projector.project(elq),
        TAGS: lambda: tagger(elq),
        RESTORE: lambda: wrapped.restorer.restore(elq),
    }
    stages |= {ALONE: lambda: alone(elq), WRAPPED: lambda: wrapped(elq)}
    memory = PeakMemory()
    with torch.no_grad():
        seconds = in_turn(stages, repeats)
        for name, run in stages.items():
            with memory.stage(name):
                run()
    counted = {
        PROJECT: operations(projector.project, elq),
        TAGS: operations(EfficientNetLite.from_package("lite0").classify, elq),
        RESTORE: operations(wrapped.restorer.restore, elq),
    }
    return {
        "milliseconds": {name: round(1000 * value, 3) for name, value in seconds.items()},
        "gigaflops": {name: value / 1e9 for name, value in counted.items()},
        "rise_mib": {name: round(value, 1) for name, value in memory.rise_mib.items()},
    }


def operations(run: Callable[[Tensor], object], picture: Tensor) -> int:
    """Floating-point operations of a network on one picture, in the plain form that gradients take."""
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():  # without gradients some networks take forms that the counter does not know
        run(picture)
    return int(counter.get_total_flops())


def _tables(parameters: dict[str, int | None], found: list[dict[str, Any]]) -> list[str]:
    sizes = [f"{one['size']}x{one['size']}" for one in found]
    rows = [
        [
            stage,
            f"{count / 1e6:.2f} M" if count is not None else "unknown",
            *(f"{one['gigaflops'][stage]:.3g}" for one in found),
        ]
        for stage, count in parameters.items()
    ]
    lines = table(["stage", "parameters", *(f"GFLOP at {size}" for size in sizes)], rows)
    rows = [
        [
            stage,
            *(f"{one['milliseconds'][stage]:.1f}" for one in found),
            *(f"{one['rise_mib'][stage]:.0f}" if stage in one["rise_mib"] else "not measured" for one in found),
        ]
        for stage in (PROJECT, TAGS, RESTORE, ALONE, WRAPPED)
    ]
    lines += table(["stage", *(f"ms at {size}" for size in sizes), *(f"MiB at {size}" for size in sizes)], rows)
    rows = []
    for one, size in zip(found, sizes, strict=True):
        ms, gflop = one["milliseconds"], one["gigaflops"]
        rows.append(
            [
                size,
                f"{ms[WRAPPED] / ms[ALONE]:.3f}",
                f"{(ms[PROJECT] + ms[RESTORE]) / ms[RESTORE]:.3f}",
                f"{(gflop[PROJECT] + gflop[RESTORE]) / gflop[RESTORE]:.3f}",
                f"{(ms[WRAPPED] + ms[TAGS] + ms[PROJECT]) / ms[ALONE]:.3f}",
            ]
        )
    head = [
        "wrapped over alone",
        "time, whole call",
        "time, networks",
        "operations",
        "time, one round of looking forward (estimated)",
    ]
    return lines + table(head, rows)
