from __future__ import annotations

import copy
import pickle
import time
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pnp_irib.errors import InputError
from pnp_irib.prompts import MAX_CHARACTERS, Prompt, Tag


def test_parse() -> None:
    prompt = Prompt("a dog")
    assert Prompt.parse(prompt) is prompt
    assert Prompt.parse("a dog") == prompt
    assert Prompt.parse(None) is None
    assert Prompt.parse("") == Prompt("")
    for wrong in (7, b"dog", ["dog"]):
        with pytest.raises(InputError, match=type(wrong).__name__):
            Prompt.parse(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hostile", "clean"),
    [
        ("two\nlines\tand\r\nmore", "two lines and more"),
        ("  wide \u3000 space  ", "wide space"),
        ("null\x00 bell\x07 escape\x1b[31m", "null bell escape[31m"),
        ("left\u202eright\u2066", "leftright"),  # text direction overrides
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("tag\U000e0041\U000e0042s", "tags"),  # invisible letters that a model may still read
        ("half\ud800", "half"),
        ("cafe\u0301", "caf\u00e9"),
        ("c\u200baf e\u200b\u0301", "caf \u00e9"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # spelt with a zero width non-joiner
        ("a \u200b b", "a b"),
        (
            "{0.__class__} %s $(reboot) ${HOME} ../../etc <|endoftext|>",
            "{0.__class__} %s $(reboot) ${HOME} ../../etc <|endoftext|>",
        ),
    ],
)
def test_text_is_cleaned(hostile: str, clean: str) -> None:
    assert Prompt(hostile).text == clean
    assert Tag(hostile).name == clean


@given(st.text(st.characters()))
def test_clean_text_stays_as_it_is_and_can_be_encoded(text: str) -> None:
    clean = Prompt(text).text
    clean.encode("utf-8")
    assert Prompt(clean).text == clean
    assert len(clean) <= MAX_CHARACTERS
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} for c in clean)


def test_long_text_is_cut() -> None:
    assert Prompt("x" * (MAX_CHARACTERS + 1)).text == "x" * MAX_CHARACTERS
    words = Prompt("word " * MAX_CHARACTERS).text
    assert len(words) <= MAX_CHARACTERS
    assert words == words.strip()


def test_huge_text_is_cheap() -> None:
    start = time.perf_counter()
    Prompt("a" + "\u0301\u0316" * 100_000)  # sorting these marks takes quadratic time
    assert time.perf_counter() - start < 1


def test_equality_ignores_scores_and_embeddings() -> None:
    a = Prompt("dog, cat", (Tag("dog", 0.7), Tag("cat", 0.2)), torch.zeros(3))
    b = Prompt("dog, cat", (Tag("dog", 0.6), Tag("cat", 0.3)), torch.ones(3))
    assert a == b
    assert hash(a) == hash(b)
    assert a != Prompt("dog, cat")
    assert a != Prompt("cat, dog", (Tag("cat"), Tag("dog")))
    assert a != "dog, cat"


def test_from_tags() -> None:
    prompt = Prompt.from_tags([Tag("tabby", 0.5), Tag("tiger cat", 0.25)])
    assert prompt.text == str(prompt) == "tabby, tiger cat"
    assert [tag.score for tag in prompt.tags] == [0.5, 0.25]
    assert Prompt.from_tags([]) == Prompt("")


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf")])
def test_scores_are_probabilities(score: float) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        Tag("dog", score)


def test_is_frozen_and_travels() -> None:
    prompt = Prompt("dog", (Tag("dog"),), torch.zeros(3))
    with pytest.raises(AttributeError):
        prompt.text = "cat"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(prompt)) == copy.deepcopy(prompt) == prompt


def test_repr_is_short() -> None:
    assert repr(Prompt("a dog")) == "Prompt('a dog')"
    long = repr(Prompt("x" * 900, (Tag("dog"),), torch.zeros(77, 1024)))
    assert len(long) < 120
    assert "1 tags, embedding (77, 1024)" in long
