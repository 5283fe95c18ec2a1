"""``pnp-irib bench``."""

from __future__ import annotations

import sys
from pathlib import Path

from pnp_irib.bench import BenchConfig, run_bench

__all__ = ["run"]


def run(
    data: Path,
    restorer: str,
    projector: str,
    preset: str,
    seeds: tuple[int, ...],
    lfo: int,
    limit: int | None,
    output: Path,
    dtype: str,
) -> None:
    """Measure and write the report; prints the table and where the files are."""
    config = BenchConfig(
        data=data, restorer=restorer, projector=projector, preset=preset, seeds=seeds, lfo=lfo, limit=limit, dtype=dtype
    )
    terminal = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if terminal:
            sys.stderr.write(f"\r{done}/{total} pictures")
            sys.stderr.flush()

    report = run_bench(config, on_progress=progress)
    if terminal:
        sys.stderr.write("\n")
    sys.stdout.write(report.markdown())
    for path in report.write(output):
        sys.stdout.write(f"\n{path}")
    sys.stdout.write("\n")
