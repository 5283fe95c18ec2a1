"""Put a trained projector into the library, with its model card.

    python recipes/realesrgan-x4plus/bundle.py --checkpoint runs/7-balance/projector --gate -0.6 0.5 \
        --sources DATA/train/SOURCES.csv --reports out/bench-extreme/bench.json out/bench-light/bench.json

or make the blend that a run begins with:

    python recipes/realesrgan-x4plus/bundle.py --checkpoint runs/6-features/projector --blend runs/5-structure/projector 0.5 \
        --target runs/5-6/projector
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import torch

from pnp_irib.bench.report import measured_of
from pnp_irib.files import sha256_of
from pnp_irib.hub import SourceFile
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.base import WEIGHTS_NAME

HERE = Path(__file__).parent
NAME = "pixel-x4plus"
TARGET = HERE.parent.parent / "pnp_irib" / "projectors" / "bundled" / NAME
TERMS = (
    "The weights are offered under Apache-2.0 as far as the authors' rights go. Some of the training pictures are for "
    "research use only or under share-alike terms (below): whether these bind weights is unsettled; judge for your use."
)


def sources(path: Path) -> list[str]:
    with path.open(newline="") as file:
        counted = Counter((row["source"], row["licence"]) for row in csv.DictReader(file))
    rows = [f"| {count} | {source} | {licence} |" for (source, licence), count in counted.most_common()]
    return ["| pictures | source | terms |", "|---|---|---|", *rows]


def blend(projector: PixelProjector, other: PixelProjector, share: float) -> None:
    """Average the weights with those of an earlier run of the same line (Wortsman et al., arXiv 2203.05482)."""
    with torch.no_grad():
        for mine, theirs in zip(projector.parameters(), other.parameters(), strict=True):
            mine.lerp_(theirs, share)


def set_gate(projector: PixelProjector, closed: float, opened: float) -> None:
    """Let the gate be shut at the severity ``closed`` and below, fully open at ``opened`` and above (logits)."""
    edge = math.log(11)  # where `gate_of` reaches its ends
    gain = 2 * edge / (opened - closed)
    with torch.no_grad():
        projector.gate.bias.copy_(gain * (projector.gate.bias - closed) - edge)
        projector.gate.weight.mul_(gain)


def weights_of(name: str, folder: Path) -> SourceFile:
    return SourceFile(name=name, sha256=sha256_of(folder / WEIGHTS_NAME))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--sources", type=Path, help="list of the training pictures, for the model card")
    parser.add_argument("--blend", nargs=2, metavar=("CHECKPOINT", "SHARE"), help="average in an earlier run's weights")
    parser.add_argument("--gate", type=float, nargs=2, metavar=("CLOSED", "OPEN"), help="severities where the gate ends")
    parser.add_argument("--reports", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    projector = PixelProjector.from_pretrained(args.checkpoint)
    facts = projector.provenance
    files, notes = [weights_of("checkpoint", args.checkpoint)], list(facts.notes)
    if args.blend:
        other, share = Path(args.blend[0]), float(args.blend[1])
        earlier = PixelProjector.from_pretrained(other)
        blend(projector, earlier, share)
        files.append(weights_of("blended checkpoint", other))
        files += [file for file in earlier.provenance.files if file not in facts.files]
        notes.append(f"blended with {share:g} of an earlier run of the same line")
    if args.gate:
        set_gate(projector, *args.gate)
        notes.append(f"gate rescaled: shut at {args.gate[0]:g}, open at {args.gate[1]:g}")
    update = {"name": NAME, "licence": "apache-2.0", "files": (*files, *facts.files), "notes": tuple(notes)}
    projector.provenance = facts.model_copy(update=update)
    measured = tuple(measured_of(json.loads(report.read_text())) for report in args.reports)
    projector.provenance = projector.provenance.model_copy(update={"measured": measured})
    card = [projector.card()]
    if args.sources:
        card += ["## Terms", "", TERMS, "", "## Training pictures", "", *sources(args.sources), ""]
    card += ["## Training", "", (HERE / "README.md").read_text().split("\n", 2)[2].strip(), ""]
    if args.target == TARGET:  # nothing of an earlier bundle stays
        shutil.rmtree(TARGET, ignore_errors=True)
    projector.save_pretrained(args.target, card="\n".join(card))
    for config in sorted(HERE.glob("*.yaml")):
        shutil.copy(config, args.target)
    print(args.target)


if __name__ == "__main__":
    main()
