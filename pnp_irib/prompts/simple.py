"""Prompt extractors that need no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pnp_irib.errors import InputError
from pnp_irib.prompts.base import Prompt

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CallablePrompt", "FixedPrompt", "NoPrompt"]

Prompts: TypeAlias = str | Prompt | Sequence[str | Prompt | None] | None


@dataclass(frozen=True)
class NoPrompt:
    """Has no opinion about any picture."""

    @property
    def name(self) -> str:
        """``none``."""
        return "none"

    def __call__(self, pictures: Tensor, /) -> list[Prompt | None]:
        """``None`` for each of the N pictures (N, 3, H, W)."""
        return [None] * len(pictures)


@dataclass(frozen=True)
class FixedPrompt:
    """Says the same about every picture.

    Raises:
        InputError: ``text`` is not a string.
    """

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", Prompt(self.text).text)

    @property
    def name(self) -> str:
        """``fixed``."""
        return "fixed"

    def __call__(self, pictures: Tensor, /) -> list[Prompt]:
        """The prompt, once for each of the N pictures (N, 3, H, W)."""
        return [Prompt(self.text)] * len(pictures)


@dataclass(frozen=True)
class CallablePrompt:
    """Asks a function of the user.

    Attributes:
        function: takes pictures (N, 3, H, W) in about [0, 1]; returns one prompt (text, `Prompt` or ``None``) that holds for
            all N, or a sequence of N. For a result that does not depend on batching, it must look at each picture by itself.
    """

    function: Callable[[Tensor], Prompts]

    @property
    def name(self) -> str:
        """``callable``."""
        return "callable"

    def __call__(self, pictures: Tensor, /) -> list[Prompt | None]:
        """What the function says about each of the N pictures (N, 3, H, W).

        Raises:
            InputError: the function returned another number of prompts, or something that is not a prompt.
        """
        said = self.function(pictures)
        if said is None or isinstance(said, (str, Prompt)):
            return [Prompt.parse(said)] * len(pictures)
        if not isinstance(said, Sequence):
            raise InputError(f"the prompt function returned a {type(said).__name__}; expected text, a Prompt, None or a list.")
        if len(said) != len(pictures):
            raise InputError(f"the prompt function returned {len(said)} prompts for {len(pictures)} pictures.")
        return [Prompt.parse(one) for one in said]
