"""An environment of a stranger: what is installed here, and room for packages of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Stranger:
    """A virtual environment on top of this one."""

    bin: Path
    environment: dict[str, str]

    def run(self, command: str, folder: Path, **variables: str) -> str:
        """Run a line of a shell there; returns what it prints."""
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    place = tmp_path_factory.mktemp("stranger") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (python,) = place.glob("bin/python3.*")
    (packages,) = place.glob("lib/python3.*/site-packages")
    here = Path(sys.executable).parent
    root = Path(__file__).resolve().parents[2]
    # Below what is installed there, which thus comes first.
    (packages / "this.pth").write_text("\n".join([str(root), str(root / "adapters"), sysconfig.get_path("purelib")]) + "\n")
    for name in ("pnp-irib", "pytest"):  # the same commands, run by the stranger's Python
        lines = (here / name).read_text().splitlines()
        script = place / "bin" / name
        script.write_text("\n".join([f"#!{python}", *lines[1:]]) + "\n")
        script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{place / 'bin'}:{here}:{os.environ['PATH']}",
        # Into that environment, and only what is named: everything that it needs is here.
        "PIP_PYTHON": str(python),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    return Stranger(place / "bin", environment)
