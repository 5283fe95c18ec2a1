"""Time that a study may still take."""

from __future__ import annotations

import time

__all__ = ["Budget", "OutOfTimeError"]


class OutOfTimeError(Exception):
    """The time is up. What was done is kept, and the same command goes on from there."""


class Budget:
    """A limit on wall time.

    Args:
        hours: from now on; None: no limit.
    """

    def __init__(self, hours: float | None = None) -> None:
        self._end = None if hours is None else time.monotonic() + 3600 * hours

    @property
    def hours_left(self) -> float | None:
        """At least 0; None: no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic()) / 3600

    def check(self) -> None:
        """Raise an `OutOfTimeError` when nothing is left."""
        if self.hours_left == 0:
            raise OutOfTimeError
