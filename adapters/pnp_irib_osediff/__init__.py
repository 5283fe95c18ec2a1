"""OSEDiff: one-step diffusion for real-world super-resolution (Wu et al., arXiv 2406.08177)."""
