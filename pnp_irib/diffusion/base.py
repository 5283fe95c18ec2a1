"""A Stable Diffusion model, in the parts that restorers are built of."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pnp_irib.diffusion.lora import active, adapter_names
from pnp_irib.diffusion.offload import Offload, vae_bytes
from pnp_irib.diffusion.places import KNOWN, SD21_BASE, find_base
from pnp_irib.diffusion.samplers.tables import Numbers, Prediction, alphas_of, scaled_linear_betas, zero_snr_betas
from pnp_irib.diffusion.single_file import Heads, read_single_file
from pnp_irib.diffusion.text import TextEmbedder
from pnp_irib.diffusion.vae import VaeMode, mode_within
from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.hub import Origin, SourceFile
from pnp_irib.runtime import BORROWING, require, store_channels_last

__all__ = ["EPS", "ZERO_SNR_V", "Heads", "NoiseSchedule", "StableDiffusion", "fingerprint_of", "known_as"]

_SAMPLED = 256  # values of a weight that go into the fingerprint
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
_NO_PICTURE = 1e-6  # share of the picture in a latent that counts as none


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
    """Which adapters act, see `StableDiffusion.acting`."""

    unet: tuple[str, ...]
    vae: tuple[str, ...]
    conv_in: nn.Module | None


@dataclass
class StableDiffusion:
    """The parts of a Stable Diffusion 1.x or 2.x model, frozen and in evaluation mode.

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

    text: TextEmbedder
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

    @classmethod
    def load(
        cls,
        place: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        unet: Any = None,
        tokenizer: str | Path | None = None,
        heads: Heads | None = None,
        noise: NoiseSchedule = EPS,
    ) -> Self:
        """Read a model.

        A single file has weights only. With ``tokenizer`` or ``heads`` the shapes of its tensors tell the sizes of the
        networks; else the small files of Stable Diffusion 2.1-base do, wherever these are found.

        Args:
            place: a folder in the layout of diffusers; a single file in that of its authors; ``hf-hub:owner/repo[@revision]``,
                or ``hf-hub:owner/repo/file[@revision]``; or the name of a known model, ``stable-diffusion-2-1-base`` (see
                `find_base`).
            dtype: of its weights.
            unet: takes the place of the model's own, which need not be there then; a ``UNet2DConditionModel``.
            tokenizer: folder with ``vocab.json`` and ``merges.txt``; None: the model's own, for a single file that of Stable
                Diffusion 2.1-base.
            heads: widths of the attention heads of a single file.
            noise: that the model must have been trained with; a single file does not say, and is taken to be so.

        Raises:
            MissingExtraError: diffusers or transformers is not installed.
            ConfigError: it is no place, or ``heads`` is given with a folder, whose files say it.
            WeightsError: it is not there, or not such a model.
        """
        require("diffusers", "transformers", extra="diffusion")
        found = find_base(place, without="unet" if unet is not None else None)
        single = found.path if found.path.is_file() else None
        if single is None and heads is not None:
            raise ConfigError(f"heads= is for single files; {found.path} is a folder, whose config.json files say it.")
        folder: Path | None = found.path
        if single is not None:
            folder = find_base(SD21_BASE.key, only_configs=True).path if tokenizer is None else None
        if folder is not None:
            given = {"unet": unet, "tokenizer": tokenizer}
            _check_parts(folder, [p for p in (PARTS if heads is None else ("tokenizer",)) if given.get(p) is None])
        configs = folder if heads is None else None  # None: the tensors of a single file tell
        try:
            with warnings.catch_warnings(), _no_progress_bar():
                warnings.simplefilter("ignore")  # of settings that other schedulers have
                words = _read_tokenizer(folder, tokenizer)
                if single is not None:
                    words.pad_token = words.convert_ids_to_tokens(0)  # as OpenCLIP pads
                stated = None if configs is None or (single is not None and noise != EPS) else _read_scheduler(configs)
                if single is None:
                    encoder, vae, unet = _read(found.path, dtype, unet)
                else:
                    encoder, vae, own = read_single_file(
                        single, configs, dtype=dtype, heads=heads, without_unet=unet is not None
                    )
                    unet = own if unet is None else unet
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WeightsError(f"the base model {place} cannot be read: {reason}") from error
        if stated is not None:
            _check_noise(stated, noise, place)
        if len(words) > encoder.config.vocab_size:
            raise WeightsError(
                f"the tokenizer has {len(words)} tokens, the text encoder of {place} embeds {encoder.config.vocab_size}: they "
                f"do not belong together."
            )
        if unet.config.in_channels != vae.config.latent_channels:
            raise WeightsError(
                f"the UNet of {place} reads {unet.config.in_channels} channels, expected the {vae.config.latent_channels} of "
                f"a latent. Is it one for inpainting or depth? Give Stable Diffusion 2.1-base."
            )
        for part in (encoder, vae, unet):
            part.eval().requires_grad_(False)
        fingerprint = fingerprint_of(vae, unet)
        origin = found.origin
        if not origin.files:  # gigabytes of the user's own are not read a second time for a hash
            files = (SourceFile(name="fingerprint of VAE and UNet", sha256=fingerprint),)
            origin = origin.model_copy(update={"files": files})
        return cls(
            TextEmbedder(words, encoder),
            vae,
            unet,
            noise.alphas if stated is None else stated.alphas_cumprod.float(),
            fingerprint,
            known_as(place),
            copy.deepcopy(unet.conv_in),
            origin=origin,
            noise=noise,
        )

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

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, length, width) of texts, see `TextEmbedder`."""
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


def _check_parts(folder: Path, wanted: Sequence[str]) -> None:
    if missing := [part for part in wanted if not (folder / part).is_dir()]:
        raise WeightsError(
            f"{folder} is no Stable Diffusion model in the layout of diffusers: {', '.join(missing)} missing. "
            f"Give its folder, or hf-hub:owner/repo."
        )


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing one over what the command line says."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_tokenizer(folder: Path | None, own: str | Path | None) -> Any:
    """The tokenizer of a model's folder, or one of its own."""
    from transformers import CLIPTokenizer

    if own is None:
        assert folder is not None  # else there is one of its own
        return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    path = Path(own).expanduser()
    if missing := [name for name in ("vocab.json", "merges.txt") if not (path / name).is_file()]:
        # Without them, transformers makes an empty one.
        raise WeightsError(f"no tokenizer at {path}: {' and '.join(missing)} missing. Give the folder that holds them.")
    return CLIPTokenizer.from_pretrained(path, local_files_only=True)


