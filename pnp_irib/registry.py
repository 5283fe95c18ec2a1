"""Registered restorers: entry points of the group ``pnp_irib.restorers`` that resolve to a `RestorerSpec`.

Listing imports the adapters' spec modules only (no torch, no model code). In-tree and third-party adapters take the same road.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from pnp_irib.errors import BrokenPluginError, DuplicateRestorerError, UnknownRestorerError, did_you_mean
from pnp_irib.spec import RestorerSpec

if TYPE_CHECKING:
    from pnp_irib.restorer import Restorer

__all__ = [
    "GROUP",
    "BrokenPlugin",
    "broken_plugins",
    "find_spec",
    "list_restorers",
    "load_restorer",
    "placed",
    "restorer_names",
]

GROUP = "pnp_irib.restorers"


@dataclass(frozen=True)
class BrokenPlugin:
    """A registered restorer whose spec cannot be loaded."""

    name: str
    distribution: str
    reason: str


def _entries() -> dict[str, EntryPoint]:
    """Entry points by name.

    Raises:
        DuplicateRestorerError: two distributions offer the same name for different objects.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.get(entry.name)
        # The same line seen twice (an editable install beside a wheel of the same project) is no conflict.
        if other is not None and (_distribution(other), other.value) != (_distribution(entry), entry.value):
            raise DuplicateRestorerError(
                f"restorer {entry.name!r} is offered by both {_distribution(other)} and {_distribution(entry)}; "
                f"uninstall one of them."
            )
        found[entry.name] = entry
    return found


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown distribution"


def _resolve(entry: EntryPoint) -> RestorerSpec:
    try:
        spec = entry.load()
    except (Exception, SystemExit) as error:  # whatever a foreign package raises at import must not take the others down
        raise BrokenPluginError(
            f"restorer {entry.name!r} of {_distribution(entry)} cannot be loaded from {entry.value}: "
            f"{type(error).__name__}: {error}. Update or uninstall {_distribution(entry)}."
        ) from error
    if not isinstance(spec, RestorerSpec):
        raise BrokenPluginError(
            f"restorer {entry.name!r} of {_distribution(entry)}: {entry.value} is a {type(spec).__name__}; "
            f"expected a RestorerSpec. Update or uninstall {_distribution(entry)}."
        )
    if spec.name != entry.name:
        raise BrokenPluginError(
            f"entry point {entry.name!r} of {_distribution(entry)} leads to a spec named {spec.name!r}; the two must agree."
        )
    return spec


def restorer_names() -> list[str]:
    """Names of all registered restorers, sorted; nothing is imported."""
    return sorted(_entries())


def list_restorers(pattern: str = "*") -> list[RestorerSpec]:
    """Specs of the registered restorers whose name matches ``pattern`` (shell wildcards), sorted by name.

    A plug-in that cannot be loaded is left out; `broken_plugins` says which and why.
    """
    specs = []
    for name, entry in sorted(_entries().items()):
        if fnmatch(name, pattern):
            try:
                specs.append(_resolve(entry))
            except BrokenPluginError:
                continue
    return specs


def broken_plugins() -> list[BrokenPlugin]:
    """Registered restorers that cannot be loaded, with the reason."""
    broken = []
    for name, entry in sorted(_entries().items()):
        try:
            _resolve(entry)
        except BrokenPluginError as error:
            broken.append(BrokenPlugin(name, _distribution(entry), str(error)))
    return broken


def find_spec(name: str) -> RestorerSpec:
    """The spec of the restorer of this name.

    Raises:
        UnknownRestorerError: no such name; the message has the nearest ones.
        BrokenPluginError: the name exists, but its package cannot be loaded.
    """
    entries = _entries()
    if name.startswith(("hf-hub:", "local-dir:")):
        raise UnknownRestorerError(
            f"{name!r} is a place, and a restorer is chosen by its registered name; installed: {_enumerate(entries)}. "
            f"Weights from elsewhere are an option of it: weights='hf-hub:owner/repo/file' or weights=PATH."
        )
    if name not in entries:
        raise UnknownRestorerError(
            f"no restorer named {name!r}. {did_you_mean(name, entries)}Installed: {_enumerate(entries)}. "
            f"An adapter of its own package comes with: pip install NAME-OF-THE-PACKAGE"
        )
    return _resolve(entries[name])


def load_restorer(name: str, **options: Any) -> Restorer:
    """Build a registered restorer.

    Args:
        name: registry name, see `list_restorers`.
        options: handed to the adapter, for example ``weights=``, ``device=``, ``dtype=``.

    Raises:
        UnknownRestorerError, BrokenPluginError: see `find_spec`.
        MissingExtraError: a package that the restorer needs is not installed.
        WeightsError: its weights are missing or damaged.
    """
    restorer: Restorer = find_spec(name).load(**options)
    return restorer


def placed(name: str, device: Any, dtype: Any) -> dict[str, Any]:
    """Options of a registered restorer that have it built on its device and in its dtype, which spares it detours.

    One that is built elsewhere and moved there may have lost digits on the way, and took more memory.

    Returns:
        device and dtype by name; nothing, where its factory does not state these options.

    Raises:
        UnknownRestorerError, BrokenPluginError: see `find_spec`.
    """
    options = {"device": device, "dtype": dtype}
    return options if find_spec(name).states(*options) else {}


def _enumerate(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
