"""Train a projector for a restorer, and use it.

python examples/train_a_projector.py --data PHOTOGRAPHS [--restorer my-sharp-restorer] [--steps 60] [--run runs/mine]

A few steps on a small projector show the way; a useful one takes some ten thousand (see docs/training.md and recipes/).
"""

import argparse
import sys
from pathlib import Path

from pnp_irib import load_projector, wrap
from pnp_irib.errors import PnPIribError
from pnp_irib.train import TrainConfig, train

HERE = Path(__file__).parent


def main() -> None:
    """Train, then restore the Colosseum with the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--restorer", default="realesr-animevideov3", help="registry name; see `pnp-irib models`")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--run", type=Path, default=Path("runs/mine"))
    args = parser.parse_args()
    config = TrainConfig.model_validate(
        {
            "restorer": args.restorer,
            "projector": {
                "kind": "pixel",
                "widths": [8, 16],
                "encoder_blocks": [1],
                "middle_blocks": 1,
                "decoder_blocks": [1],
                "condition_width": 16,
            },
            "data": {"folder": str(args.data.resolve()), "crop": 128},
            "mixture": [
                {"profile": "extreme", "share": 3, "gate": 1},
                {"profile": "light", "share": 1, "target": "input", "gate": 0},
            ],
            "objective": {"lq": 1.0},  # with hq: 1.0 the loss is also taken behind the restorer
            "steps": args.steps,
            "batch": 4,
            "lr": 1e-3,
            "warmup": 5,
            "checkpoint_every": args.steps,
        }
    )
    train(config, args.run)
    projector = load_projector(f"local-dir:{args.run / 'projector'}")
    print(f"\n{projector.provenance.steps} steps; the model card is {args.run / 'projector' / 'README.md'}")
    print(wrap(args.restorer, projector=projector)(HERE / "images" / "colosseum.png"))


if __name__ == "__main__":
    try:
        main()
    except PnPIribError as error:
        sys.exit(f"train_a_projector: {error}")
