"""How much the tags of two pictures have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pnp_irib.prompts import ImageNetTags, Tag

__all__ = ["TOP", "agreement", "top1_found", "top_tags"]

TOP = 5  # tags that are compared, however unlikely


def top_tags(tagger: ImageNetTags, picture: Tensor) -> tuple[Tag, ...]:
    """The `TOP` likeliest tags of one picture (1, 3, H, W), likeliest first; ``tagger`` names that many."""
    return tagger(picture)[0].tags


def agreement(tags: Sequence[Tag], truth: Sequence[Tag]) -> float:
    r"""Score-weighted overlap of two lists of tags, $\sum_t \min(s_t, s'_t) / \sum_t \max(s_t, s'_t)$, in [0, 1].

    The sums run over all tags of both; a tag that a list lacks has score 0 there. 1: the same tags with the same scores. 0: no
    tag in common; two empty lists have none either.
    """
    ours, theirs = ({tag.name: tag.score for tag in found} for found in (tags, truth))
    pairs = [(ours.get(name, 0.0), theirs.get(name, 0.0)) for name in ours | theirs]
    total = sum(max(pair) for pair in pairs)
    return sum(min(pair) for pair in pairs) / total if total else 0.0


def top1_found(tags: Sequence[Tag], truth: Sequence[Tag]) -> float:
    """1 where the likeliest tag of ``truth`` is among ``tags``, else 0."""
    return float(bool(truth) and truth[0].name in {tag.name for tag in tags})
