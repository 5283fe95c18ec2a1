"""What is saved of a wrapped restorer beside its projector."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pnp_irib import __version__
from pnp_irib.errors import ConfigError, PnPIribError, WeightsError, explain_validation
from pnp_irib.files import write_atomically
from pnp_irib.hub import Origin
from pnp_irib.hub.mixin import written_by
from pnp_irib.projectors.base import SETTINGS_NAME
from pnp_irib.prompts.loading import file_of, load_extractor
from pnp_irib.registry import find_spec
from pnp_irib.weights import LARGE, WEIGHT_OPTIONS, origin_of, weight_files

__all__ = ["SETTINGS_NAME", "LoadedByName", "WrapSettings", "settings_of"]


RESERVED = ("restorer", "projector", "lfo", "extractor", "scale", "multiple_of", "min_size", "lq_profile")  # of `wrap`


@dataclass(frozen=True)
class LoadedByName:
    """How a registered restorer was loaded.

    Attributes:
        name: in the registry.
        options: of its adapter.
    """

    name: str
    options: dict[str, Any]

    def origins(self) -> list[Origin]:
        """What it was loaded from, as far as the options and the spec tell; for restorers that do not say it themselves."""
        files = weight_files(find_spec(self.name), self.options)
        return [origin_of(path) for path in files if path.stat().st_size < LARGE]


class WrapSettings(BaseModel):
    """How the restorer was wrapped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    library_version: str = __version__
    restorer: str | None = Field(default=None, description="registry name; None: an object of the user's")
    options: dict[str, str | int | float | bool | None] = Field(default={}, description="of it that mean the same elsewhere")
    needs: dict[str, str] = Field(default={}, description="options that named a file or folder of the author's machine")
    files: dict[str, str] = Field(default={}, description="of the restorer's weights: name and sha256")
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
            WeightsError: it is missing, damaged, of a newer version, or names files of another machine.
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
            settings = cls.model_validate(content)
        except ValidationError as error:
            version = content.get("library_version") if isinstance(content, dict) else None
            raise WeightsError(f"{path} is not valid: {explain_validation(error)}{written_by(version)}") from error
        if settings.extractor is not None and file_of(settings.extractor) is not None:
            raise WeightsError(
                f"{path} holds the extractor {settings.extractor!r:.60}, which cannot come from a saved folder."
            )
        return settings

    def options_of_restorer(self, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options to load the restorer with again; ``given`` are the user's.

        Raises:
            ConfigError: it was an object of the user's, or a file of the author's machine must be given.
            WeightsError: the file holds options that no restorer has.
        """
        if self.restorer is None:
            raise ConfigError(f"{folder} was saved with a restorer object of its user's. Give it: restorer=my_model")
        local = [name for name, value in self.options.items() if name in WEIGHT_OPTIONS and not _is_name(value)]
        if wrong := [*local, *(name for name in self.options if name in RESERVED)]:
            path = folder / SETTINGS_NAME
            raise WeightsError(f"{path} holds the option {wrong[0]!r}, which cannot come from a saved folder.")
        if missing := [name for name in self.needs if name not in given]:
            name, file = missing[0], self.needs[missing[0]]
            raise ConfigError(
                f"{folder} was saved with {name}={file!r} of its author's machine (sha256 "
                f"{self.files.get(file, 'not known')}). Give it: {name}=PATH"
            )
        return dict(self.options)

    def compare(self, origins: Sequence[Origin], folder: Path) -> None:
        """Compare the files that the restorer was loaded from with those that it was saved with.

        Raises:
            WeightsError: one is another.
        """
        for origin in origins:
            for file in origin.files:
                if self.files.get(file.name, file.sha256) != file.sha256:
                    raise WeightsError(
                        f"{origin}: {file.name} has the sha256 {file.sha256}; {folder} was saved with "
                        f"{self.files[file.name]}. To use it all the same, load it yourself: restorer=load_restorer(...)"
                    )


def settings_of(loaded: LoadedByName | None, origins: Sequence[Origin], lfo: int, extractor: object) -> WrapSettings:
    """What is saved of a wrapped restorer.

    Args:
        loaded: how the restorer was loaded; None: it is an object of the user's.
        origins: what it was loaded from.
        lfo: rounds of Look Forward Once.
        extractor: as `wrap` was given it.

    Raises:
        ConfigError: the extractor cannot be saved.
    """
    named = saved_name(extractor)
    if loaded is None:
        return WrapSettings(lfo=lfo, extractor=named)
    options: dict[str, Any] = {}
    needs: dict[str, str] = {}
    for name, value in loaded.options.items():
        if name in ("device", "dtype"):
            continue
        if name in WEIGHT_OPTIONS and value is not None:
            text = str(value)
            if isinstance(value, str) and _is_name(value):
                options[name] = _pinned(value, origins)
            else:
                needs[name] = Path(text).name if isinstance(value, str | Path) else type(value).__name__
        elif isinstance(value, str | int | float | bool | None):
            options[name] = value
        else:
            raise ConfigError(f"the option {name}={value!r:.60} of {loaded.name} cannot be saved; wrap without it.")
    files = {file.name: file.sha256 for origin in origins for file in origin.files}
    return WrapSettings(restorer=loaded.name, options=options, needs=needs, files=files, lfo=lfo, extractor=named)


def _is_name(value: object) -> bool:
    """Whether it is a place on the Hub or a name that an adapter knows, not a file or folder of this machine."""
    if not isinstance(value, str):
        return value is None
    return value.startswith("hf-hub:") or not ("/" in value or "\\" in value or ":" in value or Path(value).exists())


def _pinned(place: str, origins: Sequence[Origin]) -> str:
    """A place on the Hub with the commit that it stood for."""
    address = place.partition("@")[0]
    for origin in origins:
        if origin.commit is not None and (address + "/").startswith(origin.place.partition("@")[0] + "/"):
            return f"{address}@{origin.commit}"
    return place


def saved_name(extractor: object) -> str | None:
    """The name that an extractor, as `wrap` was given it, is loaded by again.

    Raises:
        ConfigError: it is an object of the user's.
    """
    if extractor is None:
        return None
    name = extractor if isinstance(extractor, str) else str(getattr(extractor, "name", type(extractor).__name__))
    if file_of(name) is not None:
        raise ConfigError(
            f"the extractor {name!r} names a file of this machine and cannot be saved; wrap without it, and give it "
            f"again when you load."
        )
    if isinstance(extractor, str):
        return extractor
    with contextlib.suppress(PnPIribError):
        if (again := load_extractor(name)) == extractor or (type(again) is type(extractor) and vars(again) == vars(extractor)):
            return name
    raise ConfigError(
        f"the extractor {name!r} is an object of yours and cannot be saved; wrap without it, and give it again when you load."
    )
