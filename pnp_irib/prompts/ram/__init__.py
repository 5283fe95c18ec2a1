"""RAM and DAPE: 4585 tags of what a picture shows, and an embedding of it, for restorers that read either.

RAM is the Recognize Anything Model (arXiv 2306.03514); DAPE, of SeeSR (arXiv 2311.16518), is a LoRA on it for degraded
pictures. Weights and tags are the user's to bring (`pnp_irib.ram_files`).
"""

from pnp_irib.prompts.ram.extractor import RamTags

__all__ = ["RamTags"]
