"""What a prompt is, and what gives one."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from pnp_irib.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_CHARACTERS", "Prompt", "PromptExtractor", "Tag"]

MAX_CHARACTERS: Final = 1000
"""Longer prompt texts are cut here. Text encoders read some 77 tokens; the rest is only cost."""

_SHOWN_CHARACTERS: Final = 60
_JOINERS: Final = "\u200c\u200d"  # invisible, but part of the spelling of Persian words and of emoji


@dataclass(frozen=True, slots=True)
class Tag:
    """One thing that a picture shows.

    Attributes:
        name: cleaned like the text of a `Prompt`.
        score: how sure its finder is, in [0, 1].

    Raises:
        InputError: ``name`` is not text, or ``score`` lies outside [0, 1].
    """

    name: str
    score: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _clean(self.name))
        if not (math.isfinite(self.score) and 0 <= self.score <= 1):
            raise InputError(f"score of tag {self.name!r} must lie in [0, 1]; got {self.score}.")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prompt:
    """What is known about the content of one picture. Text is data: it is never evaluated, formatted or used as a path.

    Two prompts are equal when their texts and the names of their tags are: scores and embeddings move in the last digit and
    would keep `LookForwardOnce` from seeing that nothing changed.

    Attributes:
        text: Unicode NFC on one line: control, surrogate and invisible formatting characters are removed, white space is
            collapsed, and what exceeds `MAX_CHARACTERS` is cut.
        tags: what the text was made of, if it was made of tags.
        embedding: for projectors that read vectors instead of text; its shape is a matter between extractor and projector.

    Raises:
        InputError: ``text`` is not a string, or a tag no `Tag`.
    """

    text: str
    tags: tuple[Tag, ...] = ()
    embedding: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", _clean(self.text))
        object.__setattr__(self, "tags", tuple(self.tags))
        for tag in self.tags:
            if not isinstance(tag, Tag):
                raise InputError(f"tags are Tag objects; got {type(tag).__name__} {tag!r:.40}. Write Tag('name', score).")

    @classmethod
    def parse(cls, prompt: str | Prompt | None) -> Prompt | None:
        """A `Prompt` from what a user may give. ``None`` (no prompt) stays ``None``; an empty text is a prompt.

        Raises:
            InputError: another type came.
        """
        return prompt if prompt is None or isinstance(prompt, Prompt) else cls(prompt)

    @classmethod
    def from_tags(cls, tags: Sequence[Tag]) -> Prompt:
        """The names of the tags, joined by a comma and a space."""
        return cls(", ".join(tag.name for tag in tags), tuple(tags))

    def _key(self) -> tuple[str, tuple[str, ...]]:
        return self.text, tuple(tag.name for tag in self.tags)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Prompt) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= _SHOWN_CHARACTERS else self.text[: _SHOWN_CHARACTERS - 1] + "…"
        tags = f", {len(self.tags)} tags" if self.tags else ""
        embedding = "" if self.embedding is None else f", embedding {tuple(self.embedding.shape)}"
        return f"Prompt({text!r}{tags}{embedding})"

    def __str__(self) -> str:
        return self.text


@runtime_checkable
class PromptExtractor(Protocol):
    """Reads prompts off pictures: Y in the mathematics. Any object with these two members is one.

    A result must not depend on the other pictures of the batch, nor on chance.
    """

    @property
    def name(self) -> str:
        """For results and run directories, e.g. ``imagenet-tags``."""
        ...

    def __call__(self, pictures: Tensor, /) -> Sequence[Prompt | None]:
        """One prompt per picture; ``None`` means that the extractor has no opinion, an empty prompt that it found nothing.

        Args:
            pictures: (N, 3, H, W) in about [0, 1] (estimates may overshoot), any size. Not to be changed.
        """
        ...


def _clean(text: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"a prompt is a string or a Prompt; got {type(text).__name__}.")
    # Cut twice: normalising a long run of combining characters takes quadratic time.
    kept = (c for c in text[: 4 * MAX_CHARACTERS] if c.isspace() or c in _JOINERS or not _is_hidden(c))
    one_line = " ".join(unicodedata.normalize("NFC", "".join(kept)).split())
    return one_line[:MAX_CHARACTERS].rstrip()


def _is_hidden(character: str) -> bool:
    # Cc control, Cf formatting (text direction overrides, zero width, tag characters), Cs half a character (not encodable).
    return unicodedata.category(character) in {"Cc", "Cf", "Cs"}
