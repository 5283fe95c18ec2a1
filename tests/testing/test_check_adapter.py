"""The kit finds what is wrong with broken restorers, names it and the remedy, and finds nothing wrong with good ones."""

from __future__ import annotations

import copy
import re
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pnp_irib.errors import ConfigError, InputError
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.spec import Licence, RestorerSpec
from pnp_irib.testing import AdapterError, Report, check_adapter

FREE = Licence(name="CC0-1.0", commercial=True)
FEW = (1, 2, 3, 8, 12, 25, 32, 44, 48, 64)


class Good:
    """Doubles pictures and smooths them a little."""

    def __init__(self, **facts: Any) -> None:
        facts = {"scale": 2, "differentiable": True, "tiling": "supported", "tile_halo": 4} | facts
        self.spec = RestorerSpec(name="good", title="Good", code_licence=FREE, weights_licence=FREE, **facts)
        self.model = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate").eval().requires_grad_(False)
        nn.init.dirac_(self.model.weight)
        nn.init.zeros_(self.model.bias)  # type: ignore[arg-type]
        self.model.weight += 0.02
        self.dtype = torch.float32

    def restore(self, lq: Tensor, *, scale: Any = None, prompts: Any = None, noise: Any = None) -> Tensor:
        large = interpolate(lq.to(self.dtype), scale_factor=2, mode="bilinear")
        restored = self.restored(self.model(large), prompts, noise).to(lq.dtype)
        return restored if scale is None else resize(restored, output_size(lq.shape[-2], lq.shape[-1], scale))

    def restored(self, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        return large

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        self.model.to(device=device, dtype=dtype)
        self.dtype = self.model.weight.dtype
        return self


def broken(method: Any, **facts: Any) -> Good:
    made: Good = type("Broken", (Good,), {"restored": method})(**facts)
    return made


def report(restorer: Any) -> Report:
    return check_adapter(restorer, sizes=FEW, raises=False)


def test_nothing_is_found_in_a_good_one() -> None:
    found = check_adapter(Good())
    assert found.ok
    assert len(found.passed) == len(found.seconds) > 8
    assert str(found).startswith("good: no problem in ")


def test_what_a_spec_promises_may_also_be_kept_by_noise_and_prompts() -> None:
    def restored(self: Any, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        if prompts is None or any(prompt is None for prompt in prompts):
            raise InputError("a prompt is required")
        words = torch.tensor([len(prompt.text) for prompt in prompts])[:, None, None, None] / 1000
        restored: Tensor = large + words + 0.01 * noise.normal(large.shape, device=large.device, dtype=large.dtype)
        return restored

    found = report(broken(restored, prompts="required", deterministic=False))
    assert found.ok, str(found)


def padded(self: Any, large: Tensor, prompts: Any, noise: Any) -> Tensor:
    """Centres what does not divide by 16, and forgets to cut it out where it was."""
    height, width = large.shape[-2:]
    down, right = -height % 32, -width % 32
    filled = nn.functional.pad(large, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")
    return filled[..., :height, :width]


def crashes(self: Any, large: Tensor, prompts: Any, noise: Any) -> Tensor:
    if large.shape[-2] % 16 or large.shape[-1] % 16:
        raise RuntimeError("sizes must match")
    return large


def statistics(self: Any, large: Tensor, prompts: Any, noise: Any) -> Tensor:
    return large - large.mean() + 0.5


class Counting(Good):
    """Keeps a counter in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.model.register_buffer("calls", torch.zeros(()))

    def restored(self, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        self.model.calls += 1  # type: ignore[operator, assignment]
        return large


class Training(Good):
    """Leaves its module in training mode."""

    def restored(self, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        self.model.train()
        return large


class InPlace(Good):
    def restore(self, lq: Tensor, **options: Any) -> Tensor:
        return super().restore(lq.detach().mul_(0.9), **options)


class Halves(Good):
    """bfloat16 breaks it."""

    def restored(self, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        return large if self.dtype == torch.float32 else large * float("nan")


class Hooking(Good):
    def restored(self, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        self.model.register_forward_pre_hook(lambda module, given: None)
        return large


class Remembering(Good):
    """Gives the same memory every time."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Any, Tensor] = {}

    def restored(self, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        if torch.is_grad_enabled():
            return large
        return self.kept.setdefault(large.shape, torch.empty_like(large)).copy_(large)


class Switching(Good):
    def restored(self, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        torch.set_grad_enabled(True)
        return large


class Truncating(Good):
    def restore(self, lq: Tensor, *, scale: Any = None, **options: Any) -> Tensor:
        restored = super().restore(lq, **options)
        return restored if scale is None else resize(restored, (int(lq.shape[-2] * scale), int(lq.shape[-1] * scale)))


class Raising(Good):
    """bfloat16 is not implemented."""

    def restored(self, large: Tensor, prompts: Any, noise: Any) -> Tensor:
        if self.dtype != torch.float32:
            raise RuntimeError("not implemented for BFloat16")
        return large


class Staying(Good):
    """Does not move."""

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        return self


@pytest.mark.parametrize(
    ("restorer", "check", "said"),
    [
        (Hooking(), "state", "training or hooks"),
        (Remembering(), "state", "a result changes when the next"),
        (Switching(), "state", "the grad mode is another"),
        (Truncating(), "scales", r"scale=1\.3 gave"),
        (broken(lambda s, x, p, n: x.flip(1)), "values", "red and blue are exchanged"),
        (broken(lambda s, x, p, n: torch.cat((x[:1] + x[1:].sum(0, keepdim=True), x[1:]))), "batches", "a picture of a batch"),
        (Raising(safe_dtypes=("float32", "bfloat16")), "dtypes", "take 'bfloat16' out"),
        (Staying(safe_dtypes=("float32", "bfloat16")), "dtypes", "changes nothing"),
        (broken(lambda s, x, p, n: (x, x)), "sizes", "tuple"),
        (broken(padded), "sizes", r"shifted by \+\d input.* try multiple_of=16"),
        (
            broken(crashes),
            "sizes",
            r"sizes fail, the first with the height 1: RuntimeError: .*try multiple_of=8",
        ),
        (broken(lambda s, x, p, n: x[..., :-1]), "sizes", r"a result of \(1, 3, 2, 15\).*expected \(1, 3, 2, 16\)"),
        (broken(lambda s, x, p, n: x * float("nan")), "sizes", "not finite"),
        (broken(lambda s, x, p, n: x * 255), "values", "divide by 255"),
        (broken(lambda s, x, p, n: x * 2 - 1), "values", r"x \* 0\.5 \+ 0\.5"),
        (broken(lambda s, x, p, n: x - x.mean(0, keepdim=True) + 0.5), "batches", "statistics over the batch"),
        (broken(lambda s, x, p, n: x + 0.01 * torch.randn_like(x)), "seeds", "draw only from the noise="),
        (
            broken(lambda s, x, p, n: x + 0.01 * n.normal(x.shape, device=x.device, dtype=x.dtype)),
            "seeds",
            "state deterministic=False",
        ),
        (Good(deterministic=False), "seeds", "two seeds gave the same result"),
        (broken(lambda s, x, p, n: x + len(p[0].text) / 1000 if p else x), "prompts", "state prompts='optional'"),
        (Good(prompts="optional"), "prompts", "two prompts gave the same result"),
        (Good(prompts="required"), "prompts", "it restores without"),
        (broken(lambda s, x, p, n: x.detach()), "gradients", "no gradient reaches the picture"),
        (broken(lambda s, x, p, n: x.detach() * 3 - x * 2), "gradients", "along its own gradient"),
        (broken(statistics), "tiles", "state tiling='discouraged'"),
        (
            broken(lambda s, x, p, n: interpolate(nn.functional.avg_pool2d(x, 25, 1, 12), size=x.shape[-2:])),
            "tiles",
            r"tile_halo is 4.* state tile_halo=8",
        ),
        (Counting(), "state", "the first: calls of Conv2d"),
        (Training(), "state", "the first: training"),
        (InPlace(), "state", "work on a copy"),
        (Halves(safe_dtypes=("float32", "bfloat16")), "dtypes", "take 'bfloat16' out of spec.safe_dtypes"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(restorer: Good, check: str, said: str) -> None:
    found = report(copy.deepcopy(restorer))
    text = " ".join(str(found).split())
    assert check in {problem.check for problem in found.problems}, text
    assert re.search(said, text), text
    with pytest.raises(AdapterError, match=f"{check}: "):
        check_adapter(restorer, sizes=FEW)


def test_what_is_no_restorer_is_told() -> None:
    with pytest.raises(AdapterError, match=r"Conv2d is no Restorer.*give it spec, restore"):
        check_adapter(nn.Conv2d(3, 3, 3))  # type: ignore[arg-type]


def test_a_class_and_sizes_without_pictures_are_told() -> None:
    with pytest.raises(AdapterError, match=r"Good is no Restorer. To mend it: give it an object of it,\s+Good\(\.\.\.\)"):
        check_adapter(Good)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sizes=200"):
        check_adapter(Good(), sizes=(200,))


def test_an_adapter_that_fails_in_half_precision_is_given_back_as_it_was() -> None:
    restorer = Raising(safe_dtypes=("float32", "bfloat16"))
    weight = restorer.model.weight.clone()
    report(restorer)
    assert torch.equal(restorer.model.weight, weight)


def test_wrapped_restorers_keep_to_it_as_well() -> None:
    from pnp_irib import wrap

    check_adapter(wrap("realesr-animevideov3", projector="pixel-x4plus"), sizes=(1, 9, 33))
