"""Pipelines of diffusers that turn a picture into another, for pnp_irib."""
