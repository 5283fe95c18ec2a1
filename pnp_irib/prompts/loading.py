"""From what a user writes to a prompt extractor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pnp_irib.errors import ConfigError, did_you_mean
from pnp_irib.prompts.base import PromptExtractor
from pnp_irib.prompts.captions import Captions
from pnp_irib.prompts.imagenet_tags import ImageNetTags
from pnp_irib.prompts.ram import RamTags
from pnp_irib.prompts.simple import CallablePrompt, FixedPrompt, NoPrompt, Prompts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["file_of", "load_extractor"]

_FIXED = "fixed:"
_TAGGERS = ("dape", "ram")
_CAPTION = "caption"
_WITH_PATH = (*_TAGGERS, _CAPTION)
_NAMES = ("none", "imagenet-tags", f"{_FIXED}TEXT", *(f"{kind}:PATH" for kind in _WITH_PATH))


def load_extractor(spec: str | PromptExtractor | Callable[[Tensor], Prompts] | None) -> PromptExtractor:
    """The prompt extractor that ``spec`` stands for. Loads no weights.

    Args:
        spec: ``None`` or ``"none"``, ``"imagenet-tags"``, ``"fixed:TEXT"``, ``"dape:PATH"`` or ``"ram:PATH"`` (`RamTags` with
            and without DAPE; the files are at PATH), ``"caption:PATH"`` (`Captions`; PATH is the folder of a model, or
            ``hf-hub:owner/repo[@revision]``), an extractor (returned as it is), or a function as `CallablePrompt` takes it.

    Raises:
        ConfigError: the name is unknown or lacks its TEXT or PATH, or ``spec`` is neither a name nor callable.
        WeightsError: the files of ``dape:PATH`` or ``caption:PATH`` are not there.
    """
    if spec is None:
        return NoPrompt()
    if isinstance(spec, str):
        return _named(spec)
    if isinstance(spec, type):
        raise ConfigError(f"got the class {spec.__name__}, expected an extractor; write {spec.__name__}(...).")
    if isinstance(spec, PromptExtractor) and isinstance(spec.name, str):
        return spec
    if callable(spec):
        return CallablePrompt(spec)
    raise ConfigError(
        f"cannot read prompts with a {type(spec).__name__}; give one of {', '.join(_NAMES)}, a function, or an object with "
        "a name and __call__."
    )


def file_of(name: str) -> str | None:
    """The file or folder on this machine that the name of an extractor names, PATH of ``dape:PATH``; None if it names none."""
    kind, _, path = name.partition(":")
    return path if kind in _WITH_PATH and path and not path.startswith("hf-hub:") else None


def _named(name: str) -> PromptExtractor:
    if name.startswith(_FIXED):
        fixed = FixedPrompt(name.removeprefix(_FIXED))
        if not fixed.text:
            raise ConfigError("the extractor 'fixed:' has no text; write fixed:TEXT, for example 'fixed:a red fishing boat'.")
        return fixed
    kind, _, path = name.partition(":")
    if kind in _WITH_PATH:
        if not path:
            raise ConfigError(f"the extractor {name!r} has no path; write {kind}:PATH, a folder or file with the weights.")
        return Captions(path) if kind == _CAPTION else RamTags(path, lora=kind == "dape")
    if name == "none":
        return NoPrompt()
    if name == "imagenet-tags":
        return ImageNetTags()
    raise ConfigError(f"no prompt extractor named {name!r}. {did_you_mean(name, _NAMES)}Known: {', '.join(_NAMES)}.")
