"""``pnp-irib convert``: published weights as safetensors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.registry import find_spec
from pnp_irib.weights import resolve_file

__all__ = ["run"]


TAGGERS = ("dape", "ram")


def run(source: Path, output: Path, name: str, dtype: str | None, *, overwrite: bool) -> None:
    """Write the copy.

    Args:
        source: a file; of a tagger, the folder of its files.
        output: the safetensors file.
        name: of a restorer, or of a tagger.
        dtype: of a tagger's copy.
        overwrite: replace what is there.

    Raises:
        ConfigError: the output cannot be written there, or the restorer has nothing to convert.
        WeightsError: the file is not there, damaged, or not of this restorer.
    """
    spec = None if name in TAGGERS else find_spec(name)
    if spec is not None and dtype is not None:
        raise ConfigError(f"--dtype is for {' and '.join(TAGGERS)}; of {name} the copy has the dtypes of the file.")
    if output.suffix != ".safetensors":
        raise ConfigError(f"{output}: the copy is a safetensors file; give a name that ends in .safetensors.")
    if os.path.lexists(output) and not overwrite:
        raise ConfigError(f"{output} exists; --overwrite replaces it.")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; give the name of a file.")
    if spec is None and not source.exists():
        raise WeightsError(f"nothing is at {source}; expected the folder of the files of {name}.")
    path = source if spec is None else resolve_file(source)
    if output.exists() and output.samefile(path):
        raise ConfigError(f"{output} is the file itself; give the copy another name.")
    if spec is None:
        copy_tagger(path, output, name, dtype or "float32")
    else:
        spec.convert(path, output)
    sys.stderr.write(f"{path} -> {output} ({output.stat().st_size / 1e6:.1f} MB)\n")


def copy_tagger(source: Path, output: Path, name: str, dtype: str) -> None:
    """Write what tagging uses of RAM; with DAPE folded in if that is the name.

    Raises:
        ConfigError: a copy cannot have this dtype.
        WeightsError: a file of ``source`` is missing, damaged, or does not fit.
    """
    import torch

    from pnp_irib.prompts.ram.model import RamModel

    if dtype not in ("float32", "float16"):
        raise ConfigError(f"--dtype {dtype:.40}: a copy is float32 or float16.")
    RamModel.read(source, lora=name == "dape").save(output, dtype=getattr(torch, dtype))
