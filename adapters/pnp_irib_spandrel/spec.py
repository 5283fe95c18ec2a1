"""Facts about models of spandrel before a file is named; the file says the rest."""

from __future__ import annotations

from pnp_irib.spec import Licence, RestorerSpec

__all__ = ["SPANDREL", "UNKNOWN"]

UNKNOWN = Licence(name="see the file", commercial=None)
"""Terms of a model file, and of the code of its architecture."""

SPANDREL = RestorerSpec(
    name="spandrel",
    title="any model file that spandrel knows (state path=)",
    factory="pnp_irib_spandrel.restorer:load_spandrel",
    differentiable=True,
    code_licence=UNKNOWN,
    weights_licence=UNKNOWN,
)
