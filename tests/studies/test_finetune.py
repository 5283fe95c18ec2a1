"""The restorer itself, trained: in memory only, exactly the stated weights, on the trajectory of an uninterrupted run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pnp_irib import load_restorer
from pnp_irib.errors import ConfigError
from pnp_irib.studies.config import LoRA
from pnp_irib.studies.finetune import Finetuning, finetune, load_finetuned
from pnp_irib.train import TrainConfig, load_config
from tests.studies.conftest import RESTORER


@pytest.fixture
def config(study_folder: Path) -> TrainConfig:
    return load_config(study_folder / "train.yaml").model_copy(update={"steps": 3})


def tensors_of(restorer: object) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in restorer.network.state_dict().items()}  # type: ignore[attr-defined]


def never() -> bool:
    return False


def test_only_its_own_copy_changes(config: TrainConfig, tmp_path: Path) -> None:
    used = load_restorer(RESTORER, dtype="float32")
    before, state = tensors_of(used), torch.get_rng_state()
    assert finetune(config, None, tmp_path / "run", out_of_time=never) == (0, 3)
    assert torch.equal(torch.get_rng_state(), state)
    for restorer in (used, load_restorer(RESTORER, dtype="float32")):
        assert all(torch.equal(value, before[key]) for key, value in tensors_of(restorer).items())
    restorer, count = load_finetuned(config, None, tmp_path / "run")
    after = tensors_of(restorer)
    assert count == sum(value.numel() for value in before.values())
    assert all(not torch.equal(value, before[key]) for key, value in after.items())
    assert not any(p.requires_grad for p in restorer.network.parameters())  # type: ignore[attr-defined]


def test_adapters_are_all_that_is_trained_and_are_folded_in(config: TrainConfig, tmp_path: Path) -> None:
    lora = LoRA(rank=2)
    subject = Finetuning(config, lora)
    # By hand: rank x (9 inputs + outputs) for each of 18 convolutions.
    sizes = [(3, 64), *[(64, 64)] * 16, (64, 48)]
    assert subject.parameter_count == sum(2 * (9 * inputs + outputs) for inputs, outputs in sizes)
    finetune(config, lora, tmp_path / "run", out_of_time=never)
    restorer, count = load_finetuned(config, lora, tmp_path / "run")
    assert count == subject.parameter_count
    before, after = tensors_of(load_restorer(RESTORER, dtype="float32")), tensors_of(restorer)
    assert before.keys() == after.keys()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    # Biases and the slopes of PReLU stay.
    assert changed == {key for key, value in before.items() if value.ndim == 4}


def test_resuming_gives_the_same_weights(config: TrainConfig, tmp_path: Path) -> None:
    finetune(config, None, tmp_path / "whole", out_of_time=never)
    asked: list[int] = []

    def after_two() -> bool:
        asked.append(1)
        return len(asked) == 2

    assert finetune(config, None, tmp_path / "parts", out_of_time=after_two) == (0, 2)
    assert not (tmp_path / "parts" / "restorer.safetensors").exists()
    assert finetune(config, None, tmp_path / "parts", out_of_time=never) == (2, 3)
    whole, parts = (load_file(tmp_path / name / "restorer.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_it_learns(config: TrainConfig, tmp_path: Path) -> None:
    from accelerate import Accelerator

    from pnp_irib.irib import Objective
    from pnp_irib.prompts import NoPrompt
    from pnp_irib.studies.finetune import _Untouched
    from pnp_irib.train.data import Pictures, make_batch
    from pnp_irib.train.forward import Forward

    longer = config.model_copy(update={"steps": 30, "hq_crop": None, "ema": 0.5, "checkpoint_every": 30})
    finetune(longer, None, tmp_path / "run", out_of_time=never)
    terms = longer.objective.model_copy(update={"lq": 0.0, "gate": 0.0})
    pictures = Pictures(longer.data.folder, smallest=64)

    def loss(restorer: object) -> float:
        forward = Forward(longer, Objective(terms), restorer, NoPrompt(), Accelerator())  # type: ignore[arg-type]
        batches = [make_batch(pictures, longer, step) for step in range(1000, 1006)]  # that training never saw
        with torch.no_grad():
            losses: list[float] = [forward.total(forward(_Untouched(), _Untouched(), b, 0)).item() for b in batches]  # type: ignore[arg-type]
        return sum(losses)

    assert loss(load_finetuned(longer, None, tmp_path / "run")[0]) < 0.97 * loss(load_restorer(RESTORER, dtype="float32"))


def test_what_cannot_be_finetuned_says_why(config: TrainConfig, tmp_path: Path) -> None:
    def run(**changes: object) -> None:
        finetune(config.model_copy(update=changes), None, tmp_path / "run", out_of_time=never)

    with pytest.raises(ConfigError, match="no term behind the restorer has a weight"):
        run(objective=config.objective.model_copy(update={"hq": 0.0}))
    through = TrainConfig.model_validate(config.model_dump() | {"through": {"name": RESTORER}}).through
    with pytest.raises(ConfigError, match="'through' names realesr-animevideov3, but"):
        run(through=through)
    assert not (tmp_path / "run").exists()
