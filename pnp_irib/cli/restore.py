"""``pnp-irib restore``: many files over one wrapped restorer."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pnp_irib.cli.files import Task, plan
from pnp_irib.cli.messages import line, reason_of
from pnp_irib.errors import PnPIribError
from pnp_irib.images.io import write_picture
from pnp_irib.options import CallOptions
from pnp_irib.registry import placed
from pnp_irib.result import Restoration, comparison
from pnp_irib.runtime import give_memory_back
from pnp_irib.wrapper import WrappedRestorer, wrap

__all__ = ["Job", "Model", "run"]


@dataclass(frozen=True)
class Job:
    """What to restore and where to."""

    inputs: list[Path]
    output: Path
    format: str | None
    compare: bool
    consistency: bool
    overwrite: bool
    fail_fast: bool
    as_json: bool


@dataclass(frozen=True)
class Model:
    """What to restore with."""

    restorer: str
    options: dict[str, Any]
    projector: str
    extractor: str | None
    device: str
    dtype: str


def run(job: Job, model: Model, options: dict[str, Any]) -> int:
    """Restore every picture of the job; returns the exit code.

    Raises:
        PnPIribError: options or models are wrong, before any picture is touched.
    """
    kinds = [kind for kind, wanted in (("compare", job.compare), ("consistency", job.consistency)) if wanted]
    tasks = plan(job.inputs, job.output, job.format, kinds)
    early = placed(model.restorer, model.device, model.dtype)
    wrapped = wrap(model.restorer, projector=model.projector, extractor=model.extractor, **model.options, **early)
    restorer = wrapped.to(model.device, None if early else model.dtype)
    CallOptions(**{name: value for name, value in options.items() if name not in ("prompt", "lfo")}).check(restorer.restorer)
    read_anyway = model.extractor is not None and restorer.restorer.spec.prompts != "none"
    if read_anyway or (restorer.projector is not None and options["strength"]):
        restorer.prompter(options["lfo"])(torch.zeros(1, 3, 8, 8))  # loads it: missing weights are told once
    if not job.as_json:
        sys.stderr.write(f"{restorer!r}\n")
    failures = 0
    spent: list[float] = []  # on pictures that were restored
    for number, task in enumerate(tasks, 1):
        began = time.monotonic()
        outcome = _one(restorer, task, job, options)
        give_memory_back()
        failures += outcome["status"] == "failed"
        seconds = time.monotonic() - began
        outcome["seconds"] = round(seconds, 3)
        spent += [seconds] if outcome["status"] == "restored" else []
        if job.as_json:
            sys.stdout.write(json.dumps(outcome) + "\n")
            sys.stdout.flush()
        else:
            count = f"{number}/{len(tasks)}"
            if spent and number < len(tasks):
                count += f", {timedelta(seconds=round(fmean(spent) * (len(tasks) - number)))} left"
            sys.stderr.write(f"[{count}] {_line(outcome)}\n")
        if failures and job.fail_fast:
            break
    if failures and not job.as_json:
        sys.stderr.write(f"{failures} of {len(tasks)} failed\n")
    return 1 if failures else 0


def _one(restorer: WrappedRestorer, task: Task, job: Job, options: dict[str, Any]) -> dict[str, Any]:
    """One picture; whatever goes wrong with it is told, and the next one comes."""
    outcome: dict[str, Any] = {"input": str(task.source), "output": str(task.target), "status": "failed"}
    if task.problem is not None:
        return outcome | {"reason": task.problem}
    missing = {path for path in (task.target, *task.beside.values()) if job.overwrite or not os.path.lexists(path)}
    if not missing:
        return outcome | {"status": "skipped", "reason": "the output exists; --overwrite replaces it"}
    try:
        result: Restoration = restorer(task.source, **options)
        task.target.parent.mkdir(parents=True, exist_ok=True)
        notes = [*result.picture.notes]
        panels = [result.picture.rgb, result.lq, result.restored]
        if (path := task.beside.get("consistency")) is not None:
            found = result.consistency()
            panels.append(result.consistency_map(found))
            outcome["consistency"] = {"map": str(path), "mean": round(found.mean, 5), "worst": round(found.worst, 5)}
            if path in missing:
                write_picture(panels[-1], path)
        if (path := task.beside.get("compare")) is not None:
            outcome["comparison"] = str(path)
            if path in missing:
                write_picture(comparison(panels), path)
        if task.target in missing:  # last: whoever sees it finds the others too
            notes += result.save(task.target)
        kept = [path for path in (task.target, *task.beside.values()) if path not in missing]
        notes += [f"{path} exists and was kept; --overwrite replaces it" for path in kept]
    except (PnPIribError, OSError, MemoryError) as error:
        return outcome | {"reason": reason_of(error)}
    except Exception as error:  # a fault of ours must not cost the user the rest of the folder
        return outcome | {"reason": f"internal error: {type(error).__name__}: {reason_of(error)}"}
    details = {"stages": {name: round(s, 3) for name, s in result.seconds.items()}, "used": asdict(result.used)}
    prompt = str(result.prompt) if result.prompt is not None else None
    return outcome | {"status": "restored", "notes": notes, "prompt": prompt} | details


def _line(outcome: dict[str, Any]) -> str:
    if outcome["status"] == "restored":
        text = f"{outcome['input']} -> {outcome['output']}  {outcome['seconds']:.1f} s"
        if found := outcome.get("consistency"):
            text += (
                f"\n    contradicts its input by {255 * found['mean']:.1f}/255 on average, {255 * found['worst']:.0f} at worst"
            )
        return text + "".join(f"\n    note: {note}" for note in outcome["notes"])
    return line(outcome["input"], outcome["status"], outcome["reason"])
