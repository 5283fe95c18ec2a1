"""``pnp-irib new-adapter``: a package with a restorer in it, ready to be installed and filled."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from pnp_irib import __version__
from pnp_irib.errors import ConfigError
from pnp_irib.files import write_atomically
from pnp_irib.registry import restorer_names

__all__ = ["run"]

LONGEST = 48
NAME = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"


def run(name: str, parent: Path) -> None:
    """Write the package and say what to do next.

    Raises:
        ConfigError: the name is impossible or taken, or something is in the folder's place.
    """
    if not re.fullmatch(NAME, name) or len(name) > LONGEST:
        raise ConfigError(
            f"{name!r:.80} is no name of a restorer; expected lower-case words with hyphens, such as "
            f"my-restorer, at most {LONGEST} letters."
        )
    if name in restorer_names():
        raise ConfigError(f"there is a restorer named {name!r} already; choose another name.")
    module = f"pnp_irib_{name.replace('-', '_')}"
    if importlib.util.find_spec(module) is not None:
        raise ConfigError(f"there is a package {module} already, which this one would take the place of; choose another name.")
    folder = parent / f"pnp-irib-{name}"
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose another name, or another place with --output.")
    words = {
        "name": name,
        "module": module,
        "distribution": f"pnp-irib-{name}",
        "title": name.replace("-", " ").capitalize(),
        "class_name": "".join(map(str.capitalize, name.removesuffix("-restorer").split("-"))) + "Restorer",
        "version": __version__,
    }
    written = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}/__init__.py": "init.py",
        f"{module}/spec.py": "spec.py",
        f"{module}/restorer.py": "restorer.py",
        f"{module}/py.typed": None,
        f"tests/test_{name.replace('-', '_')}.py": "test.py",
    }
    parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}."))
    try:
        _fill(made, written, words)
        made.chmod(0o755)
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    sys.stdout.write(
        f"{folder}\n\nnext:\n  pip install --editable '{folder}[test]'\n  pnp-irib models\n  pytest {folder}\n"
        f"then put your network into {folder / module / 'restorer.py'}\n"
    )


def _fill(folder: Path, written: Mapping[str, str | None], words: Mapping[str, str]) -> None:
    """Write the package's files: templates by target, with the words put in."""
    templates = files("pnp_irib") / "templates" / "adapter"
    for target, template in written.items():
        text = Template((templates / f"{template}.txt").read_text()).substitute(words) if template else ""
        _write(folder / target, text)


def _write(target: Path, text: str) -> None:
    write_atomically(target, lambda path: Path(path).write_text(text))
