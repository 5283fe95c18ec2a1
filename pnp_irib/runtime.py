"""Small services of the running process: optional packages, borrowed model state, devices and dtypes, clocks."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pnp_irib.errors import ConfigError, MissingExtraError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "BORROWING",
    "Stopwatch",
    "choose_device",
    "choose_dtype",
    "dtype_named",
    "evaluating",
    "frozen",
    "give_memory_back",
    "modules_held_by",
    "peak_memory",
    "require",
    "store_channels_last",
    "widest_float",
]

LARGEST_SUM = 2**20  # terms; up to there it is off by less than 1e-3 of the standard deviation
DEEPEST = 8  # attributes of attributes that modules are looked for in

BORROWING = threading.RLock()
"""Held while the state of the process or of a borrowed model is changed for a call."""


def require(*modules: str, extra: str) -> None:
    """Check that optional packages are installed.

    Raises:
        MissingExtraError: names the first missing package and the extra that brings it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"{module} is not installed. Run: pip install 'pnp-irib[{extra}]'")


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Lend modules in evaluation mode; the flag of every submodule is as before afterwards."""
    # Frozen TorchScript has no flag.
    flags = {m: m.training for module in modules for m in module.modules() if hasattr(m, "training")}
    try:
        for m in flags:
            m.training = False
        yield
    finally:
        for m, flag in flags.items():
            m.training = flag


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Lend modules in evaluation mode with no parameter requiring gradients; everything is as before afterwards.

    Gradients still flow through a module to its input. Inside, buffers are copies, so that counters and caches that a model
    keeps come out as they went in, whatever becomes of them. One thread at a time.
    """
    with BORROWING, evaluating(*modules):
        grads = {p: p.requires_grad for module in modules for p in module.parameters()}
        buffers = {m: dict(m._buffers.items()) for module in modules for m in module.modules()}
        copies: dict[int, Tensor] = {}  # by identity: modules may share a buffer
        try:
            for p in grads:
                p.requires_grad_(False)
            for m, held in buffers.items():
                for name, buffer in held.items():
                    if buffer is not None:
                        copies.setdefault(id(buffer), buffer.detach().clone())
                        _put_buffer(m, name, copies[id(buffer)])
            yield
        finally:
            for p, flag in grads.items():
                p.requires_grad_(flag)
            for m, held in buffers.items():
                for name in [name for name in m._buffers.keys() if name not in held]:  # noqa: SIM118 - TorchScript has no more
                    del m._buffers[name]
                for name, buffer in held.items():
                    _put_buffer(m, name, buffer)


def _put_buffer(module: nn.Module, name: str, buffer: Tensor | None) -> None:
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        setattr(module, name, buffer)
    else:
        module._buffers[name] = buffer


def store_channels_last(module: nn.Module) -> None:
    """Lay the convolution weights out channels-last: the kernels then read pictures as they lie, without reordering."""
    import torch

    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for norm in module.modules():
        if isinstance(norm, torch.nn.GroupNorm) and _as_it_can_be_summed not in norm._forward_pre_hooks.values():
            norm.register_forward_pre_hook(_as_it_can_be_summed)


def _as_it_can_be_summed(norm: nn.GroupNorm, given: tuple[Tensor]) -> tuple[Tensor] | None:
    """Large maps one channel after the other: torch on CPUs takes the moments of channels-last ones in a single float32 sum.

    At 2048x2048 pixels that is a hundredth of a standard deviation off.
    """
    (x,) = given
    if x.device.type == "cpu" and not x.is_contiguous() and x[0].numel() > norm.num_groups * LARGEST_SUM:
        return (x.contiguous(),)
    return None


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto": CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: the name is unknown, or there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no data
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0].rstrip('.')}. Try --device cpu."
        ) from error
    return device


def choose_dtype(dtype: str | torch.dtype, device: torch.device, safe: Sequence[str]) -> torch.dtype:
    """The dtype to run a network in.

    Args:
        dtype: "auto", a name, or a torch dtype.
        device: where it will run.
        safe: names of the dtypes that are numerically safe for the network.

    Returns:
        For "auto": bfloat16 where it is safe and the device multiplies it natively (AMX or AVX512-BF16 on x86; CUDA from
        Ampere on), where it is about twice as fast; float32 otherwise, because emulated bfloat16 is several times slower.

    Raises:
        ConfigError: the name is unknown.
    """
    import torch

    if isinstance(dtype, torch.dtype):
        chosen = dtype
    elif dtype == "auto":
        return torch.bfloat16 if "bfloat16" in safe and _native_bfloat16(device) else torch.float32
    else:
        chosen = dtype_named(dtype)
    if str(chosen).removeprefix("torch.") not in safe:
        warnings.warn(f"{chosen} is not known to be safe here; safe: {', '.join(safe)}", stacklevel=3)
    return chosen


def dtype_named(name: str) -> torch.dtype:
    """The dtype of this name.

    Raises:
        ConfigError: the name is unknown.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"no dtype named {name!r}. {did_you_mean(name, known)}Known: auto, {', '.join(known)}.")
    return known[name]


def _native_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):  # older releases cannot tell
            return False
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return False


def give_memory_back() -> None:
    """Return freed memory to the system; glibc keeps it, and over stages and pictures of many sizes it would pile up."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim(0)


def peak_memory(device: torch.device) -> int | None:
    """The most memory taken so far, bytes: of the CUDA device, or of this process; None where the system does not tell."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def modules_held_by(thing: object) -> list[nn.Module]:
    """The modules that an object holds, in attributes, lists and dictionaries, as far as they can be seen; outermost only."""
    from torch import nn

    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def look(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth > DEEPEST:
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif isinstance(thing, dict):
            for value in thing.values():
                look(value, depth + 1)
        elif isinstance(thing, list | tuple):
            for value in thing:
                look(value, depth + 1)
        elif hasattr(thing, "__dict__") and not isinstance(thing, type):
            look(vars(thing), depth + 1)

    look(thing, 0)
    return list(found.values())


def widest_float(device: torch.device) -> torch.dtype:
    """float64, where the device has it; else float32."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


class Stopwatch:
    """Seconds per named stage; stages that run twice add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
