"""Samplers of latent diffusion models, by themselves and behind one call.

`sampling` runs any of them on a network; `walk` with the steps of `steps`, `edm` and `edm_random` is for models with schedules
of their own.
"""
