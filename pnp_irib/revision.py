"""Which revision of the code is running."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pnp_irib

__all__ = ["source_revision"]


def source_revision() -> str | None:
    """Commit of the checkout that the package runs from, with ``-dirty`` for uncommitted changes; None outside a checkout."""
    root = Path(pnp_irib.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
