"""Write an adapter in a package of its own, install it, and list it.

python examples/write_an_adapter.py [FOLDER]

docs/adapters.md goes through one for a real model step by step.
"""

import subprocess
import sys
from pathlib import Path


def run(*command: str | Path) -> None:
    """Show a command and run it."""
    print("$", *command, flush=True)
    done = subprocess.run([*map(str, command)], check=False)
    if done.returncode:  # the command has said why
        sys.exit(done.returncode)


def main() -> None:
    """From nothing to a restorer by name."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    command = Path(sys.executable).with_name("pnp-irib")
    run(command, "new-adapter", "my-sharp-restorer", "-o", folder)
    package = folder / "pnp-irib-my-sharp-restorer"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--editable", package)
    run(command, "models")
    run(sys.executable, "-m", "pytest", "-q", package)


if __name__ == "__main__":
    main()
