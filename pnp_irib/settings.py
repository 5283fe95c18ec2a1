"""What is saved of a wrapped restorer beside its projector."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pnp_irib import __version__
from pnp_irib.errors import ConfigError, PnPIribError, WeightsError, explain_validation
from pnp_irib.files import write_atomically
from pnp_irib.hub.mixin import written_by
from pnp_irib.prompts import load_extractor
from pnp_irib.weights import WEIGHT_OPTIONS

__all__ = ["SETTINGS_NAME", "LoadedByName", "WrapSettings", "portable_options", "saved_name"]

SETTINGS_NAME = "wrapped.json"


@dataclass(frozen=True)
class LoadedByName:
    """How a registered restorer was loaded.

    Attributes:
        name: in the registry.
        options: of its adapter.
        files: of its weights, see `known_hashes`.
    """

    name: str
    options: dict[str, Any]
    files: dict[str, str | None]


class WrapSettings(BaseModel):
    """How the restorer was wrapped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    library_version: str = __version__
    restorer: str | None = Field(default=None, description="registry name; None: an object of the user's")
    options: dict[str, Any] = Field(default={}, description="of the restorer, as far as they mean the same elsewhere")
    files: dict[str, str | None] = Field(default={}, description="of the restorer's weights, with their sha256 where known")
    lfo: int = Field(default=0, ge=0, description="rounds of Look Forward Once")
    extractor: str | None = Field(default=None, description="name of the prompt extractor")

    def write(self, folder: Path) -> None:
        """Put the file into a folder."""
        text = self.model_dump_json(indent=1) + "\n"
        write_atomically(folder / SETTINGS_NAME, lambda path: Path(path).write_text(text))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it again.

        Raises:
            WeightsError: it is missing, damaged, or of a newer version.
        """
        path = folder / SETTINGS_NAME
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise WeightsError(
                f"{folder} holds no wrapped restorer: {SETTINGS_NAME} is missing. If it is a projector: wrap(restorer, "
                f"projector='local-dir:{folder}')."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"{path} cannot be read as JSON: {error}.") from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            version = content.get("library_version") if isinstance(content, dict) else None
            raise WeightsError(f"{path} is not valid: {explain_validation(error)}{written_by(version)}") from error


def portable_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a restorer that mean the same on another machine: no paths, devices or dtypes."""

    def portable(name: str, value: Any) -> bool:
        if name in WEIGHT_OPTIONS:
            return isinstance(value, str) and value.startswith("hf-hub:")
        return name not in ("device", "dtype") and isinstance(value, str | int | float | bool | None)

    return {name: value for name, value in options.items() if portable(name, value)}


def saved_name(extractor: object) -> str | None:
    """The name that an extractor, as `wrap` was given it, is loaded by again.

    Raises:
        ConfigError: it is an object of the user's.
    """
    if extractor is None or isinstance(extractor, str):
        return extractor
    name = str(getattr(extractor, "name", type(extractor).__name__))
    with contextlib.suppress(PnPIribError):
        if type(load_extractor(name)) is type(extractor):
            return name
    raise ConfigError(
        f"the extractor {name!r} is an object of yours and cannot be saved; wrap without it, and give it again when you load."
    )
