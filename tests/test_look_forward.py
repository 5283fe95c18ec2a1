from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnp_irib.errors import ConfigError, InputError
from pnp_irib.look_forward import LookForwardOnce
from pnp_irib.prompts import CallablePrompt, FixedPrompt, ImageNetTags, NoPrompt, Prompt

Prompts = list[Prompt | None]


class Brighten:
    """f(x; c) = gain * x + length of c / 100; keeps what it was called with."""

    def __init__(self) -> None:
        self.gain = torch.tensor(0.5, requires_grad=True)
        self.calls: list[tuple[Tensor, Prompts]] = []

    def __call__(self, elq: Tensor, prompts: Prompts) -> Tensor:
        self.calls.append((elq, prompts))
        shift = [0.0 if prompt is None else len(prompt.text) / 100 for prompt in prompts]
        return self.gain * elq + elq.new_tensor(shift)[:, None, None, None]


def brightness(pictures: Tensor) -> list[str]:
    """Y: as many letters as the mean has hundredths; each estimate reads differently from the one before for a while."""
    return ["x" * round(100 * mean) for mean in pictures.mean(dim=(1, 2, 3)).tolist()]


Y = CallablePrompt(brightness)


@pytest.fixture
def elq() -> Tensor:
    return torch.stack([torch.full((3, 4, 4), level) for level in (0.2, 0.4, 0.0)])


def texts(prompts: Prompts) -> list[str | None]:
    return [None if prompt is None else prompt.text for prompt in prompts]


def test_zero_rounds_project_once_with_the_prompt_of_the_elq(elq: Tensor) -> None:
    f = Brighten()
    result = LookForwardOnce(rounds=0).run(elq, f, Y)
    assert len(f.calls) == 1
    assert texts(result.prompts) == ["x" * 20, "x" * 40, ""]
    torch.testing.assert_close(result.lq.mean((1, 2, 3)), torch.tensor([0.1 + 0.2, 0.2 + 0.4, 0.0]))
    assert [len(rounds) for rounds in result.trace] == [1, 1, 1]
    assert result.trace[0][0].change is None


@pytest.mark.parametrize("rounds", [1, 2])
def test_every_round_starts_from_the_elq(elq: Tensor, rounds: int) -> None:
    f = Brighten()
    result = LookForwardOnce(rounds).run(elq[:2], f, Y)
    assert len(f.calls) == rounds + 1
    for seen, _ in f.calls:
        assert torch.equal(seen, elq[:2])
    # By hand: level -> gain * level + letters / 100, letters = 100 * estimate of the round before.
    expected = [[0.3, 0.4, 0.5][rounds], [0.6, 0.8, 1.0][rounds]]
    torch.testing.assert_close(result.lq.mean((1, 2, 3)), torch.tensor(expected))


def test_trace_tells_every_round(elq: Tensor) -> None:
    result = LookForwardOnce(2).run(elq, Brighten(), Y)
    first = result.trace[0]
    assert [r.index for r in first] == [0, 1, 2]
    assert texts([r.prompt for r in first]) == ["x" * 20, "x" * 30, "x" * 40]
    assert first[0].change is None
    assert [r.change for r in first[1:]] == pytest.approx([0.1, 0.1])
    for picture, rounds in enumerate(result.trace):
        assert torch.equal(rounds[-1].lq, result.lq[picture])
        assert rounds[-1].prompt == result.prompts[picture]
        assert not rounds[-1].lq.requires_grad
    torch.testing.assert_close(first[0].lq.mean(), torch.tensor(0.3))  # not overwritten by later rounds


def test_pictures_whose_prompt_settles_are_left_alone(elq: Tensor) -> None:
    f = Brighten()
    result = LookForwardOnce(3).run(elq, f, Y)
    # The black picture reads "" for ever: after round 0 only the two others are projected.
    assert [len(prompts) for _, prompts in f.calls] == [3, 2, 2, 2]
    assert [len(rounds) for rounds in result.trace] == [4, 4, 1]
    assert torch.equal(result.lq[2], torch.zeros(3, 4, 4))


def test_stops_when_no_prompt_changes(elq: Tensor) -> None:
    f = Brighten()
    reads: list[int] = []

    def boat(pictures: Tensor) -> str:
        reads.append(len(pictures))
        return "boat"

    result = LookForwardOnce(100).run(elq, f, CallablePrompt(boat), prompts=["sea", "boat", None])
    assert [len(prompts) for _, prompts in f.calls] == [3, 1]
    assert reads == [1, 3, 1]  # round 0 for the unprompted picture, round 1 for all, round 2 for the one that changed
    assert texts(result.prompts) == ["boat", "boat", "boat"]


def test_a_new_score_is_no_new_prompt(elq: Tensor) -> None:
    f = Brighten()
    LookForwardOnce(5).run(elq, f, FixedPrompt("boat"))
    assert len(f.calls) == 1


def test_users_prompt_rules_round_zero_only(elq: Tensor) -> None:
    asked: list[Tensor] = []

    def caption(pictures: Tensor) -> list[str]:
        asked.append(pictures)
        return brightness(pictures)

    result = LookForwardOnce(1).run(elq[:1], Brighten(), CallablePrompt(caption), prompts=["u" * 50])
    assert texts([r.prompt for r in result.trace[0]]) == ["u" * 50, "x" * 60]
    assert len(asked) == 1  # the ELQ picture itself was not read
    torch.testing.assert_close(asked[0].mean(), torch.tensor(0.6))


