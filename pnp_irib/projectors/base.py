"""What all projectors share: the call, the description, saving and loading.

A saved projector is a folder: ``config.json`` (format, architecture, provenance, hash of the weights), ``model.safetensors``
and a model card ``README.md``. Loading is strict.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from pnp_irib.errors import ConfigError, InputError, WeightsError, explain_validation
from pnp_irib.files import write_atomically
from pnp_irib.hub.card import Measured
from pnp_irib.hub.mixin import HubMixin, written_by
from pnp_irib.hub.origin import Origin, SourceFile
from pnp_irib.images.resize import resize
from pnp_irib.profile import DegradationProfile
from pnp_irib.projectors.card import projector_card
from pnp_irib.prompts import Prompt
from pnp_irib.weights import load_strictly

__all__ = [
    "CONFIG_NAME",
    "FORMAT",
    "WEIGHTS_NAME",
    "Architecture",
    "Projector",
    "ProjectorFolder",
    "Provenance",
    "read_folder",
]

FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
SETTINGS_NAME = "wrapped.json"  # of a wrapped restorer, beside its projector
DTYPES = ("float32", "float16", "bfloat16", "float64")


class Architecture(BaseModel):
    """Sizes of a projector; ``kind`` names its class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str

    @property
    def base_models(self) -> tuple[str, ...]:
        """Repositories on the Hub that such a projector builds on."""
        return ()


class Provenance(BaseModel):
    """Where a projector comes from and what it is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(default=None, description="name of the projector")
    lq_profile: DegradationProfile | None = Field(default=None, description="range it maps onto")
    elq_profiles: tuple[DegradationProfile, ...] = Field(default=(), description="ranges it was trained to take")
    restorer: str | None = Field(default=None, description="registry name of the restorer it was trained with")
    surrogate: str | None = Field(default=None, description="restorer that stood in for it in the HQ losses")
    training_data: str | None = None
    steps: int = Field(default=0, ge=0, description="training steps")
    commit: str | None = Field(default=None, description="revision of the code that trained it")
    licence: str | None = None
    notes: tuple[str, ...] = Field(default=(), description="what was done to the weights after training")
    files: tuple[SourceFile, ...] = Field(default=(), description="files it came from (training config, data list, restorer)")
    origin: Origin | None = Field(default=None, description="where on the Hub it was loaded from before it was saved")
    measured: tuple[Measured, ...] = Field(default=(), description="by pnp-irib bench")


class Projector(HubMixin, nn.Module, ABC):
    """A network that maps ELQ pictures onto the LQ pictures a restorer knows."""

    config_class: ClassVar[type[Architecture]]
    architecture: Architecture
    _files = (CONFIG_NAME, WEIGHTS_NAME)
    _others = (SETTINGS_NAME,)

    def __init__(self) -> None:
        super().__init__()
        self.provenance = Provenance()
        self.origin: Origin | None = None  # where it was loaded from

    @classmethod
    def build(cls, architecture: Architecture, base: Any = None) -> Self:
        """A new projector.

        Args:
            architecture: its sizes.
            base: a model that a restorer lends; kinds that need one may share it instead of loading their own.
        """
        return cls(architecture)  # type: ignore[call-arg]

    @property
    def enlargement(self) -> int:
        """Size of its pictures over that of the input; 1: it works on the LQ grid."""
        return 1

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Where it was loaded from, if it was, and then what else it uses."""
        return () if self.origin is None else (self.origin,)

    @abstractmethod
    def forward(self, elq: Tensor, prompts: Sequence[Prompt | None] | None = None) -> Tensor:
        """The projection itself; see `project`."""

    def project_with_severity(
        self, elq: Tensor, prompts: Sequence[Prompt | None] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The projection, and the logit of the severity (N,) of kinds that estimate one; for training."""
        return self(elq, prompts), None

    def project(self, elq: Tensor, *, prompts: Sequence[Prompt | None] | None = None, strength: float = 1.0) -> Tensor:
        """Map ELQ pictures onto LQ pictures, under the caller's grad mode.

        Args:
            elq: (N, 3, H, W) in [0, 1].
            prompts: one a picture, or None.
            strength: blend between the input (0) and the projection (1).

        Returns:
            (N, 3, e * H, e * W) with ``e = enlargement``, about [0, 1], not clamped. At strength 0 it is ``elq``, enlarged.

        Raises:
            InputError: ``strength`` is outside [0, 1], or the prompts do not match the pictures.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"strength={strength} is outside [0, 1]; 0 is the restorer alone, 1 the full projection.")
        if prompts is not None and len(prompts) != elq.shape[0]:
            raise InputError(f"{len(prompts)} prompts for {elq.shape[0]} pictures; give one each, None for no prompt.")
        size = (elq.shape[-2] * self.enlargement, elq.shape[-1] * self.enlargement)
        if strength == 0:
            return resize(elq, size)
        texts = None if prompts is None else [Prompt.parse(prompt) for prompt in prompts]
        projected: Tensor = self(elq.to(next(self.parameters()).dtype), texts).to(elq.dtype)
        return projected if strength == 1 else torch.lerp(resize(elq, size), projected, strength)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def _write(self, folder: Path, card: str | None) -> None:
        from safetensors.torch import save

        from pnp_irib import __version__

        dtypes = {str(value.dtype).removeprefix("torch.") for value in self.state_dict().values()}
        if len(dtypes) > 1:
            raise WeightsError(
                f"the weights are of several dtypes, {', '.join(sorted(dtypes))}. Call .to(torch.float32) first."
            )
        if wrong := [key for key, value in self.state_dict().items() if not value.isfinite().all()]:
            raise WeightsError(f"the weights {wrong[0]} are not finite, so the projector is not written to {folder}.")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; a projector is a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        provenance = self.provenance
        if self.origin is not None and self.origin.commit is not None:
            provenance = provenance.model_copy(update={"origin": self.origin})
        content = save({key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}, {"format": "pt"})
        config = {
            "format": FORMAT,
            "library_version": __version__,
            "architecture": self.architecture.model_dump(mode="json"),
            "provenance": provenance.model_dump(mode="json"),
            "weights": {
                "file": WEIGHTS_NAME,
                "sha256": hashlib.sha256(content).hexdigest(),
                "dtype": str(next(self.parameters()).dtype).removeprefix("torch."),
            },
        }
        write_atomically(folder / WEIGHTS_NAME, lambda path: Path(path).write_bytes(content))
        text = card if card is not None else self.card()
        write_atomically(folder / CARD_NAME, lambda path: Path(path).write_text(text))
        write_atomically(folder / CONFIG_NAME, lambda path: Path(path).write_text(json.dumps(config, indent=1) + "\n"))

    @classmethod
    def _from_folder(cls, folder: Path, origin: Origin | None, *, base: Any = None) -> Self:  # type: ignore[override]
        found = read_folder(folder)
        if not issubclass(found.cls, cls):
            raise WeightsError(f"{folder} holds a projector of the kind {found.architecture.kind!r}, not a {cls.__name__}.")
        with torch.random.fork_rng(devices=[]):  # initial values are drawn, though they are replaced at once
            projector = found.cls.build(found.architecture, base)
        load_strictly(projector, found.tensors, source=os.fspath(folder / WEIGHTS_NAME))
        projector.provenance = found.provenance
        weights = SourceFile(name=WEIGHTS_NAME, sha256=found.sha256)
        projector.origin = origin or Origin(place=f"local-dir:{folder}", files=(weights,))
        return projector.eval()

    def card(self) -> str:
        """A model card."""
        return projector_card(self.architecture, self.provenance, self.parameter_count)


