"""Folders of saved models: ``config.json`` (format, facts, hash of the weights), ``model.safetensors`` and a model card.

Writing puts each file in place in one step, the configuration last; reading is strict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.files import write_atomically
from pnp_irib.hub.mixin import written_by

__all__ = ["CARD_NAME", "CONFIG_NAME", "WEIGHTS_NAME", "read_config", "read_weights", "write_folder"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
DTYPES = ("float32", "float16", "bfloat16", "float64")
FACTS = ("architecture", "provenance")


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], card: str, *, what: str, version: int
) -> None:
    """Write a model.

    Args:
        folder: made if absent.
        tensors: all of one dtype, finite.
        facts: its ``architecture`` and ``provenance``, as JSON has them.
        card: text of the model card.
        what: kind of model, for messages, such as "projector".
        version: of the format of ``config.json``.

    Raises:
        WeightsError: weights that could not be loaded again.
        ConfigError: ``folder`` is a file.
    """
    from safetensors.torch import save

    from pnp_irib import __version__

    dtypes = sorted({_name(value) for value in tensors.values()})
    if len(dtypes) > 1:
        raise WeightsError(f"the weights are of several dtypes, {', '.join(dtypes)}. Call .to(torch.float32) first.")
    if wrong := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise WeightsError(f"the weights {wrong[0]} are not finite, so the {what} is not written to {folder}.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; a {what} is a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, {"format": "pt"})
    weights = {"file": WEIGHTS_NAME, "sha256": hashlib.sha256(content).hexdigest(), "dtype": dtypes[0]}
    config = {"format": version, "library_version": __version__, **facts, "weights": weights}
    write_atomically(folder / WEIGHTS_NAME, lambda path: Path(path).write_bytes(content))
    write_atomically(folder / CARD_NAME, lambda path: Path(path).write_text(card))
    write_atomically(folder / CONFIG_NAME, lambda path: Path(path).write_text(json.dumps(config, indent=1) + "\n"))


def read_config(folder: Path, *, what: str, version: int) -> dict[str, Any]:
    """What ``config.json`` says; of its entries, only the format is checked.

    Args:
        folder: of the model.
        what: kind of model that is expected, for messages.
        version: newest format that is read.

    Raises:
        WeightsError: it is missing, no JSON, of a newer format, or has other keys.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{folder} is not a {what} folder: {CONFIG_NAME} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}.") from error
    expected = {"format", "library_version", *FACTS, "weights"}
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds a {type(config).__name__}, expected an object.")
    found = config.get("format")
    if type(found) is not int or found < 1:
        raise WeightsError(f"{path} has the format {found!r:.40}; expected a number from 1 to {version}. Is it a {what}?")
    if found > version:
        raise WeightsError(
            f"{path} has the format {found}, this library reads up to {version} "
            f"(written by version {config.get('library_version')!s:.40}). Run: pip install -U pnp-irib"
        )
    if config.keys() != expected:
        missing, extra = sorted(expected - config.keys()), sorted(config.keys() - expected)
        raise WeightsError(
            f"{path}: missing keys {missing}, unknown keys {extra!s:.200}; expected {sorted(expected)}"
            f"{written_by(config.get('library_version'))}"
        )
    return config


def read_weights(folder: Path, facts: object) -> tuple[dict[str, Tensor], str]:
    """The tensors of a model, and the sha256 of their file.

    Args:
        folder: of the model.
        facts: entry ``weights`` of its configuration.

    Raises:
        WeightsError: the file is missing, truncated, of another hash or dtype, or holds values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS_NAME
    if not isinstance(facts, dict) or facts.keys() != {"file", "sha256", "dtype"} or facts["file"] != WEIGHTS_NAME:
        raise WeightsError(f"{folder / CONFIG_NAME}: 'weights' must hold file, sha256 and dtype; file is {WEIGHTS_NAME}.")
    if not isinstance(facts["dtype"], str) or facts["dtype"] not in DTYPES:
        raise WeightsError(f"{folder / CONFIG_NAME}: weights of {facts['dtype']!r:.40}; expected one of {', '.join(DTYPES)}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != facts["sha256"]:
        raise WeightsError(
            f"{path} ({len(content)} bytes) is damaged or was exchanged: its sha256 is {found}, "
            f"{CONFIG_NAME} says {facts['sha256']}. Fetch the folder again."
        )
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a complete safetensors file: {error}. Fetch it again.") from error
    if wrong := sorted({_name(value) for value in tensors.values()} - {facts["dtype"]}):
        raise WeightsError(f"{path} holds tensors of {', '.join(wrong)}, {CONFIG_NAME} says {facts['dtype']}.")
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{path}: {key} holds values that are not finite. Its training went wrong; use another checkpoint."
            )
    return tensors, found


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
