"""SUPIR (arXiv 2401.13627) as a restorer."""
