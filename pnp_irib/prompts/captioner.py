"""An image-text model of transformers: which files it is read from, and how it captions one picture."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from pnp_irib.errors import ConfigError, MissingExtraError, PnPIribError, WeightsError
from pnp_irib.files import sha256_of
from pnp_irib.hub import Origin, SourceFile
from pnp_irib.hub.download import Access, Fetched, fetch, listed
from pnp_irib.hub.names import Name
from pnp_irib.runtime import dtype_named, require
from pnp_irib.weights import LARGE

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["QUESTION", "Captioner", "missing_from"]

QUESTION = "Describe what this picture shows and in which style, in detail, in one paragraph of plain sentences."
"""What models that answer questions are asked."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_SMALL = (".jinja", ".json", ".model", ".tiktoken", ".txt")
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER = r"(tokenizer|vocab|spiece|sentencepiece|tekken).*"
_UNUSED = "pooler"  # part of many encoders that no caption reads, and that published files often lack


@dataclass(frozen=True, eq=False)
class Captioner:
    """A model that is ready to caption.

    Attributes:
        model: frozen, for evaluation.
        processor: of transformers; None: the model has none, but the two parts of one.
        image_processor: makes tensors of pictures.
        tokenizer: makes text of tokens.
        place: for messages.
        origin: for records.
    """

    model: Any
    processor: Any
    image_processor: Any
    tokenizer: Any
    place: str
    origin: Origin

    @classmethod
    def read(cls, source: Path | Name, dtype: str) -> Self:
        """The model in a folder, or of a repository, which is fetched if need be.

        Args:
            source: where it is.
            dtype: "auto" (that of the files) or the name of one.

        Raises:
            WeightsError: it cannot be fetched, is damaged, captions no pictures, or needs code of its own.
            MissingExtraError: transformers, or a package that it needs for this model, is not installed.
        """
        require("transformers", extra="diffusion")
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        place, folder = str(source), source if isinstance(source, Path) else _prepared(source)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with _reading(place):
            config = AutoConfig.from_pretrained(folder, **options)
            if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
                raise WeightsError(
                    f"{place} is a model of the type {config.model_type!r}, which writes no captions; expected an image-text "
                    f"model of transformers, such as BLIP, GIT or LLaVA."
                )
            processor = AutoProcessor.from_pretrained(folder, **options)
            if hasattr(processor, "image_processor"):
                parts = processor.image_processor, processor.tokenizer
            else:
                processor = None
                parts = AutoImageProcessor.from_pretrained(folder, **options), AutoTokenizer.from_pretrained(folder, **options)
        # Weights come last: those of a model that cannot be used here are not fetched.
        origin = _origin(source) if isinstance(source, Path) else _completed(source, folder)
        options |= {"dtype": dtype if dtype == "auto" else dtype_named(dtype), "use_safetensors": True}
        with _reading(place), torch.random.fork_rng(devices=[]):  # filling in what lacks draws at random
            read: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
            model, info = read
        if missing := sorted(name for name in info["missing_keys"] if _UNUSED not in name):
            raise WeightsError(
                f"{place} does not fit {type(model).__name__}: {missing[0]} is missing, and {len(missing) - 1} more. Is it a "
                f"model that captions, and the download complete?"
            )
        return cls(model.eval().requires_grad_(False), processor, *parts, place, origin)

    def caption(self, image: Image, question: str | None, max_new_tokens: int) -> str:
        """What the model says of a picture, as it comes, without what it was given.

        Args:
            image: RGB.
            question: see `Captions`.
            max_new_tokens: at most so many.

        Raises:
            ConfigError: the model refuses the picture or the question.
            MissingExtraError: a package is not installed.
        """
        greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}
        device = self.model.device
        with (
            _asking(f"{self.place}, shown {image.width}x{image.height} pixels", question),
            torch.autocast(device.type, enabled=False),
        ):
            inputs = self._inputs(image, question).to(device, self.model.dtype)
            said = self.model.generate(**inputs, **greedy, return_dict_in_generate=False)[0].tolist()
        given = inputs["input_ids"][0].tolist() if "input_ids" in inputs else []
        return str(self.tokenizer.decode(_new(said, given), skip_special_tokens=True))

    def _inputs(self, image: Image, question: str | None) -> Any:
        if self.processor is None:
            if question is not None:
                raise ConfigError(f"{self.place} reads no text beside a picture; leave out the question.")
            return self.image_processor(images=image, return_tensors="pt")
        template = getattr(self.processor, "chat_template", None)
        if not template:
            return self.processor(images=image, return_tensors="pt", **({} if question is None else {"text": question}))
        content = [{"type": "image", "image": image}, {"type": "text", "text": question or QUESTION}]
        # Models that may think aloud before they answer are told not to.
        thinking = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **thinking,
        )


