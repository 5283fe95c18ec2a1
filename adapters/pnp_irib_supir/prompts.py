"""SUPIR's words of quality, and long prompts in pieces that its text encoders can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

__all__ = ["NEGATIVE", "POSITIVE", "joined", "pieces"]

POSITIVE = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic maximum "
    "detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing, hyper sharpness, perfect "
    "without deformations."
)
NEGATIVE = (
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, unreal engine, "
    "blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, lowres, "
    "over-smooth"
)
_ENDS = (".", ",", ";", ":", "!", "?")


def joined(caption: str, added: str) -> str:
    """A caption and words of quality in one text."""
    caption = caption.strip()
    if not (caption and added):
        return caption or added
    return f"{caption} {added}" if caption.endswith(_ENDS) else f"{caption}, {added}"


def pieces(caption: str, added: str, *, length: Callable[[str], int], most: int) -> list[str]:
    """The same in as few texts as hold all of it: one, or parts of the caption and then the words of quality by themselves.

    The published code cuts what is too long, and with it the words of quality.

    Args:
        caption: what is in the picture.
        added: words of quality.
        length: tokens of a text.
        most: tokens that the encoders read.
    """
    whole = joined(caption, added)
    if length(whole) <= most:
        return [whole]
    found: list[str] = []
    for text in (caption, added):
        words = [
            part  # without blanks, as in Chinese, a word may be a whole text
            for word in text.split()
            for part in ([word] if length(word) <= most else _packed(word, "", length, most))
        ]
        found.extend(_packed(words, " ", length, most))
    return found


def _packed(parts: Sequence[str], between: str, length: Callable[[str], int], most: int) -> Iterator[str]:
    """As many parts as fit, but at least one, time after time."""
    while parts:
        more = (count for count in range(1, len(parts)) if length(between.join(parts[: count + 1])) > most)
        fitting = next(more, len(parts))
        yield between.join(parts[:fitting])
        parts = parts[fitting:]
