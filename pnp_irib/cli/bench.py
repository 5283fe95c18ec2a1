"""``pnp-irib bench``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from pnp_irib.bench import BenchConfig, run_bench
from pnp_irib.errors import ConfigError

__all__ = ["run"]


def run(output: Path, options: dict[str, Any]) -> None:
    """Measure and write the report; prints the table and where the files are.

    Raises:
        ConfigError: the folder cannot be made or written to; said before anything is measured.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {output}: {error.strerror}.") from error
    terminal = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if terminal:
            sys.stderr.write(f"\r{done}/{total} pictures")
            sys.stderr.flush()

    report = run_bench(BenchConfig(**options), on_progress=progress)
    if terminal:
        sys.stderr.write("\n")
    sys.stdout.write(report.markdown())
    for path in report.write(output):
        sys.stdout.write(f"\n{path}")
    sys.stdout.write("\n")
