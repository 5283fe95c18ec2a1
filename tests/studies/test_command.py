"""``pnp-irib study`` as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pnp_irib.cli.study import run
from pnp_irib.errors import ConfigError
from tests.cli.run import files, pnp
from tests.studies.conftest import comparison, written

BOTH = {"bicubic": {"picture": "bicubic"}, "HQ": {"picture": "hq"}}


@pytest.fixture(autouse=True)
def elsewhere(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs and results go into the current folder."""
    monkeypatch.chdir(study_folder)


def test_the_command_writes_its_page_and_says_where(study_folder: Path) -> None:
    path = written(study_folder, "plain", comparison(arms=BOTH, reference="bicubic"))
    done = pnp("study", path, "-o", study_folder / "out", "--threads", "1", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert files(study_folder / "out") == ["plain.json", "plain.md", "plain.webp"]
    assert done.stdout.splitlines() == [str(study_folder / "out" / name) for name in ("plain.md", "plain.json", "plain.webp")]
    assert "plain.yaml --limit 1`" in (study_folder / "out" / "plain.md").read_text()


def test_what_is_wrong_is_one_line(study_folder: Path) -> None:
    path = written(study_folder, "plain", comparison(arms=BOTH, reference="nobody"))
    done = pnp("study", path, "-o", study_folder / "out")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "reference names the arm 'nobody'" in done.stderr


def test_impossible_options_are_refused_at_once(study_folder: Path) -> None:
    options: dict[str, Any] = {"threads": None, "max_hours": None, "limit": None}
    for name, value, said in (("max_hours", 0, "--max-hours 0: expected"), ("threads", 5000, "--threads 5000: this machine")):
        with pytest.raises(ConfigError, match=said):
            run(study_folder / "none.yaml", study_folder / "out", **options | {name: value})
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        run(study_folder / "none.yaml", study_folder / "out", **options)
    (study_folder / "file").write_text("")
    with pytest.raises(ConfigError, match="the page cannot be written"):
        run(study_folder / "none.yaml", study_folder / "file", **options)


def test_time_that_is_up_is_said_and_nothing_half_written(study_folder: Path) -> None:
    path = written(study_folder, "plain", comparison(arms=BOTH, reference="bicubic"))
    done = pnp("study", path, "-o", study_folder / "out", "--max-hours", "1e-9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("the same command goes on from here.")
    assert files(study_folder / "out") == []
