"""Kinds of objects that `wrap` takes: entry points of the group ``pnp_irib.objects`` that resolve to a `Recogniser`.

The library's own and those of other packages take the same road. Asking imports no heavy package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pnp_irib.errors import WrapError

if TYPE_CHECKING:
    from pnp_irib.restorer import Restorer

__all__ = ["GROUP", "Recogniser", "recognise", "recognisers"]

GROUP = "pnp_irib.objects"


@dataclass(frozen=True)
class Recogniser:
    """A kind of object.

    Attributes:
        title: what it is called, with its article: shown by `repr`, and where nothing fits.
        recognises: whether an object is one. It imports nothing heavy: names in the object's class hierarchy tell enough.
        build: given the object and the options of `wrap`, makes a `Restorer` of it; unknown options are a ConfigError.
        priority: the higher is asked first; modules have 0, functions -10.
    """

    title: str
    recognises: Callable[[Any], bool]
    build: Callable[..., Restorer]
    priority: int = 0


def recognisers() -> tuple[list[Recogniser], list[str]]:
    """All that are installed, in the order in which they are asked, and what is wrong with those that cannot be loaded."""
    found: dict[str, Recogniser] = {}
    broken: list[str] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: not entry.value.startswith("pnp_irib.")):
        try:
            loaded = entry.load()
        except (Exception, SystemExit) as error:  # a foreign package may raise anything at import
            broken.append(f"the entry point {entry.name!r} of {GROUP} cannot be loaded: {type(error).__name__}: {error}")
            continue
        if not isinstance(loaded, Recogniser):
            broken.append(f"the entry point {entry.name!r} of {GROUP} is a {type(loaded).__name__}, expected a Recogniser")
        elif entry.name in found:
            broken.append(f"the entry point {entry.name!r} of {GROUP} is there twice; {entry.value} is left out")
        else:
            found[entry.name] = loaded
    return [found[name] for name in sorted(found, key=lambda name: (-found[name].priority, name))], broken


def recognise(thing: Any) -> Recogniser:
    """The kind of an object.

    Raises:
        WrapError: none fits; says which were tried.
    """
    known, broken = recognisers()
    for kind in known:
        try:
            if kind.recognises(thing):
                return kind
        except Exception as error:  # of another package, or of the object itself
            broken.append(f"{kind.title}: asking raised {type(error).__name__}: {error}")
    try:
        shown = f"{thing!r:.80} ({type(thing).__name__})"
    except Exception:  # an object of anybody's
        shown = f"an object of the class {type(thing).__name__}"
    tried = "; ".join([*(kind.title for kind in known), *broken])
    raise WrapError(
        f"{shown} cannot be wrapped. Tried: a registered name; {tried}. The smallest thing to do: {_advice(thing)}"
    )


def _advice(thing: Any) -> str:
    if isinstance(thing, type):
        return f"make an object of the class: wrap({thing.__name__}(...))."
    if isinstance(thing, os.PathLike):
        return f"if it is a file of weights, wrap('spandrel', path={os.fspath(thing)!r:.80})."
    if isinstance(thing, dict):
        return "put the weights into their network, and wrap that; or wrap('spandrel', path=FILE)."
    return "wrap a function from pictures (N, 3, H, W) in [0, 1] to (N, 3, s*H, s*W) that calls it."
