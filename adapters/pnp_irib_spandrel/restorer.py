"""Models of spandrel as restorers: a descriptor that the user loaded, or a file of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from pnp_irib.errors import InputError, WeightsError, WrapError
from pnp_irib.hub import Origin
from pnp_irib.images.padding import pad_to
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.noise import seeded
from pnp_irib.runtime import choose_device, choose_dtype, frozen
from pnp_irib.spandrel_import import import_spandrel
from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import load_checkpoint, origin_of, read_pickle, resolve_file
from pnp_irib_spandrel.spec import SPANDREL, UNKNOWN

if TYPE_CHECKING:
    from pnp_irib.profile import DegradationProfile
    from pnp_irib.prompts import Prompt
    from pnp_irib.restorer import NoiseSource

__all__ = ["SpandrelRestorer", "load_spandrel"]

DRAWING = ("AuraSR", "GFPGAN")  # architectures that draw random numbers in every call


class SpandrelRestorer:
    """A model descriptor of spandrel, as a `Restorer`. Differentiable.

    The model is borrowed: it runs in evaluation mode without parameter gradients, and is as found between the calls. Models of
    one channel are given red, green and blue one by one.

    Args:
        descriptor: what ``spandrel.ModelLoader`` gives.
        lq_profile: what it was trained on, if known.

    Raises:
        WrapError: it needs a mask, or works on other channels than colours or grey.
    """

    def __init__(self, descriptor: Any, *, lq_profile: DegradationProfile | None = None) -> None:
        architecture, scale = descriptor.architecture, int(descriptor.scale)
        channels = (descriptor.input_channels, descriptor.output_channels)
        if descriptor.purpose == "Inpainting":
            raise WrapError(
                f"this {architecture.name} of spandrel fills holes and needs a mask; expected a model for super-resolution or "
                "restoration, which takes a picture alone."
            )
        if channels not in ((3, 3), (1, 1)):
            raise WrapError(
                f"this {architecture.name} of spandrel takes {channels[0]} channels and gives {channels[1]}; expected 3 and 3 "
                "(colours) or 1 and 1 (grey). Wrap a small function around it that adds and removes channels."
            )
        if not hasattr(descriptor, "_call_fn"):
            raise WrapError("this release of spandrel is not known here. Run: pip install 'spandrel>=0.4.1,<0.5'")
        self.descriptor = descriptor
        self.origins: tuple[Origin, ...] = ()
        sizes = descriptor.size_requirements
        halves = (("bfloat16", descriptor.supports_bfloat16), ("float16", descriptor.supports_half))
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in str(architecture.id).lower())
        self.spec = RestorerSpec(
            name=f"spandrel-{name}",
            title=f"{architecture.name} x{scale} of spandrel ({', '.join([descriptor.purpose, *descriptor.tags])})",
            scale=scale,
            multiple_of=sizes.multiple_of,
            min_size=max(1, sizes.minimum),
            safe_dtypes=("float32", *(dtype for dtype, supported in halves if supported)),
            tiling=descriptor.tiling.name.lower(),
            tile_halo=48,  # windows of attention see far
            differentiable=True,
            deterministic=architecture.id not in DRAWING,
            lq_profile=lq_profile,
            code_licence=UNKNOWN,
            weights_licence=UNKNOWN,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.descriptor.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the model works in."""
        dtype: torch.dtype = self.descriptor.dtype
        return dtype

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move the model itself, as ``descriptor.to`` would; names may be "auto"."""
        if device is not None and not isinstance(device, torch.device):
            device = choose_device(device)
        if dtype is not None:
            dtype = choose_dtype(dtype, device or self.device, self.spec.safe_dtypes)
        self.descriptor.model.to(device=device, dtype=dtype)
        return self

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Takes any size. Prompts are not used; few architectures draw noise.

        Each picture is a call of its own, as spandrel documents it, with its own seed: that of ``noise``, or 0.

        Returns:
            (N, 3, round(H * scale), round(W * scale)), of the dtype of ``lq``.
        """
        height, width = lq.shape[-2:]
        seeds = getattr(noise, "seeds", (0,) * lq.shape[0])
        if len(seeds) != lq.shape[0]:
            raise InputError(f"noise for {len(seeds)} pictures was given with {lq.shape[0]}; expected one seed a picture.")
        given = self._padded(lq).to(device=self.device, dtype=self.dtype)
        restored = torch.cat([self._call(one, seed) for one, seed in zip(given.split(1), seeds, strict=True)])
        native: int = self.descriptor.scale
        restored = restored[..., : height * native, : width * native].to(lq.dtype)
        return restored if scale is None else resize(restored, output_size(height, width, scale))

    def _padded(self, lq: Tensor) -> Tensor:
        """``lq`` in a size that the model takes; some take squares only, which a `RestorerSpec` cannot say."""
        side = max(lq.shape[-2:]) if self.descriptor.size_requirements.square else 1
        return pad_to(lq, multiple_of=self.spec.multiple_of, min_size=max(side, self.spec.min_size))

    def _call(self, picture: Tensor, seed: int) -> Tensor:
        """One picture. The descriptor's own call does the same, but without gradients, and clamps."""
        by_channel = self.descriptor.input_channels == 1
        parts = picture.split(1, dim=1) if by_channel else (picture,)
        restored: list[Tensor] = []
        for part in parts:
            with seeded(seed, picture.device), frozen(self.descriptor.model), _own_parameters(self.descriptor.model):
                restored.append(self.descriptor._call_fn(self.descriptor.model, part.clone()))  # it may work in place
        # Some models hand out what they keep, and use it again.
        return torch.cat(restored, dim=1) if by_channel else restored[0].clone()


