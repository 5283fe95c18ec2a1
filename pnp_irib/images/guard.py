"""Pillow behind a wall: its failures become one line, its warnings notes, its global limit ours."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from pnp_irib.errors import ImageFileError, InputError

__all__ = ["one_line", "quiet"]

_LONGEST = 200
_lock = threading.Lock()


@contextmanager
def quiet(max_pixels: int) -> Iterator[list[str]]:
    """Collect Pillow's warnings instead of printing them, and lend it ``max_pixels`` as its limit against bombs.

    Warning filters and the limit belong to the whole process, so that only one thread at a time may change and restore them.
    What libtiff prints itself goes to the C stream, and stays: redirecting that would take it from every other thread.
    """
    said: list[str] = []
    log, silent = logging.getLogger("PIL"), logging.NullHandler()
    with _lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        log.addHandler(silent)  # without any handler, Python prints errors of loggers
        try:
            yield said
        except Image.DecompressionBombError as error:
            raise ImageFileError(
                f"it has more than {2 * max_pixels / 1e6:.1f} megapixels, twice the cap. "
                f"Raise max_pixels (command line: --max-pixels), or make it smaller."
            ) from error
        finally:
            log.removeHandler(silent)
            Image.MAX_IMAGE_PIXELS = limit
    said += [_line(w.message) for w in caught if not issubclass(w.category, Image.DecompressionBombWarning)]


@contextmanager
def one_line(name: str, problem: str) -> Iterator[None]:
    """Turn whatever is raised into an `ImageFileError` of one line: damaged files reach every corner of the codecs.

    Args:
        name: of the file.
        problem: what to say of an exception that says only its reason.
    """
    try:
        yield
    except ImageFileError as error:
        message, cause = str(error), error.__cause__
        if name not in message:
            message = f"{name}: {message}"
    except InputError:  # said by the caller, of the size
        raise
    except MemoryError as error:
        message, cause = f"{name} needs more memory than there is.", error
    except Exception as error:
        reason = getattr(error, "strerror", None) or _line(error) or type(error).__name__
        message, cause = f"{name} {problem}: {reason.rstrip('.')}.", error
    else:
        return
    # File names may hold line ends.
    raise ImageFileError(" ".join(message.splitlines())) from cause


def _line(said: object) -> str:
    return " ".join(str(said).split())[:_LONGEST]
