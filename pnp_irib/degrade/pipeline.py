"""Applying drawn degradations to pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pnp_irib.degrade.filtering import filter2d
from pnp_irib.degrade.jpeg import jpeg
from pnp_irib.degrade.noise import gaussian_noise, poisson_noise
from pnp_irib.degrade.plan import BlurStep, JpegStep, NoiseStep, Plan, ResizeStep, Step, draw
from pnp_irib.degrade.resize import resize
from pnp_irib.degrade.rounding import to_8_bit
from pnp_irib.errors import InputError
from pnp_irib.profile import DegradationProfile

__all__ = ["apply", "degrade", "mean_channel"]


def degrade(
    hq: Tensor,
    profile: str | DegradationProfile | dict[str, Any],
    *,
    seeds: Sequence[int],
    scale: int = 4,
    differentiable: bool = False,
) -> Tensor:
    """Degrade every picture by a draw of its own.

    Args:
        hq: (N, 3, H, W), floating point, in [0, 1].
        profile: a preset's name, or a profile.
        seeds: N whole numbers from 0 to 2**64 - 1. A picture's result depends on its seed alone, not on its neighbours.
        scale: HQ size over LQ size.
        differentiable: let gradients flow to ``hq``, see `apply`.

    Returns:
        (N, 3, round(H/scale), round(W/scale)) in [0, 1], multiples of 1/255, in the dtype and on the device of ``hq``.

    Raises:
        ConfigError: unknown preset, or an invalid profile.
        InputError: wrong shape, dtype or range, a number of seeds other than N, or a seed or scale out of range.
    """
    _check_form(hq)
    if not isinstance(seeds, Sequence | Tensor) or isinstance(seeds, str):
        raise InputError(f"seeds={seeds!r:.40}: expected a list with one whole number for each picture.")
    if len(seeds) != hq.shape[0]:
        raise InputError(f"{len(seeds)} seeds for {hq.shape[0]} pictures; give one seed for each.")
    plans = [draw(profile, hq.shape[-2:], seed, scale=scale) for seed in seeds]
    return apply(hq, plans, differentiable=differentiable)


def apply(hq: Tensor, plans: Sequence[Plan], *, differentiable: bool = False) -> Tensor:
    """Degrade picture i as ``plans[i]`` says.

    With ``differentiable=True`` the values are the same and gradients reach ``hq``. Blur, resizing, clamping and colour
    conversion have their true derivatives (clamped pixels get none); rounding, in JPEG and to 8 bits, passes the gradient
    straight through; noise is a constant, for Poisson noise too, whose dependence on the picture is left out. Values
    outside [0, 1] are then accepted, since restorers overshoot.

    Args:
        hq: (N, 3, H, W), floating point, in [0, 1]; half precision is computed in float32.
        plans: N plans for H x W, all of the same LQ size.
        differentiable: see above; otherwise nothing is recorded.

    Returns:
        (N, 3, *lq_size) in [0, 1], multiples of 1/255.

    Raises:
        InputError: wrong shape, dtype or range, or plans that do not fit the pictures.
    """
    _check_form(hq)
    _check_range(hq, overshoot=differentiable)
    _check_plans(hq, plans)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        return _each(hq, [plan.steps for plan in plans], final=to_8_bit)


def mean_channel(hq: Tensor, plans: Sequence[Plan]) -> Tensor:
    """Blur and resizing of ``plans`` alone: no noise, no JPEG, no clamping, no rounding.

    A reference with the low frequencies that the degraded picture has on average. Linear in ``hq``, and differentiable where
    gradients are recorded; sinc and bicubic steps overshoot [0, 1].

    Args:
        hq: (N, 3, H, W), floating point.
        plans: N plans for H x W, all of the same LQ size.

    Returns:
        (N, 3, *lq_size).

    Raises:
        InputError: wrong shape or dtype, or plans that do not fit the pictures.
    """
    _check_form(hq)
    _check_plans(hq, plans)
    return _each(hq, [[s for s in plan.steps if isinstance(s, BlurStep | ResizeStep)] for plan in plans])


def _each(hq: Tensor, steps: Sequence[Sequence[Step]], final: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Run every picture through its steps, one by one: sizes differ on the way, and neighbours must not matter."""
    working = hq.float() if hq.dtype in (torch.float16, torch.bfloat16) else hq
    results = []
    with torch.autocast(hq.device.type, enabled=False):  # half precision in the block transform would be noise of its own
        for index, its_steps in enumerate(steps):
            picture = working[index : index + 1]
            for step in its_steps:
                picture = _run(step, picture)
            results.append(picture)
    degraded = torch.cat(results)
    return (final(degraded) if final else degraded).to(hq.dtype)


def _run(step: Step, picture: Tensor) -> Tensor:
    match step:
        case BlurStep(kernel):
            return filter2d(picture, kernel.taps())
        case ResizeStep(size, mode):
            return resize(picture, size, mode)
        case NoiseStep("gaussian", sigma, grey, seed):
            return (picture + gaussian_noise(picture, sigma=sigma, grey=grey, seed=seed)).clamp(0, 1)
        case NoiseStep(_, scale, grey, seed):
            return (picture + poisson_noise(picture, scale=scale, grey=grey, seed=seed)).clamp(0, 1)
        case JpegStep(quality):
            return jpeg(picture, torch.tensor([quality], dtype=torch.float64))


def _check_form(hq: Tensor) -> None:
    if not isinstance(hq, Tensor):
        raise InputError(f"hq is a {type(hq).__name__}; expected a torch.Tensor (N, 3, H, W) in [0, 1].")
    if hq.ndim != 4 or hq.shape[1] != 3 or 0 in hq.shape:
        raise InputError(f"hq has shape {tuple(hq.shape)}; expected (N, 3, H, W), RGB, not empty.")
    if not hq.is_floating_point():
        raise InputError(f"hq has dtype {hq.dtype}; expected floating point in [0, 1]. From 8 bits use hq.float() / 255.")


def _check_range(hq: Tensor, *, overshoot: bool) -> None:
    low, high = torch.aminmax(hq.detach())
    within = bool(torch.isfinite(low) & torch.isfinite(high)) if overshoot else (low >= 0 and high <= 1)  # NaN is not
    if not within:
        expected = "be finite" if overshoot else "lie in [0, 1]"
        raise InputError(f"hq must {expected}; its range is [{float(low):.3g}, {float(high):.3g}].")


def _check_plans(hq: Tensor, plans: Sequence[Plan]) -> None:
    if len(plans) != hq.shape[0]:
        raise InputError(f"{len(plans)} plans for {hq.shape[0]} pictures; give one plan for each.")
    size = tuple(hq.shape[-2:])
    for plan in plans:
        if plan.hq_size != size:
            raise InputError(f"the pictures are {size}, a plan is for {plan.hq_size}; draw it with size={size}.")
        if plan.lq_size != plans[0].lq_size:
            raise InputError(f"plans of one batch need one LQ size; found {plans[0].lq_size} and {plan.lq_size}.")
