"""``s3diff.pkl``: LoRA of UNet and VAE, the first convolution of the UNet, and what mixes the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pnp_irib.errors import WeightsError
from pnp_irib.weights import read_pickle
from pnp_irib_s3diff.modulation import LowRank, Modulator, sinusoids

__all__ = ["Trained", "read_trained"]

_PARTS = ("state_dict_unet", "state_dict_vae")
_ADAPTERS = {"unet": "default", "vae": "vae_skip"}


class Trained(nn.Module):
    """All that was trained of S3Diff, frozen.

    Args:
        content: of the published file.
        source: of it, for messages.

    Raises:
        WeightsError: names what is missing, unknown, or of another shape.
    """

    def __init__(self, content: Mapping[str, Any], *, source: str) -> None:
        super().__init__()
        wanted = [
            *_PARTS,
            "w",
            "state_embeddings",
            *(f"state_dict_{n}_{m}_mlp" for n in _ADAPTERS for m in ("de", "block", "fuse")),
        ]
        if missing := [name for name in wanted if name not in content]:
            raise WeightsError(
                f"{source} is no checkpoint of S3Diff: {', '.join(missing[:3])} missing. Give s3diff.pkl, or "
                f"hf-hub:zhangap/S3Diff/s3diff.pkl."
            )
        self.frequencies = nn.Parameter(_tensor(content, "w", source).float(), requires_grad=False)
        unet = dict(content["state_dict_unet"])
        self.conv_in = _convolution(unet, source)
        self.unet = LowRank(_pairs(unet, "unet", source), unet=True)
        self.vae = LowRank(_pairs(dict(content["state_dict_vae"]), "vae", source), unet=False)
        self.of_unet = self._modulator(content, "unet", source)
        self.of_vae = self._modulator(content, "vae", source)
        self.eval().requires_grad_(False)

    def _modulator(self, content: Mapping[str, Any], name: str, source: str) -> Modulator:
        tables = content["state_embeddings"]
        own = {
            **{f"of_scores.{kind}": _tensor(content[f"state_dict_{name}_de_mlp"], f"0.{kind}", source) for kind in _KINDS},
            **{f"of_blocks.{kind}": _tensor(content[f"state_dict_{name}_block_mlp"], f"0.{kind}", source) for kind in _KINDS},
            **{f"fuse.{kind}": _tensor(content[f"state_dict_{name}_fuse_mlp"], kind, source) for kind in _KINDS},
            "blocks": _tensor(tables.get(f"state_dict_{name}_block", {}), "weight", source),
        }
        lora = self.unet if name == "unet" else self.vae
        rank = len(lora.down[0])
        blocks, code = own["blocks"].shape
        modulator = Modulator(blocks, rank, frequencies=len(self.frequencies), code=code)
        shapes = {key: tuple(value.shape) for key, value in modulator.state_dict().items()}
        wrong = [key for key, value in own.items() if tuple(value.shape) != shapes[key]]
        if wrong or blocks <= max(lora.blocks):
            raise WeightsError(
                f"{source} does not fit together: {name} {(wrong or ['blocks'])[0]} is "
                f"{tuple(own[(wrong or ['blocks'])[0]].shape)}, with LoRA of rank {rank} on {blocks} blocks."
            )
        modulator.load_state_dict({key: value.float() for key, value in own.items()})
        return modulator

    def matrices(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """What mixes the ranks of UNet and VAE for pictures of these scores (N, 2), see `Modulator`."""
        phases = sinusoids(scores.to(self.frequencies.dtype), self.frequencies)
        return self.of_unet(phases), self.of_vae(phases)


_KINDS = ("weight", "bias")


def read_trained(file: Path) -> Trained:
    """The published file, read without running what it may hold.

    Raises:
        WeightsError: missing, damaged, or no such file.
    """
    content = read_pickle(file)
    try:
        return Trained(content if isinstance(content, Mapping) else {}, source=str(file))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # what ought to be a tensor is not
        raise WeightsError(f"{file} is damaged: {error}. Is the download complete?") from error


def _tensor(content: Any, name: str, source: str) -> Tensor:
    value = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(value, Tensor):
        raise WeightsError(f"{source} is damaged: no tensor {name!r} where one belongs.")
    return value.detach()


def _convolution(tensors: dict[str, Tensor], source: str) -> nn.Conv2d:
    """The UNet's first one, which was trained as a whole."""
    weight, bias = (_tensor(tensors, f"conv_in.{kind}", source).float() for kind in _KINDS)
    del tensors["conv_in.weight"], tensors["conv_in.bias"]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=weight.shape[2] // 2)  # type: ignore[arg-type]
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv


def _pairs(tensors: Mapping[str, Tensor], part: str, source: str) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer."""
    ends = tuple(f".lora_{side}.{_ADAPTERS[part]}.weight" for side in "AB")
    names = dict.fromkeys(name.removesuffix(end) for name in tensors for end in ends if name.endswith(end))
    known = {f"{name}{end}" for name in names for end in ends}
    if unknown := [name for name in tensors if name not in known]:
        raise WeightsError(
            f"{source} has {unknown[0]} in state_dict_{part}; expected LoRA of the adapter {_ADAPTERS[part]!r} only."
        )
    pairs = {
        name: (_tensor(tensors, name + ends[0], source).float(), _tensor(tensors, name + ends[1], source).float())
        for name in names
    }
    ranks = {len(a) for a, _ in pairs.values()} | {b.shape[1] for _, b in pairs.values()}
    if len(ranks) != 1:
        raise WeightsError(f"{source} has LoRA of the ranks {sorted(ranks)} in state_dict_{part}; expected one rank.")
    return pairs
