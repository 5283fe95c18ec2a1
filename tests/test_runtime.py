from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from pnp_irib.errors import ConfigError, MissingExtraError
from pnp_irib.runtime import Stopwatch, choose_device, choose_dtype, frozen, give_memory_back, require, store_channels_last

CPU = torch.device("cpu")


def test_missing_packages_name_the_extra() -> None:
    require("json", "torch", extra="bench")
    with pytest.raises(MissingExtraError, match=r"^no_such_package is not installed\. Run: pip install 'pnp-irib\[bench\]'$"):
        require("json", "no_such_package", extra="bench")
    with pytest.raises(ImportError, match="no_such_package"):
        require("no_such_package.inner", extra="bench")


def test_frozen_gives_everything_back_even_after_an_exception() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    module.train()
    module[1].eval()
    module[0].bias.requires_grad_(False)
    flags = [m.training for m in module.modules()]
    needed = [p.requires_grad for p in module.parameters()]
    with pytest.raises(RuntimeError, match="inside"), frozen(module):  # noqa: PT012 - the block is what is tested
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
        raise RuntimeError("inside")
    assert [m.training for m in module.modules()] == flags
    assert [p.requires_grad for p in module.parameters()] == needed


def test_gradients_pass_through_a_frozen_module() -> None:
    module = nn.Linear(2, 1)
    x = torch.ones(1, 2, requires_grad=True)
    with frozen(module):
        y = module(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, module.weight)
    assert module.weight.grad is None


def test_channels_last_changes_the_layout_only() -> None:
    module = nn.Conv2d(3, 4, 3)
    before = module.weight.detach().clone()
    store_channels_last(module)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(module.weight, before)


def test_moments_of_large_channels_last_maps_are_exact() -> None:
    norm = torch.nn.GroupNorm(2, 4).requires_grad_(False)
    store_channels_last(norm)
    store_channels_last(norm)
    assert len(norm._forward_pre_hooks) == 1
    x = torch.randn(1, 4, 1024, 1024, generator=torch.Generator().manual_seed(0)) + 1
    exact = torch.nn.functional.group_norm(x.double(), 2)
    torch.testing.assert_close(norm(x.contiguous(memory_format=torch.channels_last)).double(), exact, atol=1e-5, rtol=0)


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for wrong in ("cppu", "cuda:99", "", "meta", "xpu:0"):
        with pytest.raises(ConfigError, match=r"cannot be used.*Try --device cpu") as caught:
            choose_device(wrong)
        assert "\n" not in str(caught.value)


def test_dtypes() -> None:
    assert choose_dtype("auto", CPU, ["float32"]) == torch.float32
    native = torch.cpu.get_capabilities()
    expected = torch.bfloat16 if native.get("amx_bf16") or native.get("avx512_bf16") else torch.float32
    assert choose_dtype("auto", CPU, ["float32", "bfloat16"]) == expected
    assert choose_dtype("float32", CPU, ["float32"]) == torch.float32
    assert choose_dtype(torch.float32, CPU, ["float32"]) == torch.float32
    with pytest.warns(UserWarning, match="float16 is not known to be safe here; safe: float32, bfloat16"):
        assert choose_dtype("float16", CPU, ["float32", "bfloat16"]) == torch.float16
    with pytest.raises(ConfigError, match=r"Did you mean 'bfloat16' or 'float16'.*Known: auto, float32"):
        choose_dtype("bfloat17", CPU, ["float32"])


def test_stopwatch_adds_up_and_stops_at_exceptions() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("a"):
            time.sleep(0.01)
    with pytest.raises(KeyError), watch.stage("b"):
        raise KeyError
    assert list(watch.seconds) == ["a", "b"]
    assert 0.02 <= watch.seconds["a"] < 1
    assert watch.seconds["b"] < 0.01


def test_freed_memory_goes_back_to_the_system() -> None:
    def resident() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    blocks = [torch.zeros(16_000) for _ in range(4_000)]  # 256 MB in pieces that the allocator keeps
    last = blocks[-1]  # and that cannot go by shrinking the heap from its end
    held = resident()
    del blocks
    give_memory_back()
    assert resident() < held - 200e6
    assert last.sum() == 0
