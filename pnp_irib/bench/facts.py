"""What a measurement was made with: the machine, the programs, the weights."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch

import pnp_irib
from pnp_irib.files import sha256_of
from pnp_irib.restorer import Restorer
from pnp_irib.revision import source_revision
from pnp_irib.runtime import modules_held_by
from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import weight_files

if TYPE_CHECKING:
    from pnp_irib.projectors import Projector

__all__ = ["environment", "parameter_count", "projector_sha256", "weights_sha256"]


def environment() -> dict[str, str | int | None]:
    """Releases, machine and threads."""
    return {
        "pnp_irib": pnp_irib.__version__,
        "commit": source_revision(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    try:  # platform.processor() is empty on most Linux systems
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def weights_sha256(spec: RestorerSpec, options: dict[str, Any]) -> str | None:
    """Hash of the weights, see `weight_files`; of several files, of their hashes."""
    hashes = [sha256_of(file) for file in weight_files(spec, options)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if len(hashes) > 1 else next(iter(hashes), None)


def parameter_count(restorer: Restorer) -> int | None:
    """Parameters of the modules that the restorer holds; None where it shows none."""
    unique = {id(p): p.numel() for part in modules_held_by(restorer) for p in part.parameters()}
    return sum(unique.values()) or None


def projector_sha256(projector: Projector) -> str:
    """Hash of the weights as `Projector.save_pretrained` writes them: that of ``model.safetensors``."""
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in projector.state_dict().items()}
    return hashlib.sha256(save(tensors, {"format": "pt"})).hexdigest()
