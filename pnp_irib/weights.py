"""Weight files: where they are found, and the cache of converted ones.

Converted weights are kept as safetensors under `cache_dir`, each with a JSON record of its own hash and its source's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnp_irib.errors import WeightsError
from pnp_irib.files import sha256_of, write_atomically
from pnp_irib.hub import Origin, SourceFile
from pnp_irib.hub.download import fetch, hub_address, hub_hash
from pnp_irib.hub.names import Name, valid_repository

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pnp_irib.spec import RestorerSpec, WeightsFile

__all__ = [
    "LARGE",
    "WEIGHT_OPTIONS",
    "cache_dir",
    "cached_conversion",
    "find_place",
    "load_checkpoint",
    "load_strictly",
    "origin_of",
    "package_file",
    "read_pickle",
    "resolve_file",
    "weight_files",
]


LARGE = 2**30  # bytes of a file above which it is not read just for a record

WEIGHT_OPTIONS = ("weights", "checkpoint", "base", "path", "dape", "cleaner", "tokenizer", "degradation_net")
"""Options of restorers that name files or folders of weights."""


def cache_dir() -> Path:
    """Folder of converted weights: ``PNP_IRIB_CACHE``, else ``$XDG_CACHE_HOME/pnp_irib``, else ``~/.cache/pnp_irib``."""
    if explicit := os.environ.get("PNP_IRIB_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnp_irib"


def package_file(dist: str, path: str) -> Path | None:
    """A file inside an installed distribution, found through its metadata; None if there is no such file."""
    try:
        found = Path(str(distribution(dist).locate_file(path)))
    except PackageNotFoundError:
        return None
    return found if found.is_file() else None


def find_place(file: WeightsFile) -> tuple[str, Path] | None:
    """The first place of ``file`` that is already on this machine, with its path; None if none is. Never uses the network."""
    for place in file.places:
        kind, _, rest = place.partition(":")
        path: Path | None = None
        if kind == "package":
            dist, _, inner = rest.partition("/")
            path = package_file(dist, inner)
        elif kind == "hf-hub":
            from huggingface_hub import try_to_load_from_cache

            owner, repo, inner = rest.split("/", 2)
            hit = try_to_load_from_cache(f"{owner}/{repo}", inner)
            path = Path(hit) if isinstance(hit, str) else None
        if path is not None:
            return place, path
    return None


def resolve_file(name: str | Path, *, spec: RestorerSpec | None = None) -> Path:
    """A local path, or ``hf-hub:owner/repo/file[@revision]`` fetched into the Hub's cache.

    Args:
        name: see above.
        spec: of the restorer whose file it is: its licences are said before a large download.

    Raises:
        WeightsError: there is no such file, or it cannot be fetched.
    """
    text = str(name)
    if not text.startswith("hf-hub:"):
        path = Path(text.removeprefix("local-dir:")).expanduser()
        if not path.is_file():
            raise WeightsError(f"no weight file at {path}. Give a path, or hf-hub:owner/repo/file.")
        return path
    address, _, revision = text.removeprefix("hf-hub:").partition("@")
    if address.count("/") == 1 and "/" in revision:  # owner/repo@revision/file, as it stands in records
        revision, _, file = revision.partition("/")
        address = f"{address}/{file}"
    parts = address.split("/", 2)
    if len(parts) != 3 or not all(parts) or not valid_repository(f"{parts[0]}/{parts[1]}"):
        raise WeightsError(f"{text!r} names no file; expected hf-hub:owner/repo/file[@revision].")
    terms = (
        None
        if spec is None
        else f"{spec.weights_licence.said} for the weights of {spec.name}, {spec.code_licence} for its code"
    )
    repository = Name("hf-hub", f"{parts[0]}/{parts[1]}", revision or None)
    return fetch(repository, [parts[2]], licence=terms).paths[parts[2]]


def weight_files(spec: RestorerSpec, options: Mapping[str, Any]) -> list[Path]:
    """Files of weights that a restorer was built from: those that its options name, else those of its spec that are here.

    What is named in other ways than as a file or folder is left out: this is for records, and never fails.
    """
    named = [str(options[key]) for key in WEIGHT_OPTIONS if isinstance(options.get(key), str | Path)]
    if not named:
        return [place[1] for file in spec.weights if (place := find_place(file)) is not None]
    files: list[Path] = []
    for name in named:
        path = Path(name.removeprefix("local-dir:")).expanduser()
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            files.append(path)
        elif name.startswith("hf-hub:") and name.partition("@")[0].count("/") > 1:  # a whole repository is no file
            with contextlib.suppress(WeightsError):
                files.append(resolve_file(name))
    return files


def origin_of(path: Path) -> Origin:
    """The record of a file of weights: its place, with the commit if that is the Hub's cache, and its sha256."""
    if (address := hub_address(path)) is not None:
        repository, commit, file = address
        sha256 = hub_hash(path) or sha256_of(path)
        return Origin(place=f"hf-hub:{repository}", commit=commit, files=(SourceFile(name=file, sha256=sha256),))
    return Origin(place=f"local-dir:{path.parent}", files=(SourceFile(name=path.name, sha256=sha256_of(path)),))


