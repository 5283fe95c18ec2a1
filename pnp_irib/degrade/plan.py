"""What is drawn for one picture: a list of steps with all their numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from pnp_irib.degrade.kernels import Kernel, draw_kernel, draw_sinc
from pnp_irib.degrade.resize import Mode
from pnp_irib.degrade.stream import Stream
from pnp_irib.errors import InputError
from pnp_irib.profile import DegradationProfile, Noise, Order, Resize, Sinc, preset

__all__ = ["BlurStep", "JpegStep", "NoiseStep", "Plan", "ResizeStep", "Step", "draw"]

_MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class BlurStep:
    """Filter with a kernel."""

    kernel: Kernel

    def __str__(self) -> str:
        return f"blur {self.kernel}"


@dataclass(frozen=True)
class ResizeStep:
    """Resize to ``size`` = (height, width), pixels."""

    size: tuple[int, int]
    mode: Mode

    def __str__(self) -> str:
        return f"resize to {self.size[1]}x{self.size[0]} {self.mode}"


@dataclass(frozen=True)
class NoiseStep:
    """Add noise and clamp; ``amount`` is sigma in grey levels of 255 or the factor on the Poisson noise."""

    kind: Literal["gaussian", "poisson"]
    amount: float
    grey: bool
    seed: int

    def __str__(self) -> str:
        unit = "sigma" if self.kind == "gaussian" else "scale"
        return f"{'grey' if self.grey else 'colour'} {self.kind} noise {unit}={self.amount:.2f}"


@dataclass(frozen=True)
class JpegStep:
    """Clamp and compress."""

    quality: float

    def __str__(self) -> str:
        return f"jpeg {self.quality:.1f}"


Step = BlurStep | ResizeStep | NoiseStep | JpegStep


@dataclass(frozen=True)
class Plan:
    """One draw from a profile for one picture; ``str`` of it reads as one line.

    Attributes:
        profile: name of the profile.
        seed: what it was drawn from.
        hq_size: (height, width) of the pictures that it applies to.
        lq_size: (height, width) of the result: HQ size over scale, rounded, at least one.
        steps: from first to last; the result is rounded to 8 bits after them.
    """

    profile: str
    seed: int
    hq_size: tuple[int, int]
    lq_size: tuple[int, int]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.profile}/{self.seed}: " + ", ".join(str(step) for step in self.steps)


def draw(profile: str | DegradationProfile | dict[str, Any], size: Sequence[int], seed: int, *, scale: int = 4) -> Plan:
    """Draw one degradation.

    Args:
        profile: a preset's name, or a profile.
        size: (height, width) of the HQ picture, pixels.
        seed: 0 to 2**64 - 1; the same arguments always give the same plan.
        scale: HQ size over LQ size.

    Raises:
        ConfigError: unknown preset, or an invalid profile.
        InputError: empty size, ``scale`` below one, or ``seed`` out of range.
    """
    profile = preset(profile)
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size={tuple(size)}: expected (height, width), each at least 1 pixel.")
    if not (isinstance(scale, Real) and 1 <= scale < math.inf):
        raise InputError(f"scale={scale}: must be 1 or more (HQ size over LQ size).")
    try:
        seed = operator.index(seed)
    except TypeError:
        raise InputError(f"seed={seed!r:.40}: expected a whole number from 0 to 2**64 - 1.") from None
    size = (size[0], size[1])  # a torch.Size prints differently
    lq_size = (max(1, round(size[0] / scale)), max(1, round(size[1] / scale)))
    stream = Stream(seed)
    if len(profile.orders) == 1:
        steps = _one_order(profile.orders[0], size, lq_size, stream)
    else:
        steps = _two_orders(profile, size, lq_size, stream)
    return Plan(profile.name, seed, size, lq_size, tuple(steps))


def _one_order(order: Order, size: tuple[int, int], lq_size: tuple[int, int], stream: Stream) -> list[Step]:
    steps = _blur_and_resize(order, size, stream)
    steps += [_noise(order.noise, stream), _jpeg(order, stream)]
    # Published restorers of this type work on the HQ grid; the way down from there to the LQ grid is ours.
    return [*steps, ResizeStep(size, "bilinear"), ResizeStep(lq_size, "area")]


def _two_orders(profile: DegradationProfile, size: tuple[int, int], lq_size: tuple[int, int], stream: Stream) -> list[Step]:
    first, second = profile.orders
    steps = _blur_and_resize(first, size, stream)
    steps += [_noise(first.noise, stream), _jpeg(first, stream)]
    steps += _blur_and_resize(second, lq_size, stream)  # relative to the LQ size, whatever size order one left
    steps.append(_noise(second.noise, stream))
    to_lq: list[Step] = [ResizeStep(lq_size, stream.pick(_MODES)), *_final_sinc(profile.final_sinc, stream)]
    compress: list[Step] = [_jpeg(second, stream)]
    return steps + (to_lq + compress if stream.chance(0.5) else compress + to_lq)


def _blur_and_resize(order: Order, reference: tuple[int, int], stream: Stream) -> list[Step]:
    blur: list[Step] = [BlurStep(draw_kernel(order.blur, stream))] if stream.chance(order.blur.p) else []
    resize: list[Step] = [_resize(order.resize, reference, stream)]
    return resize + blur if order.blur_after_resize else blur + resize


def _resize(resize: Resize, reference: tuple[int, int], stream: Stream) -> ResizeStep:
    kind = stream.weighted({"up": resize.p_up, "down": resize.p_down, "keep": resize.p_keep})
    factor = 1.0
    if kind == "up":
        factor = stream.uniform(1.0, resize.factor[1])
    elif kind == "down":
        smallest, largest = resize.factor[0], min(1.0, resize.factor[1])
        if resize.uniform_in == "divisor":
            factor = 1 / stream.uniform(1 / largest, 1 / smallest)
        else:
            factor = stream.uniform(smallest, largest)
    size = (max(1, int(reference[0] * factor)), max(1, int(reference[1] * factor)))
    return ResizeStep(size, stream.pick(resize.modes))


def _noise(noise: Noise, stream: Stream) -> NoiseStep:
    gaussian = stream.chance(noise.p_gaussian)
    amount = stream.uniform(*(noise.sigma if gaussian else noise.poisson_scale))
    return NoiseStep("gaussian" if gaussian else "poisson", amount, stream.chance(noise.p_grey), stream.seed())


def _jpeg(order: Order, stream: Stream) -> JpegStep:
    quality = stream.uniform(*order.jpeg)
    return JpegStep(float(int(quality)) if order.jpeg_whole else quality)


def _final_sinc(sinc: Sinc | None, stream: Stream) -> list[Step]:
    return [BlurStep(draw_sinc(sinc, stream))] if sinc is not None and stream.chance(sinc.p) else []
