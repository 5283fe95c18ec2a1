from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pnp_irib.errors import ConfigError
from pnp_irib.priors import LatentPriorConfig, PixelPriorConfig, PriorConfig, load_prior

ADAPTER: TypeAdapter[LatentPriorConfig | PixelPriorConfig] = TypeAdapter(PriorConfig)


def test_the_family_chooses_and_is_latent_by_default() -> None:
    assert isinstance(ADAPTER.validate_python({"kind": "sds", "guidance": 3}), LatentPriorConfig)
    assert isinstance(ADAPTER.validate_python({"family": "latent"}), LatentPriorConfig)
    assert isinstance(ADAPTER.validate_python({"family": "pixel", "denoiser": "a"}), PixelPriorConfig)
    for found in (LatentPriorConfig(base="a"), PixelPriorConfig(denoiser="b", sigmas=(0.1, 0.2))):
        assert ADAPTER.validate_python(found) == found
        assert ADAPTER.validate_python(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"family": "pixel"}, "denoiser"),
        ({"family": "pixel", "denoiser": ""}, "at least 1 character"),
        ({"family": "pixel", "denoiser": "a", "guidance": 2}, "guidance"),
        ({"family": "pixel", "denoiser": "a", "sigmas": [0.5, 0.1]}, "ordered and above 0"),
        ({"family": "pixel", "denoiser": "a", "sigmas": [0, 0.1]}, "ordered and above 0"),
        ({"family": "pixel", "denoiser": "a", "sigmas": [0.1, float("inf")]}, "finite"),
        ({"family": "pixel", "denoiser": "a", "lr": float("nan")}, "finite|greater"),
        ({"family": "pixel", "denoiser": "a", "rank": 0}, "rank"),
        ({"timesteps": [500, 100]}, "ordered and within 0 to 999"),
        ({"sigmas": [0.1, 0.2]}, "sigmas"),
        ({"kind": "dmd"}, "score-matching"),
        ({"family": "wavelet"}, "'latent', 'pixel'"),
    ],
)
def test_impossible_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ADAPTER.validate_python(given)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PixelPriorConfig(denoiser="a").lr = 1.0  # type: ignore[misc]


def test_a_latent_prior_needs_a_base() -> None:
    with pytest.raises(ConfigError, match=r"prior\.base is not set.*name one"):
        load_prior(LatentPriorConfig())
