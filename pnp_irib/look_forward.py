"""Look Forward Once (LFO): read a better prompt off the first estimate, and estimate again with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pnp_irib.errors import InputError, check_number
from pnp_irib.prompts.base import Prompt, PromptExtractor

__all__ = ["LookForwardOnce", "LookForwardResult", "LookForwardRound"]

Project: TypeAlias = Callable[[Tensor, list[Prompt | None]], Tensor]


@dataclass(frozen=True, eq=False)
class LookForwardRound:
    """One projection of one picture.

    Attributes:
        index: 0 is the projection before any look forward.
        lq: (3, h, w), the estimate of this round, detached from the graph.
        prompt: what the estimate was made with.
        change: mean absolute difference from the estimate of the round before; ``None`` in round 0.
    """

    index: int
    lq: Tensor
    prompt: Prompt | None
    change: float | None


@dataclass(frozen=True, eq=False)
class LookForwardResult:
    """What the last round gave, and how it came about.

    Attributes:
        lq: (N, 3, h, w), the last estimate of each picture, with gradients if the projection has any.
        prompts: the prompt of each picture's last projection: the one to restore with.
        trace: for each picture all its rounds, round 0 first. It is shorter than ``rounds + 1`` where the prompt settled.
    """

    lq: Tensor
    prompts: list[Prompt | None]
    trace: tuple[tuple[LookForwardRound, ...], ...]


@dataclass(frozen=True)
class LookForwardOnce:
    r"""The loop of LFO (Kim, Kim, Ye, arXiv 2510.00728), once or any number of rounds.

    $$ c^0 = Y(x_E), \quad \hat x^0 = f(x_E; c^0), \quad c^{k+1} = Y(\hat x^k), \quad \hat x^{k+1} = f(x_E; c^{k+1}) $$

    Every estimate starts from $x_E$, never from an earlier estimate: errors do not pile up. A picture is finished when its
    prompt comes out as it was, for then its estimate would too; pictures do not influence each other, so a batch gives
    what its pictures give alone.

    Attributes:
        rounds: K, looks forward after the first projection; 0 projects once, 1 is "once".

    Raises:
        ConfigError: ``rounds`` is negative or not an integer.
    """

    rounds: int = 1

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, whole=True, zero=True)

    def run(
        self,
        elq: Tensor,
        project: Project,
        extractor: PromptExtractor,
        prompts: Sequence[str | Prompt | None] | None = None,
    ) -> LookForwardResult:
        """Project ``elq`` and look forward.

        Runs under the caller's grad mode and is differentiable through ``project``; prompts are extracted without gradients.

        Args:
            elq: x_E, (N, 3, H, W) in [0, 1].
            project: f, pictures (M, 3, H, W) and M prompts to estimates (M, 3, h, w); M <= N pictures at a time.
            extractor: Y. Where it returns ``None`` (no opinion), the picture keeps the prompt it has.
            prompts: the user's, one per picture. Where one is given it replaces Y(x_E) in round 0; later rounds use what the
                extractor reads off the estimate. ``rounds=0`` is thus the way to hold on to the user's prompt.

        Returns:
            The last estimates, their prompts and the trace of all rounds.

        Raises:
            InputError: ``prompts``, the extractor or ``project`` do not give one item per picture, or an item is no prompt.
        """
        count = len(elq)
        if isinstance(prompts, str):  # a sequence of letters, too
            raise InputError(
                f"prompts must hold one prompt per picture; got one string. Write [{prompts[:20]!r}] for one picture."
            )
        current: list[Prompt | None] = [None] * count if prompts is None else [Prompt.parse(prompt) for prompt in prompts]
        if len(current) != count:
            raise InputError(f"prompts must hold one prompt per picture; got {len(current)} for {count} pictures.")
        unprompted = [i for i, prompt in enumerate(current) if prompt is None]
        for i, prompt in zip(unprompted, _extract(extractor, _take(elq, unprompted)), strict=True):
            current[i] = prompt
        lq = _project(project, elq, current)
        trace = [[LookForwardRound(0, lq[i].detach(), current[i], None)] for i in range(count)]

        active = list(range(count))
        for index in range(1, self.rounds + 1):
            seen = _extract(extractor, _take(lq, active))
            better = {i: prompt for i, prompt in zip(active, seen, strict=True) if _is_news(prompt, current[i])}
            active = list(better)
            if not active:
                break
            for i, prompt in better.items():
                current[i] = prompt
            again = _project(project, _take(elq, active), list(better.values()))
            lq = again if len(active) == count else lq.index_copy(0, torch.tensor(active, device=lq.device), again)
            for i in active:
                change = (lq[i].detach() - trace[i][-1].lq).abs().mean().item()
                trace[i].append(LookForwardRound(index, lq[i].detach(), current[i], change))
        return LookForwardResult(lq, current, tuple(tuple(rounds) for rounds in trace))


def _is_news(prompt: Prompt | None, known: Prompt | None) -> bool:
    """Whether a projection would see a difference; embeddings count, though prompts are compared by their words elsewhere."""
    if prompt is None:
        return False
    if prompt != known or known is None:
        return True
    a, b = prompt.embedding, known.embedding
    return not (a is b or (a is not None and b is not None and torch.equal(a, b)))


def _take(pictures: Tensor, chosen: list[int]) -> Tensor:
    return pictures if len(chosen) == len(pictures) else pictures[chosen]


def _extract(extractor: PromptExtractor, pictures: Tensor) -> list[Prompt | None]:
    if len(pictures) == 0:  # an extractor is not asked about nothing: many networks reject an empty batch
        return []
    with torch.no_grad():
        said = extractor(pictures.detach().clone())  # it may work in place
    if isinstance(said, str | bytes) or not isinstance(said, Sequence):
        raise InputError(
            f"the extractor {extractor.name!r} returned a {type(said).__name__}; expected a list, one prompt each."
        )
    found = [Prompt.parse(prompt) for prompt in said]
    if len(found) != len(pictures):
        raise InputError(f"the extractor {extractor.name!r} returned {len(found)} prompts for {len(pictures)} pictures.")
    return found


def _project(project: Project, elq: Tensor, prompts: list[Prompt | None]) -> Tensor:
    lq = project(elq, list(prompts))
    if len(lq) != len(elq):
        raise InputError(f"the projection returned {len(lq)} pictures for {len(elq)}.")
    return lq
