"""The pictures of a folder."""

from __future__ import annotations

from pathlib import Path

from pnp_irib.errors import ConfigError

__all__ = ["pictures_under"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def pictures_under(folder: Path) -> list[Path]:
    """Pictures under a folder, in an order that is the same on every system; hidden files and folders are left out.

    Raises:
        ConfigError: there are none.
    """
    found: dict[str, Path] = {}
    for path in folder.rglob("*") if folder.is_dir() else ():
        relative = path.relative_to(folder)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not any(part.startswith(".") for part in relative.parts):
            found[relative.as_posix()] = path
    if not found:
        raise ConfigError(f"no pictures under {folder}. Looked for {', '.join(sorted(SUFFIXES))}.")
    return [found[name] for name in sorted(found)]
