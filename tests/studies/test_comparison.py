"""A whole comparison: training, measuring, the page, and going on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pnp_irib import load_restorer, wrap
from pnp_irib.bench import psnr
from pnp_irib.consistency import consistency
from pnp_irib.degrade import degrade
from pnp_irib.images.io import read_picture
from pnp_irib.noise import picture_seed
from pnp_irib.studies import OutOfTimeError, run, run_study, training
from pnp_irib.studies import comparison as module
from pnp_irib.studies.budget import Budget
from pnp_irib.studies.measure import measured
from pnp_irib.studies.page import MAX_PICTURE_BYTES
from tests.studies.conftest import RESTORER, comparison, written


def no_training(*_: Any, **__: Any) -> None:
    raise AssertionError("something was trained again")


def no_measuring(*_: Any, **__: Any) -> None:
    raise AssertionError("something was measured again")


def values(content: dict[str, Any], arm: str, seed: int | None) -> dict[str, Any]:
    found = content["conditions"]["extreme"]["values"]
    value: dict[str, Any] = next(one for one in found if (one["arm"], one["training_seed"]) == (arm, seed))
    return value


def test_a_study_from_training_to_its_page(study_folder: Path, cut_outs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(study_folder, "small", comparison(seeds=[0, 4]))
    (study_folder / "small.md").write_text("What was learnt: *nothing*.\n")
    cache, out = study_folder / "runs", study_folder / "out"
    files = run_study(path, out, cache=cache)
    assert [file.name for file in files] == ["small.md", "small.json", "small.webp"]
    content = json.loads(files[1].read_text())
    assert content["pictures"] == ["kodak_01.png", "kodak_02.png"]

    # One value of the restorer alone, and one of a trained arm, worked out again without the study.
    hq = read_picture(cut_outs / "kodak_02.png").rgb
    elq = degrade(hq, "extreme", seeds=[picture_seed(4, "kodak_02.png")])
    with torch.no_grad():
        alone = load_restorer(RESTORER, dtype="float32").restore(elq).clamp(0, 1)
    assert values(content, "alone", None)["psnr"][1][1] == pytest.approx(psnr(alone, hq), abs=1e-3)
    expected = 255 * consistency(alone, elq).mean
    assert values(content, "alone", None)["consistency"][1][1] == pytest.approx(expected, abs=1e-3)
    projectors = sorted((cache / "training").glob("*/projector"))
    assert len(projectors) == 2  # two seeds; the third run is that of the restorer itself
    restored = [wrap(RESTORER, projector=p, dtype="float32")(elq).restored for p in projectors]
    found = sorted(values(content, "trained", seed)["psnr"][1][1] for seed in (0, 1))
    assert found == pytest.approx(sorted(psnr(picture, hq) for picture in restored), abs=1e-3)
    assert found[0] != found[1]

    arms = {(arm["arm"], arm["training_seed"]): arm for arm in content["arms"]}
    assert arms["trained", 1]["steps"] == arms["finetuned", 0]["steps"] == 2
    assert arms["trained", 1]["restored"] == arms["finetuned", 0]["restored"] == 4
    assert arms["trained", 1]["seconds"] > 0
    network = load_restorer(RESTORER).network  # type: ignore[attr-defined]
    assert arms["finetuned", 0]["trained parameters"] == sum(p.numel() for p in network.parameters())

    differences = content["conditions"]["extreme"]["differences"]
    assert differences.keys() == {"trained", "finetuned"}
    by_hand = [
        sum(values(content, "trained", seed)["psnr"][p][d] / 2 for seed in (0, 1))
        - values(content, "alone", None)["psnr"][p][d]
        for p in (0, 1)
        for d in (0, 1)
    ]
    assert differences["trained"]["psnr"]["mean"] == pytest.approx(sum(by_hand) / 4)

    page = files[0].read_text()
    assert page.startswith(
        "# A small study\n\nWhat was learnt: *nothing*.\n\n2 pictures of photographs, degradation seeds 0, 4;"
    )
    assert "too narrow" in page
    assert "| trained | realesr-animevideov3 | projector for realesr-animevideov3 | 0, 1 |" in page
    assert "| trained - alone | " in page
    assert " ± " in page
    assert "Machine: " in page
    assert page.rstrip().endswith("small.yaml`.")
    assert files[2].stat().st_size <= MAX_PICTURE_BYTES
    with Image.open(files[2]) as grid:
        assert grid.width > 5 * 90  # ELQ, three arms, HQ

    # Again: nothing is trained, nothing measured, and the page is the same.
    monkeypatch.setattr(training, "train", no_training)
    monkeypatch.setattr(training, "finetune", no_training)
    monkeypatch.setattr(module, "measured", no_measuring)
    again = run_study(path, study_folder / "again", cache=cache)
    assert again[0].read_text() == page
    assert json.loads(again[1].read_text())["conditions"] == content["conditions"]


def test_a_study_goes_on_where_the_time_was_up(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"alone": {"restorer": RESTORER, "projector": "none"}, "finetuned": {"finetune": "train.yaml"}}
    path = written(study_folder, "small", comparison(arms=arms))
    cache, out = study_folder / "runs", study_folder / "out"
    left = iter([1.0])

    class Short(Budget):
        @property
        def hours_left(self) -> float:
            return next(left, 0.0)

    with monkeypatch.context() as during:
        during.setattr(run, "Budget", Short)  # enough to begin, and for a step
        with pytest.raises(OutOfTimeError):
            run_study(path, out, cache=cache)
    assert not out.exists()
    (state,) = (cache / "training").glob("*/training_state.pt")
    assert torch.load(state, weights_only=True)["step"] == 1

    judged: list[str] = []

    def stopping(judge: Any, hq: Any, elq: Any, restored: Any) -> Any:
        if len(judged) == 1:
            raise KeyboardInterrupt
        judged.append("one picture")
        return measured(judge, hq, elq, restored)

    monkeypatch.setattr(module, "measured", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_study(path, out, cache=cache)
    monkeypatch.setattr(training, "finetune", no_training)

    def counting(judge: Any, hq: Any, elq: Any, restored: Any) -> Any:
        judged.append("one more")
        return measured(judge, hq, elq, restored)

    monkeypatch.setattr(module, "measured", counting)
    files = run_study(path, out, cache=cache)
    assert judged == ["one picture", "one more"]  # the second picture only
    assert len(json.loads(files[1].read_text())["conditions"]["extreme"]["values"][0]["psnr"]) == 2


def test_pictures_that_no_model_made_and_arms_with_references_of_their_own(study_folder: Path, cut_outs: Path) -> None:
    arms = {
        "alone": {"restorer": RESTORER, "projector": "none"},
        "bicubic": {"picture": "bicubic"},
        "HQ": {"picture": "hq", "against": "bicubic"},
    }
    conditions = {"only reduced": "none", "half": {"between": ["light", "extreme"], "at": 0.5}}
    content = comparison(arms=arms, conditions=conditions, grid={"maps": True, "pictures": 2, "condition": "half"})
    files = run_study(written(study_folder, "small", content), study_folder / "out", cache=study_folder / "runs", limit=1)
    found = json.loads(files[1].read_text())
    assert found["pictures"] == ["kodak_01.png"]
    by_arm = {one["arm"]: one for one in found["conditions"]["only reduced"]["values"]}
    assert by_arm["HQ"]["psnr"] == [[100.0]]
    assert by_arm["HQ"]["top1"] == [[1.0]]
    assert by_arm["HQ"]["consistency"][0][0] < 3  # the reduction is no bicubic one, but near it
    hq = read_picture(cut_outs / "kodak_01.png").rgb
    reduced = torch.nn.functional.avg_pool2d(hq, 4)
    enlarged = torch.nn.functional.interpolate(reduced, hq.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
    assert by_arm["bicubic"]["psnr"][0][0] == pytest.approx(psnr(enlarged, hq), abs=1e-3)
    differences = found["conditions"]["half"]["differences"]
    assert differences["HQ"]["against"] == "bicubic"
    of_half = {one["arm"]: one["psnr"][0][0] for one in found["conditions"]["half"]["values"]}
    assert differences["HQ"]["psnr"]["mean"] == pytest.approx(100 - of_half["bicubic"], abs=1e-3)
    with Image.open(files[2]) as grid:
        assert grid.height > 2 * 128  # pictures and the maps below
