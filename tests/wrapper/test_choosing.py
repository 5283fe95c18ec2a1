from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pnp_irib.errors import ConfigError, UnknownRestorerError, WrapError
from pnp_irib.profile import PRESETS
from pnp_irib.projectors import PixelProjector
from pnp_irib.restorer import Restorer
from pnp_irib.wrapper import wrap
from tests.wrapper.models import Doubler, Stated, draw


def test_a_wrapped_restorer_is_a_restorer(projector: PixelProjector) -> None:
    robust = wrap(Stated(), projector=projector)
    assert isinstance(robust, Restorer)
    twice = wrap(robust, projector=None)
    assert torch.equal(twice(draw(5, 5)).restored, robust(draw(5, 5)).restored)


def test_wrapping_twice_projects_once() -> None:
    twice = wrap(wrap("realesr-animevideov3"))
    assert twice.projector is None
    assert "it is wrapped already" in repr(twice)


def test_projector_none_by_any_name() -> None:
    for none in (None, "none"):
        assert wrap(Stated(), projector=none).projector is None
    assert "states no LQ profile" in repr(wrap(Stated()))


@pytest.mark.parametrize(
    ("build", "error", "advice"),
    [
        (lambda: wrap("realesrgan-x4pluss"), UnknownRestorerError, "Did you mean 'realesrgan-x4plus'"),
        (lambda: wrap("realesrgan-x4plus", scale=4), ConfigError, "scale are for modules and functions"),
        (lambda: wrap(Stated(), scale=4), ConfigError, "scale do not apply to an object that is a Restorer"),
        (lambda: wrap(nn.Identity(), wheels=4), ConfigError, "wheels are unknown for a module or function"),
        (lambda: wrap("realesr-animevideov3", wheels=4), ConfigError, "wheels.*Its options: weights, device, dtype"),
        (lambda: wrap(Doubler), WrapError, "smallest thing to do: make an object of the class"),
        (
            lambda: wrap(3),
            WrapError,
            "Tried: a registered name; a Restorer; .*pipeline of diffusers; .*spandrel; a torch module; a function",
        ),
        (lambda: wrap(Stated(), projector="no-such"), ConfigError, "no bundled projector named 'no-such'"),
        (lambda: wrap(Stated(), projector=4), ConfigError, "expected 'auto', None"),  # type: ignore[arg-type]
        (lambda: wrap(Stated(), lfo=-1), ConfigError, "whole number from 0"),
        (lambda: wrap(Stated(), extractor="imagenet-tag"), ConfigError, "Did you mean 'imagenet-tags'"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_with_advice(build: Any, error: Any, advice: str) -> None:
    with pytest.raises(error, match=advice) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_model_of_the_user_gets_the_projector_of_its_profile() -> None:
    assert wrap(Doubler(), scale=2).projector is None
    assert "lq_profile='standard'" in " ".join(repr(wrap(Doubler(), scale=2)).split())
    for profile in ("standard", PRESETS["standard"]):
        robust = wrap(Doubler(), scale=2, lq_profile=profile)
        assert robust.projector is not None
        assert robust.spec.lq_profile == PRESETS["standard"]
    assert wrap(Doubler(), scale=2, lq_profile="light").projector is None
    with pytest.raises(ConfigError, match=r"standart.*Did you mean 'standard'"):
        wrap(Doubler(), scale=2, lq_profile="standart")
    with pytest.raises(ConfigError, match=r"lq_profile are for modules"):
        wrap("realesr-animevideov3", lq_profile="standard")
