"""Facts about S3Diff."""

from __future__ import annotations

from pnp_irib.profile import PRESETS
from pnp_irib.spec import Licence, RestorerSpec, WeightsFile

__all__ = ["CHECKPOINT", "ESTIMATOR", "S3DIFF"]

CHECKPOINT = WeightsFile(name="s3diff.pkl", places=("hf-hub:zhangap/S3Diff/s3diff.pkl",))
"""About 138 MB."""
ESTIMATOR = WeightsFile(
    name="de_net.pth", places=("https://github.com/ArcticHare105/S3Diff/raw/main/assets/mm-realsr/de_net.pth",)
)
"""About 9.4 MB."""

S3DIFF = RestorerSpec(
    name="s3diff",
    title="S3Diff (one step of SD-Turbo, led by an estimate of the degradation)",
    factory="pnp_irib_s3diff.loading:load_s3diff",
    default_scale=4,
    safe_dtypes=("float32", "bfloat16"),
    tiling="internal",
    prompts="optional",
    differentiable=True,
    deterministic=False,
    lq_profile=PRESETS["light"],
    code_licence=Licence(name="Apache-2.0", commercial=True),
    # Of the base model, which limits commercial use; its own are Apache-2.0, those of the estimator are not stated.
    weights_licence=Licence(name="https://huggingface.co/stabilityai/sd-turbo/blob/main/LICENSE.md", commercial=None),
    paper="https://arxiv.org/abs/2409.17058",
    weights=(CHECKPOINT, ESTIMATOR),
)