@contextlib.contextmanager
def _own_parameters(module: nn.Module) -> Iterator[None]:
    """Lend ``module`` parameter objects of its own on the same memory: SPAN gives some of them other values in every call."""
    held = [(m, dict(m._parameters)) for m in module.modules()]
    lent: dict[int, nn.Parameter] = {}  # by identity: modules may share a parameter
    try:
        for m, parameters in held:
            for name, parameter in parameters.items():
                if parameter is not None:
                    if id(parameter) not in lent:
                        lent[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
                    m._parameters[name] = lent[id(parameter)]
        yield
    finally:
        for m, parameters in held:
            m._parameters.update(parameters)


def load_spandrel(
    path: str | Path,
    *,
    lq_profile: DegradationProfile | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
) -> SpandrelRestorer:
    """A model of any architecture that spandrel knows.

    Nothing in the file is run: safetensors, or what ``torch.save`` wrote, read with ``weights_only``.

    Args:
        path: ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt``: a path, or ``hf-hub:owner/repo/file``.
        lq_profile: what the model was trained on, if known.
        device: where it runs.
        dtype: "auto" takes the fastest safe one for the device (see `pnp_irib.runtime.choose_dtype`).

    Raises:
        MissingExtraError: spandrel is not installed.
        WeightsError: the file is missing, damaged, or of no known architecture.
        WrapError: its architecture is no restorer.
    """
    spandrel = import_spandrel()
    file = resolve_file(path, spec=SPANDREL)
    tensors: Any = load_checkpoint(file) if file.suffix == ".safetensors" else read_pickle(file)
    if not isinstance(tensors, dict):
        raise WeightsError(f"{file} holds {type(tensors).__name__}, expected a dictionary of tensors.")
    tensors = spandrel.canonicalize_state_dict(tensors)
    try:
        with torch.random.fork_rng(devices=[]):  # initial values are drawn, though they are replaced at once
            descriptor = spandrel.MAIN_REGISTRY.load(tensors)
    except spandrel.UnsupportedModelError:
        names = ", ".join(str(key) for key in list(tensors)[:3])
        raise WeightsError(
            f"{file} is of no architecture that spandrel {spandrel.__version__} knows: it holds {names}, ... For those of "
            "spandrel_extra_arches, call its install() first; for others, build the network yourself and wrap(network)."
        ) from None
    except Exception as error:  # what an architecture makes of tensors that do not fit it
        said = " ".join(str(error).split())
        raise WeightsError(
            f"{file} does not fit the architecture that spandrel took it for: {type(error).__name__}: {said:.200}. "
            "Is the download complete, and is it a whole model?"
        ) from error
    restorer = SpandrelRestorer(descriptor, lq_profile=lq_profile).to(device, dtype)
    restorer.origins = (origin_of(file),)
    return restorer
