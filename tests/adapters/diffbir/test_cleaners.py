"""Cleaners of any size, their memory, gradients, files and errors."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.diffusion.latents import published_tiles
from pnp_irib.errors import ConfigError, InputError, MissingExtraError, WeightsError
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib_diffbir.cleaners.loading import cleaner_from, load_cleaner
from pnp_irib_diffbir.cleaners.sizes import raised
from pnp_irib_diffbir.cleaners.tiles import tiles_on_grid
from tests.adapters.diffbir.cleaner_models import (
    NAMES,
    cleaner,
    empty_scunet,
    picture,
    real_rrdb_tensors,
    swinir_tensors,
    tensors,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of new networks of spandrel


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Tensor:
    """A real photograph, (1, 3, H, W)."""
    return read_picture(sorted((shared_dir / "data" / "dev").glob("*.webp"))[1]).rgb


# Networks of other sizes


def bsrnet_reference(weights: Mapping[str, Tensor], lq: Tensor) -> Tensor:
    """The network as its paper draws it, from the published names."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def dense(name: str, x: Tensor) -> Tensor:
        maps = [x]
        for i in range(1, 5):
            maps.append(F.leaky_relu(conv(f"{name}.conv{i}", torch.cat(maps, 1)), 0.2))
        return x + 0.2 * conv(f"{name}.conv5", torch.cat(maps, 1))

    first = x = conv("conv_first", lq)
    block = 0
    while f"RRDB_trunk.{block}.RDB1.conv1.weight" in weights:
        y = x
        for part in (1, 2, 3):
            y = dense(f"RRDB_trunk.{block}.RDB{part}", y)
        x, block = x + 0.2 * y, block + 1
    x = first + conv("trunk_conv", x)
    for up in ("upconv1", "upconv2"):
        x = F.leaky_relu(conv(up, x.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2)
    return conv("conv_last", F.leaky_relu(conv("HRconv", x), 0.2))


def bsrnet_tensors(features: int, growth: int, blocks: int) -> dict[str, Tensor]:
    shapes = {"conv_first": (3, features), "trunk_conv": (features, features), "conv_last": (features, 3)}
    shapes |= dict.fromkeys(("upconv1", "upconv2", "HRconv"), (features, features))
    for part in (f"RRDB_trunk.{block}.RDB{i}" for block in range(blocks) for i in (1, 2, 3)):
        shapes |= {f"{part}.conv{i}": (features + (i - 1) * growth, growth) for i in range(1, 5)}
        shapes[f"{part}.conv5"] = (features + 4 * growth, features)
    return {
        f"{name}.{kind}": value
        for name, (given, made) in shapes.items()
        for kind, value in (("weight", torch.randn(made, given, 3, 3) / (9 * given) ** 0.5), ("bias", 0.1 * torch.randn(made)))
    }


@pytest.mark.parametrize(("features", "growth", "blocks"), [(8, 4, 3), (6, 10, 1), (16, 16, 2)])
@torch.no_grad()
def test_bsrnet_of_other_sizes(features: int, growth: int, blocks: int) -> None:
    given = bsrnet_tensors(features, growth, blocks)
    net = cleaner_from(given, source="here")
    for height, width in ((1, 1), (5, 9), (31, 26)):
        lq = picture(2, height, width)
        torch.testing.assert_close(net(lq), bsrnet_reference(given, lq), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "sizes",
    [
        {"embed_dim": 20, "depths": [3, 1], "num_heads": [5, 2], "mlp_ratio": 3.0},
        {"upscale": 4, "start_unshuffle": 4, "depths": [1]},
        {"window_size": 4, "upscale": 2, "start_unshuffle": 2, "img_size": 8},
    ],
)
@torch.no_grad()
def test_swinir_of_other_sizes(sizes: dict[str, Any]) -> None:
    given, network = swinir_tensors(**sizes)
    net = cleaner_from(given, source="here")
    multiple = network.window_size * network.start_unshuffle
    assert (net.kind.name, net.scale, net.multiple) == ("swinir", 1, multiple)
    lq = picture(2, multiple + 3, 2 * multiple)
    padded = F.pad(lq, (0, 0, 0, multiple - 3))
    torch.testing.assert_close(net(lq), network(padded)[:, :, : multiple + 3], atol=1e-5, rtol=0)
    assert net(picture(1, 1, 1)).shape == (1, 3, 1, 1)


@torch.no_grad()
def test_scunet_of_other_sizes() -> None:
    given = empty_scunet([1, 2, 1, 2, 1, 1, 1])
    net = cleaner_from({f"{name}": value.half() for name, value in given.items()}, source="here")
    assert (net.kind.name, net.multiple, net.dtype) == ("scunet", 64, torch.float32)
    lq = picture(1, 37, 64)
    padded = torch.cat((lq, lq[:, :, -1:].expand(-1, -1, 27, -1)), 2)
    torch.testing.assert_close(net(lq), net.network(padded)[:, :, :37], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_pictures_of_a_batch_do_not_meet_and_stay_as_they_are(name: str) -> None:
    net, lq = cleaner(name), picture(2, 17, 30)
    both = net(lq)
    assert torch.equal(lq, picture(2, 17, 30))
    torch.testing.assert_close(both, torch.cat([net(one) for one in lq.split(1)]), atol=1e-5, rtol=0)
    assert net(lq[:1].double()).dtype == torch.float64


# Gradients


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    net = copy.deepcopy(cleaner(name)).double()
    lq = picture(1, 36 // net.scale, 60 // net.scale).double().requires_grad_()  # resizing would be in float32
    weight = torch.randn(1, 3, 36, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(pictures: Tensor) -> Tensor:
        return (net.clean(pictures, (36, 60), shortest=1) * weight).sum()

    (gradient,) = torch.autograd.grad(loss(lq), lq)
    direction = torch.randn(lq.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():  # which is other code for BSRNet and SwinIR
        numeric = (loss(lq + 1e-6 * direction) - loss(lq - 1e-6 * direction)) / 2e-6
        in_one_piece = net.clean(lq, (36, 60), shortest=1)
    expected = (gradient * direction).sum()
    assert expected.abs() > 1e-3
    assert torch.equal(net.clean(lq, (36, 60), shortest=1, memory=1), in_one_piece)  # a budget cuts no gradients
    torch.testing.assert_close(expected, numeric, rtol=1e-4, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in net.parameters())


# Working memory


@torch.no_grad()
def test_swinir_enlarges_in_strips_what_it_enlarges_at_once() -> None:
    for sizes in ({}, {"upscale": 4, "start_unshuffle": 4}, {"upscale": 2, "start_unshuffle": 2}):
        given, network = swinir_tensors(**sizes)
        net: Any = cleaner_from(given, source="here").double()
        network.double()
        multiple = net.multiple
        lq = picture(1, 3 * multiple, multiple).double()
        for pixels in (1, multiple**2):  # strips of four rows, and of more
            net.network.strip_pixels = pixels
            torch.testing.assert_close(net(lq), network(lq))


@torch.no_grad()
def test_bsrnet_in_strips_is_the_same(photo: Tensor) -> None:
    net = cleaner_from(real_rrdb_tensors(), source="real weights")
    crop = photo[..., 100:150, 60:92]
    whole, strips = net(crop), net.bounded(crop.expand(2, -1, -1, -1), 1)
    assert (strips - whole).abs().max() < 0.5 / 255
    assert (whole - resize(crop, (200, 128))).abs().max() > 20 / 255  # it does something
    assert net.in_strips(crop, 1, torch.float16).dtype == torch.float16


@pytest.mark.parametrize(("name", "side", "tile", "within"), [("swinir", 384, 256, 4.0), ("scunet", 192, 128, 2.0)])
@torch.no_grad()
def test_tiles_of_a_photograph_are_near_the_whole(photo: Tensor, name: str, side: int, tile: int, within: float) -> None:
    net = cleaner(name)
    seen: list[tuple[int, ...]] = []
    lq = resize(photo[..., : side // 2, : side // 2], (side, side - 70)).clamp(0, 1)
    whole = net(lq)
    hook = net.network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    tiles = net.bounded(lq, tile**2 * net.kind.bytes_per_pixel)
    hook.remove()
    assert len(seen) > 1
    assert max(shape[-1] * shape[-2] for shape in seen) <= tile**2
    assert tiles.shape == lq.shape
    assert (tiles - whole).abs().max() < within / 255
    assert (whole - lq).abs().mean() > 10 / 255  # it does something
    assert torch.equal(net.bounded(lq, side**2 * net.kind.bytes_per_pixel), whole)


def test_tiles_lie_on_the_grid_of_windows_and_leave_nothing_out() -> None:
    for height, width, multiple, pixels in ((640, 576, 64, 320**2), (1024, 64, 64, 1), (96, 2048, 32, 250**2)):
        tiles = tiles_on_grid(height, width, multiple=multiple, pixels=pixels)
        assert tiles is not None
        assert tiles.symmetric
        seen = torch.zeros(height, width)
        for y, x in tiles.corners:
            assert y % multiple == x % multiple == 0
            seen[y : y + tiles.height, x : x + tiles.width] += 1
        assert seen.min() > 0
        assert tiles.height * tiles.width <= max(pixels, (2 * multiple) ** 2)
    assert tiles_on_grid(128, 192, multiple=64, pixels=192**2) is None


MEMORY = """
import sys, torch
from pathlib import Path
from pnp_irib.spandrel_import import import_spandrel
from pnp_irib_diffbir.cleaners.cleaner import BSRNET, SCUNET, SWINIR
from pnp_irib_diffbir.cleaners.loading import cleaner_from
torch.set_num_threads(1)
import_spandrel()
from spandrel.architectures.SCUNet import SCUNet
from spandrel.architectures.SwinIR import SwinIR
facts = dict(img_size=64, embed_dim=180, depths=[6] * 8, num_heads=[6] * 8, window_size=8, mlp_ratio=2.0, upscale=8)
build = {"scunet": SCUNet, "swinir": lambda: SwinIR(**facts, upsampler="nearest+conv", start_unshuffle=8)}
state = build[sys.argv[1]]().state_dict()
for kind in ("weight", "bias") if sys.argv[1] == "swinir" else ():
    state["conv_first.1." + kind] = state.pop("conv_first." + kind)
net = cleaner_from(state, source="here")
def status(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024
side, memory = int(sys.argv[2]), int(sys.argv[3])
with torch.no_grad():
    net(torch.rand(1, 3, 64, 64))
    lq = torch.rand(1, 3, side, side)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    net.bounded(lq, memory)
    print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from Linux' /proc")
@pytest.mark.parametrize(
    ("name", "side", "memory"),
    [("swinir", 1024, 2**28), ("swinir", 1024, 2**40), ("scunet", 384, 2**29), ("scunet", 384, 2**40)],
)
def test_the_budget_is_about_kept(name: str, side: int, memory: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, name, str(side), str(memory)], capture_output=True, text=True, check=True
    )
    allowed = min(memory, side**2 * cleaner(name).kind.bytes_per_pixel)
    assert int(done.stdout) < 1.1 * allowed + 2**27  # the system's allocator keeps some


# Sizes around the networks


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_clean_gives_the_size_that_is_wanted(name: str) -> None:
    net, lq = cleaner(name), picture(1, 20, 30)
    assert net.clean(lq, (50, 75), shortest=1).shape == (1, 3, 50, 75)
    assert net.clean(lq, (50, 75), shortest=64).shape == (1, 3, 64, 96)
    if name == "bsrnet":  # sees the picture as it is
        expected = resize(net(lq), (64, 96))
    elif name == "swinir":  # as large as its result
        expected = net(resize(lq, (64, 96)))
    else:  # in the size that was asked for
        expected = resize(net(resize(lq, (50, 75))), (64, 96))
    torch.testing.assert_close(net.clean(lq, (50, 75), shortest=64), expected)


@torch.no_grad()
def test_tiles_do_not_decide_at_what_size_swinir_sees_a_picture() -> None:
    net, lq = cleaner("swinir"), picture(1, 96, 128)
    whole = net.clean(lq, (96, 128), shortest=192)
    published = net.as_published(lq, shortest=192)
    torch.testing.assert_close(whole, published)
    in_tiles = net.clean(lq, (96, 128), shortest=192, memory=128**2 * net.kind.bytes_per_pixel)
    published_in_tiles = net.as_published(lq, tile=64, stride=32, shortest=192)  # sees it small
    assert not torch.equal(in_tiles, whole)
    near, far = ((other - whole).abs().mean().item() for other in (in_tiles, published_in_tiles))
    assert near < 0.2 * far


@torch.no_grad()
def test_published_tiles_are_left_out_where_a_side_is_shorter() -> None:
    for name in NAMES:
        net, lq = cleaner(name), picture(1, 40, 70)
        assert torch.equal(net.as_published(lq, tile=64, shortest=1), net.as_published(lq, shortest=1))


def test_raised() -> None:
    assert raised(100, 50, 20) == (100, 50)
    assert raised(10, 10, 20) == (20, 20)
    assert raised(15, 10, 20) == (30, 20)


# Files


def test_files_are_told_apart_and_unwrapped(tmp_path: Path) -> None:
    for name in NAMES:
        given = dict(tensors(name))
        torch.save(
            {"state_dict": {f"module.{key}": value for key, value in given.items()}, "epoch": 3}, tmp_path / "spread.ckpt"
        )
        net = load_cleaner(tmp_path / "spread.ckpt")
        assert net.kind.name == name
        assert (net.device, net.dtype) == (torch.device("cpu"), torch.float32)
        assert not net.training
        assert not any(m.training for m in net.modules())
        lq = picture(1, 8, 8)
        with torch.no_grad():
            assert torch.equal(net(lq), cleaner(name)(lq))


def test_files_of_published_size_load(shared_dir: Path) -> None:
    manifest = json.loads(gzip.decompress((shared_dir / "upstream" / "diffbir_keys.json.gz").read_bytes()))["files"]
    for file, name in (
        ("realesrgan_s4_swinir_100k.pth", "swinir"),
        ("BSRNet.pth", "bsrnet"),
        ("scunet_color_real_psnr.pth", "scunet"),
    ):
        keys = manifest[file]["keys"]
        given = {key: torch.zeros((), dtype=getattr(torch, kind)).expand(shape) for key, (shape, kind) in keys.items()}
        net = cleaner_from(given, source=file)
        assert net.kind.name == name
        assert sum(value.numel() for value in net.state_dict().values()) == manifest[file]["n_values"]
        assert net.multiple == {"swinir": 64, "bsrnet": 1, "scunet": 64}[name]


def test_wrong_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weight file at .*none.pth"):
        load_cleaner(tmp_path / "none.pth")
    torch.save({0: torch.zeros(1)}, tmp_path / "numbers.pth")
    with pytest.raises(WeightsError, match=r"numbers.pth is not a dictionary of tensors by name"):
        load_cleaner(tmp_path / "numbers.pth")
    with pytest.raises(WeightsError, match=r"here holds no cleaner: it holds first, ...; expected BSRNet .*SwinIR .*SCUNet"):
        cleaner_from({"first": torch.zeros(1)}, source="here")
    for name, lost in (
        ("bsrnet", "trunk_conv.bias"),
        ("bsrnet", "conv_first.weight"),
        ("swinir", "norm.weight"),
        ("scunet", "m_tail.0.weight"),
    ):
        part = {key: value for key, value in tensors(name).items() if key != lost}
        with pytest.raises(WeightsError, match=r"here does not fit (RRDBNet|BSRNet|SwinIR|SCUNet)") as caught:
            cleaner_from(part, source="here")
        assert "\n" not in str(caught.value)
        with pytest.raises(WeightsError, match="here does not fit"):
            cleaner_from(dict(tensors(name)) | {"more": torch.zeros(1)}, source="here")
    with pytest.raises(WeightsError, match=r"here is a SwinIR that reduces by 8 and enlarges by 4 .*super-resolution"):
        cleaner_from(swinir_tensors(upscale=4)[0], source="here")


def test_a_missing_spandrel_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "spandrel" else find(name))
    with pytest.raises(MissingExtraError, match=r"spandrel is not installed. Run: pip install 'pnp-irib\[spandrel\]'"):
        cleaner_from(tensors("swinir"), source="here")
    assert cleaner_from(tensors("bsrnet"), source="here").kind.name == "bsrnet"


def test_wrong_options_are_told() -> None:
    lq = picture(1, 70, 80)
    with pytest.raises(ConfigError, match=r"tiles of 40 pixels: the windows of this SwinIR need a multiple of 64"):
        copy.deepcopy(cleaner("swinir")).as_published(lq, tile=40)
    for stride in (0, 65):
        with pytest.raises(ConfigError, match=rf"tiles of 64 every {stride}: expected a stride from 1"):
            cleaner("scunet").as_published(lq, tile=64, stride=stride)
    with pytest.raises(ConfigError, match=r"tiles of 64 do not fit into 63 x 80"):
        published_tiles(63, 80, tile=64, stride=32)
    with pytest.raises(InputError, match=r"scunet keeps the size of pictures, 70 x 80, but 140 x 160 are wanted"):
        cleaner("scunet").as_published(lq, (140, 160))
    with pytest.raises(InputError, match=r"swinir cannot go in strips"):
        cleaner("swinir").in_strips(lq, 1, torch.float32)
    half = copy.deepcopy(cleaner("swinir")).bfloat16()
    with pytest.raises(ConfigError, match=r"swinir cannot run in torch\.bfloat16: .* Use dtype='float32'"):
        half.clean(lq, (70, 80), shortest=1, memory=1)
