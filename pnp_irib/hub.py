"""Names of projectors and where they lead: bundled with the library, a local folder, or the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pnp_irib.errors import ConfigError, WeightsError, did_you_mean
from pnp_irib.projectors.base import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, Projector
from pnp_irib.spec import RestorerSpec

__all__ = ["Name", "bundled_projectors", "choose_projector", "load_projector", "parse_name"]


@dataclass(frozen=True)
class Name:
    """A parsed name. ``kind``: "name" (registered or bundled), "local-dir" or "hf-hub"."""

    kind: str
    target: str
    revision: str | None = None

    def __str__(self) -> str:
        prefix = "" if self.kind == "name" else f"{self.kind}:"
        return f"{prefix}{self.target}" + (f"@{self.revision}" if self.revision else "")


def parse_name(text: str) -> Name:
    """Read ``name``, ``hf-hub:owner/repo[@revision]``, ``local-dir:path`` or a bare ``owner/repo[@revision]``.

    Raises:
        ConfigError: it is none of these; a path needs the prefix ``local-dir:``.
    """
    prefix, colon, rest = text.partition(":")
    if colon and prefix == "local-dir" and rest:
        return Name("local-dir", rest)
    hub = r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?"
    if colon and prefix == "hf-hub" and (match := re.fullmatch(hub, rest)):
        return Name("hf-hub", match["repo"], match["revision"])
    if re.fullmatch(r"[a-z0-9][a-z0-9._+-]*", text):
        return Name("name", text)
    if (match := re.fullmatch(hub, text)) and not text.startswith((".", "/", "~")) and not Path(text).exists():
        return Name("hf-hub", match["repo"], match["revision"])
    raise ConfigError(
        f"{text!r} is not a name. Expected a name, hf-hub:owner/repo[@revision] or local-dir:path"
        + (f"; for this folder write 'local-dir:{text}'." if Path(text).exists() else ".")
    )


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
    if parsed.kind == "local-dir":
        return Projector.from_pretrained(Path(parsed.target).expanduser(), base=base)
    if parsed.kind == "hf-hub":
        return Projector.from_pretrained(_fetch(parsed), base=base)
    bundled = bundled_projectors()
    if parsed.target not in bundled:
        hint = did_you_mean(parsed.target, bundled)
        raise ConfigError(f"no bundled projector named {parsed.target!r}. {hint}Bundled: {', '.join(bundled) or 'none'}.")
    return Projector.from_pretrained(bundled[parsed.target])


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


def _fetch(name: Name) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name.target, revision=name.revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME, CARD_NAME])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{name} cannot be fetched from the Hub: {reason}") from error
