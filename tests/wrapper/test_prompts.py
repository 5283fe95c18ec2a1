from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnp_irib.look_forward import LookForwardOnce
from pnp_irib.projectors import PixelProjector
from pnp_irib.prompts import Prompt
from pnp_irib.wrapper import wrap
from tests.wrapper.models import Stated, counting, draw


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_traces(projector: PixelProjector, rounds: int) -> None:
    restorer = Stated(prompts="optional")
    robust = wrap(restorer, projector=projector, extractor=counting(), lfo=rounds)
    elq = draw(12, 12)
    result = robust(elq)
    assert [r.index for r in result.trace] == list(range(rounds + 1))
    assert [str(r.prompt) for r in result.trace] == [f"word{i}" for i in range(rounds + 1)]
    assert result.used.lfo == rounds
    assert result.prompt == Prompt(f"word{rounds}")
    assert restorer.prompts[-1] == [result.prompt]  # the restorer gets the last prompt too
    # Each round projects the input itself, with its own prompt.
    for r in result.trace:
        with torch.inference_mode():
            assert torch.equal(r.lq, projector.project(elq, prompts=[r.prompt])[0].clamp(0, 1))
    assert all((r.change or 0) > 0 for r in result.trace[1:])
    assert torch.equal(result.lq[0], result.trace[-1].lq)
    assert robust(elq, lfo=0).used.lfo == 0


def test_the_users_prompt_is_used(projector: PixelProjector) -> None:
    robust = wrap(Stated(), projector=projector)
    elq = draw(12, 12)
    with_prompt, without = robust(elq, prompt="boat"), robust(elq)
    assert not torch.equal(with_prompt.lq, without.lq)
    assert str(with_prompt.prompt) == "boat"
    assert without.prompt is None
    assert robust.spec.prompts == "optional"
    assert wrap(Stated(), projector=None).spec.prompts == "none"


def test_no_projector_means_no_look_forward() -> None:
    asked: list[int] = []

    def caption(pictures: Tensor) -> list[str]:
        asked.append(1)
        return ["x"]

    result = wrap(Stated(), projector=None, extractor=caption)(draw(5, 5), lfo=2)
    assert result.trace == ()
    assert not asked


def test_rounds_may_be_stated_as_an_object(projector: PixelProjector) -> None:
    robust = wrap(Stated(), projector=projector, extractor=counting(), lfo=LookForwardOnce(1))
    assert robust(draw(6, 6)).used.lfo == 1
    assert robust(draw(6, 6), lfo=LookForwardOnce(2)).used.lfo == 2
    assert robust(draw(6, 6), lfo=2, strength=0).used.lfo == 0


def test_without_projector_the_restorer_still_gets_the_prompt_read_off() -> None:
    restorer = Stated(prompts="required")
    result = wrap(restorer, projector=None, extractor=counting())(draw(6, 6))
    assert str(result.prompt) == "word0"
    assert restorer.prompts[-1] == [result.prompt]
