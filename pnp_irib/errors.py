"""What can go wrong, as one tree of exceptions.

    PnPIribError
    ├── ConfigError          options or files that configure a run contradict themselves
    ├── InputError           a picture, tensor or argument is not what the call accepts
    │   └── ImageFileError   a file cannot be read as, or written as, a picture
    ├── RegistryError        restorer names
    │   ├── UnknownRestorerError
    │   ├── DuplicateRestorerError
    │   └── BrokenPluginError
    ├── WrapError            an object cannot be used as a restorer
    ├── WeightsError         a weight file is missing, damaged or does not fit the network
    └── MissingExtraError    a package of an optional extra is not installed (also an ImportError)

Every message says what was found, what was expected and the next thing to do.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "BrokenPluginError",
    "ConfigError",
    "DuplicateRestorerError",
    "ImageFileError",
    "InputError",
    "MissingExtraError",
    "PnPIribError",
    "RegistryError",
    "UnknownRestorerError",
    "WeightsError",
    "WrapError",
    "did_you_mean",
    "explain_validation",
]


class PnPIribError(Exception):
    """Root of all errors that this library raises on purpose."""


class ConfigError(PnPIribError, ValueError):
    """A configuration is wrong or contradicts itself."""


class InputError(PnPIribError, ValueError):
    """An argument (picture, tensor, size, prompt) is outside what the call accepts."""


class ImageFileError(InputError):
    """A file cannot be read as a picture, or a picture cannot be written to it."""


class RegistryError(PnPIribError):
    """Something is wrong with the registered restorers."""


class UnknownRestorerError(RegistryError, LookupError):
    """No registered restorer has this name."""


class DuplicateRestorerError(RegistryError):
    """Two installed distributions offer a restorer of the same name."""


class BrokenPluginError(RegistryError):
    """A registered restorer exists, but its package cannot be loaded."""


class WrapError(PnPIribError, TypeError):
    """An object cannot be wrapped as a restorer."""


class WeightsError(PnPIribError):
    """A weight file is missing, damaged, or does not fit the network."""


class MissingExtraError(PnPIribError, ImportError):
    """A package that belongs to an optional extra is not installed."""


def check_number(name: str, value: object, *, whole: bool = False, zero: bool = False, most: float = math.inf) -> None:
    """Check an option that is a finite number above 0.

    Args:
        name: of the option.
        value: of it.
        whole: it must be an integer.
        zero: it may be 0.
        most: it may not exceed this.

    Raises:
        ConfigError: it is another.
    """
    kind = Integral if whole else Real
    number = float(value) if isinstance(value, kind) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number <= most and (number >= 0 if zero else number > 0)):
        limit = f", at most {most:g}" if most < math.inf else ""
        raise ConfigError(
            f"{name}={value!r:.60}: expected a {'whole ' if whole else ''}number {'from' if zero else 'above'} 0{limit}."
        )


def check_text(name: str, value: object) -> None:
    """Check an option that is a text, which may be empty.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r:.60}: expected a text.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known names, or an empty string; ends with a space when not empty."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(n) for n in near)}? " if near else ""


def explain_validation(error: ValidationError) -> str:
    """One line for what pydantic found, each with the place and the reason."""
    parts = []
    for e in error.errors()[:4]:
        place = ".".join(str(p) for p in e["loc"]) or "the whole"
        said = "no such setting" if e["type"] == "extra_forbidden" else e["msg"].removeprefix("Value error, ")
        parts.append(f"{place}: {said}" + ("" if isinstance(e["input"], dict) else f" (found {e['input']!r:.60})"))
    return "; ".join(parts)
