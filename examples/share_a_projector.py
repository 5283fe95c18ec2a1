"""Push a trained projector to the Hub and load it from there.

python examples/share_a_projector.py runs/mine/projector OWNER/NAME

You are logged in (`hf auth login`), or HF_TOKEN is set; HF_ENDPOINT may name another server that speaks the Hub's API.
"""

import sys
from pathlib import Path

from pnp_irib import load_projector, wrap
from pnp_irib.errors import PnPIribError


def main() -> None:
    """There and back."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, repo = sys.argv[1:]
    mine = load_projector(f"local-dir:{folder}")
    print("pushed:", mine.push_to_hub(repo))
    robust = wrap(mine.provenance.restorer or "realesr-animevideov3", projector=repo)
    result = robust(Path(__file__).parent / "images" / "colosseum.png")
    print("from:", result.used.projector_source)
    print("sha256:", result.used.projector_sha256)


if __name__ == "__main__":
    try:
        main()
    except PnPIribError as error:
        sys.exit(f"share_a_projector: {error}")
