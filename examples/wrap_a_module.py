"""Wrap a model of three lines.

python examples/wrap_a_module.py
"""

from pathlib import Path

import torch
from torch import nn

from pnp_irib import wrap


class Mine(nn.Module):
    """Enlarges four times; put any network of yours in its place."""

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] to (N, 3, 4 * H, 4 * W)."""
        return nn.functional.interpolate(lq, scale_factor=4, mode="bicubic")


def main() -> None:
    """Restore the Colosseum with it, and look at what was used."""
    robust = wrap(Mine(), lq_profile="standard")  # for restorers trained as Real-ESRGAN was: the bundled projector fits
    print(robust)
    result = robust(Path(__file__).parent / "images" / "colosseum.png")
    print(result)
    Path("out").mkdir(exist_ok=True)
    result.comparison().save("out/wrapped-module.png")
    print("written: out/wrapped-module.png")


if __name__ == "__main__":
    main()
