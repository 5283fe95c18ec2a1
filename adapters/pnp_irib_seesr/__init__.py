"""SeeSR: semantics-aware real-world super-resolution (Wu et al., arXiv 2311.16518)."""
