"""Peak memory of a stage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PeakMemory"]


class PeakMemory:
    """Largest resident memory of the process in each stage, MiB; Linux only: elsewhere nothing is measured."""

    def __init__(self) -> None:
        self.mib: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block under ``name``; the largest of several stays."""
        known = _reset()
        try:
            yield
        finally:
            peak = _read() if known else None
            if peak is not None:
                self.mib[name] = max(peak, self.mib.get(name, 0.0))


def _reset() -> bool:
    """Set the kernel's high-water mark back to the present size; False where it has none."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _read() -> float | None:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else None
