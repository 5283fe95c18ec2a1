"""The examples, in the order in which a stranger comes to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.conftest import Stranger
from tests.hub.server import HubServer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def test_every_example_is_here() -> None:
    tested = {"demo.py", "wrap_a_module.py", "write_an_adapter.py", "train_a_projector.py", "share_a_projector.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested  # demo.py: tests/test_package.py


def test_a_module_is_wrapped(stranger: Stranger, work: Path) -> None:
    said = stranger.run(f"python {EXAMPLES / 'wrap_a_module.py'}", work)
    assert "(a torch module)" in " ".join(said.split())
    assert "pixel-x4plus" in said
    assert (work / "out" / "wrapped-module.png").is_file()


def test_from_an_adapter_to_a_projector_on_the_hub(
    stranger: Stranger, work: Path, server: HubServer, shared_dir: Path
) -> None:
    said = stranger.run(f"python {EXAMPLES / 'write_an_adapter.py'} {work}", work)
    assert "my-sharp-restorer" in said
    assert "1 passed" in said
    train = f"python {EXAMPLES / 'train_a_projector.py'} --data {shared_dir / 'data' / 'dev'} --run runs/mine"
    said = stranger.run(f"{train} --restorer my-sharp-restorer --steps 12", work)
    assert "12 steps; the model card is" in said
    assert "my-sharp-restorer" in said
    variables = server.environment(work / "home")
    said = stranger.run(f"python {EXAMPLES / 'share_a_projector.py'} runs/mine/projector owner/mine", work, **variables)
    assert f"pushed: {server.endpoint}/owner/mine/commit/" in said
    assert "from: hf-hub:owner/mine@" in said
    said = stranger.run(
        f"pnp-irib restore {EXAMPLES / 'images' / 'colosseum.png'} -o r.png -r my-sharp-restorer -p owner/mine --json",
        work,
        **variables,
    )
    assert "hf-hub:owner/mine@" in said
