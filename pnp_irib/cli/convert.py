"""``pnp-irib convert``: published weights as safetensors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pnp_irib.errors import ConfigError
from pnp_irib.registry import find_spec
from pnp_irib.weights import resolve_file

__all__ = ["run"]


def run(source: Path, output: Path, name: str, *, overwrite: bool) -> None:
    """Write the copy.

    Raises:
        ConfigError: the output cannot be written there, or the restorer has nothing to convert.
        WeightsError: the file is not there, damaged, or not of this restorer.
    """
    spec = find_spec(name)
    if output.suffix != ".safetensors":
        raise ConfigError(f"{output}: the copy is a safetensors file; give a name that ends in .safetensors.")
    if os.path.lexists(output) and not overwrite:
        raise ConfigError(f"{output} exists; --overwrite replaces it.")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; give the name of a file.")
    path = resolve_file(source)
    if output.exists() and output.samefile(path):
        raise ConfigError(f"{output} is the file itself; give the copy another name.")
    spec.convert(path, output)
    sys.stderr.write(f"{path} -> {output} ({output.stat().st_size / 1e6:.1f} MB)\n")
