"""Texts as CLIP reads them."""

from __future__ import annotations

import pytest

from pnp_irib.diffusion.text_cleaning import cleaned


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u00abA\u00bb  \uff21\uff22\uff11\u3000\ufb01sh\ufb02y \u0132", "\u00aba\u00bb ab1 fishfly ij"),
        ("Cafe\u0301\x00\x1b[31m red\ufeff\u201en\u201f \u2018b\u2019\r\n\u2028c", "caf\u00e9 red\"n\" 'b' c"),
        ("&lt;b&gt; &amp;amp;amp;amp;quot;x\n<i> &amp;amp;lt;y\n&amp;amp;lt;z", '<b> "x <i> &lt;y &lt;z'),
        ("\ud83d\ude00 \ud83d", "\U0001f600 \ufffd"),
        ("  \t ", ""),
    ],
)
def test_odd_characters_are_mended(text: str, expected: str) -> None:
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fish &amp;amp; chips, don\u2019t", "fish & chips, don't"),
        ("&lt;b&gt; &amp;quot;\n<i> &amp;lt; &gt;", '<b> " <i> &amp;lt; &gt;'),
    ],
)
def test_escapes_stay_where_they_may_be_meant(text: str, expected: str) -> None:
    assert cleaned(text, unescaped=False) == expected
