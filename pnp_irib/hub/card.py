"""Model cards: the front matter that the Hub reads, and tables of what was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Measured", "MeasuredMetric", "front_matter", "table_of"]

# Names that the Hub knows licences by (https://huggingface.co/docs/hub/repositories-licenses), as far as models use them.
_LICENCES = """
    apache-2.0 mit isc zlib unlicense wtfpl mpl-2.0 bsd bsd-2-clause bsd-3-clause openrail openrail++ creativeml-openrail-m
    bigscience-openrail-m cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 cc-by-nd-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 agpl-3.0
"""


class MeasuredMetric(BaseModel):
    """A metric with the restorer alone and wrapped, and the mean of the paired differences with its 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    title: str
    alone: float
    wrapped: float
    difference: float
    low: float
    high: float


class Measured(BaseModel):
    """What one run of ``pnp-irib bench`` found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = Field(description="degradation")
    restorer: str
    data: str = Field(description="name of the folder of HQ pictures")
    data_sha256: str | None = None
    pictures: int
    seeds: tuple[int, ...]
    machine: str
    weights_sha256: str | None = Field(default=None, description="of the projector that was measured")
    metrics: tuple[MeasuredMetric, ...]


def table_of(measured: Measured) -> str:
    """What was measured as Markdown."""
    lines = [
        f"`{measured.preset}`, {measured.restorer}, {measured.pictures} pictures of {measured.data}, seeds "
        f"{', '.join(map(str, measured.seeds))}; {measured.machine}:",
        "",
        "| metric | alone | wrapped | difference [95 % interval] |",
        "|---|---|---|---|",
    ]
    for m in measured.metrics:
        change = f"{m.difference:+.3f} [{m.low:+.3f}, {m.high:+.3f}]"
        lines.append(f"| {m.title} | {m.alone:.3f} | {m.wrapped:.3f} | {change} |")
    return "\n".join(lines) + "\n"


def front_matter(
    *,
    name: str,
    licence: str | None,
    tags: Sequence[str] = (),
    base_models: Sequence[str] = (),
    relation: str = "adapter",
    measured: Sequence[Measured] = (),
) -> str:
    """What stands between the two ``---`` of a model card, as the Hub takes it.

    Args:
        name: of the model.
        licence: an SPDX identifier, a name or an address.
        tags: to be found by.
        base_models: repositories on the Hub that the model builds on.
        relation: how it does: adapter, finetune, quantized, merge.
        measured: becomes the ``model-index``.
    """
    from huggingface_hub import EvalResult, ModelCardData

    facts: dict[str, Any] = _licence(licence)
    if base_models:
        facts |= {"base_model": list(base_models), "base_model_relation": relation}
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name="Blind image restoration",
            dataset_type=entry.data,
            dataset_name=f"{entry.data}, degraded with {entry.preset}",
            metric_type=metric.key,
            metric_name=f"{metric.title}, {entry.restorer} wrapped",
            metric_value=round(metric.wrapped, 4),
        )
        for entry in measured
        for metric in entry.metrics
    ]
    data = ModelCardData(
        library_name="pnp_irib",
        pipeline_tag="image-to-image",
        tags=["pnp-irib", "image-restoration", *tags],
        model_name=name if results else None,
        eval_results=results or None,
        **facts,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _licence(licence: str | None) -> dict[str, str]:
    if licence is None:
        return {}
    known = {"openrail++-m": "openrail++"}.get(licence.lower(), licence.lower())
    if known in _LICENCES.split():
        return {"license": known}
    if licence.startswith(("http://", "https://")):
        return {"license": "other", "license_name": "see-link", "license_link": licence}
    name = re.sub(r"[^a-z0-9.+]+", "-", licence.lower()).strip("-")
    return {"license": "other", "license_name": name or "see-model-card"}
