"""What all projectors share: the call, the description, saving and loading.

A saved projector is a folder: ``config.json`` (format, architecture, provenance, hash of the weights), ``model.safetensors``
and a model card ``README.md``. Loading is strict.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from pnp_irib.errors import InputError, WeightsError, explain_validation
from pnp_irib.hub.card import Measured
from pnp_irib.hub.folder import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, read_config, read_weights, write_folder
from pnp_irib.hub.mixin import HubMixin, written_by
from pnp_irib.hub.origin import Origin, SourceFile
from pnp_irib.images.resize import resize
from pnp_irib.profile import DegradationProfile
from pnp_irib.projectors.card import projector_card
from pnp_irib.prompts import Prompt
from pnp_irib.weights import load_strictly

__all__ = [
    "CARD_NAME",
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
SETTINGS_NAME = "wrapped.json"  # of a wrapped restorer, beside its projector


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
        provenance = self.provenance
        if self.origin is not None and self.origin.commit is not None:
            provenance = provenance.model_copy(update={"origin": self.origin})
        facts = {
            "architecture": self.architecture.model_dump(mode="json"),
            "provenance": provenance.model_dump(mode="json"),
        }
        text = card if card is not None else self.card()
        write_folder(folder, self.state_dict(), facts, text, what="projector", version=FORMAT)

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
    config = read_config(folder, what="projector", version=FORMAT)
    kind = config["architecture"].get("kind") if isinstance(config["architecture"], dict) else None
    chosen = _class_of_kind(kind, folder, config["library_version"])
    try:
        architecture = chosen.config_class.model_validate(config["architecture"])
        provenance = Provenance.model_validate(config["provenance"])
    except ValidationError as error:
        raise WeightsError(
            f"{folder / CONFIG_NAME} is not valid: {explain_validation(error)}{written_by(config['library_version'])}"
        ) from error
    tensors, sha256 = read_weights(folder, config["weights"])
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
