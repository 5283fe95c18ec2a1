"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hub.server import TOKEN, HubServer


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random networks are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of photographs and golden data that the repository does not carry; ``PNP_IRIB_SHARED`` says where it is."""
    default = Path(__file__).resolve().parent.parent.parent / "shared"
    folder = Path(os.environ.get("PNP_IRIB_SHARED") or default)
    if not folder.is_dir():
        reason = f"no folder {folder}; set PNP_IRIB_SHARED to the folder of shared photographs"
        # In CI a missing folder must not turn into a green run that tested nothing.
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that the client in this process is pointed at, as its environment variables would, with an empty cache."""
    from huggingface_hub import constants

    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
            monkeypatch.setattr(constants, name, True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
