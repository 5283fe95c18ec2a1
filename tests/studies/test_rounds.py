"""Look Forward Once as a study: rounds, controls, agreement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pnp_irib import load_projector, load_restorer, wrap
from pnp_irib.bench import psnr
from pnp_irib.degrade import degrade
from pnp_irib.images.io import read_picture, write_picture
from pnp_irib.noise import picture_seed
from pnp_irib.prompts import ImageNetTags
from pnp_irib.studies import rounds as module
from pnp_irib.studies import run_study
from pnp_irib.studies.tags import agreement
from pnp_irib.wrapper import WrappedRestorer
from tests.studies.conftest import RESTORER, written


@pytest.fixture(scope="module")
def corners(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Path:
    """Corners of two photographs that show things with names: a mailbox and a padlock."""
    folder = tmp_path_factory.mktemp("corners")
    for source in sorted((shared_dir / "data" / "dev").glob("kodak_*.webp"))[:2]:
        write_picture(read_picture(source).rgb[..., :192, :192], folder / f"{source.stem}.png")
    return folder


def content(data: Path, projector: Path, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "look-forward",
        "title": "Rounds",
        "data": str(data),
        "restorer": RESTORER,
        "projector": f"local-dir:{projector}",
        "rounds": [0, 1],
        "conditions": {"light": "light"},
    } | changes


def test_rounds_and_controls(study_folder: Path, corners: Path, listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(study_folder, "rounds", content(corners, listening))
    files = run_study(path, study_folder / "out", cache=study_folder / "runs")
    assert [file.name for file in files] == ["rounds.md", "rounds.json"]
    found = json.loads(files[1].read_text())["conditions"]["light"]["found"]
    names = ["kodak_01.png", "kodak_02.png"]
    hqs = [read_picture(corners / name).rgb for name in names]
    tagger, probe = ImageNetTags(), ImageNetTags(top_k=5, min_score=0.0)
    robust = wrap(load_restorer(RESTORER, dtype="float32"), projector=load_projector(f"local-dir:{listening}"))
    for number, (name, hq) in enumerate(zip(names, hqs, strict=True)):
        (one,) = found[number]
        rows = one["rows"]
        assert list(rows) == ["K=0", "K=1", "repeat", "none", "shuffled", "truth"]
        elq = degrade(hq, "light", seeds=[picture_seed(0, name)])
        for k in (0, 1):  # as a user would get it
            prompt = tagger(elq)[0] if k == 0 else None
            expected = robust(elq, lfo=k, prompt=prompt)
            assert rows[f"K={k}"]["values"]["psnr"] == pytest.approx(psnr(expected.restored, hq), abs=1e-3), k
            assert rows[f"K={k}"]["prompt"] == expected.prompt.text
        for control, prompt in (("none", None), ("shuffled", tagger(hqs[1 - number])[0]), ("truth", tagger(hq)[0])):
            restored = robust(elq, prompt=prompt).restored
            assert rows[control]["values"]["psnr"] == pytest.approx(psnr(restored, hq), abs=1e-3), control
        # The same prompt again is the same picture, bit for bit; another prompt is another.
        assert one["repeat is K=0"]
        assert rows["repeat"]["values"] == rows["K=0"]["values"]
        assert rows["repeat"]["change"] == 0
        assert rows["shuffled"]["change"] > 0
        assert one["truth"] == tagger(hq)[0].text
        true_tags = probe(hq)[0].tags
        assert len(true_tags) == 5
        assert rows["K=0"]["agreement"] == pytest.approx(agreement(probe(elq)[0].tags, true_tags), rel=1e-4)
        first = robust(elq, prompt=tagger(elq)[0]).lq
        if rows["K=1"]["rounds"] == 1:  # read off the estimate before
            tags = probe(first)[0].tags
            assert [score for _, score in rows["K=1"]["tags"]] == pytest.approx([tag.score for tag in tags], abs=2e-5)
            assert rows["K=1"]["agreement"] == pytest.approx(agreement(tags, true_tags), rel=1e-4)
        assert 0 < rows["K=0"]["seconds"] < rows["K=1"]["seconds"]
    assert any(picture[0]["rows"]["K=1"]["rounds"] == 1 for picture in found)
    page = files[0].read_text()
    assert "The repeated prompt gave K=0 bit for bit in 2 of 2: refinement cannot be mistaken for repetition." in page
    assert "| K=1 - K=0 |" in page
    assert "- **shuffled**: the tags of the HQ picture of the next photograph" in page

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was measured again")

    monkeypatch.setattr(module, "measured", refuse)
    again = run_study(path, study_folder / "again", cache=study_folder / "runs")
    assert again[0].read_text() == page


def test_a_projector_that_is_random_is_found_out(
    study_folder: Path, corners: Path, listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    project = WrappedRestorer.project

    def noisy(self: Any, elq: torch.Tensor, **options: Any) -> torch.Tensor:
        return (project(self, elq, **options) + 0.1 * torch.rand(elq.shape, generator=generator)).clamp(0, 1)

    monkeypatch.setattr(WrappedRestorer, "project", noisy)
    path = written(study_folder, "rounds", content(corners, listening, rounds=[0]))
    files = run_study(path, study_folder / "out", cache=study_folder / "runs")
    assert "bit for bit in 0 of 2: something here is random." in files[0].read_text()
