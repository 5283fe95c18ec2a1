"""A RAM with its labels: read from the published files or from a copy of what tagging uses of them; and saved as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pnp_irib.errors import ConfigError, WeightsError, explain_validation
from pnp_irib.files import sha256_of, write_atomically
from pnp_irib.hub import SourceFile
from pnp_irib.prompts.ram.architecture import RamArchitecture, head_heads_of, infer
from pnp_irib.prompts.ram.lora import merge
from pnp_irib.prompts.ram.network import RamNetwork
from pnp_irib.prompts.ram.published import find_published
from pnp_irib.prompts.ram.tags import Labels
from pnp_irib.ram_files import DAPE, RAM, TAGS, THRESHOLDS
from pnp_irib.weights import load_strictly, read_pickle

__all__ = ["RamModel", "read_header"]

_KEY = "pnp_irib.ram"  # of the header of our file
_THRESHOLDS = "thresholds"
_USED = ("visual_encoder.", "image_proj.", "label_embed", "wordvec_proj.", "tagging_head.", "fc.")
# Beside these, published files hold two language models, which captions need, and what training left behind.
_COMPUTED = (".relative_position_index", ".attn_mask")
_OTHER_SPELLING = "vision_multi"  # of tagging_head, in some published files


class _Header(BaseModel):
    """What our file says of itself, beside weights and thresholds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    lora: bool
    architecture: RamArchitecture
    tags: tuple[str, ...]
    sources: tuple[SourceFile, ...]


@dataclass(frozen=True, eq=False)
class RamModel:
    """A RAM that is ready to tag.

    Attributes:
        network: in float32 on the CPU, frozen.
        labels: of its logits.
        lora: whether DAPE is folded in.
        sources: published files that it was made from, with their hashes, where a copy recorded them.
        files: that were read.
    """

    network: RamNetwork
    labels: Labels
    lora: bool
    sources: tuple[SourceFile, ...]
    files: tuple[Path, ...]

    @classmethod
    def read(cls, path: Path, *, lora: bool = True) -> RamModel:
        """The published files in a folder, or a copy that `save` wrote.

        Args:
            path: a folder with ``ram_swin_large_14m.pth``, ``DAPE.pth`` and, there or in its sub-folder ``data``, the two
                lists; or a ``.safetensors`` file.
            lora: DAPE; False: plain RAM, for which no ``DAPE.pth`` is needed.

        Raises:
            WeightsError: a file is missing or damaged, does not fit, or is a copy of the other kind.
        """
        # Outside of inference mode: a network first needed inside of it must still pass gradients later.
        with torch.inference_mode(False):
            return _read_folder(path, lora=lora) if path.is_dir() else _read_copy(path, lora=lora)

    def save(self, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write what tagging uses, with labels, thresholds and the hashes of the published files, in one step.

        Args:
            path: a ``.safetensors`` file.
            dtype: of the weights, float32 or float16 (half the size). Thresholds stay float32.

        Raises:
            ConfigError: another dtype, or weights that it cannot hold.
        """
        if dtype not in (torch.float32, torch.float16):
            raise ConfigError(f"dtype={dtype}: a copy is float32 or float16.")
        weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in self.network.state_dict().items()}
        if lost := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise ConfigError(f"{lost[0]} is not finite in {str(dtype).removeprefix('torch.')}; write the copy in float32.")
        sources = self.sources or tuple(SourceFile(name=file.name, sha256=sha256_of(file)) for file in self.files)
        header = _Header(lora=self.lora, architecture=self.network.architecture, tags=self.labels.names, sources=sources)
        tensors = weights | {_THRESHOLDS: self.labels.thresholds.contiguous()}
        write_atomically(path, lambda part: save_file(tensors, part, metadata={_KEY: header.model_dump_json()}))


def read_header(path: Path, *, lora: bool) -> _Header:
    """What a copy says of itself; costs no weights.

    Raises:
        WeightsError: it is no such copy, or of the other kind.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is no .safetensors file. Of published files, give the folder that holds them and the lists."
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {_reason(error)}. Is the download complete?") from error
    if text is None:
        raise WeightsError(
            f"{path} is no copy of RAM: its header has no {_KEY}. Give the folder of the published files, or make a copy of "
            f"it: pnp-irib convert FOLDER -r dape -o dape.safetensors"
        )
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        raise WeightsError(f"{path}: its header is not valid: {explain_validation(error)}.") from error
    if header.lora and not lora:
        raise WeightsError(
            f"{path} has DAPE folded in, which cannot be undone. Write dape:{path}, or make a copy of plain RAM."
        )
    if lora and not header.lora:
        raise WeightsError(f"{path} is plain RAM, without DAPE. Write ram:{path}, or make a copy with DAPE.")
    return header


def _read_copy(path: Path, *, lora: bool) -> RamModel:
    header = read_header(path, lora=lora)
    tensors = _read_safetensors(path)
    if _THRESHOLDS not in tensors:
        raise WeightsError(f"{path} holds no thresholds. Is it complete? Make it again: pnp-irib convert.")
    labels = Labels(header.tags, tensors.pop(_THRESHOLDS).float())
    network = _build(header.architecture, _own(tensors), path)
    return RamModel(network, _checked(labels, network, path), header.lora, header.sources, (path,))


def _read_folder(folder: Path, *, lora: bool) -> RamModel:
    files = find_published(folder, lora=lora)
    labels = Labels.read(files[TAGS.name], files[THRESHOLDS.name])
    published = _named(read_pickle(files[RAM.name], mapped=True), files[RAM.name])
    architecture = infer(published, head_heads=head_heads_of(folder, published), source=files[RAM.name])
    weights = {name: value for name, value in published.items() if not name.endswith(_COMPUTED)}
    network = _build(architecture, _own(weights), files[RAM.name])
    _checked(labels, network, files[TAGS.name])
    if lora:
        weights = dict(network.state_dict())
        merge(weights, _named(read_pickle(files[DAPE.name]), files[DAPE.name]), source=files[DAPE.name])
        network = _build(architecture, weights, files[DAPE.name])
    return RamModel(network, labels, lora, (), tuple(files.values()))


def _named(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a published file that belong to tagging, the head spelled one way."""
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{path} is no dictionary of tensors, nor has one under 'model'. Is it the file that its name says?"
        )
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        name = str(key).replace(_OTHER_SPELLING, "tagging_head")
        if name in tensors:
            raise WeightsError(f"{path} holds {name} twice, once spelled {_OTHER_SPELLING}; expected one of them.")
        if name.startswith(_USED):
            tensors[name] = value
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {_reason(error)}. Is the download complete?") from error


def _own(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in float32.

    What is mapped lives in the file, which must stay free to be replaced. And it begins anywhere, while products choose their
    code path by where memory begins: without copies the same weights would give other last digits from file to file.
    """
    return {name: value.to(torch.float32, copy=True) for name, value in weights.items()}


def _build(architecture: RamArchitecture, weights: Mapping[str, Tensor], source: Path) -> RamNetwork:
    with torch.device("meta"):  # planned without memory: random weights would draw from the caller's generator
        network = RamNetwork(architecture)
    load_strictly(network, weights, source=str(source), assign=True)
    return network.eval().requires_grad_(False)


def _checked(labels: Labels, network: RamNetwork, source: Path) -> Labels:
    expected = network.architecture.labels
    if len(labels.names) != expected:
        raise WeightsError(
            f"{source} holds {len(labels.names)} tags, the network has {expected} labels; expected as many of both. Are they "
            f"of the same model?"
        )
    return labels


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
