"""Peak memory of a stage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pnp_irib.runtime import give_memory_back

__all__ = ["PeakMemory"]

_TOLERANCE_MIB = 16.0  # ours: the kernel counts pages per thread and adds them up late


class PeakMemory:
    """Largest resident memory of the process in each stage, MiB, weights and libraries included.

    ``ru_maxrss`` never falls, so it cannot tell stages apart. Linux lets a process set its high-water mark back; on other
    systems, and where a sandbox does not keep to it, nothing is measured and ``mib`` stays empty. Each stage begins with
    handing freed memory back to the system, which costs time: stages that are measured here must not be timed.

    Attributes:
        mib: by stage, the largest size in it.
        rise_mib: by stage, how far that lies above the size at its start.
    """

    def __init__(self) -> None:
        self.mib: dict[str, float] = {}
        self.rise_mib: dict[str, float] = {}
        self._stage: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block, or what is left of it after `switch`, under ``name``; the largest of several stays."""
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    def switch(self, name: str) -> None:
        """End the running stage and go on under ``name``; nothing happens when it is that stage already."""
        if self._stage != name:
            self._end()
            self._begin(name)

    def _begin(self, name: str) -> None:
        self._stage = name
        self._start = _reset()

    def _end(self) -> None:
        peak = _read("VmHWM") if self._start is not None else None
        if peak is not None and self._start is not None and self._stage is not None:
            self.mib[self._stage] = max(peak, self.mib.get(self._stage, 0.0))
            self.rise_mib[self._stage] = max(peak - self._start, self.rise_mib.get(self._stage, 0.0))
        self._stage = None


def _reset() -> float | None:
    """Set the kernel's high-water mark back to the present size and return that, MiB; None where it cannot be done."""
    give_memory_back()  # or every stage would be as large as the largest before it
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    # Some sandboxes take the write and do nothing: the mark would then be that of another stage.
    peak, present = _read("VmHWM"), _read("VmRSS")
    return present if peak is not None and present is not None and peak <= present + _TOLERANCE_MIB else None


def _read(key: str) -> float | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(rf"{key}:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else None