def missing_from(folder: Path) -> str | None:
    """What a folder lacks of a model that transformers can read, in words; None if all is there."""
    names = _names(folder)
    if not names:
        return "it is empty, or no folder"
    if CONFIG not in names:
        return f"{CONFIG} is missing"
    if not any(name in names for name in _PROCESSOR):
        return f"the settings for pictures, {' or '.join(_PROCESSOR)}, are missing"
    if not any(re.fullmatch(_TOKENIZER, name) for name in names):
        return "the files of its tokenizer are missing"
    if missing := [name for name in _weights(folder) if name not in names]:
        return f"{missing[0]} is missing (only weights in safetensors are read)"
    return None


def _names(folder: Path) -> list[str]:
    """Of the files that lie in it."""
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _small(names: Iterable[str]) -> list[str]:
    """Of the files of a model, all but the weights."""
    return [name for name in names if "/" not in name and name.endswith(_SMALL)]


def _weights(folder: Path) -> list[str]:
    """The files of weights that the small files in a folder speak of."""
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    try:
        files = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder / INDEX} cannot be read: {_line(error)}. Is the download complete?") from error
    if wrong := [file for file in files if not str(file).endswith(".safetensors")]:
        raise WeightsError(f"{folder / INDEX} names {wrong[0]!r:.60}; only weights in safetensors are read.")
    return sorted(files)


def _prepared(name: Name) -> Path:
    """The folder of a repository in the Hub's cache with all but its weights, fetched if need be."""
    with contextlib.suppress(WeightsError):
        folder = fetch(name, [CONFIG], access=Access(local_files_only=True)).folder
        if missing_from(folder) is None:
            return folder
    there = listed(name)
    for wanted, ending in ((CONFIG, CONFIG), ("weights in safetensors, the only ones read,", ".safetensors")):
        if not any(file.endswith(ending) for file in there):
            raise WeightsError(
                f"{name} holds no image-text model of transformers: {wanted} missing. Is it the right repository?"
            )
    return fetch(name, _small(there)).folder


def _completed(name: Name, folder: Path) -> Origin:
    """Fetch the weights into such a folder; returns the record of all its files."""
    pinned = Name(name.kind, name.target, folder.name)
    files = [*_small(_names(folder)), *_weights(folder)]
    paths = fetch(pinned, files, licence=f"see https://huggingface.co/{name.target}").paths
    return Fetched(name, folder.name, paths).origin()


def _origin(folder: Path) -> Origin:
    """The record of a folder of the user's; files that are too large to be read for it are left out."""
    paths = [folder / name for name in [*_small(_names(folder)), *_weights(folder)]]
    files = tuple(SourceFile(name=path.name, sha256=sha256_of(path)) for path in paths if path.stat().st_size < LARGE)
    return Origin(place=f"local-dir:{folder}", files=files)


def _new(said: list[int], given: list[int]) -> list[int]:
    """The tokens of a caption. Many models repeat before them what they were given, BLIP all but its first and last token."""
    ends = [end for end in (len(given), len(given) - 1) if end > 1 and said[1:end] == given[1:end]]
    return said[ends[0] :] if ends else said


@contextlib.contextmanager
def _reading(place: str) -> Iterator[None]:
    """Keep transformers quiet inside, and make errors of ours of its own."""
    try:
        with _quiet():
            yield
    except (PnPIribError, MemoryError):
        raise
    except ImportError as error:
        raise _package(place, error) from error
    except Exception as error:  # whatever is in the files, anything may come of it
        if "trust_remote_code" in str(error):
            raise WeightsError(
                f"{place} needs code that comes with it, and such code is never run here. Choose a model that transformers "
                f"knows by itself."
            ) from error
        raise WeightsError(f"{place} cannot be read as an image-text model: {_line(error)}") from error


@contextlib.contextmanager
def _asking(place: str, question: str | None) -> Iterator[None]:
    """The same, while the model is asked; what the machine has to say, such as that its memory is full, is let through."""
    try:
        with _quiet():
            yield
    except (PnPIribError, RuntimeError, MemoryError):
        raise
    except ImportError as error:
        raise _package(place, error) from error
    except Exception as error:
        hint = (
            " If it needs words beside the picture, give those that its page names: question='...'" if question is None else ""
        )
        raise ConfigError(f"{place}, gives no caption: {_line(error).rstrip('.')}.{hint}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor advice of transformers: it speaks of settings that are not the user's."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _package(place: str, error: ImportError) -> MissingExtraError:
    said = _line(error).partition(". ")[0].rstrip(".")
    return MissingExtraError(f"{place} needs a package that is not installed: {said}. Install it with pip.")


def _line(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said[:300] if said else type(error).__name__
