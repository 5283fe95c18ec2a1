"""`wrap`: a projector in front of a frozen restorer."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from pnp_irib.any_size import auto_tile, check_size, finish, fit_grid, restore_any_size
from pnp_irib.errors import (
    BrokenPluginError,
    ConfigError,
    InputError,
)
from pnp_irib.foreign import RESTORER
from pnp_irib.hub.mixin import HubMixin
from pnp_irib.hub.origin import Origin
from pnp_irib.images.color import ColorMatch, match_color
from pnp_irib.images.resize import resize
from pnp_irib.images.sources import read_source, single_source
from pnp_irib.images.tensors import check_picture, output_size
from pnp_irib.look_forward import LookForwardOnce, LookForwardRound
from pnp_irib.noise import SeededNoise
from pnp_irib.options import CallOptions, ColorReference
from pnp_irib.profile import DegradationProfile, preset
from pnp_irib.projectors import Projector
from pnp_irib.projectors.base import CONFIG_NAME, WEIGHTS_NAME
from pnp_irib.projectors.loading import choose_projector, profile_mismatch
from pnp_irib.prompts import Prompt, PromptExtractor, load_extractor
from pnp_irib.recognition import recognise
from pnp_irib.registry import find_spec, load_restorer
from pnp_irib.restorer import NoiseSource, Restorer
from pnp_irib.result import Restoration, Restorations, Used, row
from pnp_irib.runtime import Stopwatch, choose_device, choose_dtype, dtype_named, evaluating, give_memory_back
from pnp_irib.settings import SETTINGS_NAME, LoadedByName, WrapSettings, settings_of
from pnp_irib.spec import RestorerSpec

if TYPE_CHECKING:
    from pnp_irib.images.io import Picture

__all__ = ["WrappedRestorer", "wrap"]

MAX_OUTPUT_PIXELS = 72_000_000  # 8192 x 8192 and a little


def wrap(
    restorer: Any,
    *,
    projector: str | Path | Projector | None = "auto",
    lfo: int | LookForwardOnce = 0,
    extractor: str | PromptExtractor | Callable[..., Any] | None = None,
    scale: int | None = None,
    multiple_of: int | None = None,
    min_size: int | None = None,
    lq_profile: str | DegradationProfile | None = None,
    **options: Any,
) -> WrappedRestorer:
    """Put a projector in front of a frozen restorer.

    Args:
        restorer: a registered name (see `list_restorers`), a `Restorer`, any module or function that maps pictures
            (N, 3, H, W) in [0, 1] to enlarged ones, a model descriptor of spandrel, an image-to-image or upscale pipeline of
            diffusers, or another kind that an installed package recognises (see `pnp_irib.recognition`).
        projector: "auto" takes the one that the restorer's spec names, else the bundled one where the LQ profiles agree, else
            none; a `Projector`, a name (``hf-hub:owner/repo``, ``local-dir:path``), a folder, or None for the restorer alone.
        lfo: rounds of Look Forward Once, unless a call says otherwise.
        extractor: what reads prompts off pictures, see `load_extractor`; None: for looking forward, the
            restorer's own ``tagger`` if it has one, else "imagenet-tags".
        scale: native enlargement of a module or function; None: found out with one small picture.
        multiple_of: sides that a module or function accepts; None: any.
        min_size: smallest side that it accepts; None: 1.
        lq_profile: degradations that a module or function was trained for, a preset's name or a profile: with "auto", the
            projector that maps onto it is taken. "standard" is what most blind restorers were trained for.
        options: for a registered name, handed to the adapter (``weights=``, ``device=``, ``dtype=``); for an object, those of
            its kind.

    Raises:
        WrapError: the object cannot be used as a restorer.
        UnknownRestorerError, MissingExtraError, WeightsError, ConfigError: a name leads nowhere or cannot be loaded.
    """
    profile = preset(lq_profile) if isinstance(lq_profile, str) else lq_profile
    if not isinstance(profile, DegradationProfile | None):
        raise ConfigError(f"lq_profile={lq_profile!r:.60}: expected the name of a preset or a DegradationProfile.")
    foreign: dict[str, Any] = {"scale": scale, "multiple_of": multiple_of, "min_size": min_size, "lq_profile": profile}
    given = {name: value for name, value in foreign.items() if value is not None}
    by_name: LoadedByName | None = None
    recognised = "a registered name"
    if isinstance(restorer, str):
        if "lq_profile" in given and find_spec(restorer).lq_profile is None:  # it depends on the file
            options["lq_profile"] = given.pop("lq_profile")
        _refuse(given, "are for modules and functions; a registered restorer knows them")
        loaded: Restorer = load_restorer(restorer, **options)
        by_name = LoadedByName(restorer, options)
        if not isinstance(loaded, Restorer):
            raise BrokenPluginError(
                f"the factory of {restorer!r} returned a {type(loaded).__name__}; expected an object with spec, restore, to. "
                f"Update or uninstall its package."
            )
    else:
        kind = recognise(restorer)
        loaded, recognised = kind.build(restorer, **given, **options), kind.title
    if projector == "auto" and isinstance(loaded, WrappedRestorer):
        chosen, why = None, "it is wrapped already"
    else:
        chosen, why = choose_projector(projector, loaded.spec, base=getattr(loaded, "base", None))
        if chosen is not None and (mismatch := profile_mismatch(chosen, loaded.spec)) is not None:
            warnings.warn(mismatch, stacklevel=2)
    return WrappedRestorer(loaded, chosen, why=why, lfo=lfo, extractor=extractor, loaded=by_name, recognised=recognised)


class WrappedRestorer(HubMixin):
    """A frozen restorer with a projector in front; itself a `Restorer`.

    It is saved as its projector, with a note of the restorer's name and the options here: a folder or repository of it is one
    of its projector as well.

    Args:
        restorer: the frozen restorer.
        projector: None for the restorer alone.
        why: why this projector, for `repr` and results.
        lfo: rounds of Look Forward Once by default.
        extractor: what reads prompts off pictures.
        loaded: how a registered restorer was loaded, for results and saving.
        recognised: what `wrap` took it for, for `repr`.
    """

    _files = (SETTINGS_NAME, CONFIG_NAME, WEIGHTS_NAME)

    def __init__(
        self,
        restorer: Restorer,
        projector: Projector | None,
        *,
        why: str = "given",
        lfo: int | LookForwardOnce = 0,
        extractor: str | PromptExtractor | Callable[..., Any] | None = None,
        loaded: LoadedByName | None = None,
        recognised: str = RESTORER.title,
    ) -> None:
        self.loaded = loaded
        self.recognised = recognised
        self.restorer = restorer
        self.projector = projector
        self.why = why
        self.look_forward = _rounds(lfo)
        self._asked_extractor = extractor
        self._extractor = load_extractor(extractor) if extractor is not None else None

    @property
    def spec(self) -> RestorerSpec:
        """The restorer's own; a projector also takes prompts."""
        spec = self.restorer.spec
        if self.projector is None or spec.prompts != "none":
            return spec
        return spec.model_copy(update={"prompts": "optional"})

    @property
    def device(self) -> torch.device:
        """Where the restorer is; the CPU where it does not say."""
        device = getattr(self.restorer, "device", None)
        if isinstance(device, torch.device):
            return device
        model = getattr(self.restorer, "model", None)
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        return parameter.device if parameter is not None else torch.device("cpu")

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move restorer and projector to a device; ``dtype`` concerns the restorer.

        A projector with all its weights to itself stays float32; one on the base of the restorer goes with that.

        Both may be names: a device or "auto", and for the dtype "auto" (the fastest that the spec calls safe), "float32", ...

        Raises:
            ConfigError: there is no such device or dtype.
        """
        if isinstance(device, str):
            device = choose_device(device)
        if dtype == "auto":
            dtype = choose_dtype(dtype, device or self.device, self.restorer.spec.safe_dtypes)
        elif isinstance(dtype, str):
            dtype = dtype_named(dtype)
        self.restorer.to(device, dtype)
        if self.projector is not None and device is not None:
            self.projector.to(device)
        return self

    def project(self, elq: Tensor, *, prompts: Sequence[Prompt | None] | None = None, strength: float = 1.0) -> Tensor:
        """The projection, clamped to [0, 1], on the projector's grid; ``elq`` itself without projector or strength.

        Args:
            elq: (N, 3, H, W) in [0, 1].
            prompts: one a picture, or None.
            strength: blend between input (0) and projection (1).
        """
        if self.projector is None or strength == 0:
            return elq
        return self.projector.project(elq, prompts=prompts, strength=strength).clamp(0, 1)

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """Project, then restore, under the caller's grad mode; see `Restorer`. Looks forward as often as ``lfo`` says.

        Raises:
            InputError: the scale is not acceptable.
        """
        CallOptions(scale).check(self.restorer)
        scale = None if scale is None else float(scale)
        check_picture(lq, name="lq")
        estimate, final_prompts, _ = self._look(lq, prompts, self.look_forward, strength=1.0)
        given, own_scale = fit_grid(estimate, lq, self.restorer.spec, scale)
        return restore_any_size(self.restorer, given, scale=own_scale, prompts=final_prompts, noise=noise, elq=lq)

    def __call__(
        self,
        images: Any,
        *,
        scale: float | None = None,
        prompt: str | Prompt | Sequence[str | Prompt | None] | None = None,
        seed: int = 0,
        lfo: int | LookForwardOnce | None = None,
        strength: float = 1.0,
        tile: int | str | None = "auto",
        color: ColorMatch | None = None,
        color_reference: ColorReference = "lq",
        max_pixels: int | None = None,
        max_output_pixels: int | None = None,
    ) -> Any:
        """Restore pictures.

        Args:
            images: a path, a PIL image, a numpy array (H, W[, C]), a tensor (3, H, W) or (N, 3, H, W), or a list of these.
            scale: enlargement; None: the restorer's own.
            prompt: what the picture shows, or one a picture.
            seed: of everything random; each picture has a stream of its own, and comes out the same alone and in a list.
            lfo: rounds of Look Forward Once; None: as wrapped.
            strength: 0 is the restorer alone, bit for bit where nothing is tiled; 1 the full projection.
            tile: side of the tiles in input pixels; "auto": tiles where more than 512 MiB would be needed; None: never.
            color: how the result takes over the colours of a reference, "adain" (mean and spread of each channel) or "wavelet"
                (low frequencies); None or "none": only as the restorer does by itself, if at all.
            color_reference: "lq" is the projector's estimate, "elq" the input.
            max_pixels: largest input; None: the default cap of `read_picture`.
            max_output_pixels: largest output; None: 72 megapixels.

        Returns:
            A `Restoration` for one picture, `Restorations` (a list) for several.

        Raises:
            InputError: a picture or an option is not acceptable.
            ImageFileError: a file cannot be read.
        """
        single = single_source(images)
        sources = [images] if single else list(images)
        options = CallOptions(scale, seed, strength, tile, color, color_reference, max_pixels, max_output_pixels)
        options.check(self.restorer)
        rounds = self.look_forward if lfo is None else _rounds(lfo)
        # Inference mode would turn what a model keeps between calls into tensors that no later training can use.
        with torch.no_grad():
            restorations = Restorations(
                self._one(source, p, rounds, options)
                for source, p in zip(sources, _one_each(prompt, len(sources)), strict=True)
            )
        return restorations[0] if single else restorations

    def _one(self, source: Any, prompt: str | Prompt | None, rounds: LookForwardOnce, options: CallOptions) -> Restoration:
        scale = None if options.scale is None else float(options.scale)
        strength, cap = float(options.strength), options.max_output_pixels
        watch = Stopwatch()
        with watch.stage("read"):
            picture: Picture = read_source(
                source, max_pixels=options.max_pixels, check_size=lambda h, w: self._factor(scale, h, w, cap)
            )
        elq = check_picture(picture.rgb).to(self.device)
        height, width = elq.shape[-2:]
        factor = self._factor(scale, height, width, cap)
        if isinstance(options.tile, str):
            side = auto_tile(self.restorer, height, width)
        else:
            side = int(options.tile) if options.tile is not None and max(height, width) > options.tile else None
        with watch.stage("project"), contextlib.nullcontext() if self.projector is None else evaluating(self.projector):
            estimate, prompts, trace = self._look(elq, [Prompt.parse(prompt)], rounds, strength=strength)
        if self.projector is not None:
            give_memory_back()
        with watch.stage("restore"):
            noise = SeededNoise([int(options.seed)])
            estimate, own_scale = fit_grid(estimate, elq, self.restorer.spec, scale)
            given = estimate.clone()  # a restorer may work in place
            how = {"scale": own_scale, "prompts": prompts, "noise": noise, "tile": side, "elq": elq}
            restored = restore_any_size(self.restorer, given, **how)  # type: ignore[arg-type]
            restored = finish(restored, self.restorer.spec.name, ours=side is not None)
            if options.color is not None:
                reference = (elq if options.color_reference == "elq" else estimate).cpu()
                reference = resize(reference, (restored.shape[-2], restored.shape[-1])).clamp(0, 1)
                restored = match_color(restored, reference, options.color).clamp(0, 1)
        if self.restorer.spec.scale is None and scale is None:
            factor = restored.shape[-1] / width  # whatever the restorer chose
        else:
            check_size(restored, elq, factor, self.restorer.spec.name)
        alpha = None
        if picture.alpha is not None:
            alpha = resize(picture.alpha, (restored.shape[-2], restored.shape[-1])).clamp(0, 1)
        origins = self.projector.origins if self.projector is not None and strength else ()
        read = () if prompts[0] is None else getattr(self._extractor, "origins", ())
        origin, used_origins = next(iter(origins), None), (*self._origins(), *origins, *read)
        used = Used(
            restorer=self.restorer.spec.name,
            projector=self.describe_projector() if strength else "none (strength 0)",
            dtype=str(getattr(self.restorer, "dtype", None) or elq.dtype).removeprefix("torch."),
            device=str(elq.device),
            scale=factor,
            strength=strength,
            lfo=int(rounds.rounds) if trace else 0,
            seed=int(options.seed),
            tile=side,
            projector_source=str(origin) if origin is not None else None,
            projector_sha256=next((file.sha256 for file in origin.files if file.name == WEIGHTS_NAME), None)
            if origin
            else None,
            files={f"{found}/{file.name}": file.sha256 for found in used_origins for file in found.files},
            color=f"{options.color} to {options.color_reference}" if options.color not in (None, "none") else None,
            weights_licence=self.restorer.spec.weights_licence.said,
        )
        return Restoration(picture, estimate.cpu(), restored, alpha, prompts[0], trace, watch.seconds, used)

    def _origins(self) -> list[Origin]:
        """What the restorer was loaded from."""
        if not hasattr(self, "_found"):
            found = [*getattr(self.restorer, "origins", ())]
            self._found = found or ([] if self.loaded is None else self.loaded.origins())
        return self._found

    def _look(
        self, elq: Tensor, prompts: Sequence[Prompt | None] | None, rounds: LookForwardOnce, *, strength: float
    ) -> tuple[Tensor, list[Prompt | None], tuple[LookForwardRound, ...]]:
        """Projection and prompts of the last round; the trace of the first picture."""
        given: list[Prompt | None] = [Prompt.parse(prompt) for prompt in _one_each(prompts, len(elq))]
        if self.projector is None or strength == 0:
            if self._extractor is not None and self.restorer.spec.prompts != "none":
                given = LookForwardOnce(0).run(elq, lambda pictures, _: pictures, self._extractor, given).prompts
            return elq, given, ()
        result = rounds.run(
            elq,
            lambda pictures, texts: self.project(pictures, prompts=texts, strength=strength),
            self.prompter(rounds.rounds),
            given,
        )
        return result.lq, result.prompts, result.trace[0]

    def prompter(self, rounds: int) -> PromptExtractor:
        """What reads prompts off pictures in this many rounds of looking forward."""
        if self._extractor is not None:
            return self._extractor
        if rounds and not hasattr(self, "_tags"):
            self._tags = load_extractor(getattr(self.restorer, "tagger", "imagenet-tags"))
        return self._tags if rounds else load_extractor("none")

    def _factor(self, scale: float | None, height: int, width: int, max_output_pixels: int | None) -> float:
        """The enlargement, if its result, and what is larger on the way there, stay below the cap."""
        spec = self.restorer.spec
        native = float(spec.scale or spec.default_scale or 1)
        factor = float(scale) if scale is not None else native
        cap = max_output_pixels if max_output_pixels is not None else MAX_OUTPUT_PIXELS
        largest = max(factor, float(spec.scale or 1), 1 if self.projector is None else self.projector.enlargement)
        new_height, new_width = output_size(height, width, largest)
        if new_height * new_width > cap:
            raise InputError(
                f"the output would be {new_width}x{new_height} = {new_width * new_height / 1e6:.0f} megapixels, "
                f"above the cap of {cap / 1e6:.0f}. Choose a smaller scale, or raise max_output_pixels."
            )
        return factor

    def _write(self, folder: Path, card: str | None) -> None:
        if self.projector is None:
            raise ConfigError(f"there is no projector to save ({self.describe_projector()}), and restorers are not saved.")
        settings = settings_of(self.loaded, self._origins(), int(self.look_forward.rounds), self._asked_extractor)
        self.projector.save_pretrained(folder, card=card)
        settings.write(folder)

    @classmethod
    def _from_folder(
        cls, folder: Path, origin: Origin | None, *, restorer: str | Restorer | nn.Module | None = None, **options: Any
    ) -> Self:
        """Options: ``restorer``, in place of the one that was wrapped, and those of `wrap` for it, over those saved."""
        if "projector" in options:
            raise ConfigError("the projector is the one that was saved; to use another: wrap(restorer, projector=...).")
        settings = WrapSettings.read(folder)
        by_name = restorer is None
        if restorer is None:
            options = settings.options_of_restorer(folder, options) | options
            restorer = settings.restorer
        again: dict[str, Any] = {"lfo": settings.lfo, "extractor": settings.extractor}
        wrapped = wrap(restorer, projector=folder, **again | options)
        if by_name:
            settings.compare(wrapped._origins(), folder)
        if wrapped.projector is not None and origin is not None:
            wrapped.projector.origin = origin
        assert isinstance(wrapped, cls)
        return wrapped

    def describe_projector(self) -> str:
        """Name of the projector and why it is used."""
        if self.projector is None:
            return f"none ({self.why})"
        name = self.projector.provenance.name or type(self.projector).__name__
        return f"{name} ({self.why})"

    def __repr__(self) -> str:
        spec = self.restorer.spec
        scale = f"x{spec.scale}" if spec.scale else "any scale"
        lines = [
            f"WrappedRestorer({spec.name}, {scale})",
            row("restorer", f"{spec.title} ({self.recognised}); weights {spec.weights_licence.said}"),
            row("projector", self.describe_projector()),
            row("lfo", str(self.look_forward.rounds)),
        ]
        return "\n".join(lines)


def _rounds(lfo: int | LookForwardOnce) -> LookForwardOnce:
    return lfo if isinstance(lfo, LookForwardOnce) else LookForwardOnce(lfo)


def _refuse(options: dict[str, Any], why: str) -> None:
    if options:
        raise ConfigError(f"the options {', '.join(options)} {why}.")


def _one_each(prompt: str | Prompt | Sequence[str | Prompt | None] | None, count: int) -> list[str | Prompt | None]:
    """One prompt a picture."""
    if prompt is None or isinstance(prompt, str | Prompt):
        return [prompt] * count
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise InputError(f"prompt={prompt!r:.60}: expected a string, a Prompt, a list of these, or None.")
    if len(prompt) != count:
        raise InputError(f"{len(prompt)} prompts for {count} pictures; give one for all, or one each.")
    return list(prompt)