def _read_scheduler(folder: Path) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)


def _check_noise(scheduler: Any, noise: NoiseSchedule, place: str | Path) -> None:
    """Compare what a folder says of a model's training with what is expected."""
    expected = {"eps": "epsilon", "v": "v_prediction"}[noise.prediction]
    if (predicted := scheduler.config.prediction_type) != expected:
        hint = ", as Stable Diffusion 2.1-base does (2.1 without -base, for 768 pixels, is another model)"
        raise WeightsError(
            f"the base model {place} predicts {predicted!r:.40}; expected {expected!r}{hint if noise == EPS else ''}."
        )
    if (left := scheduler.alphas_cumprod[-1].item()) < _NO_PICTURE and not noise.zero_snr:
        raise WeightsError(f"the base model {place} begins at pure noise; expected the noise of Stable Diffusion 2.1-base.")
    if left >= _NO_PICTURE and noise.zero_snr:
        raise WeightsError(
            f"the base model {place} begins at noise with {left:.2g} of the picture; expected one that was fine-tuned to "
            f"begin at pure noise."
        )


def _read(folder: Path, dtype: torch.dtype, unet: Any) -> tuple[Any, Any, Any]:
    """Text encoder, VAE and UNet of a folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    safe: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, **safe)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **safe)
    if unet is None:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, **safe)
    return encoder, vae, unet
