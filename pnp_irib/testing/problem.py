"""A finding of the kit."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """What does not agree.

    Attributes:
        check: where it was found.
        found: what was found, and what was expected.
        fix: what to do.
    """

    check: str
    found: str
    fix: str
