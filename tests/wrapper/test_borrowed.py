"""Models that are borrowed come out as they went in, and give what they give alone, whatever they do."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pnp_irib.errors import ImageFileError, InputError
from pnp_irib.images.png16 import png16
from pnp_irib.projectors import PixelProjector
from pnp_irib.spec import RestorerSpec
from pnp_irib.wrapper import wrap
from tests.wrapper.models import ANYONE, Doubler, Stated, draw
from tests.wrapper.state import snapshot


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, draw(8, 8), check_trace=False)])
def test_torchscript_with_buffers(make: Callable[[nn.Module], Any]) -> None:
    module = make(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)).train())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    robust = wrap(module, scale=1)
    first = robust(draw(9, 7)).restored
    assert torch.equal(robust(draw(9, 7)).restored, first)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


def test_threads_give_what_turns_give_and_leave_the_generator_alone() -> None:
    model = Doubler().train()
    before, state = snapshot(model), torch.get_rng_state()
    robust = wrap(model, scale=2)
    noisy = wrap(lambda lq: (lq + torch.rand_like(lq)) / 2, scale=1)
    pictures = [draw(24 + 8 * i, 40, i) for i in range(6)]
    expected = [(robust(p).restored, noisy(p, seed=i).restored) for i, p in enumerate(pictures)]
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def run(i: int) -> None:
        for _ in range(4):
            found[i] = (robust(pictures[i]).restored, noisy(pictures[i], seed=i).restored)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, pair in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(found[i], pair, strict=True)), i
    assert str(snapshot(model)) == str(before)
    assert torch.equal(torch.get_rng_state(), state)


class Holder(nn.Module):
    """Answers with a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("out", torch.zeros(1, 3, 40, 34))

    def forward(self, lq: Tensor) -> Tensor:
        return self.get_buffer("out").copy_(F.interpolate(lq, scale_factor=2.0))


def test_results_are_the_users_own() -> None:
    lq = draw(20, 17)
    assert torch.equal(wrap(Holder(), scale=2)(lq).restored, F.interpolate(lq, scale_factor=2.0))
    kept = torch.zeros(1, 3, 8, 8)
    first, second = wrap(lambda lq: kept.copy_(lq), scale=1)([draw(8, 8, 1), draw(8, 8, 2)])
    assert torch.equal(first.restored, draw(8, 8, 1))
    assert torch.equal(second.restored, draw(8, 8, 2))
    weight = nn.Parameter(torch.rand(1, 3, 8, 8))
    result = wrap(lambda lq: lq * 0 + weight, scale=1)(draw(8, 8))
    assert not result.restored.requires_grad


def test_a_model_may_change_its_state_and_gradients_still_flow() -> None:
    class Fading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gain", torch.ones(()))
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, lq: Tensor) -> Tensor:
            gain = self.get_buffer("gain")
            gain.mul_(0.5)
            self.train()
            self.weight.requires_grad_(True)
            return lq * gain

    model = Fading().eval().requires_grad_(False)
    lq = draw(6, 6).requires_grad_()
    wrap(model, scale=1, projector=None).restore(lq).sum().backward()
    assert lq.grad is not None
    assert torch.equal(lq.grad, torch.full_like(lq, 0.5))
    assert model.get_buffer("gain") == 1
    assert not model.training
    assert not model.weight.requires_grad


@pytest.mark.parametrize(
    "behind",
    [lambda m: m.forward, lambda m: m.__call__, functools.partial, lambda m: lambda lq: m(lq), lambda m: Owner(m)],
)
def test_a_module_behind_a_function_is_borrowed_too(behind: Callable[[nn.Module], Any]) -> None:
    model = Doubler().train()
    before = str(snapshot(model))
    robust = wrap(behind(model), scale=2)
    assert torch.equal(robust(draw(9, 7)).restored, wrap(model, scale=2)(draw(9, 7)).restored)
    assert str(snapshot(model)) == before


class Owner:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, lq: Tensor) -> Tensor:
        out: Tensor = self.model(lq)
        return out