def test_no_opinion_keeps_the_users_prompt(elq: Tensor) -> None:
    f = Brighten()
    result = LookForwardOnce(2).run(elq, f, NoPrompt(), prompts=["boat", None, Prompt("")])
    assert len(f.calls) == 1
    assert texts(result.prompts) == ["boat", None, ""]


def test_batch_gives_what_its_pictures_give_alone(elq: Tensor) -> None:
    users = ["a", None, "b" * 7]
    together = LookForwardOnce(3).run(elq, Brighten(), Y, prompts=users)
    for i, user in enumerate(users):
        alone = LookForwardOnce(3).run(elq[i : i + 1], Brighten(), Y, prompts=[user])
        assert torch.equal(alone.lq[0], together.lq[i])
        assert [(r.prompt, r.change) for r in alone.trace[0]] == [(r.prompt, r.change) for r in together.trace[i]]


def test_gradients_flow_through_the_projection_only(elq: Tensor) -> None:
    f = Brighten()
    modes: list[tuple[bool, bool]] = []

    def caption(pictures: Tensor) -> list[str]:
        modes.append((torch.is_grad_enabled(), pictures.requires_grad))
        return brightness(pictures)

    elq.requires_grad_()
    result = LookForwardOnce(2).run(elq, f, CallablePrompt(caption))
    assert modes == [(False, False)] * 3
    result.lq.sum().backward()
    # d lq / d gain = x of the last projection of each picture, the settled one included.
    torch.testing.assert_close(f.gain.grad, elq.detach().sum())
    assert elq.grad is not None
    torch.testing.assert_close(elq.grad, torch.full_like(elq, 0.5))


def test_follows_the_callers_grad_mode(elq: Tensor) -> None:
    with torch.inference_mode():
        assert LookForwardOnce(2).run(elq, Brighten(), Y).lq.is_inference()
    with torch.no_grad():
        assert not LookForwardOnce(1).run(elq, Brighten(), Y).lq.requires_grad


def test_input_is_left_alone_and_other_sizes_may_come_back(elq: Tensor) -> None:
    before = elq.clone()

    def enlarge(pictures: Tensor, prompts: Prompts) -> Tensor:
        return Brighten()(pictures, prompts).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)

    result = LookForwardOnce(1).run(elq, enlarge, Y)
    assert result.lq.shape == (3, 3, 16, 16)
    assert torch.equal(elq, before)


def test_a_projection_may_change_the_list_it_gets(elq: Tensor) -> None:
    def forgetful(pictures: Tensor, prompts: Prompts) -> Tensor:
        lq = Brighten()(pictures, prompts)
        prompts.clear()
        return lq

    assert texts(LookForwardOnce(1).run(elq[:1], forgetful, Y).prompts) == ["x" * 30]


def test_real_tags(elq: Tensor) -> None:
    pictures = torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(0))
    result = LookForwardOnce(1).run(pictures, Brighten(), ImageNetTags(top_k=1, min_score=0))
    assert all(prompt is not None and len(prompt.tags) == 1 for prompt in result.prompts)


def test_empty_batch() -> None:
    result = LookForwardOnce(1).run(torch.zeros(0, 3, 4, 4), Brighten(), Y)
    assert result.lq.shape == (0, 3, 4, 4)
    assert result.trace == ()


@pytest.mark.parametrize("rounds", [-1, 1.0, True, "1"])
def test_refuses_wrong_rounds(rounds: int) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        LookForwardOnce(rounds)


def test_refuses_wrong_counts(elq: Tensor) -> None:
    with pytest.raises(InputError, match="got 1 for 3"):
        LookForwardOnce().run(elq, Brighten(), Y, prompts=["boat"])

    class TooFew:
        name = "too-few"

        def __call__(self, pictures: Tensor, /) -> list[Prompt]:
            return [Prompt("boat")]

    with pytest.raises(InputError, match="'too-few' returned 1 prompts for 3"):
        LookForwardOnce().run(elq, Brighten(), TooFew())
    with pytest.raises(InputError, match="returned 1 pictures for 3"):
        LookForwardOnce().run(elq, lambda pictures, _: pictures[:1], Y)
    with pytest.raises(InputError, match="string"):
        LookForwardOnce().run(elq, Brighten(), Y, prompts=[1, 2, 3])  # type: ignore[list-item]


def test_one_string_for_a_batch_is_refused(elq: Tensor) -> None:
    with pytest.raises(InputError, match="one prompt per picture"):
        LookForwardOnce().run(elq, Brighten(), Y, prompts="abc")  # three letters for three pictures


def test_a_new_embedding_is_news() -> None:
    embeddings = iter([torch.zeros(2), torch.ones(2), torch.ones(2), torch.zeros(2)])
    extractor = CallablePrompt(lambda pictures: [Prompt("", embedding=next(embeddings))])
    result = LookForwardOnce(5).run(torch.rand(1, 3, 4, 4), lambda pictures, prompts: pictures, extractor)
    assert len(result.trace[0]) == 2  # the second look sees ones, the third the same again


def test_an_extractor_may_work_in_place() -> None:
    def vandal(pictures: Tensor) -> list[str]:
        pictures.zero_()
        return ["x"] * len(pictures)

    elq = torch.rand(2, 3, 4, 4)
    result = LookForwardOnce(1).run(elq.clone(), lambda pictures, prompts: pictures, CallablePrompt(vandal))
    assert torch.equal(result.lq, elq)