@dataclass(frozen=True)
class ProjectorFolder:
    """What a projector's folder holds, checked as far as that goes without building it.

    Attributes:
        cls: class of the projector.
        architecture: its sizes.
        provenance: where it comes from.
        tensors: its weights.
        sha256: of their file.
    """

    cls: type[Projector]
    architecture: Architecture
    provenance: Provenance
    tensors: dict[str, Tensor]
    sha256: str

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(value.numel() for value in self.tensors.values())


def read_folder(folder: Path) -> ProjectorFolder:
    """Read a projector's folder.

    Raises:
        WeightsError: a file is missing, truncated, of another hash, dtype or format.
    """
    config = _read_config(folder)
    kind = config["architecture"].get("kind") if isinstance(config["architecture"], dict) else None
    chosen = _class_of_kind(kind, folder, config["library_version"])
    try:
        architecture = chosen.config_class.model_validate(config["architecture"])
        provenance = Provenance.model_validate(config["provenance"])
    except ValidationError as error:
        raise WeightsError(
            f"{folder / CONFIG_NAME} is not valid: {explain_validation(error)}{written_by(config['library_version'])}"
        ) from error
    tensors, sha256 = _read_weights(folder, config["weights"])
    return ProjectorFolder(chosen, architecture, provenance, tensors, sha256)


def _class_of_kind(kind: object, folder: Path, version: object) -> type[Projector]:
    from pnp_irib.projectors import latent, pixel  # noqa: F401 - define the subclasses that are always there

    known = {cls.config_class.model_fields["kind"].default: cls for cls in _subclasses(Projector)}  # type: ignore[type-abstract]
    if not isinstance(kind, str) or kind not in known:
        raise WeightsError(
            f"{folder / CONFIG_NAME}: projector kind {kind!r:.40} is unknown; known: {', '.join(known)}{written_by(version)}"
        )
    return known[kind]


def _subclasses(cls: type[Projector]) -> list[type[Projector]]:
    """All projectors that can be built; those of other packages are known once they are imported."""
    own = [cls] if "config_class" in vars(cls) else []
    return own + [sub for direct in cls.__subclasses__() for sub in _subclasses(direct)]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{folder} is not a projector folder: {CONFIG_NAME} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}.") from error
    expected = {"format", "library_version", "architecture", "provenance", "weights"}
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds a {type(config).__name__}, expected an object.")
    found = config.get("format")
    if type(found) is not int or found < 1:
        raise WeightsError(f"{path} has the format {found!r:.40}; expected a number from 1 to {FORMAT}. Is it a projector?")
    if found > FORMAT:
        raise WeightsError(
            f"{path} has the format {found}, this library reads up to {FORMAT} "
            f"(written by version {config.get('library_version')!s:.40}). Run: pip install -U pnp-irib"
        )
    if config.keys() != expected:
        missing, extra = sorted(expected - config.keys()), sorted(config.keys() - expected)
        raise WeightsError(
            f"{path}: missing keys {missing}, unknown keys {extra!s:.200}; expected {sorted(expected)}"
            f"{written_by(config.get('library_version'))}"
        )
    return config


def _read_weights(folder: Path, facts: object) -> tuple[dict[str, Tensor], str]:
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
    wrong = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()} - {facts["dtype"]})
    if wrong:
        raise WeightsError(f"{path} holds tensors of {', '.join(wrong)}, {CONFIG_NAME} says {facts['dtype']}.")
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{path}: {key} holds values that are not finite. Its training went wrong; use another checkpoint."
            )
    return tensors, found
