"""Low-rank adapters (Hu et al., arXiv 2106.09685) in stock modules, through peft."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.errors import WeightsError
from pnp_irib.runtime import require

__all__ = [
    "UNET_LAYERS",
    "active",
    "adapter_module",
    "adapter_names",
    "adapter_scales",
    "adapter_tensors",
    "add_adapter",
    "layers_named",
    "load_tensors",
    "merge",
]

UNET_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "conv", "conv_out"),
)
"""Endings of the names of all layers of a UNet of Stable Diffusion but the first and those of the time step."""


def add_adapter(module: nn.Module, name: str, targets: Sequence[str], *, rank: int, alpha: int) -> None:
    """Put a LoRA adapter of scale ``alpha / rank`` on the named layers, A from a Gaussian and B zero.

    It waits: `active` lets it act. What acted before still does.

    Raises:
        WeightsError: there is no such layer.
    """
    require("peft", extra="diffusion")
    import peft

    known = {key for key, _ in module.named_modules()}
    base = {key.removesuffix(".base_layer") for key in known}
    if unknown := sorted(set(targets) - base):
        raise WeightsError(f"adapter {name!r} is for layers that the model lacks, such as {unknown[0]!r}. Is it another base?")
    flags = [(p, p.requires_grad) for p in module.parameters()]
    before = [(layer, layer.active_adapters, layer.disable_adapters) for layer in _layers(module)]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=sorted(set(targets)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        peft.inject_adapter_in_model(config, module, adapter_name=name)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    for layer in _layers(module):
        _choose(layer, [])
    for layer, names, disabled in before:
        layer._active_adapter, layer._disable_adapters = names, disabled


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, required: Iterable[str]) -> None:
    """Overwrite parameters by name.

    Args:
        module: whose.
        tensors: by the module's own parameter names.
        required: parameters that must be among them.

    Raises:
        WeightsError: a tensor is missing, superfluous, or of another shape.
    """
    own = dict(module.named_parameters())
    missing = sorted(set(required) - set(tensors))
    extra = sorted(set(tensors) - set(own))
    if missing or extra:
        told = [
            f"{len(names)} {what} (first: {names[0]})" for names, what in ((missing, "missing"), (extra, "unknown")) if names
        ]
        raise WeightsError(f"the tensors do not fit the model: {', '.join(told)}. Is it a file for another base or rank?")
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise WeightsError(f"{name} is {tuple(value.shape)} in the file, and {tuple(own[name].shape)} in the model.")
        with torch.no_grad():
            own[name].copy_(value)


def adapter_names(module: nn.Module) -> set[str]:
    """Names of all adapters in a module."""
    return {name for layer in _layers(module) for name in layer.lora_A}


def adapter_tensors(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameters of one adapter, by names without the adapter's, such as ``<layer>.lora_A.weight``."""
    found: dict[str, nn.Parameter] = {}
    for key, parameter in module.named_parameters():
        for side in ("lora_A", "lora_B"):
            if key.endswith(f".{side}.{name}.weight"):
                found[key.removesuffix(f"{name}.weight") + "weight"] = parameter
    return found


def adapter_scales(module: nn.Module, name: str) -> set[float]:
    """The factors, alpha / rank, that one adapter acts with."""
    return {float(layer.scaling[name]) for layer in _layers(module) if name in layer.lora_A}


def adapter_module(module: nn.Module, name: str) -> nn.Module:
    """A module whose parameters are those of one adapter, shared, under the names of `adapter_tensors`."""
    root = nn.Module()
    for key, parameter in adapter_tensors(module, name).items():
        *path, last = key.split(".")
        owner = root
        for step in path:
            if step not in owner._modules:
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        owner.register_parameter(last, parameter)
    return root


def layers_named(module: nn.Module, endings: Sequence[str]) -> list[str]:
    """Names of the linear layers and convolutions that end so, adapters aside."""
    names = {
        name.removesuffix(".base_layer")
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name
    }
    return sorted(name for name in names if any(name == ending or name.endswith(f".{ending}") for ending in endings))


@contextlib.contextmanager
def active(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let exactly these adapters act inside; before and after, those that did. No flag of a parameter changes."""
    wanted = set(names)
    layers = list(_layers(module)) if hasattr(module, "peft_config") else []  # peft loads slowly
    before = [(layer, layer.active_adapters, layer.disable_adapters) for layer in layers]
    try:
        for layer in layers:
            _choose(layer, [name for name in layer.lora_A if name in wanted])
        yield
    finally:
        for layer, names_before, disabled in before:
            layer._active_adapter, layer._disable_adapters = names_before, disabled


def _choose(layer: Any, names: list[str]) -> None:
    # set_adapter and enable_adapters of peft also set requires_grad, which is not ours to change.
    layer._active_adapter, layer._disable_adapters = names, not names


def merge(module: nn.Module, names: Iterable[str]) -> None:
    """Fold adapters into the weights and put the plain layers back; other adapters are dropped."""
    wanted = set(names)
    layers = set(_layers(module))
    found = [(name, layer) for name, layer in module.named_modules() if layer in layers]
    for name, layer in found:
        layer.merge(adapter_names=[n for n in layer.lora_A if n in wanted])
        parent, _, attribute = name.rpartition(".")
        owner = module.get_submodule(parent)
        if attribute.isdigit() and isinstance(owner, nn.ModuleList | nn.Sequential):
            owner[int(attribute)] = layer.get_base_layer()
        else:
            setattr(owner, attribute, layer.get_base_layer())


def _layers(module: nn.Module) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (m for m in module.modules() if isinstance(m, BaseTunerLayer))
