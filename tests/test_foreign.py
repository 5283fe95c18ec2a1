from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.errors import InputError, WrapError
from pnp_irib.foreign import ForeignRestorer
from pnp_irib.profile import PRESETS
from pnp_irib.restorer import Restorer
from pnp_irib.wrapper import wrap


class Enlarger(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, lq: Tensor) -> Tensor:
        return self.gain * lq.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_the_scale_is_found_out(factor: int) -> None:
    restorer = ForeignRestorer(Enlarger(factor))
    assert isinstance(restorer, Restorer)
    assert restorer.spec.scale == factor
    lq = torch.rand(2, 3, 5, 4)
    assert torch.equal(restorer.restore(lq), Enlarger(factor)(lq))
    assert restorer.restore(lq, scale=1.5).shape == (2, 3, 8, 6)


def test_the_scale_is_found_out_within_what_the_model_accepts() -> None:
    sides: list[tuple[int, ...]] = []

    def picky(lq: Tensor) -> Tensor:
        sides.append(tuple(lq.shape[-2:]))
        assert lq.shape[-1] % 48 == 0
        assert lq.shape[-1] >= 100
        return lq

    assert ForeignRestorer(picky, multiple_of=48, min_size=100).spec.scale == 1
    assert sides == [(144, 144)]


def test_a_stated_scale_costs_no_call() -> None:
    def never(lq: Tensor) -> Tensor:
        raise AssertionError("called")

    assert ForeignRestorer(never, scale=3).spec.scale == 3


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda lq: lq[:, :1], r"\(1, 1, 64, 64\)"),
        (lambda lq: lq[..., ::2], r"\(1, 3, 64, 32\)"),
        (lambda lq: lq[..., ::2, ::2], r"\(1, 3, 32, 32\)"),
        (lambda lq: F.interpolate(lq, scale_factor=1.5), r"\(1, 3, 96, 96\)"),
        (lambda lq: lq[0], r"\(3, 64, 64\)"),
        (lambda lq: (lq, lq), "returned tuple, expected a torch.Tensor"),
        (lambda lq: lq.numpy(), "returned ndarray"),
        (lambda lq: lq.mean(), r"()"),
        (lambda: 3, "TypeError"),
        (nn.Conv2d(1, 3, 3), "RuntimeError"),
        (lambda lq: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_is_no_restorer_is_refused_with_advice(model: Any, found: str) -> None:
    with pytest.raises(WrapError, match=found) as caught:
        ForeignRestorer(model)
    assert "Wrap a small function around it" in str(caught.value)
    assert "wrap(..., scale=, multiple_of=)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_scale_is_a_clear_error() -> None:
    robust = wrap(Enlarger(2), scale=4, projector=None)
    with pytest.raises(
        InputError, match=r"gave \(1, 3, 10, 12\) for \(1, 3, 5, 6\), expected \(1, 3, 20, 24\)\. Check scale=4"
    ):
        robust(torch.rand(3, 5, 6))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True])
def test_impossible_scales_are_refused(wrong: Any) -> None:
    with pytest.raises(WrapError, match=r"scale=.*whole number"):
        ForeignRestorer(Enlarger(2), scale=wrong)


@pytest.mark.parametrize("options", [{"multiple_of": 0}, {"min_size": -1}, {"multiple_of": "8"}])
def test_impossible_sizes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(WrapError, match=f"{next(iter(options))}=.*whole number from 1") as caught:
        ForeignRestorer(Enlarger(2), scale=2, **options)
    assert "\n" not in str(caught.value)


def test_facts() -> None:
    def my_own(lq: Tensor) -> Tensor:
        return lq

    spec = ForeignRestorer(my_own, scale=1, lq_profile=PRESETS["light"]).spec
    assert (spec.name, spec.lq_profile, spec.differentiable) == ("my-own", PRESETS["light"], False)
    assert spec.weights_licence.commercial is None
    assert ForeignRestorer(lambda lq: lq, scale=1).spec.name == "lambda"
    assert ForeignRestorer(Enlarger(2), scale=2).spec.differentiable


def test_a_module_in_half_precision_takes_and_gives_float32() -> None:
    model = Enlarger(2).to(torch.bfloat16)
    restored = ForeignRestorer(model).restore(torch.rand(1, 3, 4, 4))
    assert restored.dtype == torch.float32
    assert model.gain.dtype == torch.bfloat16


