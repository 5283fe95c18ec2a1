"""Make any frozen blind image restoration model survive extreme degradation."""

__version__ = "0.1.0"