def cached_conversion(source: Path, name: str, convert: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors converted from ``source``, kept in the cache under ``name``.

    The record beside the cached file holds its sha256 and the one of the source; a file that is damaged, or was made
    from another source, is made anew.
    """
    from safetensors.torch import load_file, save_file

    source_hash = sha256_of(source)
    cached = cache_dir() / "converted" / f"{name}-{source_hash[:16]}.safetensors"
    record = cached.with_suffix(".json")
    try:
        known = json.loads(record.read_text())
        if known["source_sha256"] == source_hash and known["sha256"] == sha256_of(cached):
            return load_file(cached)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: made anew below
    tensors = {key: value.contiguous() for key, value in convert().items()}
    try:
        write_atomically(cached, lambda path: save_file(tensors, path))
        facts = {"source": source.name, "source_sha256": source_hash, "sha256": sha256_of(cached)}
        write_atomically(record, lambda path: Path(path).write_text(json.dumps(facts, indent=1)))
    except OSError:
        pass  # a cache that cannot be written (read-only home, full disk) costs time, not the result
    return tensors


def read_pickle(path: Path, *, mapped: bool = False) -> Any:
    """What ``torch.save`` wrote: tensors, numbers, texts, and containers of these.

    Args:
        path: of the file.
        mapped: leave the tensors in the file until they are used, where its format allows it: for files of which most is of no
            use here. What is kept must be copied, since the file may be replaced.

    Raises:
        WeightsError: the file is damaged, or holds something else.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            mapped = mapped and zipfile.is_zipfile(path)  # the format before torch 1.6 is read whole
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever bytes are taken for instructions, anything may come of it
        # The text of pickle errors is a page of advice that we do not give.
        reason = _first_line(error)
        if isinstance(error, pickle.UnpicklingError | LookupError | EOFError):
            reason = "it is no file of torch, or holds more than tensors, which could run code"
        raise WeightsError(f"{path} cannot be read as weights: {reason}. Is the download complete?") from error


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """State dictionary from a ``.safetensors`` file, or from a ``.pth`` read with ``weights_only``.

    Checkpoints nested under ``params_ema``, ``params`` or ``state_dict`` are opened, in this order.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"no weight file at {path}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path} cannot be read as weights: {_first_line(error)}. Is the download complete?") from error
    content = read_pickle(path)
    for key in ("params_ema", "params", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not (
        isinstance(content, dict)
        and content
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    ):
        raise WeightsError(f"{path} is not a dictionary of tensors by name.")
    return content


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, assign: bool = False) -> None:
    """Copy ``tensors`` into ``module``; every name and shape must fit.

    Args:
        module: what they are for.
        tensors: by their names in it.
        source: of them, for messages.
        assign: make them the module's own instead, such as of one that was planned on the meta device.

    Raises:
        WeightsError: names what is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    problems = []
    if missing := sorted(own.keys() - tensors.keys()):
        problems.append(f"missing {_some(missing)}")
    if extra := sorted(tensors.keys() - own.keys()):
        problems.append(f"unexpected {_some(extra)}")
    for key in sorted(own.keys() & tensors.keys()):
        if own[key].shape != tensors[key].shape:
            problems.append(f"{key} has the shape {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}")
    if problems:
        shown = "; ".join(problems[:4]) + ("; ..." if len(problems) > 4 else "")
        raise WeightsError(f"{source} does not fit {type(module).__name__}: {shown}.")
    module.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()}, assign=assign)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
