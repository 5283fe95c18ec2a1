"""Training of projectors."""

from pnp_irib.train.config import TrainConfig, load_config
from pnp_irib.train.trainer import train

__all__ = ["TrainConfig", "load_config", "train"]
