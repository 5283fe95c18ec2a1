"""SeeSR and its tagger with the tiny weights of the golden data."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pnp_irib_seesr.loading import load_seesr, load_seesr_turbo
from pnp_irib_seesr.restorer import SeeSR
from pnp_irib_seesr.spec import SEESR, SEESR_TURBO
from tests.golden import golden_folder, missing

MODEL = golden_folder("seesr") / "model"
BASE = MODEL / "stable-diffusion-2-base"
DAPE = golden_folder("dape") / "model"


def ready() -> None:
    """Skip, or in CI fail, where the golden data is not."""
    for name, folder in (("seesr", MODEL), ("dape", DAPE)):
        if not folder.is_dir():
            missing(name)


def turbo_base(folder: Path) -> Path:
    """A whole SD-Turbo of links."""
    for source in (BASE, MODEL / "sd-turbo"):
        for part in source.iterdir():
            link = folder / part.name
            link.unlink(missing_ok=True)
            link.symlink_to(part)
    return folder


def load(turbo: Path | None = None, **options: Any) -> SeeSR:
    """Small: pictures of at least 32 pixels instead of 512, two steps instead of 50."""
    small: dict[str, Any] = {"process_size": 32, "num_inference_steps": 2, "dape": DAPE, "dtype": "float32"}
    if turbo is not None:
        return load_seesr_turbo(turbo, MODEL / "seesr", **small | options)
    return load_seesr(BASE, MODEL / "seesr", **small | options)


@functools.cache
def loaded(turbo: Path | None) -> SeeSR:
    return load(turbo)


def build(turbo: Path | None = None, **options: Any) -> SeeSR:
    """The same, on modules that all tests share: reading the files takes longer than most tests."""
    found = loaded(turbo)
    small: dict[str, Any] = {"process_size": 32, "num_inference_steps": 2, "dtype": "float32", "turbo": turbo is not None}
    return SeeSR(found.base, found.networks, found.tagger, spec=SEESR if turbo is None else SEESR_TURBO, **small | options)
