"""Which pictures a command takes, and where its outputs go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pnp_irib.errors import ConfigError
from pnp_irib.images.io import WRITABLE

__all__ = ["Task", "is_folder", "plan"]


@dataclass(frozen=True)
class Task:
    """One input and its outputs; ``problem`` says why it cannot be done."""

    source: Path
    target: Path
    beside: dict[str, Path] = field(default_factory=dict)
    problem: str | None = None


def plan(inputs: Sequence[Path], output: Path, format: str | None, beside: Sequence[str] = ()) -> list[Task]:
    """Pair every picture with its outputs.

    A folder is searched recursively and its relative paths are kept. The output has the name of the input; where the format
    changes, the new ending is appended (``a.gif`` gives ``a.gif.png``), so that ``a.jpg`` and ``a.png`` never meet. What is
    written ``beside`` it is called after it: ``a.gif.png.compare.png``.

    Raises:
        ConfigError: unknown format, a file where a folder is needed, or no picture at all.
    """
    ending = None
    if format is not None:
        ending = f".{format.lower().lstrip('.')}"
        if ending not in WRITABLE:
            raise ConfigError(f"--format {format}: expected one of {', '.join(e[1:] for e in WRITABLE)}.")
    if len(inputs) == 1 and not is_folder(inputs[0]) and not is_folder(output) and output.suffix:
        if output.suffix.lower() not in WRITABLE:
            raise ConfigError(
                f"-o {output}: pictures are written as {', '.join(WRITABLE)}. For a folder of this name, make it first."
            )
        if ending is not None and WRITABLE[ending] != WRITABLE[output.suffix.lower()]:
            raise ConfigError(f"--format {format} contradicts the ending of {output}; drop one of them.")
        found: list[tuple[Path, Path, str | None]] = [(inputs[0], output, None)]
    else:
        if not is_folder(output) and (os.path.lexists(output) or output.suffix.lower() in WRITABLE):
            raise ConfigError(f"-o {output} is a file; several pictures need a folder.")
        found = [
            (source, output / _renamed(relative, ending), problem) for source, relative, problem in _found(inputs, output)
        ]
    if not found:
        raise ConfigError(f"no pictures under {', '.join(map(str, inputs))}.")
    sources = {os.path.realpath(source) for source, _, _ in found}
    tasks: list[Task] = []
    taken: dict[Path, Path] = {}
    named: set[Path] = set()
    for source, target, problem in found:
        if source in named:
            continue
        named.add(source)
        others = {kind: target.with_name(f"{target.name}.{kind}.png") for kind in beside}
        for path in (target, *others.values()):
            if os.path.realpath(path) in sources:
                problem = f"its output would be the input {path}, which is never written over. Choose another folder."
            elif (other := taken.setdefault(path, source)) != source:
                problem = f"its output {path} is already that of {other}. Restore them into different folders."
        tasks.append(Task(source, target, others, problem))
    return tasks


def is_folder(path: Path) -> bool:
    """Whether it is a folder; no exception where pathlib raises one: names that are too long, parents that are closed."""
    return os.path.isdir(path)  # noqa: PTH112


def _found(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path, str | None]]:
    """Files with their paths relative to the folder that was named, and why they cannot be read where that is known already.

    Earlier outputs and hidden files are left out.
    """
    found: list[tuple[Path, Path, str | None]] = []
    into = os.path.realpath(output)
    for given in inputs:
        if not is_folder(given):
            found.append((given, Path(given.name), None))
            continue
        closed: list[OSError] = []
        below: list[Path] = []
        for folder, folders, names in os.walk(given, onerror=closed.append):
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".")
                and os.path.realpath(Path(folder, name)) != into  # what lies there was written by us
            ]
            below += [Path(folder, name) for name in names if not name.startswith(".") and _is_picture_name(Path(name))]
        found += [(path, path.relative_to(given), None) for path in sorted(below)]
        for error in closed:
            path = Path(error.filename)
            found.append((path, path.relative_to(given), f"the folder cannot be read: {error.strerror}."))
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
