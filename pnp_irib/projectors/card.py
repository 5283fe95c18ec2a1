"""The model card of a projector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pnp_irib.hub.card import front_matter, table_of

if TYPE_CHECKING:
    from pnp_irib.projectors.base import Architecture, Provenance

__all__ = ["projector_card"]


def projector_card(architecture: Architecture, provenance: Provenance, parameters: int) -> str:
    """``README.md`` of a projector's folder, as the Hub takes it.

    Args:
        architecture: of the projector.
        provenance: likewise.
        parameters: how many it has.
    """
    p = provenance
    restorer = repr(p.restorer) if p.restorer else "my_model"
    lines = [
        f"# {p.name or 'projector'}",
        "",
        "Maps extremely degraded pictures onto the low-quality pictures that a frozen restorer knows.",
        "",
        "```python",
        "from pnp_irib import wrap",
        "",
        f'robust = wrap({restorer}, projector="OWNER/NAME")  # this repository, or local-dir:PATH',
        'robust("old_photo.jpg").image.save("restored.png")',
        "```",
        "",
        f"A {architecture.kind} projector with {parameters / 1e6:.2f} M parameters, {p.steps} training steps.",
        "",
        f"- maps onto: {p.lq_profile.name if p.lq_profile else 'not stated'}",
        f"- takes: {', '.join(e.name for e in p.elq_profiles) or 'not stated'}",
        f"- trained with: {p.restorer or 'no restorer'}" + (f", through {p.surrogate}" if p.surrogate else ""),
        f"- training data: {p.training_data or 'not stated'}",
        f"- licence of the weights: {p.licence or 'not stated'}",
    ]
    if architecture.base_models:
        lines.append(f"- on the base model: {', '.join(architecture.base_models)}")
    if p.measured:
        lines += ["", "## Measured", "", *(table_of(entry) for entry in p.measured)]
    lines += ["", "Restored pictures are plausible, not evidence: what was lost is invented."]
    front = front_matter(
        name=p.name or "projector",
        licence=p.licence,
        tags=[architecture.kind],
        base_models=architecture.base_models,
        measured=p.measured,
    )
    return front + "\n".join(lines) + "\n"
