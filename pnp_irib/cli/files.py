"""Which pictures a command takes, and where its outputs go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pnp_irib.errors import ConfigError
from pnp_irib.images.io import WRITABLE

__all__ = ["Task", "plan"]


@dataclass(frozen=True)
class Task:
    """One input and its output; ``problem`` says why it cannot be done."""

    source: Path
    target: Path
    problem: str | None = None


def plan(inputs: Sequence[Path], output: Path, format: str | None) -> list[Task]:
    """Pair every picture with its output.

    A folder is searched recursively and its relative paths are kept. The output has the name of the input; where the format
    changes, the new ending is appended (``a.gif`` gives ``a.gif.png``), so that ``a.jpg`` and ``a.png`` never meet.

    Raises:
        ConfigError: unknown format, a file where a folder is needed, or no picture at all.
    """
    ending = None
    if format is not None:
        ending = f".{format.lower().lstrip('.')}"
        if ending not in WRITABLE:
            raise ConfigError(f"--format {format}: expected one of {', '.join(e[1:] for e in WRITABLE)}.")
    if len(inputs) == 1 and not inputs[0].is_dir() and not output.is_dir() and output.suffix:
        if output.suffix.lower() not in WRITABLE:
            raise ConfigError(
                f"-o {output}: pictures are written as {', '.join(WRITABLE)}. For a folder of this name, make it first."
            )
        if ending is not None and WRITABLE[ending] != WRITABLE[output.suffix.lower()]:
            raise ConfigError(f"--format {format} contradicts the ending of {output}; drop one of them.")
        pairs = [(inputs[0], output)]
    else:
        if not output.is_dir() and (output.exists() or output.suffix.lower() in WRITABLE):
            raise ConfigError(f"-o {output} is a file; several pictures need a folder.")
        pairs = [(source, output / _renamed(relative, ending)) for source, relative in _found(inputs, output)]
    if not pairs:
        raise ConfigError(f"no pictures under {', '.join(map(str, inputs))}.")
    sources = {source.resolve() for source, _ in pairs}
    tasks: list[Task] = []
    taken: dict[Path, Path] = {}
    named: set[Path] = set()
    for source, target in pairs:
        if source in named:
            continue
        named.add(source)
        problem = None
        if target.resolve() in sources:
            problem = f"its output would be the input {target}, which is never written over. Choose another folder."
        elif (other := taken.setdefault(target, source)) != source:
            problem = f"its output {target} is already that of {other}. Restore them into different folders."
        tasks.append(Task(source, target, problem))
    return tasks


def _found(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Files with their paths relative to the folder that was named; earlier outputs and hidden files are left out."""
    found = []
    for given in inputs:
        if not given.is_dir():
            found.append((given, Path(given.name)))
            continue
        inside = given.resolve() in output.resolve().parents
        for path in sorted(given.rglob("*")):
            relative = path.relative_to(given)
            hidden = any(part.startswith(".") for part in relative.parts)
            if (
                hidden
                or path.is_dir()
                or not _is_picture_name(path)
                or (inside and output.resolve() in path.resolve().parents)
            ):
                continue
            found.append((path, relative))
    return found


def _is_picture_name(path: Path) -> bool:
    """By its ending, any kind of picture: formats that cannot be read are reported, text files in the folder are not."""
    from PIL import Image

    return path.suffix.lower() in Image.registered_extensions()


def _renamed(relative: Path, ending: str | None) -> Path:
    current = WRITABLE.get(relative.suffix.lower())
    if ending is None:
        return relative if current is not None else relative.with_name(relative.name + ".png")
    return relative if current == WRITABLE[ending] else relative.with_name(relative.name + ending)
