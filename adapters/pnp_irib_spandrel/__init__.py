"""Models that spandrel loads, for pnp_irib: super-resolution and restoration networks of many architectures."""
