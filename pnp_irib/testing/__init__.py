"""For authors of adapters: does a restorer keep to the protocol and to what its spec says?"""

from pnp_irib.testing.conformance import AdapterError, Problem, Report, check_adapter

__all__ = ["AdapterError", "Problem", "Report", "check_adapter"]
