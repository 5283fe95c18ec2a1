"""Restore one extremely degraded photograph and look at every stage.

python examples/demo.py
"""

import sys
from pathlib import Path

from pnp_irib import wrap
from pnp_irib.errors import PnPIribError

HERE = Path(__file__).parent
OUT = Path("out")


def main() -> None:
    """Restore the Colosseum."""
    OUT.mkdir(exist_ok=True)
    robust = wrap("realesrgan-x4plus", lfo=1)
    result = robust(HERE / "images" / "colosseum.png")
    print(result)
    result.save(OUT / "colosseum-restored.png")
    result.lq_image.save(OUT / "colosseum-lq.png")
    result.comparison().save(OUT / "colosseum-comparison.png")
    print("\nwritten:")
    for name in ("restored", "lq", "comparison"):
        print(f"  {OUT / f'colosseum-{name}.png'}")


if __name__ == "__main__":
    try:
        main()
    except PnPIribError as error:
        sys.exit(f"demo: {error}")
