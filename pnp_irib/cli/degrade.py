"""``pnp-irib degrade``: test pictures from good ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pnp_irib.cli.files import Task, is_folder, plan
from pnp_irib.cli.messages import line, reason_of
from pnp_irib.degrade import apply, draw
from pnp_irib.errors import InputError, PnPIribError
from pnp_irib.images.io import WRITABLE, Picture, read_picture, write_picture
from pnp_irib.noise import picture_seed
from pnp_irib.profile import DegradationProfile, preset

__all__ = ["run"]


def run(
    inputs: list[Path], output: Path, name: str, seed: int, scale: int, format: str | None, *, overwrite: bool, verbose: bool
) -> int:
    """Degrade every picture; returns the exit code.

    Raises:
        PnPIribError: preset or options are wrong.
    """
    profile = preset(name)
    failures = 0
    named = not is_folder(output) and output.suffix.lower() in WRITABLE
    for task in plan(inputs, output, format or (None if named else "png")):
        try:
            said = _one(task, profile, seed, scale, overwrite=overwrite, verbose=verbose)
        except (PnPIribError, OSError, MemoryError) as error:
            failures += 1
            said = line(task.source, "failed", reason_of(error))
        except Exception as error:  # a fault of ours must not cost the user the rest of the folder
            failures += 1
            said = line(task.source, "failed", f"internal error: {type(error).__name__}: {reason_of(error)}")
        sys.stderr.write(said + "\n")
    return 1 if failures else 0


def _one(task: Task, profile: DegradationProfile, seed: int, scale: int, *, overwrite: bool, verbose: bool) -> str:
    if task.problem is not None:
        raise InputError(task.problem)
    if os.path.lexists(task.target) and not overwrite:
        return line(task.source, "skipped", "the output exists; --overwrite replaces it")
    picture = read_picture(task.source)
    hq = picture.rgb
    drawn = draw(profile, hq.shape[-2:], picture_seed(seed, task.source.name), scale=scale)
    task.target.parent.mkdir(parents=True, exist_ok=True)
    # Noise and compression leave 8 bits of three colours; the profile that the colours are in stays true.
    kept = Picture(picture.rgb, icc_profile=None if picture.grey else picture.icc_profile, source=picture.source)
    notes = [*picture.notes, *(["transparency left out"] if picture.alpha is not None else [])]
    notes += write_picture(apply(hq, [drawn]), task.target, like=kept)
    said = [f"{task.source} -> {task.target}", *(f"    note: {note}" for note in notes), *([str(drawn)] if verbose else [])]
    return "\n".join(said)
