"""``pnp-irib push``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pnp_irib.bench.report import measured_of
from pnp_irib.errors import ConfigError
from pnp_irib.hub.card import Measured
from pnp_irib.projectors.publish import publish

__all__ = ["run"]


def run(folder: Path, repo_id: str, reports: Sequence[Path], licence: str | None, *, private: bool) -> None:
    """Push and print the address.

    Raises:
        ConfigError, WeightsError: see `publish`; or a report cannot be read.
    """
    address = publish(folder, repo_id, measured=[_read(path) for path in reports], licence=licence, private=private or None)
    sys.stdout.write(f"{address}\n")


def _read(path: Path) -> Measured:
    try:
        return measured_of(json.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no bench.json of pnp-irib bench.") from error
