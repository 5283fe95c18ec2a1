"""Tells pipelines of diffusers from other objects; imports neither torch nor diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pnp_irib.recognition import Recogniser
from pnp_irib_diffusers.spec import is_pipeline

if TYPE_CHECKING:
    from pnp_irib_diffusers.restorer import PipelineRestorer

__all__ = ["RECOGNISER"]


def build(pipeline: Any, **options: Any) -> PipelineRestorer:
    """The pipeline as a restorer; see `pnp_irib_diffusers.restorer.restorer_for`."""
    from pnp_irib_diffusers.restorer import restorer_for

    return restorer_for(pipeline, options)


# All pipelines, so that those which are no restorers are told apart from functions.
RECOGNISER = Recogniser(title="a pipeline of diffusers", recognises=is_pipeline, build=build, priority=10)
