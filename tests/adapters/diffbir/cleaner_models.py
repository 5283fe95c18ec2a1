"""Cleaners with the tiny weights of the golden data, and of other sizes."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnp_irib.registry import load_restorer
from pnp_irib.spandrel_import import import_spandrel
from pnp_irib.weights import load_checkpoint
from pnp_irib_diffbir.cleaners.cleaner import Cleaner
from pnp_irib_diffbir.cleaners.loading import cleaner_from
from pnp_irib_diffbir.cleaners.restorer import CleanerRestorer, load_bsrnet, load_scunet, load_swinir
from tests.adapters.diffbir.models import MODEL

NAMES = ("bsrnet", "swinir", "scunet")
FILES = {"bsrnet": "BSRNet.pth", "swinir": "realesrgan_s4_swinir_100k.pth"}


@functools.cache
def tensors(name: str) -> Mapping[str, Tensor]:
    """As the published file would hold them."""
    return scunet_tensors() if name == "scunet" else load_checkpoint(MODEL / FILES[name])


@functools.cache
def cleaner(name: str) -> Cleaner:
    return cleaner_from(tensors(name), source=name)


def scunet_tensors() -> dict[str, Tensor]:
    """By the recipe that stands for a file."""
    configs: dict[str, Any] = json.loads((MODEL / "configs.json").read_text())
    shapes = {key: tuple(value.shape) for key, value in empty_scunet(configs["scunet"]["config"]).items()}
    signs = np.array(configs["scunet_recipe"]["tail_sign"], dtype=np.float64)[None, :, None, None]
    return {key: torch.from_numpy(_by_recipe(key, shape, signs).astype(np.float16)) for key, shape in shapes.items()}


def _by_recipe(key: str, shape: Sequence[int], signs: Any) -> Any:
    count, seed = int(np.prod(shape)), zlib.crc32(key.encode()) + 1000
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    u = (2 * (z >> np.uint64(40)).astype(np.float64) / 2**24 - 1).reshape(shape)
    if key.endswith("relative_position_params"):
        return 0.5 * u
    if len(shape) >= 2:
        value = u * 1.6 / np.sqrt(np.prod(shape[1:]))
        return 0.05 * value + signs * 0.06 / 64 if key == "m_tail.0.weight" else value
    return 1 + 0.1 * u if key.endswith(".weight") else 0.1 * u


def empty_scunet(config: Sequence[int], dim: int = 64) -> dict[str, Tensor]:
    """Tensors of a new SCUNet."""
    import_spandrel()
    from spandrel.architectures.SCUNet import SCUNet

    state: dict[str, Tensor] = SCUNet(config=list(config), dim=dim).state_dict()
    return state


def swinir_tensors(**sizes: Any) -> tuple[dict[str, Tensor], Any]:
    """Tensors of a new SwinIR under their published names, and the network itself."""
    import_spandrel()
    from spandrel.architectures.SwinIR import SwinIR

    known: dict[str, Any] = {
        "embed_dim": 12,
        "depths": [2],
        "num_heads": [2],
        "window_size": 8,
        "img_size": 16,
        "mlp_ratio": 2.0,
        "upscale": 8,
        "start_unshuffle": 8,
        "upsampler": "nearest+conv",
    }
    network = SwinIR(**known | sizes).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    state = dict(network.state_dict())
    for kind in ("weight", "bias"):
        state[f"conv_first.1.{kind}"] = state.pop(f"conv_first.{kind}")
    return state, network


def save(name: str, folder: Path) -> Path:
    """A file that stands for a published one; that of BSRNet holds real weights, of a network of the same shape."""
    file = folder / f"{name}.pth"
    torch.save(real_rrdb_tensors() if name == "bsrnet" else dict(tensors(name)), file)
    return file


def real_rrdb_tensors() -> dict[str, Tensor]:
    """Real-ESRGAN's six blocks for drawings under the names of BSRNet."""
    network: Any = load_restorer("realesrgan-x4plus-anime", dtype="float32")
    renamed = {"conv_body": "trunk_conv", "body.": "RRDB_trunk.", ".rdb": ".RDB", "conv_up": "upconv", "conv_hr": "HRconv"}
    found: dict[str, Tensor] = {}
    for name, value in network.network.state_dict().items():
        for own, published in renamed.items():
            name = name.replace(own, published)
        found[name] = value.contiguous()
    return found


LOAD: dict[str, Callable[..., CleanerRestorer]] = {"bsrnet": load_bsrnet, "swinir": load_swinir, "scunet": load_scunet}


def picture(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))
