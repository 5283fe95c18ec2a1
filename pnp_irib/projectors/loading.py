"""From what a user writes to a projector: bundled with the library, in a local folder, or on the Hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from pnp_irib.errors import ConfigError, did_you_mean
from pnp_irib.hub.names import parse_name
from pnp_irib.projectors.base import CONFIG_NAME, Projector
from pnp_irib.spec import RestorerSpec

__all__ = ["bundled_projectors", "choose_projector", "load_projector", "profile_mismatch"]


def bundled_projectors() -> dict[str, Path]:
    """Projectors that ship with the library: name and folder."""
    root = Path(str(files("pnp_irib") / "projectors" / "bundled"))
    return {p.name: p for p in sorted(root.iterdir()) if (p / CONFIG_NAME).is_file()} if root.is_dir() else {}


def load_projector(name: str, *, base: Any = None) -> Projector:
    """Load a projector by name.

    Args:
        name: of a bundled one, ``hf-hub:owner/repo[@revision]`` or ``local-dir:path``.
        base: a model that a restorer lends, see `Projector.build`.

    Raises:
        ConfigError: no projector has this name.
        WeightsError: it cannot be fetched, or is damaged.
    """
    parsed = parse_name(name)
    if parsed.kind != "name":
        return Projector.from_pretrained(str(parsed), base=base)
    bundled = bundled_projectors()
    if parsed.target not in bundled:
        hint = did_you_mean(parsed.target, bundled)
        raise ConfigError(f"no bundled projector named {parsed.target!r}. {hint}Bundled: {', '.join(bundled) or 'none'}.")
    projector = Projector.from_pretrained(bundled[parsed.target])
    if projector.origin is not None:
        projector.origin = projector.origin.model_copy(update={"place": f"bundled:{parsed.target}"})
    return projector


def choose_projector(
    projector: str | Path | Projector | None, spec: RestorerSpec, *, base: Any = None
) -> tuple[Projector | None, str]:
    """The projector that `wrap` puts in front of a restorer, and why; see there. ``base``: a model that the restorer lends.

    Raises:
        ConfigError: it is no projector and no name of one.
        WeightsError: it cannot be fetched, or is damaged.
    """
    if projector is None or projector == "none":
        return None, "as asked"
    if isinstance(projector, Projector):
        return projector, "given"
    if isinstance(projector, Path):
        return Projector.from_pretrained(projector.expanduser(), base=base), "as asked"
    if not isinstance(projector, str):
        raise ConfigError(f"projector={projector!r:.60}: expected 'auto', None, a name or a Projector.")
    if projector != "auto":
        return load_projector(projector, base=base), "as asked"
    if spec.projector is not None:
        return load_projector(spec.projector, base=base), f"made for {spec.name}"
    if spec.lq_profile is None:
        return None, f"{spec.name} states no LQ profile; state wrap(..., lq_profile='standard'), or name a projector"
    for name in bundled_projectors():
        bundled = load_projector(name)
        profile = bundled.provenance.lq_profile
        if profile is not None and profile.orders == spec.lq_profile.orders:
            return bundled, f"bundled; it maps onto '{profile.name}', which {spec.name} was trained on"
    return None, f"no bundled projector maps onto '{spec.lq_profile.name}'"


def profile_mismatch(projector: Projector, spec: RestorerSpec) -> str | None:
    """What to say where a projector maps onto other degradations than the restorer knows; None: nothing to say."""
    onto, known = projector.provenance.lq_profile, spec.lq_profile
    if onto is None or known is None or onto.orders == known.orders:
        return None
    return (
        f"the projector maps onto pictures degraded as in '{onto.name}', but {spec.name} was trained on '{known.name}' "
        f"({known.origin}): it may help less, or harm. Use a projector that was trained for {spec.name}."
    )
