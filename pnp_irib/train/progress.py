"""What a training run says while it goes on."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from pnp_irib.runtime import peak_memory

if TYPE_CHECKING:
    import torch

__all__ = ["Progress"]

EVERY_SECONDS = 30.0  # between lines in a log; a terminal is refreshed every second


class Progress:
    """Steps, speed, loss and time left: one line that is rewritten on a terminal, a line now and then in a log."""

    def __init__(self, start: int, steps: int, *, enabled: bool) -> None:
        self._start, self._steps, self._enabled = start, steps, enabled
        self._done = start
        self._began = self._shown = time.monotonic()
        self._means: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled and self._done > self._start:
            self._show()
            if sys.stderr.isatty():
                sys.stderr.write("\n")

    def advance(self, terms: dict[str, float]) -> None:
        """Count one step."""
        self._done += 1
        for name, value in terms.items():
            self._means[name] = value + 0.95 * (self._means.get(name, value) - value)
        pause = 1.0 if sys.stderr.isatty() else EVERY_SECONDS
        if self._enabled and time.monotonic() - self._shown > pause:
            self._show()

    @property
    def done(self) -> int:
        """The steps of the run that are done."""
        return self._done

    @property
    def steps_done(self) -> int:
        """Those that were done here."""
        return self._done - self._start

    @property
    def rate(self) -> float:
        """Steps a second."""
        return self.steps_done / max(1e-9, time.monotonic() - self._began)

    def summary(self, device: torch.device) -> str:
        """What was done here and what it took: steps, steps a second, peak memory."""
        peak = peak_memory(device)
        memory = f", peak memory {peak / 2**30:.2f} GiB" if peak is not None else ""
        return f"{self.steps_done} steps, {self.rate:.3g} steps/s{memory}"

    def averages(self) -> dict[str, float]:
        """Running means of the terms."""
        return dict(self._means)

    def _show(self) -> None:
        self._shown = time.monotonic()
        rate = self.rate
        left = (self._steps - self._done) / max(1e-9, rate)
        terms = " ".join(f"{name} {value:.4f}" for name, value in self._means.items())
        line = f"step {self._done}/{self._steps}  {rate:.2f} steps/s  {timedelta(seconds=round(left))} left  {terms}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[2K{line}")
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()
