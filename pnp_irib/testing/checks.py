"""The checks of `check_adapter`, one function each: given the subject, they yield problems."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.any_size import restore_any_size
from pnp_irib.errors import PnPIribError
from pnp_irib.images.tensors import output_size
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import Restorer, TilingRestorer
from pnp_irib.runtime import dtype_named
from pnp_irib.testing.problem import Problem
from pnp_irib.testing.state import check_state
from pnp_irib.testing.subject import Subject

__all__ = ["CHECKS"]

TOLERANCE = 1e-3  # of values that should be the same, computed in another order, float32
RESEMBLES = 0.8  # correlation with the input above which shifts and exchanged channels can be told
FARTHEST = 6  # shift that is looked for, input pixels
SHORTEST = 28  # side of a picture that a shift can be told from, input pixels


def check_sizes(subject: Subject) -> Iterator[Problem]:
    """Every size gives the size that is promised, finite, and where the input has it."""
    spec = subject.spec
    found = {size: _fault(subject, size) for size in subject.sizes}
    failed = {size: why for size, (why, _) in found.items() if why and "shifted" not in why}
    shifted = {size: why for size, (why, _) in found.items() if why and "shifted" in why}
    stated = f"spec.multiple_of is {spec.multiple_of}, spec.min_size {spec.min_size}"
    for faults, otherwise in (
        (failed, "state a larger spec.multiple_of or spec.min_size, or pad and crop in restore"),
        (shifted, "crop the result where the input was padded: below and right"),
    ):
        if faults:
            size, why = next(iter(faults.items()))
            side = "height" if size % 2 else "width"
            yield Problem(
                "sizes",
                f"{len(faults)} of {len(found)} sizes fail, the first with the {side} {size}: {why}; {stated}",
                _larger_multiple(subject, list(faults)) or otherwise,
            )
    if not any(measured for _, measured in found.values()):
        subject.notes.append("shifts: no result resembles its input (random weights?)")


def _fault(subject: Subject, size: int) -> tuple[str | None, bool]:
    """What is wrong with a size, and whether a shift could be measured."""
    lq, factor = subject.stripes(size), subject.spec.scale or subject.spec.default_scale
    try:
        restored = subject.restore(lq)
    except Exception as error:  # an adapter may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}", False
    height, width = lq.shape[-2:]
    expected = (1, 3, *output_size(height, width, factor)) if factor is not None else None
    if (expected is not None and tuple(restored.shape) != expected) or restored.shape[:2] != (1, 3):
        return f"a result of {tuple(restored.shape)} for {tuple(lq.shape)}, expected {expected}", False
    if not bool(restored.isfinite().all()):
        return "values that are not finite", False
    shift = _shift(restored, lq)
    return (f"the result is shifted by {shift:+d} input pixels" if shift else None), shift is not None


def _larger_multiple(subject: Subject, bad: Sequence[int]) -> str | None:
    """The smallest multiple with which the bad sizes come out well."""
    for multiple in (2, 4, 8, 12, 16, 24, 32, 48, 64):
        if multiple > subject.spec.multiple_of:
            stated = Subject(_Stated(subject.restorer, multiple_of=multiple), ())
            odd = next(
                n * multiple for n in (1, 3, 5, 7, 9, 11, 13, 15) if n * multiple >= SHORTEST
            )  # that no larger one divides
            if not any(_fault(stated, size)[0] for size in (*bad[:3], bad[-1], multiple, odd)):
                return f"try multiple_of={multiple}"
    return None


def _shift(restored: Tensor, lq: Tensor) -> int | None:
    """How far the result lies from its input along the longer side, input pixels; None where that cannot be measured."""
    height, width = lq.shape[-2:]
    if max(height, width) < SHORTEST:
        return None
    reduced = F.interpolate(restored.float(), size=(height, width), mode="area").mean(1)[0]
    given = lq.float().mean(1)[0]
    if width > height:
        reduced, given = reduced.T, given.T
    inner = given[FARTHEST:-FARTHEST]
    shifts = range(-FARTHEST, FARTHEST + 1)
    found = {d: _correlation(inner, reduced[FARTHEST + d : len(reduced) - FARTHEST + d]) for d in shifts}
    best = max(shifts, key=lambda d: found[d])
    if found[best] < RESEMBLES:
        return None
    return best if found[best] > found[0] + 0.1 else 0


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def check_scales(subject: Subject) -> Iterator[Problem]:
    """A call may state its scale; sides are rounded."""
    spec = subject.spec
    for scale in (1.0, 1.3, 2.0, 2.7):
        height, width = subject.side - 1, subject.side + 1
        found = tuple(subject.restore(subject.picture(height, width), scale=scale).shape)
        if found != (expected := (1, 3, *output_size(height, width, scale))):
            yield Problem(
                "scales",
                f"scale={scale} gave {found} for {height} x {width} pixels, expected {expected}",
                "resize the result to pnp_irib.images.tensors.output_size(H, W, scale)"
                if spec.scale is None
                else "restore at the native scale and resize if a scale is given",
            )
            return


def check_values(subject: Subject) -> Iterator[Problem]:
    """Pictures are about [0, 1], of the dtype that came in."""
    lq = subject.picture(subject.side, subject.side)
    restored = subject.restore(lq)
    low, high = restored.float().quantile(0.02).item(), restored.float().quantile(0.98).item()
    if high > 4:
        yield Problem("values", f"values from {low:.3g} to {high:.3g}, expected [0, 1]", "divide by 255")
    elif low < -0.3:
        yield Problem("values", f"values from {low:.3g} to {high:.3g}, expected [0, 1]", "from [-1, 1] it is x * 0.5 + 0.5")
    elif high > 1.6:
        yield Problem("values", f"values from {low:.3g} to {high:.3g}, expected [0, 1]", "bring them to [0, 1]")
    if restored.dtype != lq.dtype:
        yield Problem(
            "values", f"{restored.dtype} for an input of {lq.dtype}", "give back the dtype that came in: result.to(lq.dtype)"
        )
    reduced, given = (F.interpolate(x.float(), size=(8, 8), mode="area").flatten(2) for x in (restored.float(), lq))
    alike = [[_correlation(reduced[0, i], given[0, j]) for j in range(3)] for i in range(3)]
    resembles = min(alike[0][2], alike[1][1], alike[2][0]) > RESEMBLES  # random weights may give anything
    if resembles and alike[0][2] + alike[2][0] > alike[0][0] + alike[2][2] + 0.5:
        yield Problem("values", "red and blue are exchanged", "pictures are RGB: flip the channels back, x.flip(1)")
    if restored.device != lq.device:
        yield Problem("values", f"the result is on {restored.device}, the input on {lq.device}", "result.to(lq.device)")


def check_batches(subject: Subject) -> Iterator[Problem]:
    """A picture comes out the same alone and in a batch."""
    one, other = subject.picture(subject.side, subject.side, seed=1), subject.picture(subject.side, subject.side, seed=2)
    both = subject.restore(torch.cat((one, other)), seed=[3, 4])
    alone = subject.restore(other, seed=[4])
    if both.shape[0] != 2:
        yield Problem("batches", f"{both.shape[0]} results for two pictures", "give one result a picture, in their order")
        return
    first = subject.restore(one, seed=[3])
    difference = max((both[:1] - first).abs().max().item(), (both[1:] - alone).abs().max().item())
    if not difference <= TOLERANCE:
        yield Problem(
            "batches",
            f"a picture of a batch of two differs from itself alone by up to {difference:.3g}, expected below {TOLERANCE}",
            "look for statistics over the batch (a module in training mode, a norm over dimension 0), or noise that is drawn "
            "for the batch as a whole: noise.normal(shape) has a stream for each picture",
        )


def check_seeds(subject: Subject) -> Iterator[Problem]:
    """The seed decides, and nothing else."""
    spec, lq = subject.spec, subject.picture(subject.side, subject.side)
    global_state = torch.get_rng_state()
    first = subject.restore(lq, seed=1)
    touched = not torch.equal(torch.get_rng_state(), global_state)
    again, other = subject.restore(lq, seed=1), subject.restore(lq, seed=2)
    if touched:
        torch.set_rng_state(global_state)
    if touched or not torch.equal(first, again):
        yield Problem(
            "seeds",
            "it draws from the global random generator" if touched else "the same seed gave two results",
            "draw only from the noise= that restore is given: noise.normal(shape, device=..., dtype=...)",
        )
        return
    depends = not torch.equal(first, other)
    if depends and spec.deterministic:
        yield Problem("seeds", "the seed changes the result, but spec.deterministic is True", "state deterministic=False")
    if not depends and not spec.deterministic:
        yield Problem(
            "seeds",
            "spec.deterministic is False, but two seeds gave the same result",
            "draw from noise=, or state deterministic=True",
        )


def check_prompts(subject: Subject) -> Iterator[Problem]:
    """Prompts do what the spec says."""
    spec, lq = subject.spec, subject.picture(subject.side, subject.side)
    cat, street = (subject.restore(lq, prompts=[Prompt(text)]) for text in ("a cat on a sofa", "a street at night, rain"))
    if spec.prompts == "none":
        if not torch.equal(cat, street):
            yield Problem("prompts", "prompts change the result, but spec.prompts is 'none'", "state prompts='optional'")
        return
    if torch.equal(cat, street):
        yield Problem(
            "prompts",
            f"spec.prompts is {spec.prompts!r}, but two prompts gave the same result",
            "give prompt.text to the text encoder, or state prompts='none'",
        )
    if spec.prompts == "required":
        try:
            with torch.no_grad():
                subject.restorer.restore(lq.clone(), prompts=None, noise=SeededNoise([0]))
        except PnPIribError:
            return
        except Exception as error:  # an adapter may raise anything
            yield Problem(
                "prompts", f"without its required prompt it raises {type(error).__name__}", "raise pnp_irib.errors.InputError"
            )
            return
        yield Problem("prompts", "spec.prompts is 'required', but it restores without", "state prompts='optional'")


def check_gradients(subject: Subject) -> Iterator[Problem]:
    """Gradients pass where the spec promises them, and are right."""
    spec = subject.spec
    # Away from both ends, so that steps stay in the range that adapters may insist on.
    lq = (0.1 + 0.8 * subject.picture(subject.side, subject.side)).requires_grad_()
    prompts = [subject.prompt] if subject.prompt is not None else None

    def energy(picture: Tensor) -> Tensor:
        restored = restore_any_size(subject.restorer, picture, prompts=prompts, noise=SeededNoise([0]))
        weights = torch.linspace(-1, 1, restored.shape[-1], device=restored.device)
        return (restored.double() * weights).mean()

    with torch.enable_grad():
        try:
            value = energy(lq)
            passes = value.requires_grad
            if passes:
                value.backward()
        except Exception:  # an adapter may raise anything
            if spec.differentiable:
                raise
            return
    if not spec.differentiable:
        passes = passes and lq.grad is not None and bool(lq.grad.abs().max() > 0)
        subject.notes.append(
            "gradients pass, though spec.differentiable is False: state True to train through it"
            if passes
            else "gradients: spec.differentiable is False"
        )
        return
    if not passes or lq.grad is None or not bool(lq.grad.abs().max() > 0):
        yield Problem(
            "gradients",
            "spec.differentiable is True, but no gradient reaches the picture",
            "run the network under the caller's grad mode: no torch.no_grad, inference_mode, detach, or 8 bits on the way; or "
            "state differentiable=False",
        )
        return
    direction = lq.grad / lq.grad.norm()
    promised = float((lq.grad * direction).sum())
    measured: list[float] = []
    for step in (1e-2, 1e-3, 1e-4):  # networks bend early along their own gradient
        with torch.no_grad():
            change = energy(lq + step * direction) - energy(lq - step * direction)
        measured.append((change / (2 * step)).item())
    if not any(0.7 * promised < value < 1.3 * promised for value in measured):
        yield Problem(
            "gradients",
            f"along its own gradient the result changes by {measured[1]:.3g}, the gradient says {promised:.3g}",
            "let the gradient be that of what is returned: no straight-through parts, nothing cached from another call",
        )


def check_dtypes(subject: Subject) -> Iterator[Problem]:
    """It works in the dtypes that its spec calls safe, and can be moved back."""
    spec, lq = subject.spec, subject.picture(subject.side, subject.side)
    now = getattr(subject.restorer, "dtype", torch.float32)
    expected = subject.restore(lq)
    kept = [(value, value.detach().clone()) for m in subject.modules() for value in (*m.parameters(), *m.buffers())]
    floating = any(value.is_floating_point() for value, _ in kept)
    try:
        for name in spec.safe_dtypes:
            dtype = dtype_named(name)
            if dtype == torch.float16 and subject.device.type == "cpu":
                subject.notes.append("float16: not on a CPU")
                continue
            try:
                moved = subject.restorer.to(dtype=dtype)
                found = subject.restore(lq)
            except Exception as error:  # an adapter may raise anything
                said = " ".join(str(error).split())[:160]
                yield Problem("dtypes", f"in {name}: {type(error).__name__}: {said}", f"take {name!r} out of spec.safe_dtypes")
                continue
            if moved is not subject.restorer:
                yield Problem("dtypes", "to() gives another object", "move it in place and return self")
            if floating and not any(value.dtype == dtype for m in subject.modules() for value in m.parameters()):
                yield Problem("dtypes", f"to(dtype={name}) changes nothing", "move the network: self.network.to(dtype=dtype)")
            difference = (found - expected).abs().mean().item()
            if not difference < 0.1:  # also where it is NaN
                yield Problem(
                    "dtypes",
                    f"in {name} the result differs from that in {now} by {difference:.3g} on average",
                    f"take {name!r} out of spec.safe_dtypes",
                )
    finally:
        subject.restorer.to(dtype=now)
        with torch.no_grad():
            for value, before in kept:
                if value.dtype == before.dtype:
                    value.copy_(before)  # what half precision rounded away


def check_tiles(subject: Subject) -> Iterator[Problem]:
    """Tiles give what the whole picture gives."""
    spec = subject.spec
    if spec.scale is None or not (spec.tiling == "supported" or isinstance(subject.restorer, TilingRestorer)):
        subject.notes.append(f"tiles: spec.tiling is {spec.tiling!r}, scale {spec.scale}")
        return
    lq = subject.picture(132, 16)  # many tiles, most of them far from both ends
    if spec.deterministic is False:
        subject.notes.append("tiles: each has noise of its own, so that they differ from the whole")
        return
    whole = subject.restore(lq)

    def difference(restorer: Restorer) -> float:
        with torch.no_grad():
            prompts = [subject.prompt] if subject.prompt is not None else None
            tiled = restore_any_size(restorer, lq.clone(), prompts=prompts, noise=SeededNoise([0]), tile=16)
        return (tiled - whole).abs().max().item()

    found = difference(subject.restorer)
    if found <= 2 / 255:
        return
    wider = [halo for halo in (8, 16, 24, 32, 48) if halo > spec.tile_halo]
    enough = next((halo for halo in wider if difference(_Stated(subject.restorer, tile_halo=halo)) <= 2 / 255), None)
    yield Problem(
        "tiles",
        f"tiles differ from the whole picture by up to {255 * found:.1f}/255, expected 2/255; tile_halo is {spec.tile_halo}",
        f"state tile_halo={enough}" if enough else "state tiling='discouraged': a pixel depends on all others, it seems",
    )


class _Stated:
    """A restorer whose spec states something else."""

    def __init__(self, restorer: Restorer, **facts: Any) -> None:
        self._restorer = restorer
        self.spec = restorer.spec.model_copy(update=facts)
        self.device = getattr(restorer, "device", None)

    def restore(self, lq: Tensor, **options: Any) -> Tensor:
        return self._restorer.restore(lq, **options)

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        self._restorer.to(device, dtype)
        return self


def check_errors(subject: Subject) -> Iterator[Problem]:
    """Wrong options of a registered restorer are told in the library's own errors."""
    from pnp_irib.registry import find_spec, restorer_names

    name = subject.spec.name
    if name not in restorer_names():
        subject.notes.append(f"errors of loading: {name!r} is not registered")
        return
    try:
        find_spec(name).load(no_such_option=1)
    except PnPIribError as error:
        if "no_such_option" not in str(error):
            yield Problem(
                "errors", f"an unknown option is told as {str(error)[:120]!r}", "name the option, and the known ones"
            )
    except Exception as error:  # an adapter may raise anything
        yield Problem(
            "errors", f"an unknown option raises {type(error).__name__}", "raise pnp_irib.errors.ConfigError that names it"
        )
    else:
        yield Problem("errors", "an unknown option is taken without a word", "let the factory name its options")


def check_copies(subject: Subject) -> Iterator[Problem]:
    """Its spec can be written down and read again."""
    spec = subject.spec
    if type(spec).model_validate_json(spec.model_dump_json()) != spec:
        yield Problem("spec", "the spec does not survive JSON", "use plain values in it")
    if copy.deepcopy(spec) != spec:
        yield Problem("spec", "the spec is not equal to its copy", "use plain values in it")


CHECKS: dict[str, Callable[[Subject], Iterator[Problem]]] = {
    "spec": check_copies,
    "state": check_state,
    "sizes": check_sizes,
    "scales": check_scales,
    "values": check_values,
    "batches": check_batches,
    "seeds": check_seeds,
    "prompts": check_prompts,
    "gradients": check_gradients,
    "tiles": check_tiles,
    "errors": check_errors,
    "dtypes": check_dtypes,
}
