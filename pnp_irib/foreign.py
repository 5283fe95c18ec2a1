"""Modules and functions that users bring, as restorers."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from pnp_irib.errors import ConfigError, InputError, WrapError, did_you_mean
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.noise import seeded
from pnp_irib.recognition import Recogniser
from pnp_irib.restorer import Restorer
from pnp_irib.runtime import frozen
from pnp_irib.spec import Licence, RestorerSpec

if TYPE_CHECKING:
    from pnp_irib.profile import DegradationProfile
    from pnp_irib.prompts import Prompt
    from pnp_irib.restorer import NoiseSource

__all__ = ["FUNCTION", "MODULE", "RESTORER", "ForeignRestorer"]

PROBE = 64  # side of the picture that finds out an unknown scale, pixels


def modules_behind(model: Callable[..., Any]) -> list[nn.Module]:
    """The modules that a callable runs, as far as can be seen: itself, behind a method or partial, or named by a function."""
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(model, functools.partial):
        found = [*modules_behind(model.func), *model.args, *model.keywords.values()]
    elif inspect.ismethod(model):
        found = [model.__self__, *vars(model.__self__).values()] if hasattr(model.__self__, "__dict__") else []
    elif inspect.isfunction(model):
        named = inspect.getclosurevars(model)
        found = [*named.nonlocals.values(), *named.globals.values()]
    else:
        found = list(vars(model).values()) if hasattr(model, "__dict__") else []
    return list(dict.fromkeys(m for m in found if isinstance(m, nn.Module)))


class ForeignRestorer:
    """An ``nn.Module`` or a function from (N, 3, H, W) to (N, 3, s*H, s*W), [0, 1], as a `Restorer`.

    The module is borrowed: it runs in evaluation mode without parameter gradients, and is as found between the calls.

    Args:
        model: the module or function.
        scale: its enlargement; None: found out with one small grey picture.
        multiple_of: both sides of its input must be a multiple of this, pixels.
        min_size: smallest side of its input, pixels.
        lq_profile: what it was trained on, if known.

    Raises:
        WrapError: a size is impossible, it cannot be called with a picture, or its output is no enlarged picture.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        *,
        scale: int | None = None,
        multiple_of: int = 1,
        min_size: int = 1,
        lq_profile: DegradationProfile | None = None,
    ) -> None:
        for option, value in (("scale", scale), ("multiple_of", multiple_of), ("min_size", min_size)):
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
                raise WrapError(f"{option}={value!r}: expected a whole number from 1.")
        scale, multiple_of, min_size = None if scale is None else int(scale), int(multiple_of), int(min_size)
        self.model = model
        name = getattr(model, "__name__", type(model).__name__)
        unknown = Licence(name="of its owner", commercial=None)
        self._facts: dict[str, Any] = {
            "name": "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-") or "model",
            "title": f"{name} of the user",
            "multiple_of": multiple_of,
            "min_size": min_size,
            "differentiable": isinstance(model, nn.Module),
            "lq_profile": lq_profile,
            "code_licence": unknown,
            "weights_licence": unknown,
        }
        self.spec = RestorerSpec(scale=scale or self._probe(), **self._facts)

    @property
    def device(self) -> torch.device:
        """Where the module is; the CPU for a function."""
        tensor = self._first_tensor()
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype | None:
        """What the module works in; None for a function, which is given what comes."""
        tensor = self._first_tensor()
        return None if tensor is None else tensor.dtype

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move the module itself, as the user would; a function stays where it is."""
        if isinstance(self.model, nn.Module):
            self.model.to(device=device, dtype=dtype)
        return self

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Prompts are not passed on. Without ``noise`` a batch is one call, with the seed 0.

        Raises:
            InputError: the output is not (N, 3, scale*H, scale*W).
        """
        seeds = getattr(noise, "seeds", (0,))
        if len(seeds) > 1:  # one stream a picture
            restored = torch.cat([self._call(one, seed=seed) for one, seed in zip(lq.split(1), seeds, strict=True)])
        else:
            restored = self._call(lq, seed=seeds[0])
        native = self.spec.scale
        assert native is not None
        expected = (lq.shape[0], 3, lq.shape[-2] * native, lq.shape[-1] * native)
        if tuple(restored.shape) != expected:
            raise InputError(
                f"{self.spec.title} gave {tuple(restored.shape)} for {tuple(lq.shape)}, expected {expected}. "
                f"Check scale={native} and multiple_of={self.spec.multiple_of} of wrap()."
            )
        if scale is not None:
            restored = resize(restored, output_size(lq.shape[-2], lq.shape[-1], scale))
        return restored

    def _call(self, lq: Tensor, *, seed: int) -> Tensor:
        given = lq.to(device=self.device, dtype=self.dtype or lq.dtype, copy=True)  # it may work in place
        with seeded(seed, given.device), frozen(*modules_behind(self.model)):
            try:
                restored = self.model(given)
            except Exception as error:
                error.add_note(
                    f"{self.spec.title} raised this when given {tuple(given.shape)}. If it takes only some sizes, state "
                    "wrap(..., multiple_of=, min_size=)."
                )
                raise
            if not isinstance(restored, Tensor):
                raise InputError(f"{self.spec.title} returned {type(restored).__name__}, expected a torch.Tensor of pictures")
            return restored.to(lq.dtype, copy=True)  # the model may keep what it returned, and use it again

    def _first_tensor(self) -> Tensor | None:
        """A floating-point tensor of the module, which says in which dtype and where it works."""
        if not isinstance(self.model, nn.Module):
            return None
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), None)

    def _probe(self) -> int:
        side = -(-max(PROBE, self._facts["min_size"]) // self._facts["multiple_of"]) * self._facts["multiple_of"]
        self.spec = RestorerSpec(scale=1, **self._facts)
        try:
            with torch.no_grad():
                out = self._call(torch.full((1, 3, side, side), 0.5), seed=0)
            factors = {out.shape[-2] / side, out.shape[-1] / side}
            factor = factors.pop()
            if out.ndim != 4 or out.shape[1] != 3 or factors or factor != int(factor) or factor < 1:
                raise InputError(f"its output for (1, 3, {side}, {side}) is {tuple(out.shape)}")
        except Exception as error:  # a foreign model may raise anything
            raise WrapError(
                f"{self._facts['title']} could not be tried out: {type(error).__name__}: {error}. "
                f"It must map (N, 3, H, W) in [0, 1] to (N, 3, s*H, s*W). "
                f"Wrap a small function around it that does, and state wrap(..., scale=, multiple_of=)."
            ) from error
        return int(factor)


def _build_foreign(model: Any, **options: Any) -> ForeignRestorer:
    known = [name for name in inspect.signature(ForeignRestorer).parameters if name != "model"]
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(
            f"the options {', '.join(unknown)} are unknown for a module or function; known: {', '.join(known)}. "
            f"{did_you_mean(unknown[0], known)}".rstrip()
        )
    return ForeignRestorer(model, **options)


def _as_it_is(restorer: Any, **options: Any) -> Any:
    if options:
        raise ConfigError(f"the options {', '.join(options)} do not apply to an object that is a Restorer already.")
    return restorer


RESTORER = Recogniser(
    title="a Restorer",
    recognises=lambda thing: isinstance(thing, Restorer) and isinstance(thing.spec, RestorerSpec),
    build=_as_it_is,
    priority=100,
)
MODULE = Recogniser(
    title="a torch module", recognises=lambda thing: isinstance(thing, nn.Module), build=_build_foreign, priority=0
)
FUNCTION = Recogniser(
    title="a function from pictures (N, 3, H, W) to (N, 3, s*H, s*W)",
    recognises=lambda thing: callable(thing) and not isinstance(thing, type),
    build=_build_foreign,
    priority=-10,
)
