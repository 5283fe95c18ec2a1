"""S3Diff as a restorer."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.latents import Cuts, predict_in_tiles
from pnp_irib.diffusion.model import EPS
from pnp_irib.diffusion.one_step import OneStepResult
from pnp_irib.diffusion.published import batch_of, eight_bits, recolor, truncated, whole_scale
from pnp_irib.diffusion.restorer import DiffusionRestorer, check_choices
from pnp_irib.diffusion.samplers.tables import picture_from_eps
from pnp_irib.diffusion.vae import PublishedTiles, decode, encode, sample_posterior
from pnp_irib.errors import ConfigError, InputError, WeightsError, check_number, check_text
from pnp_irib.images.color import ColorMatch
from pnp_irib.images.resize import resize
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource
from pnp_irib.spec import RestorerSpec
from pnp_irib_s3diff.checkpoint import Trained
from pnp_irib_s3diff.estimator import DegradationEstimator
from pnp_irib_s3diff.modulation import with_layers
from pnp_irib_s3diff.spec import S3DIFF

__all__ = ["S3Diff"]

POSITIVE = "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting."
NEGATIVE = "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"
TIMESTEP = 999
WINDOW = 64  # pixels: the UNet halves latents three times
SHARE = 1.1  # working memory with the LoRA over that of the UNet alone
_INPUTS: ContextVar[Mapping[int, Tensor]] = ContextVar(
    "inputs of projectors, by the id of the restorer", default=MappingProxyType({})
)


class S3Diff(DiffusionRestorer):
    """One step of SD-Turbo, whose LoRA is mixed by what a network says of the degradation. As a `Restorer`.

    The base stays as it was loaded, and can be shared.

    Args:
        base: SD-Turbo.
        trained: LoRA, and what mixes it.
        estimator: of blur and noise.
        spec: which model.
        guidance_scale: weight of the prompt over the negative one; at exactly 1 there is no negative one.
        added_prompt: words behind the prompt.
        negative_prompt: what the picture is led away from.
        scores: whose degradation counts: "lq", the picture that is restored, or "input", that which a projector made it of
            (see `reading`).
        score_gradient: let gradients pass through the scores, too.
        compat: "upstream" keeps to the published script in every step: bilinear enlargement, 8-bit pictures, truncated, tiles
            by area. None mends these.
        upscale: enlargement where a call gives no ``scale``; None: 4.
        color: how the colours of the input are given back.
        latent_tile: side of the tiles of the UNet, latent pixels.
        latent_overlap: of these.
        batch: latents in one call of the UNet: tiles, and the two halves of guidance.
        vae_tiles: of the VAE with ``compat``: `PublishedTiles`, or a mapping of its arguments. Without ``compat`` it works in
            strips, which have no seams.
        memory: gigabytes that weights and working memory may take on the device: text encoder, VAE and UNet then move in when
            they are used, and out where another needs the room. None: all of them stay there.
        device: where it runs.
        dtype: "auto", or a dtype of all parts but the estimator and what mixes, which are float32.

    Raises:
        ConfigError: an option has a value that is impossible.
        WeightsError: what was trained does not fit the base.
    """

    base: StableDiffusion
    usual_tiles: ClassVar[PublishedTiles] = PublishedTiles(encoder=1024, decoder=224)

    def __init__(
        self,
        base: StableDiffusion,
        trained: Trained,
        estimator: DegradationEstimator,
        *,
        spec: RestorerSpec = S3DIFF,
        guidance_scale: float = 1.07,
        added_prompt: str = POSITIVE,
        negative_prompt: str = NEGATIVE,
        scores: Literal["lq", "input"] = "lq",
        score_gradient: bool = True,
        compat: Literal["upstream"] | None = None,
        upscale: float | None = None,
        color: ColorMatch = "wavelet",
        latent_tile: int = 96,
        latent_overlap: int = 32,
        batch: int = 2,
        vae_tiles: PublishedTiles | Mapping[str, Any] | None = None,
        memory: float | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        super().__init__(
            base,
            spec,
            compat=compat,
            upscale=upscale,
            process_size=WINDOW,
            color=color,
            latent_tile=latent_tile,
            latent_overlap=latent_overlap,
            vae_tiles=vae_tiles,
            memory=memory,
            device=device,
            dtype=dtype,
        )
        if base.noise != EPS:
            raise ConfigError(f"S3Diff needs a base model of {EPS}; this one has {base.noise}. Is base= the right one?")
        if base.fingerprint is None:
            raise ConfigError("the base model is in use: another restorer changed its weights. Load another base.")
        check_number("guidance_scale", guidance_scale, zero=True)
        check_number("batch", batch, whole=True)
        check_choices(scores=(scores, ("lq", "input")), score_gradient=(score_gradient, (True, False)))
        for option, text in (("added_prompt", added_prompt), ("negative_prompt", negative_prompt)):
            check_text(option, text)
            if not compat and (length := base.text.length(text)) > base.text.longest:
                raise ConfigError(f"{option} has {length} tokens, and {base.text.longest} are read. Shorten it.")
        self.guidance_scale, self.batch = guidance_scale, batch
        self.added_prompt, self.negative_prompt = added_prompt, negative_prompt
        self.scores, self.score_gradient = scores, score_gradient
        self.trained, self.estimator = trained, estimator
        _check_fit(base, trained)
        stages = {
            "unet": nn.ModuleList([base.unet, trained.unet, trained.conv_in]),
            "vae": nn.ModuleList([base.vae, trained.vae]),
        }
        self.settle(**({} if memory is None else stages))

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move in place; ``dtype`` may be "auto"."""
        super().to(device, dtype)
        waiting = self.base.offload is not None
        self.estimator.to(self.device)
        self.trained.to(self.device)
        for part in (self.trained.unet, self.trained.vae, self.trained.conv_in):
            part.to(device="cpu" if waiting else self.device, dtype=self.dtype)
        return self

    @contextlib.contextmanager
    def reading(self, pictures: Tensor) -> Iterator[None]:
        """See `pnp_irib.restorer.ReadsInput`: inside, in this thread, `degradation` takes their size or themselves."""
        token = _INPUTS.set({**_INPUTS.get(), id(self): pictures})
        try:
            yield
        finally:
            _INPUTS.reset(token)

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Without ``noise``, the mean of the posterior is taken instead of a sample. Differentiable.

        Raises:
            ConfigError: ``compat`` and a scale that is no whole number.
            InputError: prompts, or pictures of `reading`, that do not fit.
        """
        texts = self.texts(lq.shape[0], prompts)
        own, base = self.trained.conv_in.weight, self.base
        if base.offload is None and (own.device, own.dtype) != (base.device, base.dtype):
            self.to()  # who shares the base has moved it
        if self.compat:
            return self._as_published(lq, scale, texts, noise)
        scores = self.degradation(lq)
        network: Callable[[Tensor], Tensor] = lambda seen: self.step(seen * 2 - 1, scores, texts, noise).picture * 0.5 + 0.5  # noqa: E731
        return self.framed(lq, scale, network, multiple_of=WINDOW)

    def texts(self, count: int, prompts: Sequence[Prompt | None] | None) -> list[str]:
        """What the text encoder is given for ``count`` pictures; long prompts are cut so that `added_prompt` is read.

        Raises:
            InputError: there are more or fewer prompts.
        """
        given = list(prompts) if prompts is not None else [None] * count
        if len(given) != count:
            raise InputError(f"{len(given)} prompts for {count} pictures; give one a picture, which may be None.")
        return [self._text("" if prompt is None else str(prompt)) for prompt in given]

    def _text(self, prompt: str) -> str:
        def beginning(characters: int) -> str:
            return ", ".join(part for part in (prompt[:characters].rstrip(), self.added_prompt) if part)

        embedder, whole = self.base.text, beginning(len(prompt))
        if self.compat or embedder.length(whole) <= embedder.longest:
            return whole
        counts = range(len(prompt) + 1)
        fitting = bisect.bisect_right(counts, embedder.longest, key=lambda count: embedder.length(beginning(count))) - 1
        blank = prompt.rfind(" ", 0, fitting + 1)  # where there is none, as in Chinese, words cannot be told
        return beginning(blank if blank > 0 else fitting)

    def degradation(self, lq: Tensor) -> Tensor:
        """Scores of blur and noise, (N, 2) in (0, 1).

        Args:
            lq: that is restored, (N, 3, H, W) in [0, 1]. Where it is larger than the pictures of `reading`, a projector has
                enlarged it: it is seen in their size, since the estimator was trained on pictures before enlargement.

        Raises:
            InputError: `reading` was given another number of pictures.
        """
        seen = lq
        if (given := _INPUTS.get().get(id(self))) is not None:
            if len(given) != len(lq):
                raise InputError(f"{len(given)} pictures to read for {len(lq)} to restore; give as many.")
            size = min(lq.shape[-2], given.shape[-2]), min(lq.shape[-1], given.shape[-1])
            seen = given if self.scores == "input" else resize(lq, size)
        exact = torch.autocast(self.device.type, enabled=False)
        with exact, torch.set_grad_enabled(torch.is_grad_enabled() and self.score_gradient):
            # One by one: pictures are of one size here, but the same alone and in a batch.
            return torch.cat([self.estimator(one) for one in seen.to(self.device).float().clamp(0, 1).split(1)])

    def step(self, pictures: Tensor, scores: Tensor, texts: Sequence[str], noise: NoiseSource | None) -> OneStepResult:
        """The networks.

        Args:
            pictures: (N, 3, H, W) in [-1, 1], sides multiples of 8.
            scores: see `degradation`, (N, 2).
            texts: see `texts`.
            noise: of the posterior, and with ``compat`` of the scheduler.
        """
        base, pictures = self.base, pictures.to(device=self.device, dtype=self.dtype)
        with torch.autocast(self.device.type, enabled=False):
            of_unet, of_vae = (matrices.to(self.dtype) for matrices in self.trained.matrices(scores.to(self.device)))
        latent = self.encode(pictures, of_vae, noise)
        words = base.embed([*texts, self.negative_prompt]).to(device=self.device, dtype=self.dtype)
        found = self.predict(latent, of_unet, words)
        alpha = base.alphas[TIMESTEP].item()
        denoised = picture_from_eps(latent.to(found.dtype), found, alpha)
        if self.compat and noise is not None:
            denoised = denoised + 1e-10 * noise.normal(tuple(latent.shape), device=self.device, dtype=self.dtype)
        with base.as_loaded(), base.vae_stage(pictures, self.vae_mode, decoder=True) as mode:
            picture = decode(base.vae, denoised.to(pictures.dtype) / base.vae.config.scaling_factor, mode)
        return OneStepResult(latent, found, denoised, picture.clamp(-1, 1))

    def encode(self, pictures: Tensor, of_vae: Tensor, noise: NoiseSource | None) -> Tensor:
        """The latents of pictures, scaled, (N, 4, H/8, W/8).

        Args:
            pictures: (N, 3, H, W) in [-1, 1].
            of_vae: see `pnp_irib_s3diff.checkpoint.Trained.matrices`.
            noise: of the posterior; None: its mean is taken.
        """
        moments = []
        with self.base.as_loaded(), self.base.vae_stage(pictures[:1], self.vae_mode, decoder=False) as mode:
            for picture, matrices in zip(pictures.split(1), of_vae.split(1), strict=True):
                how = {"beside": True} if self.compat else {"merged": True}
                moments.append(encode(self.trained.vae.bound(self.base.vae, matrices, **how), picture, mode))
        mean, logvar = (torch.cat(of) for of in zip(*moments, strict=True))
        if noise is not None:
            mean = sample_posterior(mean, logvar, noise.normal(tuple(mean.shape), device=self.device, dtype=self.dtype))
        return mean * float(self.base.vae.config.scaling_factor)

    def predict(self, latent: Tensor, of_unet: Tensor, words: Tensor) -> Tensor:
        """The noise in latents, guided; at least in float32, since it counts for 15 times as much in the picture's latent.

        Args:
            latent: (N, 4, h, w).
            of_unet: see `pnp_irib_s3diff.checkpoint.Trained.matrices`.
            words: embeddings of the N texts, and of the negative prompt.
        """
        tiles = self.plan(latent.shape[-2], latent.shape[-1])
        positions = tiles.height * tiles.width if tiles else latent[0, 0].numel()
        most, working = self.at_a_time(positions, self.batch, SHARE)
        guided, dtype = self.guidance_scale != 1, self.dtype
        latent = latent.to(torch.promote_types(dtype, torch.float32))

        def part(cut: Tensor, cuts: Cuts) -> Tensor:
            own, text = of_unet[cuts.pictures], words[cuts.pictures]
            if guided:
                cut, text = cut.repeat(2, 1, 1, 1), torch.cat([words[-1:].expand_as(text), text])
                own = own.repeat(2, 1, 1, 1)
            one = bool((cuts.pictures == cuts.pictures[0]).all())
            parts = zip(*(x.split(most) for x in (cut, text, own)), strict=True)
            found = torch.cat([self._noise(x.to(dtype), seen, m[:1] if one else m) for x, seen, m in parts]).to(cut.dtype)
            if not guided:
                return found
            without, along = found.chunk(2)
            return without + self.guidance_scale * (along - without)

        with self.base.as_loaded(), self.base.stage("unet", working):
            return predict_in_tiles(part, latent, tiles, batch=max(1, most // 2 if guided else most))

    def _noise(self, latent: Tensor, text: Tensor, matrices: Tensor) -> Tensor:
        """What the UNet finds, its LoRA mixed by matrices."""
        unet = with_layers(self.base.unet, {"conv_in": self.trained.conv_in})
        bound = self.trained.unet.bound(unet, matrices, beside=self.compat is not None)
        found: Tensor = bound(latent, TIMESTEP, encoder_hidden_states=text, return_dict=False)[0]
        return found

    @torch.no_grad()
    def _as_published(self, lq: Tensor, scale: float | None, texts: Sequence[str], noise: NoiseSource | None) -> Tensor:
        factor = whole_scale(self.upscale if scale is None else scale)
        given = batch_of(eight_bits(lq)).to(self.device).contiguous()  # sums in the published order
        size = (lq.shape[-2] * factor, lq.shape[-1] * factor)
        enlarged = F.interpolate(given, size=size, mode="bilinear", align_corners=False)
        more = [-side % WINDOW for side in size]
        if any(pad >= side for pad, side in zip(more, size, strict=True)):
            raise ConfigError(
                f"{lq.shape[-2]} x {lq.shape[-1]} pixels, {factor} times enlarged: the published script cannot reflect so "
                f"small a picture. Leave compat out."
            )
        seen = F.pad((enlarged * 2 - 1).clamp(-1, 1), (0, more[1], 0, more[0]), mode="reflect")
        found = self.step(seen, self.degradation(given), texts, noise).picture[..., : size[0], : size[1]] * 0.5 + 0.5
        pairs = zip(found, enlarged, strict=True)
        eight = [recolor(truncated(one), truncated(other), self.color) for one, other in pairs]
        return batch_of(eight).to(device=lq.device, dtype=lq.dtype)


def _check_fit(base: StableDiffusion, trained: Trained) -> None:
    """Raise unless the LoRA has the layers and widths of the base.

    Raises:
        WeightsError: it is for another.
    """
    for network, lora, title in ((base.unet, trained.unet, "UNet"), (base.vae, trained.vae, "VAE")):
        for name, down, up in zip(lora.names, lora.down, lora.up, strict=True):
            try:
                weight = getattr(layer := network.get_submodule(name), "base_layer", layer).weight
            except AttributeError:
                weight = None
            if weight is None or (up.shape[0], *down.shape[1:]) != tuple(weight.shape):
                raise WeightsError(
                    f"S3Diff's LoRA does not fit the {title} of the base: {name} is "
                    f"{'not there' if weight is None else tuple(weight.shape)}, expected {(up.shape[0], *down.shape[1:])}. "
                    f"Give SD-Turbo."
                )
    own, first = (tuple(conv.get_parameter("weight").shape) for conv in (base.conv_in, trained.conv_in))
    if own != first:
        raise WeightsError(f"S3Diff's first convolution is {first}, that of the base {own}. Give SD-Turbo.")