def test_moving_a_module() -> None:
    model = Enlarger(2)
    assert ForeignRestorer(model, scale=2).to("cpu", torch.float64).restore(torch.rand(1, 3, 2, 2)).dtype == torch.float32
    assert model.gain.dtype == torch.float64
    ForeignRestorer(lambda lq: lq, scale=1).to("cpu")


def test_gradients_reach_the_input_and_stay_out_of_the_model() -> None:
    model = Enlarger(2)
    lq = torch.rand(1, 3, 4, 4, requires_grad=True)
    ForeignRestorer(model).restore(lq).sum().backward()
    assert lq.grad is not None
    torch.testing.assert_close(lq.grad, torch.full_like(lq, 2.0))
    assert model.gain.grad is None
    assert model.gain.requires_grad


def test_errors_of_the_model_stay_its_own_and_get_a_hint() -> None:
    def picky(lq: Tensor) -> Tensor:
        assert lq.shape[-1] % 4 == 0, "sides of four"
        return lq

    with pytest.raises(AssertionError, match="sides of four") as caught:
        wrap(picky)(torch.rand(3, 5, 6))
    assert caught.value.__notes__ == [
        "picky of the user raised this when given (1, 3, 5, 6). If it takes only some sizes, state "
        "wrap(..., multiple_of=, min_size=)."
    ]
    assert wrap(picky, multiple_of=4)(torch.rand(3, 5, 6)).restored.shape == (1, 3, 5, 6)


@pytest.mark.parametrize("of", [lambda lq: 255 * lq, lambda lq: 2 * lq - 1])
def test_another_range_is_told(of: Any) -> None:
    with pytest.warns(UserWarning, match=r"what is outside \[0, 1\] is cut off. Where a model uses another range"):
        wrap(of, scale=1)(torch.rand(3, 40, 40))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_are_float32_whatever_the_model_is(dtype: torch.dtype) -> None:
    assert wrap(Enlarger(2).to(dtype))(torch.rand(3, 5, 4)).restored.dtype == torch.float32


class Keeper(nn.Module):
    """Counts its calls in a buffer and keeps a tensor that it made."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.kept: Tensor | None = None
        self.body = nn.Conv2d(3, 3, 1)

    def forward(self, lq: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        if self.kept is None:
            self.kept = torch.linspace(0.5, 1, lq.shape[-1])
        out: Tensor = self.body(lq * self.kept)
        return out


def test_a_model_can_be_trained_after_it_was_wrapped() -> None:
    model = Keeper()
    buffer = model.calls
    wrap(model, scale=1)(torch.rand(3, 8, 8))
    assert model.calls is buffer
    assert model.calls == 0
    model(torch.rand(1, 3, 8, 8)).sum().backward()
    assert model.body.weight.grad is not None


def test_a_model_may_take_gradients_inside() -> None:
    def guided(lq: Tensor) -> Tensor:
        with torch.enable_grad():
            x = lq.detach().requires_grad_()
            step = torch.autograd.grad(x.square().sum(), x)[0]
        return lq - 0.1 * step

    lq = torch.rand(3, 8, 8)
    restored = wrap(guided, scale=1)(lq).restored
    assert torch.allclose(restored[0], 0.8 * lq)
    weight = torch.ones(1, requires_grad=True)
    (restored * weight).sum().backward()  # results serve later training
    assert weight.grad is not None


def test_numpy_and_python_draws_come_from_the_seed_too() -> None:
    import random

    def noisy(lq: Tensor) -> Tensor:
        return (lq + 0.1 * np.random.rand() + 0.1 * random.random()) / 2  # noqa: NPY002

    before = np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index] # noqa: NPY002
    robust, lq = wrap(noisy, scale=1), torch.rand(3, 8, 8)
    assert torch.equal(robust(lq, seed=3).restored, robust(lq, seed=3).restored)
    assert not torch.equal(robust(lq, seed=3).restored, robust(lq, seed=4).restored)
    assert np.array_equal(np.random.get_state()[1], before[0])  # type: ignore[index] # noqa: NPY002
    assert random.getstate() == before[1]


def test_a_module_whose_first_tensor_is_not_floating() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.order = nn.Parameter(torch.tensor([2, 1, 0]), requires_grad=False)
            self.register_buffer("gain", torch.tensor(0.5, dtype=torch.float64))

        def forward(self, lq: Tensor) -> Tensor:
            assert lq.dtype == torch.float64
            return lq[:, self.order] * self.get_buffer("gain")

    lq = torch.rand(3, 4, 4)
    result = wrap(Indexed())(lq)
    assert torch.allclose(result.restored[0], lq.flip(0) / 2)
    assert result.used.dtype == "float64"
