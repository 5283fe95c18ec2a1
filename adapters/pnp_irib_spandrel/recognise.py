"""Tells models of spandrel from other objects; imports neither torch nor spandrel."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from pnp_irib.errors import ConfigError, did_you_mean
from pnp_irib.recognition import Recogniser

if TYPE_CHECKING:
    from pnp_irib_spandrel.restorer import SpandrelRestorer

__all__ = ["RECOGNISER"]

TITLE = "a model descriptor of spandrel"


def recognises(model: Any) -> bool:
    """Whether ``model`` is what spandrel's loader gives."""
    return any(
        kind.__name__ == "ModelBase" and kind.__module__.partition(".")[0] == "spandrel" for kind in type(model).__mro__
    )


def build(model: Any, **options: Any) -> SpandrelRestorer:
    """The descriptor as a restorer.

    Args:
        model: the descriptor.
        options: see `pnp_irib_spandrel.restorer.SpandrelRestorer`.

    Raises:
        ConfigError: there is no such option.
        WrapError: it needs a mask, or works on other channels than colours or grey.
    """
    from pnp_irib_spandrel.restorer import SpandrelRestorer

    known = [name for name in inspect.signature(SpandrelRestorer).parameters if name != "descriptor"]
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(
            f"{TITLE} has no option {unknown[0]!r}, since it states its scale and sizes itself. "
            f"{did_you_mean(unknown[0], known)}Its options: {', '.join(known)}."
        )
    return SpandrelRestorer(model, **options)


RECOGNISER = Recogniser(title=TITLE, recognises=recognises, build=build, priority=10)
