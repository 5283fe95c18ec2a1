"""Prompts: what is known about the content of a picture, and the extractors that read it off the picture."""

from pnp_irib.prompts.base import MAX_CHARACTERS, Prompt, PromptExtractor, Tag
from pnp_irib.prompts.captions import Captions
from pnp_irib.prompts.imagenet_tags import ImageNetTags
from pnp_irib.prompts.loading import load_extractor
from pnp_irib.prompts.ram import RamTags
from pnp_irib.prompts.simple import CallablePrompt, FixedPrompt, NoPrompt

__all__ = [
    "MAX_CHARACTERS",
    "CallablePrompt",
    "Captions",
    "FixedPrompt",
    "ImageNetTags",
    "NoPrompt",
    "Prompt",
    "PromptExtractor",
    "RamTags",
    "Tag",
    "load_extractor",
]
