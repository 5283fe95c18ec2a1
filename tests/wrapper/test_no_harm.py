from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pnp_irib.projectors import PixelProjector
from pnp_irib.restorer import Restorer
from pnp_irib.wrapper import wrap
from tests.wrapper.models import Doubler, Stated, draw
from tests.wrapper.state import generators, same, snapshot


def test_without_projector_it_is_the_restorer_bit_for_bit(compact: Restorer, photo: Tensor) -> None:
    crop = photo[..., 10:43, 20:51]
    robust = wrap(compact, projector=None)
    with torch.inference_mode():
        alone = compact.restore(crop)
    assert torch.equal(robust(crop).restored, alone.clamp(0, 1))
    with torch.no_grad():
        assert torch.equal(robust.restore(crop), compact.restore(crop))
    assert torch.equal(robust(crop, scale=2.5).restored, compact.restore(crop, scale=2.5).clamp(0, 1))


def test_strength_zero_is_the_restorer_bit_for_bit(compact: Restorer, projector: PixelProjector, photo: Tensor) -> None:
    crop = photo[..., 10:43, 20:51]
    robust = wrap(compact, projector=projector)
    alone = wrap(compact, projector=None)(crop)
    assert torch.equal(robust(crop, strength=0).restored, alone.restored)
    assert torch.equal(robust(crop, strength=0, lfo=2).lq, crop)
    assert robust(crop, strength=0, lfo=2).trace == ()
    assert not torch.equal(robust(crop).restored, alone.restored)
    assert "none" in robust(crop, strength=0).used.projector


def test_strength_blends(projector: PixelProjector, photo: Tensor) -> None:
    crop = photo[..., :20, :20]
    robust = wrap(Stated(), projector=projector)
    half, full = robust(crop, strength=0.5).lq, robust(crop).lq
    unclamped = projector.project(crop)
    torch.testing.assert_close(half, ((crop + unclamped) / 2).clamp(0, 1))
    torch.testing.assert_close(full, unclamped.clamp(0, 1))


def test_the_restorer_gets_the_projection(projector: PixelProjector, photo: Tensor) -> None:
    restorer = Stated()
    result = wrap(restorer, projector=projector)(photo[..., :9, :7])
    assert torch.equal(restorer.seen[-1], result.lq)
    assert result.restored.shape == (1, 3, 18, 14)


def odd_model() -> Doubler:
    """In a state that nobody would guess: some parts training, some frozen, a hook."""
    model = Doubler()
    model.train()
    model.body[1].eval()
    next(model.body[0].parameters()).requires_grad_(False)
    model.body[3].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("use", ["call", "restore", "gradient", "exception", "wrap only"])
def test_the_model_is_left_as_found(projector: PixelProjector, use: str) -> None:
    model = odd_model()
    before, state = snapshot(model), generators()
    robust = wrap(model, projector=projector)  # the scale is found out by calling the model
    if use == "call":
        robust([draw(8, 8), draw(5, 6)])
    elif use == "restore":
        robust.restore(draw(8, 8))
    elif use == "gradient":
        lq = draw(8, 8).requires_grad_()
        robust.restore(lq).sum().backward()
        assert lq.grad is not None
        assert lq.grad.abs().sum() > 0
    elif use == "exception":
        handle = model.body[2].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            robust(draw(8, 8))
        handle.remove()
    assert same(snapshot(model), before)
    assert same(generators(), state)


def fail(*_: Any) -> None:
    raise RuntimeError("in the middle")


def test_the_model_runs_in_evaluation_mode() -> None:
    model = odd_model()
    flags: list[bool] = []
    for m in model.modules():
        m.register_forward_pre_hook(lambda m, _: flags.append(m.training))
    first, second = (wrap(model, scale=2, projector=None)(draw(8, 8), seed=seed).restored for seed in (0, 1))
    assert flags
    assert not any(flags)
    assert torch.equal(first, second)  # the dropout is asleep


def test_gradients_reach_the_projector(projector: PixelProjector, compact: Restorer) -> None:
    robust = wrap(compact, projector=projector)
    restored = robust.restore(draw(9, 9))
    restored.square().mean().backward()
    gradient = projector.head.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.*what is outside:UserWarning")
def test_the_input_is_left_as_found(projector: PixelProjector) -> None:
    # A model that hands back its own input, and one that overwrites it.
    def vandal(lq: Tensor) -> Tensor:
        return lq.mul_(3).sub_(1)

    for model in (nn.Identity(), vandal):
        for chosen in (None, projector):
            picture, array = draw(6, 6), np.random.default_rng(0).random((6, 6, 3), dtype=np.float32)
            tensor_before, array_before = picture.clone(), array.copy()
            result = wrap(model, scale=1, projector=chosen)(picture)
            wrap(model, scale=1, projector=chosen)(array)
            assert torch.equal(picture, tensor_before)
            assert np.array_equal(array, array_before)
            assert torch.equal(result.picture.rgb, tensor_before)
            if chosen is None:
                assert torch.equal(result.lq, tensor_before)


@pytest.mark.filterwarnings("ignore:.*what is outside:UserWarning")
def test_what_a_model_keeps_is_not_clamped() -> None:
    kept = 3 * draw(4, 4) - 1
    before = kept.clone()
    assert torch.equal(wrap(lambda _: kept, scale=1, projector=None)(draw(4, 4)).restored, before.clamp(0, 1))
    assert torch.equal(kept, before)
    grey = wrap(lambda lq: lq.mean(1, keepdim=True).expand(-1, 3, -1, -1), scale=1, projector=None)
    assert grey(draw(4, 4)).restored.shape == (1, 3, 4, 4)
