"""What is done to a text before its words are looked up.

CLIP has ftfy mend a text first. Of what that does, all is done here but two things: a text that was decoded by the wrong
table of characters stays as it is, and so do HTML escapes in capitals.
"""

from __future__ import annotations

import html
import re
import unicodedata

__all__ = ["cleaned"]

_STRAIGHT = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)
_JOINED = re.compile("[\ufb00-\ufb06\u0132\u0133\u0149\u01f1-\u01f3\u01c4-\u01cc]")  # ligatures and digraphs of Latin letters
_WIDE = re.compile("[\uff01-\uffef\u3000]")  # letters as wide as Chinese ones, and such as are half as wide
_COLORS = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")


def cleaned(text: str, *, unescaped: bool = True) -> str:
    """A text as CLIP reads it: mended, in lower case, words parted by one blank.

    Args:
        text: any.
        unescaped: without HTML escapes, as OpenCLIP has it; False: these stay from the first line with a tag on, as with the
            CLIP of OpenAI.
    """
    # Halves of characters that were cut in two.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    lines = text.split("\n")
    # From the first line with a tag on, an escape may be meant to be there.
    tagged = next((number for number, line in enumerate(lines) if "<" in line), len(lines))
    text = "\n".join(_mended(line, escaped=number < tagged) for number, line in enumerate(lines))
    if unescaped:
        text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


def _mended(line: str, *, escaped: bool) -> str:
    """What ftfy makes of a line: all of it again until nothing changes; ``escaped``: HTML escapes too."""
    while True:
        text = _COLORS.sub("", html.unescape(line) if escaped else line)
        for pattern in (_JOINED, _WIDE):
            text = pattern.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
        text = unicodedata.normalize("NFC", _CONTROL.sub("", text.translate(_STRAIGHT)))
        if text == line:
            return text
        line = text
