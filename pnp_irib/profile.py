"""Degradation ranges: one type for presets, for what a restorer was trained on, and for what a projector accepts.

A profile is a box of distributions, not one degradation; `pnp_irib.degrade` draws from it. Numbers come from the published
training options of Real-ESRGAN, S3Diff and CodeFormer-type restorers; ``extreme`` and ``stress`` go beyond them.
This module imports no torch, so that restorers can be listed cheaply.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pnp_irib.errors import ConfigError, did_you_mean, explain_validation

__all__ = ["PRESETS", "Blur", "DegradationProfile", "Noise", "Order", "Resize", "Sinc", "between", "preset"]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


def _straddles_one(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] <= 1 <= bounds[1]:
        raise ValueError(f"{bounds} does not hold 1; half of the draws lie below one and half above")
    return bounds


Range = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_ordered)]
PositiveRange = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ordered)]
Quality = Annotated[
    tuple[Annotated[float, Field(ge=1, le=100)], Annotated[float, Field(ge=1, le=100)]], AfterValidator(_ordered)
]
Beta = Annotated[PositiveRange, AfterValidator(_straddles_one)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sinc(_Frozen):
    """Circular low-pass filter; ``cutoff`` in radians per pixel."""

    p: Probability = Field(description="probability that the filter is applied (or replaces the blur kernel)")
    cutoff: PositiveRange = Field(description="cut-off of kernels of 13 taps and more, radians per pixel")
    cutoff_small: PositiveRange | None = Field(default=None, description="cut-off of kernels below 13 taps; default: cutoff")


class Blur(_Frozen):
    """Mixture of blur kernels of one order; sigma in pixels of the grid the blur acts on."""

    p: Probability = Field(default=1.0, description="probability that this order blurs at all")
    sigma: PositiveRange = Field(description="standard deviation along each axis, pixels")
    size: tuple[int, int] = Field(description="smallest and largest kernel size, odd, taps")
    families: dict[
        Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"], Probability
    ] = Field(
        default={
            "iso": 0.45,
            "aniso": 0.25,
            "generalized_iso": 0.12,
            "generalized_aniso": 0.03,
            "plateau_iso": 0.12,
            "plateau_aniso": 0.03,
        },
        description="probabilities of the kernel families; they sum to one",
    )
    beta_generalized: Beta = Field(default=(0.5, 4.0), description="shape of generalized Gaussians; half of the draws below 1")
    beta_plateau: Beta = Field(default=(1.0, 2.0), description="shape of plateau kernels; half of the draws at or below 1")
    sinc: Sinc | None = Field(default=None, description="sinc kernel instead of the families, with its probability")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(self.families.values()) - 1) > 1e-6:
            raise ValueError(f"families sum to {sum(self.families.values()):.4f}; they must sum to 1")
        low, high = self.size
        if low > high or low % 2 == 0 or high % 2 == 0 or low < 1:
            raise ValueError(f"size={self.size}: both must be odd, positive and in order")
        return self


class Resize(_Frozen):
    """Random resizing; factors relative to the HQ size (order one) or to the LQ size (order two)."""

    p_up: Probability
    p_down: Probability
    p_keep: Probability
    factor: PositiveRange = Field(description="smallest downsizing and largest upsizing factor")
    modes: tuple[Literal["area", "bilinear", "bicubic"], ...] = Field(
        default=("area", "bilinear", "bicubic"), min_length=1, description="interpolations, all equally likely"
    )
    uniform_in: Literal["factor", "divisor"] = Field(
        default="factor", description="what is uniform when downsizing: the factor itself, or one over it"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(self.p_up + self.p_down + self.p_keep - 1) > 1e-6:
            raise ValueError("p_up + p_down + p_keep must be 1")
        if self.p_up and self.factor[1] < 1:
            raise ValueError(f"p_up > 0 needs factor[1] >= 1, got {self.factor[1]}")
        if self.factor[0] > 1:
            raise ValueError(f"factor[0] is the smallest downsizing and must be <= 1, got {self.factor[0]}")
        return self


class Noise(_Frozen):
    """Gaussian or Poisson noise; Gaussian sigma in grey levels of 255."""

    p_gaussian: Probability = 0.5
    sigma: Range = Field(description="Gaussian standard deviation, grey levels of 255")
    poisson_scale: Range = Field(default=(0.0, 0.0), description="factor on the Poisson noise")
    p_grey: Probability = Field(default=0.4, description="probability of one noise plane for all channels")


class Order(_Frozen):
    """One pass of blur, resize, noise and JPEG."""

    blur: Blur
    resize: Resize
    noise: Noise
    jpeg: Quality = Field(description="JPEG quality")
    jpeg_whole: bool = Field(default=False, description="quality cut to a whole number, as file codecs take it")
    blur_after_resize: bool = Field(default=False, description="blur after the resize, so that sigma counts in LQ pixels")


class DegradationProfile(_Frozen):
    """A range of degradations: one order (CodeFormer type) or two orders with a final sinc filter (Real-ESRGAN type).

    With two orders the picture goes blur, resize, noise, JPEG, twice; in the second order the resize to the LQ grid with the
    sinc filter comes before or after the JPEG, with equal probability. With one order: blur, resize, noise, JPEG, bilinear
    resize back to the HQ grid, area resize to the LQ grid.
    """

    name: str
    origin: str = Field(description="whose numbers these are")
    orders: tuple[Order, ...] = Field(min_length=1, max_length=2)
    final_sinc: Sinc | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.final_sinc is not None and len(self.orders) == 1:
            raise ValueError("final_sinc belongs to profiles with two orders; leave it out")
        return self


_PI = 3.141592653589793
_SINC = Sinc(p=0.1, cutoff=(_PI / 5, _PI), cutoff_small=(_PI / 3, _PI))
_FINAL_SINC = Sinc(p=0.8, cutoff=(_PI / 3, _PI))

_LIGHT = DegradationProfile(
    name="light",
    origin="numbers of S3Diff's training options",
    orders=(
        Order(
            blur=Blur(sigma=(0.2, 1.5), size=(7, 21), sinc=_SINC, beta_generalized=(0.5, 2), beta_plateau=(1, 1.5)),
            resize=Resize(p_up=0.2, p_down=0.7, p_keep=0.1, factor=(0.3, 1.5)),
            noise=Noise(sigma=(1, 15), poisson_scale=(0.05, 2)),
            jpeg=(60, 95),
        ),
        Order(
            blur=Blur(p=0.5, sigma=(0.2, 1.0), size=(7, 11), sinc=_SINC, beta_generalized=(0.5, 2), beta_plateau=(1, 1.5)),
            resize=Resize(p_up=0.3, p_down=0.4, p_keep=0.3, factor=(0.6, 1.2)),
            noise=Noise(sigma=(1, 12), poisson_scale=(0.05, 1)),
            jpeg=(60, 100),
        ),
    ),
    final_sinc=_FINAL_SINC,
)

_STANDARD = DegradationProfile(
    name="standard",
    origin="numbers of Real-ESRGAN x4plus",
    orders=(
        Order(
            blur=Blur(sigma=(0.2, 3), size=(7, 21), sinc=_SINC),
            resize=Resize(p_up=0.2, p_down=0.7, p_keep=0.1, factor=(0.15, 1.5)),
            noise=Noise(sigma=(1, 30), poisson_scale=(0.05, 3)),
            jpeg=(30, 95),
        ),
        Order(
            blur=Blur(p=0.8, sigma=(0.2, 1.5), size=(7, 21), sinc=_SINC),
            resize=Resize(p_up=0.3, p_down=0.4, p_keep=0.3, factor=(0.3, 1.2)),
            noise=Noise(sigma=(1, 25), poisson_scale=(0.05, 2.5)),
            jpeg=(30, 95),
        ),
    ),
    final_sinc=_FINAL_SINC,
)

_CODEFORMER = DegradationProfile(
    name="codeformer",
    origin="numbers of DiffBIR v1, CodeFormer type",
    orders=(
        Order(
            blur=Blur(sigma=(0.1, 12), size=(41, 41), families={"iso": 0.5, "aniso": 0.5}),
            resize=Resize(p_up=0, p_down=1, p_keep=0, factor=(1 / 12, 1), modes=("bilinear",), uniform_in="divisor"),
            noise=Noise(p_gaussian=1, sigma=(0, 15), p_grey=0),
            jpeg=(30, 100),
            jpeg_whole=True,
        ),
    ),
)

_EXTREME = DegradationProfile(
    name="extreme",
    origin="ours: from the hard end of the standard box far beyond it",
    orders=(
        Order(
            blur=Blur(sigma=(2, 5), size=(15, 31), sinc=Sinc(p=0.1, cutoff=(_PI / 7, _PI / 4))),
            resize=Resize(p_up=0, p_down=1, p_keep=0, factor=(0.12, 0.25)),
            noise=Noise(sigma=(25, 50), poisson_scale=(2.5, 4.5)),
            jpeg=(10, 30),
        ),
        Order(
            blur=Blur(p=1, sigma=(0.3, 1.2), size=(7, 21), sinc=_SINC),
            resize=Resize(p_up=0.3, p_down=0.5, p_keep=0.2, factor=(0.6, 1.2)),
            noise=Noise(sigma=(5, 20), poisson_scale=(0.5, 2)),
            jpeg=(10, 35),
            blur_after_resize=True,
        ),
    ),
    final_sinc=_FINAL_SINC,
)

_STRESS = DegradationProfile(
    name="stress",
    origin="ours: order one wholly outside the standard box",
    orders=(
        Order(
            blur=Blur(sigma=(3, 6), size=(21, 31), sinc=Sinc(p=0.1, cutoff=(_PI / 8, _PI / 5))),
            resize=Resize(p_up=0, p_down=1, p_keep=0, factor=(0.10, 0.15)),
            noise=Noise(sigma=(30, 60), poisson_scale=(3, 5)),
            jpeg=(10, 30),
        ),
        Order(
            blur=Blur(p=1, sigma=(0.5, 1.5), size=(7, 21), sinc=_SINC),
            resize=Resize(p_up=0.5, p_down=0.5, p_keep=0, factor=(0.6, 1.2)),
            noise=Noise(sigma=(5, 25), poisson_scale=(0.5, 2.5)),
            jpeg=(6, 30),
            blur_after_resize=True,
        ),
    ),
    final_sinc=_FINAL_SINC,
)

PRESETS: dict[str, DegradationProfile] = {p.name: p for p in (_LIGHT, _STANDARD, _CODEFORMER, _EXTREME, _STRESS)}


def preset(profile: str | DegradationProfile | dict[str, Any]) -> DegradationProfile:
    """The profile of this name; a profile (or its dictionary) is taken as it is.

    Raises:
        ConfigError: no preset has this name, or the dictionary is not a profile.
    """
    if isinstance(profile, DegradationProfile):
        return profile
    if isinstance(profile, dict):
        try:
            return DegradationProfile.model_validate(profile)
        except ValidationError as error:
            raise ConfigError(f"this is not a degradation profile: {explain_validation(error)}.") from error
    if not isinstance(profile, str):
        raise ConfigError(f"{profile!r:.40} is no degradation; expected a preset ({', '.join(PRESETS)}) or a profile.")
    if profile not in PRESETS:
        hint = did_you_mean(profile, PRESETS)
        raise ConfigError(f"no degradation preset named {profile!r}. {hint}Known: {', '.join(PRESETS)}.")
    return PRESETS[profile]


def between(milder: DegradationProfile, harsher: DegradationProfile, at: float) -> DegradationProfile:
    """A profile on the way from one to another: all bounds and probabilities interpolated linearly.

    Kernel sizes go to the nearest odd number; what has no middle (interpolations, flags) is that of the nearer profile, of
    ``harsher`` half-way. A sinc filter that one of them lacks has probability 0 there. Where no enlargement is left in the
    range of a resize, its probability goes to the reduction.

    Args:
        milder: the profile at 0.
        harsher: the profile at 1.
        at: in [0, 1].

    Raises:
        ConfigError: ``at`` lies outside, or one profile has one order and the other two.
    """
    if not 0 <= at <= 1:
        raise ConfigError(f"at={at}: expected a number from 0 (as {milder.name!r}) to 1 (as {harsher.name!r}).")
    if len(milder.orders) != len(harsher.orders):
        raise ConfigError(
            f"there is nothing between {milder.name!r} and {harsher.name!r}: they degrade {len(milder.orders)} and "
            f"{len(harsher.orders)} times. Choose profiles of as many orders."
        )
    if at in (0, 1):
        return harsher if at else milder
    mixed: dict[str, Any] = _mixed(milder.model_dump(), harsher.model_dump(), at)
    for order in mixed["orders"]:
        order["blur"]["size"] = tuple(2 * round((size - 1) / 2) + 1 for size in order["blur"]["size"])
        resize = order["resize"]
        if resize["factor"][1] < 1:
            resize["p_up"], resize["p_down"] = 0.0, resize["p_down"] + resize["p_up"]
    names = {
        "name": f"{milder.name}-{harsher.name}-{at:g}",
        "origin": f"{at:g} of the way from {milder.name} to {harsher.name}",
    }
    return DegradationProfile.model_validate(mixed | names)


def _mixed(a: Any, b: Any, at: float) -> Any:
    """The value between two values of a field."""
    if isinstance(a, dict) and isinstance(b, dict):
        if "cutoff_small" in a:  # its default is another field
            a, b = ({**sinc, "cutoff_small": sinc["cutoff_small"] or sinc["cutoff"]} for sinc in (a, b))
        return {key: _mixed(a.get(key, 0.0), b.get(key, 0.0), at) for key in a | b}
    if isinstance(a, dict) or isinstance(b, dict):  # a sinc filter that the other lacks
        given: dict[str, Any] = a if isinstance(a, dict) else b
        return given | {"p": given["p"] * (1 - at if given is a else at)}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    if numbers:
        return (1 - at) * a + at * b
    if isinstance(a, tuple) and len(a) == len(b) and not any(isinstance(value, str) for value in a):
        return tuple(_mixed(one, other, at) for one, other in zip(a, b, strict=True))
    return b if at >= 0.5 else a
