"""Kinds of objects that `wrap` takes: entry points of the group ``pnp_irib.objects`` that resolve to a `Recogniser`.

The library's own and those of other packages take the same road. Asking imports no heavy package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pnp_irib.errors import BrokenPluginError, WrapError

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


def recognisers() -> list[Recogniser]:
    """All that are installed, in the order in which they are asked.

    Raises:
        BrokenPluginError: one cannot be loaded.
    """
    found: dict[str, Recogniser] = {}
    for entry in entry_points(group=GROUP):
        try:
            loaded = entry.load()
        except Exception as error:  # a foreign package may raise anything at import
            raise BrokenPluginError(
                f"the entry point {entry.name!r} of {GROUP} cannot be loaded: {type(error).__name__}: {error}. Update or "
                f"uninstall its package."
            ) from error
        if not isinstance(loaded, Recogniser):
            raise BrokenPluginError(
                f"the entry point {entry.name!r} of {GROUP} is a {type(loaded).__name__}, expected a Recogniser. Update or "
                f"uninstall its package."
            )
        found[entry.name] = loaded
    return [found[name] for name in sorted(found, key=lambda name: (-found[name].priority, name))]


def recognise(thing: Any) -> Recogniser:
    """The kind of an object.

    Raises:
        WrapError: none fits; says which were tried.
    """
    known = recognisers()
    for kind in known:
        if kind.recognises(thing):
            return kind
    tried = "; ".join(kind.title for kind in known)
    raise WrapError(
        f"{thing!r:.80} ({type(thing).__name__}) cannot be wrapped. Tried: a registered name; {tried}. The smallest thing "
        f"to do: wrap a function from pictures (N, 3, H, W) in [0, 1] to (N, 3, s*H, s*W) that calls it."
    )
