from __future__ import annotations

import subprocess
import sys

import pytest

import pnp_irib


def modules_after(code: str) -> set[str]:
    command = f"{code}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"diffusers", "transformers", "accelerate", "peft", "tensorboard", "torchvision"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import pnp_irib") & (HEAVY | {"torch", "numpy", "PIL", "pydantic", "huggingface_hub"})


def test_the_public_names_load_no_optional_package() -> None:
    assert not modules_after("from pnp_irib import *") & (HEAVY | {"typer", "rich"})


def test_the_command_line_parses_without_torch() -> None:
    assert not modules_after("import pnp_irib.cli.main") & (HEAVY | {"torch", "numpy", "PIL"})


@pytest.mark.parametrize("name", pnp_irib.__all__)
def test_every_public_name_exists_and_is_listed(name: str) -> None:
    assert getattr(pnp_irib, name) is not None
    assert name in dir(pnp_irib)


def test_public_names_agree_with_their_places() -> None:
    assert set(pnp_irib._PLACES) == set(pnp_irib.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'pnp_irib' has no attribute 'wrapp'"):
        _ = pnp_irib.wrapp


SECONDS = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


@pytest.mark.slow
def test_importing_costs_at_most_what_torch_costs() -> None:
    def fastest(module: str) -> float:
        command = [sys.executable, "-c", SECONDS.format(module)]
        return min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3))

    assert fastest("pnp_irib") <= 1.1 * fastest("torch")
