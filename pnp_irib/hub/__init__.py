"""The Hugging Face Hub: names, downloads with provenance, model cards, and the methods of what is saved and loaded."""

from pnp_irib.hub.names import Name, parse_name
from pnp_irib.hub.origin import Origin, SourceFile

__all__ = ["Name", "Origin", "SourceFile", "parse_name"]
