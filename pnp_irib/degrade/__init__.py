"""Random degradations of pictures: draw one from a profile, print it, apply it, differentiate through it.

    lq = degrade(hq, "standard", seeds=[1, 2, 3])

is short for drawing a `Plan` per picture and applying it:

    plans = [draw("standard", hq.shape[-2:], seed) for seed in (1, 2, 3)]
    lq = apply(hq, plans)
"""

from pnp_irib.degrade.kernels import Kernel
from pnp_irib.degrade.pipeline import apply, degrade, mean_channel
from pnp_irib.degrade.plan import BlurStep, JpegStep, NoiseStep, Plan, ResizeStep, Step, draw

__all__ = [
    "BlurStep",
    "JpegStep",
    "Kernel",
    "NoiseStep",
    "Plan",
    "ResizeStep",
    "Step",
    "apply",
    "degrade",
    "draw",
    "mean_channel",
]