def test_a_restorer_that_is_a_module_is_borrowed_too() -> None:
    class Both(Doubler):
        spec = RestorerSpec(name="both", title="Both", scale=2, code_licence=ANYONE, weights_licence=ANYONE)

        def restore(self, lq: Tensor, **_: Any) -> Tensor:
            out: Tensor = self(lq)
            return out

    model = Both().train()
    before = str(snapshot(model))
    assert torch.equal(wrap(model)(draw(9, 7)).restored, wrap(Doubler(), scale=2)(draw(9, 7)).restored)
    assert str(snapshot(model)) == before


def test_a_restorer_that_works_in_place_does_not_reach_the_input() -> None:
    class InPlace(Stated):
        def restore(self, lq: Tensor, **_: Any) -> Tensor:
            return lq.mul_(0.5)

    result = wrap(InPlace(scale=1), projector=None)(draw(8, 8))
    assert torch.equal(result.picture.rgb, draw(8, 8))
    assert torch.equal(result.lq, draw(8, 8))
    assert torch.equal(result.restored, draw(8, 8) / 2)


def test_the_mode_of_a_projector_is_its_owners(projector: PixelProjector) -> None:
    projector.train()
    wrap(Stated(), projector=projector)(draw(8, 8))
    assert all(m.training for m in projector.modules())


@pytest.mark.parametrize("side", [10, 12])
def test_a_wrong_size_shows_when_the_picture_was_padded_too(side: int) -> None:
    robust = wrap(lambda lq: F.interpolate(lq, scale_factor=4.0), scale=2, multiple_of=4)
    with pytest.raises(InputError, match=r"gave \(1, 3, 48, 48\).*expected \(1, 3, 24, 24\)"):
        robust(draw(side, side))


def test_a_free_scale_holds_for_padded_pictures_too() -> None:
    class Free(Stated):
        def restore(self, lq: Tensor, *, scale: float | None = None, **_: Any) -> Tensor:
            return F.interpolate(lq, scale_factor=float(scale or 2))

    result = wrap(Free(scale=None, multiple_of=8), projector=None)(draw(10, 13))
    assert result.restored.shape == (1, 3, 20, 26)
    assert torch.equal(result.restored, F.interpolate(draw(10, 13), scale_factor=2.0))


def test_tiles_of_a_random_model_do_not_repeat_each_other() -> None:
    robust = wrap(lambda lq: (lq + torch.rand_like(lq)) / 2, scale=1)
    restored = robust(torch.zeros(3, 128, 128), tile=32).restored
    assert not torch.equal(restored[..., 32:64, 32:64], restored[..., 64:96, 64:96])
    assert torch.equal(robust(torch.zeros(3, 128, 128), tile=32).restored, restored)


def test_numbers_of_numpy_are_numbers() -> None:
    robust = wrap(lambda lq: F.interpolate(lq, scale_factor=2.0), scale=np.int64(2))  # type: ignore[arg-type]
    assert robust(draw(15, 15), scale=np.float32(1.1)).restored.shape == (1, 3, 17, 17)  # type: ignore[arg-type]


def test_the_input_is_safe_from_another_folder_and_as_a_pil_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.png"
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(path)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    by_path = wrap(Stated(), projector=None)("in.png")
    os.mkdir("sub")  # noqa: PTH102
    monkeypatch.chdir("sub")
    by_image = wrap(Stated(), projector=None)(Image.open(path))
    for result in (by_path, by_image):
        with pytest.raises(ImageFileError, match="never written over"):
            result.save(path)
    assert path.read_bytes() == before


def test_an_image_of_the_user_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    values = (np.arange(48).reshape(4, 4, 3) * 1111).astype(np.uint16)
    with path.open("wb") as file:
        png16(file, values)
    image = Image.open(path)
    robust = wrap(lambda lq: lq, scale=1)
    first, second = robust([image, image])
    assert first.picture.bit_depth == second.picture.bit_depth == 16
    assert torch.equal(first.restored, second.restored)
    assert torch.equal(first.restored, robust(path).restored)
