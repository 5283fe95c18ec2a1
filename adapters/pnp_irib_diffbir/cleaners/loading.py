"""Published files of the cleaners: which network one holds is told from the names in it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.errors import WeightsError
from pnp_irib.rrdb.network import RRDBNet
from pnp_irib.runtime import choose_device, choose_dtype, store_channels_last
from pnp_irib.spandrel_import import import_spandrel
from pnp_irib.weights import load_strictly, resolve_file
from pnp_irib_diffbir.cleaners.cleaner import BSRNET, SCUNET, SWINIR, Cleaner
from pnp_irib_diffbir.cleaners.swinir import SwinIRInStrips
from pnp_irib_diffbir.files import read_tensors

__all__ = ["cleaner_from", "load_cleaner"]

SCUNET_MULTIPLE = 64  # windows of 8 x 8 after three halvings

RRDB_NAMES = {
    "trunk_conv": "conv_body",
    "upconv1": "conv_up1",
    "upconv2": "conv_up2",
    "HRconv": "conv_hr",
    "conv_first": "conv_first",
    "conv_last": "conv_last",
}
"""Layers of BSRNet beside its trunk, and their names in `pnp_irib.rrdb.network.RRDBNet`."""


def load_cleaner(path: str | Path, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32") -> Cleaner:
    """A cleaner from its published file.

    Args:
        path: of ``BSRNet.pth``, of a SwinIR (``realesrgan_s4_swinir_100k.pth``, ``general_swinir_v1.ckpt``, ...) or of
            ``scunet_color_real_psnr.pth``, or ``hf-hub:owner/repo/file``.
        device: where it runs.
        dtype: "auto" takes the fastest safe one for the device (see `pnp_irib.runtime.choose_dtype`).

    Raises:
        MissingExtraError: it is a SwinIR or SCUNet, and spandrel is not installed.
        WeightsError: the file is missing, damaged, or holds no cleaner.
    """
    file = resolve_file(path)
    place = device if isinstance(device, torch.device) else choose_device(device)
    return cleaner_from(read_tensors(file), source=str(file)).to(device=place, dtype=choose_dtype(dtype, place, ("float32",)))


def cleaner_from(tensors: Mapping[str, Tensor], *, source: str) -> Cleaner:
    """A cleaner from tensors under their published names, in float32 on the CPU.

    Args:
        tensors: by name; every one must be used.
        source: of them, for messages.

    Raises:
        MissingExtraError: it is a SwinIR or SCUNet, and spandrel is not installed.
        WeightsError: they are of no cleaner, or do not fit together.
    """
    if any(name.startswith("RRDB_trunk.") for name in tensors):
        return Cleaner(BSRNET, _bsrnet(tensors, source))
    if "m_head.0.weight" in tensors:
        return Cleaner(SCUNET, _of_spandrel("SCUNet", tensors, source), multiple=SCUNET_MULTIPLE)
    if any(re.match(r"layers\.\d+\.residual_group\.", name) for name in tensors):
        network, multiple = _swinir(tensors, source)
        return Cleaner(SWINIR, network, multiple=multiple)
    names = ", ".join(list(tensors)[:3])
    raise WeightsError(
        f"{source} holds no cleaner: it holds {names}, ...; expected BSRNet (RRDB_trunk....), a SwinIR "
        "(layers.N.residual_group....) or SCUNet (m_head.0.weight, ...)."
    )


def _bsrnet(tensors: Mapping[str, Tensor], source: str) -> RRDBNet:
    """RRDBNet as the file has it: features, growth and blocks are read from its tensors."""
    own = {_rrdb_name(name): value for name, value in tensors.items()}
    blocks = {name.split(".")[1] for name in own if name.startswith("body.")}
    try:
        features, growth = own["conv_first.weight"].shape[0], own["body.0.rdb1.conv1.weight"].shape[0]
    except (KeyError, IndexError):
        raise WeightsError(
            f"{source} does not fit BSRNet: it has no conv_first or no first block. Is the download complete?"
        ) from None
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, though they are replaced at once
        network = RRDBNet(features=features, growth=growth, blocks=len(blocks))
    load_strictly(network, own, source=source)
    store_channels_last(network)
    return network


def _rrdb_name(name: str) -> str:
    if found := re.fullmatch(r"RRDB_trunk\.(\d+)\.RDB([123])\.(conv[1-5])\.(weight|bias)", name):
        return "body.{}.rdb{}.{}.{}".format(*found.groups())
    layer, _, kind = name.rpartition(".")
    return f"{RRDB_NAMES.get(layer, layer)}.{kind}"


def _swinir(tensors: Mapping[str, Tensor], source: str) -> tuple[SwinIRInStrips, int]:
    """The network, and what it needs the sides of pictures to be multiples of."""
    network: Any = _of_spandrel("SwinIR", tensors, source)
    if network.upscale != network.start_unshuffle or network.upsampler != "nearest+conv":
        raise WeightsError(
            f"{source} is a SwinIR that reduces by {network.start_unshuffle} and enlarges by {network.upscale} "
            f"({network.upsampler or 'no upsampler'}); expected the same (nearest+conv), as DiffBIR's have it. "
            "Is it one for super-resolution?"
        )
    return SwinIRInStrips(network), network.window_size * network.start_unshuffle


def _of_spandrel(architecture: str, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """The network of an architecture that spandrel has; sizes are read from the tensors."""
    arch = import_spandrel().MAIN_REGISTRY[architecture].architecture
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")
            descriptor = arch.load(dict(tensors))  # which it may rename
    except Exception as error:  # what an architecture makes of tensors that do not fit it
        said = " ".join(str(error).split())
        raise WeightsError(
            f"{source} does not fit {architecture}: {type(error).__name__}: {said:.200}. Is the download complete?"
        ) from error
    channels = (descriptor.input_channels, descriptor.output_channels)
    if channels != (3, 3):
        raise WeightsError(f"{source} is a {architecture} from {channels[0]} to {channels[1]} channels, expected 3 and 3.")
    model: nn.Module = descriptor.model
    return model
