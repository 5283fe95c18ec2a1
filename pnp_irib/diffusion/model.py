"""A latent diffusion model in the parts that restorers are built of: who acts, where they work, and what they need there."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.lora import active, adapter_names
from pnp_irib.diffusion.offload import Offload, vae_bytes
from pnp_irib.diffusion.places import KNOWN
from pnp_irib.diffusion.samplers.tables import Numbers, Prediction, alphas_of, scaled_linear_betas, zero_snr_betas
from pnp_irib.diffusion.text import Embedder
from pnp_irib.diffusion.vae import VaeMode, mode_within
from pnp_irib.hub import Origin
from pnp_irib.runtime import BORROWING, store_channels_last

__all__ = ["EPS", "ZERO_SNR_V", "DiffusionModel", "NoiseSchedule", "fingerprint_of", "known_as"]

_SAMPLED = 256  # values of a weight that go into the fingerprint
E = TypeVar("E")


@dataclass(frozen=True)
class NoiseSchedule:
    """What a model was trained to predict, and from how much noise.

    Attributes:
        prediction: what its UNet predicts.
        zero_snr: whether nothing of the picture is left at the last timestep (Lin et al., arXiv 2305.08891).
    """

    prediction: Prediction = "eps"
    zero_snr: bool = False

    @property
    def numbers(self) -> Numbers:
        """Products of 1 - beta by timestep on the schedule of Stable Diffusion, (1000,)."""
        betas = scaled_linear_betas()
        return alphas_of(zero_snr_betas(betas) if self.zero_snr else betas)

    @property
    def alphas(self) -> Tensor:
        """The same, float32."""
        return torch.from_numpy(self.numbers).float()


EPS = NoiseSchedule()
"""Of Stable Diffusion 1.x and 2.x-base."""
ZERO_SNR_V = NoiseSchedule("v", zero_snr=True)
"""Of models that were fine-tuned to begin at pure noise."""


class Acting(NamedTuple):
    """Which adapters act, see `DiffusionModel.acting`."""

    unet: tuple[str, ...]
    vae: tuple[str, ...]
    conv_in: nn.Module | None


@dataclass
class DiffusionModel(Generic[E]):
    """Text encoder, VAE and UNet of a latent diffusion model, frozen and in evaluation mode.

    Attributes:
        text: prompts to embeddings.
        vae: an ``AutoencoderKL`` of diffusers.
        unet: a ``UNet2DConditionModel``.
        alphas: products of 1 - beta by timestep, (T,) float32.
        fingerprint: of the weights of VAE and UNet as they were loaded, see `fingerprint_of`; None: they were changed since,
            so that adapters made for them do not fit.
        place: where it was loaded from, see `known_as`.
        conv_in: the UNet's first convolution as it was loaded; some adapters replace it.
        offload: moves the parts in and out, see `limit_memory`; None: all stay on the device.
        origin: the record of what was loaded.
        noise: what the UNet predicts, from which noise.
    """

    text: Embedder[E]
    vae: Any
    unet: Any
    alphas: Tensor
    fingerprint: str | None
    place: str
    conv_in: nn.Module
    offload: Offload | None = None
    origin: Origin | None = None
    noise: NoiseSchedule = EPS
    _acting: Acting | None = field(default=None, repr=False)
    _more_stages: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for part in (self.vae, self.unet, self.conv_in):
            store_channels_last(part)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Text encoder, VAE, UNet, and the first convolution that is kept."""
        return self.text.encoder, self.vae, self.unet, self.conv_in

    @contextlib.contextmanager
    def acting(self, unet: Iterable[str] = (), vae: Iterable[str] = (), *, conv_in: nn.Module | None = None) -> Iterator[None]:
        """Let exactly these adapters act inside, none by default; one thread at a time.

        Args:
            unet: names of adapters on the UNet.
            vae: on the VAE.
            conv_in: takes the place of the UNet's first convolution; None: the one that is there acts, such as that of a
                restorer, which put its own there for good.
        """
        wanted = Acting(tuple(unet), tuple(vae), conv_in)
        with BORROWING, active(self.unet, wanted.unet), active(self.vae, wanted.vae):
            before, first = self._acting, self.unet.conv_in
            try:
                self._acting = wanted
                if conv_in is not None:
                    self.unet.conv_in = conv_in
                yield
            finally:
                self._acting, self.unet.conv_in = before, first

    def free_name(self, stem: str) -> str:
        """A name that no adapter has yet."""
        taken = adapter_names(self.unet) | adapter_names(self.vae)
        return next(name for n in itertools.count() if (name := f"{stem}_{n}") not in taken)

    def as_loaded(self) -> contextlib.AbstractContextManager[None]:
        """Without adapters, and with the first convolution that it was loaded with."""
        return self.acting(conv_in=self.conv_in)

    @contextlib.contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Keep only the inputs of blocks for the backward pass inside, and compute the rest again (Chen, arXiv 1604.06174).

        What is computed again runs with the adapters that acted in the forward pass, whichever act by then.
        """
        from torch.utils.checkpoint import checkpoint

        def again(module: nn.Module, *given: Any) -> Any:
            acting = self._acting
            return checkpoint(
                module,
                *given,
                use_reentrant=False,
                context_fn=lambda: (
                    contextlib.nullcontext(),
                    contextlib.nullcontext() if acting is None else self.acting(*acting[:2], conv_in=acting.conv_in),
                ),
            )

        names = ("gradient_checkpointing", "_gradient_checkpointing_func")
        before = [
            (module, name, vars(module)[name])
            for part in (self.unet, self.vae)
            for module in part.modules()
            for name in names
            if name in vars(module)
        ]
        try:
            for part in (self.unet, self.vae):
                part.enable_gradient_checkpointing(again)
            yield
        finally:
            for part in (self.unet, self.vae):
                part.disable_gradient_checkpointing()
            for module, name, value in before:
                setattr(module, name, value)

    @property
    def device(self) -> torch.device:
        """Where it works."""
        if self.offload is not None:
            return self.offload.device
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet."""
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    @property
    def factor(self) -> int:
        """Pixels on a side of one latent pixel."""
        levels: int = len(self.vae.config.block_out_channels)
        return 1 << (levels - 1)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all parts in place; with a limit on the memory, the budget moves to the device."""
        place = None if self.offload is not None else device
        for part in self.modules:
            nn.Module.to(part, device=place, dtype=dtype)  # that of diffusers warns of modules that are none
        if self.offload is not None and device is not None and device != self.offload.device:
            self.limit_memory(self.offload.memory, device, **self._more_stages)
        return self

    def limit_memory(self, memory: int, device: torch.device, **stages: nn.Module) -> None:
        """From now on, let text encoder, VAE and UNet take turns on ``device`` within ``memory`` bytes. For inference.

        Args:
            memory: bytes.
            device: where they work.
            stages: more that take turns, by name; "unet" replaces the UNet by what holds it and what works beside it.
        """
        self._more_stages = stages
        own = {"text": self.text.encoder, "vae": self.vae, "unet": self.unet}
        self.offload = Offload(own | stages, device, memory)
        nn.Module.to(self.conv_in, device)

    def stage(self, name: str, working: int = 0) -> contextlib.AbstractContextManager[None]:
        """Have "text", "vae" or "unet" on the device inside; ``working`` is its working memory, bytes."""
        return contextlib.nullcontext() if self.offload is None else self.offload.stage(name, working)

    @contextlib.contextmanager
    def vae_stage(self, pictures: Tensor, mode: VaeMode, *, decoder: bool) -> Iterator[VaeMode]:
        """Have the VAE on the device inside; gives the mode that it is to work in.

        Args:
            pictures: that go in, or are of the shape and dtype of what comes out.
            mode: "strips" gives way to tiles where a limit on the memory leaves no room for them.
            decoder: which half works.
        """
        pixels, size = pictures[:, 0].numel(), pictures.dtype.itemsize
        working = vae_bytes(self.vae, pixels, size, decoder=decoder)
        if self.offload is not None and mode == "strips":
            mode, working = mode_within(self.vae, pixels, size, decoder=decoder, room=self.offload.room("vae"))
        with self.stage("vae", working):
            yield mode

    def embed(self, texts: Sequence[str]) -> E:
        """What the UNet reads of texts."""
        if self.text.knows(texts):
            return self.text(texts)
        with self.stage("text"):
            return self.text(texts)


def known_as(place: str | Path) -> str:
    """One spelling of a place: folders are absolute, names on the Hub stay."""
    text = str(place)
    return (
        text
        if text.startswith("hf-hub:") or text in KNOWN
        else str(Path(text.removeprefix("local-dir:")).expanduser().resolve())
    )


def fingerprint_of(*modules: nn.Module) -> str:
    """Hash over names, shapes and up to 256 evenly spaced values of every weight, as bfloat16.

    It tells models apart and is the same whether they were loaded in float32 or bfloat16, at a thousandth of the cost of a
    hash over everything.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            flat = value.detach().flatten()
            count = min(len(flat), _SAMPLED)  # whole numbers: float32 cannot count the larger weights
            chosen = flat[torch.arange(count, device=flat.device) * (len(flat) - 1) // max(1, count - 1)]
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(chosen.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()
