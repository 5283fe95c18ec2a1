"""``pnp-irib models``: what is known about the restorers, before anything is downloaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pnp_irib.registry import broken_plugins, list_restorers
from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import find_place

__all__ = ["show"]


def show(*, as_json: bool) -> None:
    """Print the table, or the specs as JSON."""
    specs = list_restorers()
    if as_json:
        listed = [{**spec.model_dump(mode="json"), "here": _here(spec)} for spec in specs]
        sys.stdout.write(json.dumps(listed, indent=1) + "\n")
    else:
        _print_table(specs)
    for broken in broken_plugins():
        Console(stderr=True).print(f"broken: {broken.reason}", highlight=False, soft_wrap=True)


def _print_table(specs: Sequence[RestorerSpec]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "scale", "prompts", "weights", "commercial", "size", "here"):
        table.add_column(column, justify="right" if column in ("scale", "size") else "left", no_wrap=column == "name")
    for spec in specs:
        allowed = {True: "yes", False: "no", None: "see terms"}[spec.weights_licence.commercial]
        table.add_row(
            spec.name,
            f"x{spec.scale}" if spec.scale else "any",
            spec.prompts,
            spec.weights_licence.name,
            allowed,
            _size(spec),
            {True: "yes", False: "no", None: "-"}[_here(spec)],
        )
    console = Console()
    console.print(table)
    console.print()
    for spec in specs:
        console.print(f"{spec.name}: {spec.title}; code {spec.code_licence}", highlight=False)
        for line in _origins(spec):
            console.print(f"  {line}", highlight=False, soft_wrap=True)  # addresses stay whole


def _places(spec: RestorerSpec) -> list[str] | None:
    """Where the weights already are; None unless all of them are here."""
    places = [find_place(file) for file in spec.weights]
    return [place[0] for place in places if place] if all(places) else None


def _here(spec: RestorerSpec) -> bool | None:
    """Whether all weights are here; None where the spec lists none."""
    return _places(spec) is not None if spec.weights else None


def _size(spec: RestorerSpec) -> str:
    sizes = [file.size for file in spec.weights]
    known = [size for size in sizes if size is not None]
    if not sizes:
        return "-"
    if len(known) < len(sizes):
        return "?"
    total = sum(known)
    return f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"


def _origins(spec: RestorerSpec) -> list[str]:
    """Where the weights are, or else where they can be had from, one line a place."""
    here = _places(spec)
    if here:
        return [f"weights here: {_readable(place)}" for place in here]
    places = dict.fromkeys(_readable(place) for file in spec.weights for place in file.places)
    return [f"weights from {place}" for place in places]


def _readable(place: str) -> str:
    kind, _, rest = place.partition(":")
    return f"package {rest.partition('/')[0]}" if kind == "package" else place
