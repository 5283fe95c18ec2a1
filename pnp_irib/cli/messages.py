"""One line about a picture that was not done."""

from __future__ import annotations

__all__ = ["line", "reason_of"]

_LONGEST = 400  # characters of a foreign message


def reason_of(error: BaseException) -> str:
    """Why it was not done, in one line. Reading raises errors of our own: one of the system's is from writing."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename} " if error.filename is not None else "the output "
        return f"{place}cannot be written: {error.strerror}."
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__


def line(source: object, status: str, reason: str) -> str:
    """Status and reason, with the input where the reason does not name it."""
    text = f"{status}: {reason}"
    return text if str(source) in reason else f"{source}: {text}"
