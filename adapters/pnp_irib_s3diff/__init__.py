"""S3Diff: degradation-guided one-step super-resolution with diffusion priors (Zhang et al., arXiv 2409.17058)."""
