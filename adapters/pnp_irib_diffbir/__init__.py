"""DiffBIR: blind image restoration with a generative diffusion prior (Lin et al., arXiv 2308.15070)."""
