from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pnp_irib import load_restorer
from pnp_irib.errors import ConfigError, ImageFileError, InputError, UnknownRestorerError, WrapError
from pnp_irib.images.io import read_picture
from pnp_irib.noise import SeededNoise
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.pixel import PixelArchitecture
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource, Restorer
from pnp_irib.result import Restoration, Restorations
from pnp_irib.spec import Licence, RestorerSpec
from pnp_irib.wrapper import WrappedRestorer, wrap

ANYONE = Licence(name="MIT", commercial=True)


class Doubler(nn.Module):
    """A tiny network with batch norm (running statistics) and dropout; twofold."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        torch_state = torch.get_rng_state()
        torch.manual_seed(5)
        self.factor = factor
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 3, 1))
        torch.set_rng_state(torch_state)

    def forward(self, lq: Tensor) -> Tensor:
        enlarged: Tensor = F.interpolate(lq + 0.1 * self.body(lq), scale_factor=float(self.factor), mode="nearest")
        return enlarged


class Stated:
    """A Restorer by protocol only: nearest enlargement at any scale or a native one; draws noise; remembers its inputs."""

    def __init__(self, **facts: Any) -> None:
        self.spec = RestorerSpec(
            **{"name": "stated", "title": "Stated", "scale": 2, "code_licence": ANYONE, "weights_licence": ANYONE, **facts}
        )
        self.seen: list[Tensor] = []
        self.prompts: list[Any] = []

    def to(self, device: Any = None, dtype: Any = None) -> Stated:
        return self

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        self.seen.append(lq.clone())
        self.prompts.append(prompts)
        factor = scale or self.spec.scale or 1
        size = (max(1, round(lq.shape[-2] * factor)), max(1, round(lq.shape[-1] * factor)))
        out = F.interpolate(lq, size=size, mode="nearest")
        return (
            out
            if noise is None or self.spec.deterministic
            else out + 0.01 * noise.normal(tuple(out.shape), device=lq.device, dtype=lq.dtype)
        )


def draw(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def projector() -> PixelProjector:
    """A small projector that is not the identity, and that listens to its prompt."""
    generator = torch.Generator().manual_seed(1)
    sizes = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)
    small = PixelProjector(sizes)
    with torch.no_grad():
        small.head.weight.normal_(0, 0.1, generator=generator)
        small.prompt.words.weight.normal_(0, 3, generator=generator)
        for parameter in small.middle.film.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return small


@pytest.fixture(scope="module")
def compact() -> Restorer:
    return load_restorer("realesr-animevideov3", dtype="float32")


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Tensor:
    return read_picture(sorted((shared_dir / "data" / "dev").glob("*.webp"))[1]).rgb


# --- no harm ----------------------------------------------------------------------------------------------------------


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


# --- sizes ------------------------------------------------------------------------------------------------------------

SIDES = [(h, w) for h in range(1, 9) for w in range(1, 9)]
SIDES += [(1, 65), (65, 1), (65, 65), (64, 33), (9, 10), (11, 63), (13, 17), (16, 15), (31, 2), (3, 47), (48, 49), (50, 5)]
SIDES += [(23, 23), (57, 8), (40, 61)]


def check_sizes(robust: WrappedRestorer, sides: Sequence[tuple[int, int]], scales: Sequence[float]) -> None:
    for height, width in sides:
        for scale in scales:
            result = robust(draw(height, width), scale=scale)
            expected = (max(1, round(height * scale)), max(1, round(width * scale)))
            assert tuple(result.restored.shape) == (1, 3, *expected), (height, width, scale)
            assert result.image.size == expected[::-1]
            assert tuple(result.lq.shape) == (1, 3, height, width)


@pytest.mark.parametrize("scale", [4, 2, 1.5, 3.3, 0.3])
def test_every_size_gives_exactly_the_scaled_size(projector: PixelProjector, scale: float) -> None:
    check_sizes(wrap(Doubler(4), scale=4, multiple_of=8, min_size=16, projector=projector), SIDES, [scale])


def test_sizes_of_a_real_restorer(compact: Restorer, projector: PixelProjector) -> None:
    check_sizes(wrap(compact, projector=projector), [(1, 1), (1, 7), (5, 3), (33, 2), (17, 19)], [4, 3.3])


@pytest.mark.slow
def test_every_size_from_1_to_65(projector: PixelProjector) -> None:
    sides = [(h, w) for h in range(1, 66) for w in range(1, 66)]
    check_sizes(wrap(Doubler(4), scale=4, projector=projector), sides, [4, 2, 1.5, 3.3])


def test_padding_to_what_the_model_accepts() -> None:
    restorer = Stated(multiple_of=8, min_size=24)
    robust = wrap(restorer, projector=None)
    picture = draw(9, 30)
    result = robust(picture)
    assert restorer.seen[-1].shape[-2:] == (24, 32)
    assert torch.equal(restorer.seen[-1][..., :9, :30], picture)
    assert torch.equal(restorer.seen[-1][..., :9, 30], picture[..., 28])  # reflected
    # Nearest enlargement looks at nothing but the pixel: padding must not show.
    assert torch.equal(result.restored, F.interpolate(picture, scale_factor=2.0, mode="nearest"))
    assert torch.equal(robust.restore(picture), result.restored)


@pytest.mark.parametrize("scale", [None, 1, 2, 1.5, 3.3])
def test_padding_of_a_restorer_of_any_scale(scale: float | None) -> None:
    restorer = Stated(scale=None, multiple_of=8)
    for height, width in ((1, 1), (7, 13), (8, 16)):
        picture = draw(height, width)
        restored = wrap(restorer, projector=None)(picture, scale=scale).restored
        factor = scale or 1
        assert restored.shape[-2:] == (max(1, round(height * factor)), max(1, round(width * factor)))
    assert restorer.seen[-2].shape[-2:] == (8, 16)


def test_what_the_padding_hides_is_not_seen() -> None:
    def strict(lq: Tensor) -> Tensor:
        assert lq.shape[-2] % 8 == lq.shape[-1] % 8 == 0, "sides must be multiples of 8"
        return lq

    assert wrap(strict, scale=1, multiple_of=8)(draw(5, 11)).restored.shape == (1, 3, 5, 11)
    with pytest.raises(AssertionError, match="multiples of 8"):
        wrap(strict, scale=1)(draw(5, 11))


# --- what a picture may be --------------------------------------------------------------------------------------------


def test_every_kind_of_input_is_the_same_picture(projector: PixelProjector, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(levels).save(path)
    tensor = torch.from_numpy(levels).permute(2, 0, 1) / 255
    sources: list[Any] = [
        path,
        str(path),
        Image.fromarray(levels),
        levels,
        levels.astype(np.uint16) * 257,
        levels.astype(np.float32) / 255,
        levels[None],
        tensor,
        tensor[None],
        tensor.double(),
    ]
    robust = wrap(Doubler(), scale=2, projector=projector)
    expected = robust(tensor)
    assert isinstance(expected, Restoration)
    many = robust(sources)
    assert isinstance(many, Restorations)
    for source, among in zip(sources, many, strict=True):
        alone = robust(source)
        assert isinstance(alone, Restoration)
        assert torch.equal(alone.restored, among.restored)
        torch.testing.assert_close(alone.restored, expected.restored, atol=1e-6, rtol=0)
    assert [image.size for image in many.images] == [(10, 12)] * len(sources)
    assert expected.images[0].size == (10, 12)


def test_a_tensor_of_several_is_several(projector: PixelProjector) -> None:
    batch = torch.cat([draw(6, 7, seed) for seed in range(3)])
    robust = wrap(Doubler(), scale=2, projector=projector)
    many = robust(batch)
    assert isinstance(many, Restorations)
    for i in range(3):
        assert torch.equal(many[i].restored, robust(batch[i]).restored)
    arrays = robust(batch.permute(0, 2, 3, 1).numpy())
    assert len(arrays) == 3
    assert robust([]) == []


def test_alone_is_the_same_as_in_a_list(compact: Restorer, projector: PixelProjector, photo: Tensor) -> None:
    robust = wrap(compact, projector=projector, extractor=lambda pictures: [f"level {round(float(pictures.mean()) * 50)}"])
    pictures = [photo[..., :12, :9], photo[..., 30:47, 30:41], photo[..., :1, :1]]
    prompts = ["a house", None, Prompt("sea")]
    together = robust(pictures, prompt=prompts, lfo=1, seed=3)
    for picture, prompt, one in zip(pictures, prompts, together, strict=True):
        alone = robust(picture, prompt=prompt, lfo=1, seed=3)
        assert torch.equal(alone.restored, one.restored)
        assert torch.equal(alone.lq, one.lq)
        assert alone.prompt == one.prompt


def test_alpha_and_grey_come_through(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    result = wrap(Stated(), projector=None)(Image.fromarray(rgba))
    assert result.alpha is not None
    assert result.alpha.shape == (1, 1, 12, 10)
    assert result.image.mode == "RGBA"
    assert wrap(Stated(), projector=None)(rgba[..., 0]).image.mode == "L"


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        (torch.rand(2, 5, 5), r"\(N, 3, H, W\)"),
        (torch.rand(3, 5, 5) * 255, "picture / 255"),
        (torch.rand(3, 5, 5) - 0.5, r"\(picture \+ 1\) / 2"),
        (torch.full((3, 5, 5), float("nan")), "nan"),
        (torch.zeros(3, 0, 5), "empty"),
        (torch.zeros(3, 5, 5, dtype=torch.uint8), "From 8 bit"),
        (np.zeros((3, 5, 5), np.float32), r"array.transpose\(1, 2, 0\)"),
        (np.full((5, 5, 3), 200.0), "array / 255"),
        (np.zeros((5, 5, 3), np.int32), "expected uint8"),
        (12, "Give a path, a PIL image"),
        (None, "Give a path, a PIL image"),
        ([draw(3, 3), 12], "Give a path, a PIL image"),
    ],
)
def test_what_is_no_picture_is_refused_with_advice(source: Any, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        wrap(Stated(), projector=None)(source)


def test_missing_file() -> None:
    with pytest.raises(ImageFileError, match=r"absent\.png cannot be read: No such file"):
        wrap(Stated(), projector=None)("absent.png")


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"scale": 0}, "above 0, at most 64"),
        ({"scale": float("nan")}, "above 0, at most 64"),
        ({"scale": 65}, "above 0, at most 64"),
        ({"scale": "2"}, "above 0, at most 64"),
        ({"scale": True}, "above 0, at most 64"),
        ({"strength": 1.1}, "0 is the restorer alone, 1 the full projection"),
        ({"strength": float("nan")}, "0 is the restorer alone"),
        ({"strength": "1"}, "0 is the restorer alone"),
        ({"seed": -1}, "whole number"),
        ({"seed": 1.5}, "whole number"),
        ({"tile": 8}, "at least 16 pixels"),
        ({"tile": "big"}, "expected 'auto', None"),
        ({"tile": True}, "expected 'auto', None"),
        ({"lfo": -1}, "whole number from 0"),
        ({"prompt": ["a", "b"]}, "2 prompts for 1 pictures; give one for all, or one each"),
        ({"prompt": 3}, "expected a string, a Prompt"),
        ({"max_pixels": 20}, "above the cap of 20"),
        ({"max_output_pixels": 99}, "raise max_output_pixels"),
    ],
)
def test_options_out_of_range_are_refused_with_advice(projector: PixelProjector, options: dict[str, Any], advice: str) -> None:
    with pytest.raises((InputError, ConfigError), match=advice):
        wrap(Stated(), projector=projector)(draw(5, 5), **options)


def test_every_source_keeps_the_cap(tmp_path: Path) -> None:
    levels = np.zeros((5, 5, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", Image.fromarray(levels), levels, torch.zeros(3, 5, 5)):
        with pytest.raises(InputError, match=r"cap of 24|pixels"):
            wrap(Stated(), projector=None)(source, max_pixels=24)
        assert wrap(Stated(), projector=None)(source, max_pixels=25).restored.shape == (1, 3, 10, 10)


def test_prompts_that_do_not_match(projector: PixelProjector) -> None:
    robust = wrap(Stated(), projector=projector)
    with pytest.raises(InputError, match="1 prompts for 2 pictures; give one for all, or one each"):
        robust([draw(3, 3), draw(3, 3)], prompt=["a"])
    with pytest.raises(InputError, match="got 1 for 2 pictures"):
        robust.restore(draw(3, 3).repeat(2, 1, 1, 1), prompts=[Prompt("a")])


# --- the model comes out as it went in --------------------------------------------------------------------------------


def snapshot(module: nn.Module) -> list[Any]:
    state: list[Any] = [(key, value.clone()) for key, value in module.state_dict().items()]
    state += [(name, p.requires_grad, p.grad is None, id(p)) for name, p in module.named_parameters()]
    state += [
        (name, m.training, list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
        for name, m in module.named_modules()
    ]
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def generators() -> list[Any]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state(), list(numpy_state[1]), numpy_state[2], random.getstate()]


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


def test_what_a_model_keeps_is_not_clamped() -> None:
    kept = 3 * draw(4, 4) - 1
    before = kept.clone()
    assert torch.equal(wrap(lambda _: kept, scale=1, projector=None)(draw(4, 4)).restored, before.clamp(0, 1))
    assert torch.equal(kept, before)
    grey = wrap(lambda lq: lq.mean(1, keepdim=True).expand(-1, 3, -1, -1), scale=1, projector=None)
    assert grey(draw(4, 4)).restored.shape == (1, 3, 4, 4)


# --- randomness -------------------------------------------------------------------------------------------------------


def test_a_stochastic_model_follows_the_seed() -> None:
    def noisy(lq: Tensor) -> Tensor:
        return (lq + 0.1 * torch.randn_like(lq)).clamp(0, 1)

    robust = wrap(noisy, scale=1, projector=None)
    pictures, state = [draw(8, 8), draw(4, 4, 1), draw(8, 8)], generators()
    first, second = robust(pictures, seed=4), robust(pictures, seed=4)
    assert same(generators(), state)
    for a, b, picture in zip(first, second, pictures, strict=True):
        assert torch.equal(a.restored, b.restored)
        assert torch.equal(a.restored, robust(picture, seed=4).restored)
    assert not torch.equal(robust(pictures[0], seed=5).restored, first[0].restored)


def test_a_stochastic_model_follows_the_noise_source_in_a_batch() -> None:
    def noisy(lq: Tensor) -> Tensor:
        return lq + 0.1 * torch.randn_like(lq)

    robust = wrap(noisy, scale=1, projector=None)
    batch = torch.cat((draw(4, 4), draw(4, 4, 1)))
    together = robust.restore(batch, noise=SeededNoise([7, 8]))
    for i, seed in enumerate((7, 8)):
        assert torch.equal(together[i : i + 1], robust.restore(batch[i : i + 1], noise=SeededNoise([seed])))


def test_restorers_draw_from_the_seed() -> None:
    robust = wrap(Stated(deterministic=False), projector=None)
    by_hand = robust.restore(draw(5, 5), noise=SeededNoise([1])).clamp(0, 1)
    assert torch.equal(robust(draw(5, 5), seed=1).restored, by_hand)
    a, b, c = (robust(draw(5, 5), seed=seed).restored for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# --- look forward, prompts --------------------------------------------------------------------------------------------


def counting() -> Callable[[Tensor], list[str]]:
    calls = iter(range(100))
    return lambda pictures: [f"word{next(calls)}"]


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


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_a_wrapped_restorer_is_a_restorer(projector: PixelProjector) -> None:
    robust = wrap(Stated(), projector=projector)
    assert isinstance(robust, Restorer)
    twice = wrap(robust, projector=None)
    assert torch.equal(twice(draw(5, 5)).restored, robust(draw(5, 5)).restored)


def test_projector_none_by_any_name() -> None:
    for none in (None, "none"):
        assert wrap(Stated(), projector=none).projector is None
    assert "states no LQ profile" in repr(wrap(Stated()))


@pytest.mark.parametrize(
    ("build", "error", "advice"),
    [
        (lambda: wrap("realesrgan-x4pluss"), UnknownRestorerError, "Did you mean 'realesrgan-x4plus'"),
        (lambda: wrap("realesrgan-x4plus", scale=4), ConfigError, "scale are for modules and functions"),
        (lambda: wrap(Stated(), scale=4), ConfigError, "scale do not apply to an object that is a Restorer"),
        (lambda: wrap(nn.Identity(), wheels=4), ConfigError, "wheels are unknown for a module or function"),
        (lambda: wrap("realesr-animevideov3", wheels=4), ConfigError, "wheels.*Its options: weights, device, dtype"),
        (lambda: wrap(Doubler), WrapError, "Write such a function"),  # type: ignore[arg-type]
        (lambda: wrap(3), WrapError, "Tried: a registered name, a Restorer"),  # type: ignore[arg-type]
        (lambda: wrap(Stated(), projector="no-such"), ConfigError, "no bundled projector named 'no-such'"),
        (lambda: wrap(Stated(), projector=4), ConfigError, "expected 'auto', None"),  # type: ignore[arg-type]
        (lambda: wrap(Stated(), lfo=-1), ConfigError, "whole number from 0"),
        (lambda: wrap(Stated(), extractor="imagenet-tag"), ConfigError, "Did you mean 'imagenet-tags'"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_with_advice(build: Any, error: Any, advice: str) -> None:
    with pytest.raises(error, match=advice) as caught:
        build()
    assert "\n" not in str(caught.value)


# --- tiles ------------------------------------------------------------------------------------------------------------


def test_tiles_of_a_pointwise_model_do_not_show(projector: PixelProjector) -> None:
    restorer = Stated(tiling="supported", tile_halo=3, multiple_of=4)
    robust = wrap(restorer, projector=None)
    picture = draw(45, 70)
    tiles = robust(picture, tile=16).restored
    assert max(side for seen in restorer.seen for side in seen.shape[-2:]) <= 24
    assert torch.equal(tiles, robust(picture, tile=None).restored)
    assert robust(picture, tile=16).used.tile == 16
    assert robust(picture, tile=70).used.tile is None  # it fits into one


def test_auto_tiles_where_the_budget_asks_for_it() -> None:
    small = wrap(Stated(tiling="supported", bytes_per_pixel=100_000), projector=None)
    assert small(draw(60, 60)).used.tile is None
    assert small(draw(90, 90)).used.tile == 64  # 810 MB untiled
    assert wrap(Stated(bytes_per_pixel=100_000), projector=None)(draw(90, 90)).used.tile is None  # tiling is discouraged
    with pytest.raises(InputError, match="cannot be tiled from outside; leave tile='auto'"):
        wrap(Stated(tiling="internal"), projector=None)(draw(90, 90), tile=32)


def test_a_tiled_photograph_is_within_1_of_untiled(compact: Restorer, photo: Tensor) -> None:
    robust = wrap(compact, projector=None)
    crop = photo[..., 20:130, 10:125]
    tiles = robust(crop, tile=64)
    assert tiles.used.tile == 64
    assert (tiles.restored - robust(crop, tile=None).restored).abs().max() < 1 / 255


# --- results ----------------------------------------------------------------------------------------------------------


def test_repr_is_worth_reading(compact: Restorer, projector: PixelProjector, photo: Tensor) -> None:
    robust = wrap(compact, projector=projector, lfo=1, extractor=counting())
    result = robust(photo[..., :16, :12])
    for text in (repr(robust), repr(result), repr(robust([photo[..., :8, :8]] * 2))):
        assert max(map(len, text.split("\n"))) <= 80
        assert "realesr-animevideov3" in text
    shown = repr(result)
    for part in ("12x16 -> 48x64", "float32 on cpu", "PixelProjector (given)", "word1", "look forward 1", "restore", "read"):
        assert part in shown
    assert "BSD-3-Clause" in repr(robust)
    long = robust(photo[..., :16, :12], prompt="a very long prompt " * 20, lfo=0)
    assert max(map(len, repr(long).split("\n"))) <= 80


def test_result_is_saved_and_shown(projector: PixelProjector, photo: Tensor, tmp_path: Path) -> None:
    result = wrap(Stated(), projector=projector)(photo[..., :16, :12])
    result.image.save(tmp_path / "by_pil.png")
    assert result.save(tmp_path / "by_us.png") == ()
    for name in ("by_pil.png", "by_us.png"):
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(np.asarray(image), (result.restored[0] * 255).round().permute(1, 2, 0).byte().numpy())
    assert result.lq_image.size == (12, 16)
    side_by_side = result.comparison()
    assert side_by_side.size == (3 * 24 + 2 * 8, 32)
    assert np.array_equal(np.asarray(side_by_side)[:, -24:], np.asarray(result.image))
    (tmp_path / "notebook.png").write_bytes(result._repr_png_())
    with Image.open(tmp_path / "notebook.png") as image:
        assert image.size == side_by_side.size
    assert set(result.seconds) == {"read", "project", "restore"}


def test_the_file_of_the_input_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(path)
    before = path.read_bytes()
    with pytest.raises(ImageFileError, match="never written over"):
        wrap(Stated(), projector=None)(path).save(path)
    assert path.read_bytes() == before


def test_values_that_are_not_finite_are_not_passed_on() -> None:
    with pytest.raises(InputError, match=r"not finite.*float32"):
        wrap(lambda lq: lq / 0, scale=1, projector=None)(torch.zeros(3, 4, 4))


def test_moving(projector: PixelProjector) -> None:
    model = Doubler()
    robust = wrap(model, scale=2, projector=projector).to("cpu", torch.float64)
    assert next(model.parameters()).dtype == torch.float64
    assert next(projector.parameters()).dtype == torch.float32
    assert robust(draw(5, 5)).restored.dtype == torch.float32
