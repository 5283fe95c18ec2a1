"""What the versions of DiffBIR are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pnp_irib.diffusion.model import EPS, ZERO_SNR_V, NoiseSchedule
from pnp_irib.diffusion.places import SD21_BASE
from pnp_irib.profile import PRESETS, DegradationProfile
from pnp_irib.spec import WeightsFile
from pnp_irib_diffbir import spec
from pnp_irib_diffbir.prompts import NEGATIVE, NEGATIVE_V2, POSITIVE

__all__ = ["TASKS", "VERSIONS", "Task", "Version"]

Task = Literal["sr", "denoise", "face"]
"""Enlarging, taking noise away at the same size, and restoring an aligned face of 512 x 512 pixels."""

TASKS: Mapping[Task, float] = MappingProxyType({"sr": 4.0, "denoise": 1.0, "face": 1.0})
"""Enlargement where a call gives none."""


@dataclass(frozen=True)
class Version:
    """One version: its files, and the settings that its authors state for it.

    Attributes:
        noise: that its base model was trained with.
        base: place of that model.
        cleaners: file of the first stage, by task.
        controls: file of IRControlNet, by task.
        lq_profile: degradations that IRControlNet was trained on.
        sampler: see `pnp_irib.diffusion.samplers.sampling.SAMPLERS`.
        steps: of it.
        guidance: scale of the prompt over the negative one.
        positive: words behind the prompt.
        negative: words that the picture is led away from.
    """

    noise: NoiseSchedule
    base: str
    cleaners: Mapping[Task, WeightsFile]
    controls: Mapping[Task, WeightsFile]
    lq_profile: DegradationProfile
    sampler: str = "spaced"
    steps: int = 50
    guidance: float = 4.0
    positive: str = ""
    negative: str = NEGATIVE_V2

    def files(self, task: Task) -> tuple[WeightsFile, ...]:
        """All that it needs for a task, as far as these are single files."""
        base = (spec.ZERO_SNR_BASE,) if self.noise == ZERO_SNR_V else ()
        return (*base, self.controls[task], self.cleaners[task])


def _all(file: WeightsFile, face: WeightsFile | None = None) -> Mapping[Task, WeightsFile]:
    return MappingProxyType({"sr": file, "denoise": file, "face": face or file})


VERSIONS: Mapping[str, Version] = MappingProxyType(
    {
        "v2.1": Version(
            noise=ZERO_SNR_V,
            base=spec.ZERO_SNR_BASE.places[0],
            cleaners=_all(spec.SWINIR_FILE, spec.SWINIR_FACE_V1),
            controls=_all(spec.CONTROL_V21),
            lq_profile=PRESETS["standard"],
            sampler="edm_dpm++_3m_sde",
            steps=10,
            guidance=8.0,
            positive=POSITIVE,
            negative=NEGATIVE,
        ),
        "v2": Version(
            noise=EPS,
            base=SD21_BASE.key,
            cleaners=MappingProxyType(
                {"sr": spec.BSRNET_FILE, "denoise": spec.SCUNET_FILE, "face": spec.SWINIR_FACE_V1},
            ),
            controls=_all(spec.CONTROL_V2),
            lq_profile=PRESETS["codeformer"],
        ),
        "v1": Version(
            noise=EPS,
            base=SD21_BASE.key,
            cleaners=_all(spec.SWINIR_GENERAL_V1, spec.SWINIR_FACE_V1),
            controls=_all(spec.CONTROL_GENERAL_V1, spec.CONTROL_FACE_V1),
            lq_profile=PRESETS["codeformer"],
        ),
    }
)
"""By name."""
