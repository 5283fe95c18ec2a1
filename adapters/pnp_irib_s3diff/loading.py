"""S3Diff from its published files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.places import SD_TURBO
from pnp_irib.diffusion.restorer import check_options
from pnp_irib.errors import WeightsError
from pnp_irib.runtime import choose_device, choose_dtype
from pnp_irib.weights import load_checkpoint, origin_of, resolve_file
from pnp_irib_s3diff.checkpoint import read_trained
from pnp_irib_s3diff.estimator import DegradationEstimator
from pnp_irib_s3diff.restorer import S3Diff
from pnp_irib_s3diff.spec import CHECKPOINT, ESTIMATOR, S3DIFF

__all__ = ["load_s3diff"]

_OWN = ("base", "trained", "estimator", "spec")  # arguments of `S3Diff` that are no options


def load_s3diff(
    base: str | Path | StableDiffusion = SD_TURBO.key,
    checkpoint: str | Path | None = None,
    degradation_net: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> S3Diff:
    """Build the restorer. What is not given is taken from the Hub's cache, or fetched once its size and licence are shown.

    Args:
        base: SD-Turbo: a folder in the layout of diffusers, ``hf-hub:owner/repo``, a known name (see
            `pnp_irib.diffusion.places`), or a loaded model.
        checkpoint: ``s3diff.pkl``: a path, or ``hf-hub:owner/repo/file``.
        degradation_net: ``de_net.pth``, likewise; it must be given.
        device: where it runs.
        dtype: see `S3Diff`; the base is read in it.
        options: see `S3Diff`.

    Raises:
        ConfigError: there is no such option, or one has a value that is impossible.
        WeightsError: something is missing, damaged, or does not fit.
    """
    check_options(S3DIFF.name, options, [name for name in inspect.signature(S3Diff).parameters if name not in _OWN])
    if degradation_net is None:
        raise WeightsError(f"s3diff needs degradation_net=, the file {ESTIMATOR.name}. Download {ESTIMATOR.places[0]}.")
    files = [resolve_file(place, spec=S3DIFF) for place in (checkpoint or CHECKPOINT.places[0], degradation_net)]
    trained = read_trained(files[0])
    estimator = DegradationEstimator.load(load_checkpoint(files[1]), source=str(files[1]))
    if not isinstance(base, StableDiffusion):
        base = StableDiffusion.load(base, dtype=choose_dtype(dtype, choose_device(str(device)), S3DIFF.safe_dtypes))
    restorer = S3Diff(base, trained, estimator, device=device, dtype=dtype, **options)
    restorer.sources = tuple(map(origin_of, files))
    return restorer
