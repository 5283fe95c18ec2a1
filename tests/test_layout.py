from __future__ import annotations

import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def adapter_folders() -> set[str]:
    return {path.name for path in (ROOT / "adapters").iterdir() if path.is_dir() and path.name != "__pycache__"}


def test_every_adapter_folder_has_an_entry_point_and_the_other_way_round() -> None:
    stated = project()["project"]["entry-points"]
    packages = {value.split(".")[0] for group in stated.values() for value in group.values()}
    assert packages - {"pnp_irib"} == adapter_folders(), "pyproject.toml and adapters/ disagree"


@pytest.mark.parametrize("group", ["pnp_irib.restorers", "pnp_irib.objects"])
def test_installed_entry_points_are_those_of_pyproject(group: str) -> None:
    stated = project()["project"]["entry-points"][group]
    installed = {e.name: e.value for e in entry_points(group=group) if e.dist is not None and e.dist.name == "pnp-irib"}
    assert installed == stated, "entry points are read at install time; run: pip install -e ."


def test_adapters_are_shaped_alike() -> None:
    assert not (ROOT / "adapters" / "__init__.py").exists(), "it would shadow a distribution called adapters"
    for name in adapter_folders():
        assert name.startswith("pnp_irib_"), name
        for file in ("__init__.py", "spec.py", "restorer.py", "py.typed"):
            assert (ROOT / "adapters" / name / file).is_file(), f"{name} has no {file}"


def test_every_adapter_keeps_the_import_contracts() -> None:
    linter = project()["tool"]["importlinter"]
    assert set(linter["root_packages"]) == adapter_folders() | {"pnp_irib"}
    contracts = {contract["name"]: contract for contract in linter["contracts"]}
    assert set(contracts["the core knows no adapter"]["forbidden_modules"]) == adapter_folders()
    assert set(contracts["adapters use the lower half only"]["source_modules"]) == adapter_folders()
    listed = set(contracts["listing restorers imports no torch"]["source_modules"])
    assert {f"{name}.spec" for name in adapter_folders()} <= listed


def test_the_package_is_typed_and_its_modules_stay_short() -> None:
    assert (ROOT / "pnp_irib" / "py.typed").is_file()
    for folder in ("pnp_irib", "adapters"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 450, f"{path.relative_to(ROOT)} is long: split it"
