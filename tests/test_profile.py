from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from pnp_irib.errors import ConfigError
from pnp_irib.profile import PRESETS, Blur, DegradationProfile, Noise, Resize, preset

PI = math.pi


def numbers(name: str, order: int) -> dict[str, Any]:
    o = PRESETS[name].orders[order]
    return {
        "sigma": o.blur.sigma,
        "size": o.blur.size,
        "p_blur": o.blur.p,
        "resize": (o.resize.p_up, o.resize.p_down, o.resize.p_keep, *o.resize.factor),
        "gaussian": o.noise.sigma,
        "poisson": o.noise.poisson_scale,
        "jpeg": o.jpeg,
    }


def row(sigma: Any, size: Any, p_blur: Any, resize: Any, gaussian: Any, poisson: Any, jpeg: Any) -> dict[str, Any]:
    return dict(locals())


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        (
            "light",
            row((0.2, 1.5), (7, 21), 1, (0.2, 0.7, 0.1, 0.3, 1.5), (1, 15), (0.05, 2), (60, 95)),
            row((0.2, 1), (7, 11), 0.5, (0.3, 0.4, 0.3, 0.6, 1.2), (1, 12), (0.05, 1), (60, 100)),
        ),
        (
            "standard",
            row((0.2, 3), (7, 21), 1, (0.2, 0.7, 0.1, 0.15, 1.5), (1, 30), (0.05, 3), (30, 95)),
            row((0.2, 1.5), (7, 21), 0.8, (0.3, 0.4, 0.3, 0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95)),
        ),
        (
            "extreme",
            row((2, 5), (15, 31), 1, (0, 1, 0, 0.12, 0.25), (25, 50), (2.5, 4.5), (10, 30)),
            row((0.3, 1.2), (7, 21), 1, (0.3, 0.5, 0.2, 0.6, 1.2), (5, 20), (0.5, 2), (10, 35)),
        ),
        (
            "stress",
            row((3, 6), (21, 31), 1, (0, 1, 0, 0.10, 0.15), (30, 60), (3, 5), (10, 30)),
            row((0.5, 1.5), (7, 21), 1, (0.5, 0.5, 0, 0.6, 1.2), (5, 25), (0.5, 2.5), (6, 30)),
        ),
    ],
)
def test_two_order_presets_carry_their_table(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    assert numbers(name, 0) == first
    assert numbers(name, 1) == second
    final = PRESETS[name].final_sinc
    assert final is not None
    assert final.p == 0.8
    assert final.cutoff == pytest.approx((PI / 3, PI))
    cutoff = {"extreme": (PI / 7, PI / 4), "stress": (PI / 8, PI / 5)}.get(name, (PI / 5, PI))
    sinc = PRESETS[name].orders[0].blur.sinc
    assert sinc is not None
    assert sinc.p == 0.1
    assert sinc.cutoff == pytest.approx(cutoff)


def test_codeformer_carries_its_table() -> None:
    (order,) = PRESETS["codeformer"].orders
    assert (order.blur.sigma, order.blur.size, order.blur.families) == ((0.1, 12), (41, 41), {"iso": 0.5, "aniso": 0.5})
    assert (order.resize.p_down, order.resize.modes, order.resize.uniform_in) == (1, ("bilinear",), "divisor")
    assert order.resize.factor == pytest.approx((1 / 12, 1))
    assert (order.noise.p_gaussian, order.noise.sigma, order.noise.p_grey) == (1, (0, 15), 0)
    assert (order.jpeg, order.jpeg_whole) == ((30, 100), True)


def test_a_profile_survives_json() -> None:
    for profile in PRESETS.values():
        assert DegradationProfile.model_validate_json(profile.model_dump_json()) == profile


def test_names_and_dictionaries() -> None:
    light = PRESETS["light"]
    assert preset("light") is light
    assert preset(light) is light
    assert preset(light.model_dump()) == light
    with pytest.raises(ConfigError, match=r"Did you mean 'standard'\? Known: light"):
        preset("standart")
    with pytest.raises(ConfigError, match="orders") as raised:
        preset({"name": "x", "origin": "y"})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda: Blur(sigma=(3, 1), size=(7, 21)), "lower bound 3.0 is above"),
        (lambda: Blur(sigma=(0, 1), size=(7, 21)), "greater than 0"),
        (lambda: Blur(sigma=(1, float("nan")), size=(7, 21)), "finite"),
        (lambda: Blur(sigma=(1, 2), size=(8, 21)), "must be odd"),
        (lambda: Blur(sigma=(1, 2), size=(7, 21), families={"iso": 0.4}), "must sum to 1"),
        (lambda: Blur(sigma=(1, 2), size=(7, 21), beta_plateau=(2, 3)), "does not hold 1"),
        (lambda: Resize(p_up=0.5, p_down=0.2, p_keep=0.2, factor=(0.5, 2)), "must be 1"),
        (lambda: Resize(p_up=0.5, p_down=0.5, p_keep=0, factor=(0.5, 0.9)), "needs factor"),
        (lambda: Resize(p_up=0, p_down=1, p_keep=0, factor=(0.5, 1), modes=()), "at least 1"),
        (lambda: Noise(sigma=(-1, 3)), "greater than or equal to 0"),
        (lambda: Noise(sigma=(1, 3), grey=True), "Extra inputs"),  # type: ignore[call-arg]
    ],
)
def test_impossible_numbers_are_refused(build: Any, advice: str) -> None:
    with pytest.raises(ValidationError, match=advice):
        build()


def test_one_order_has_no_final_sinc_and_jpeg_no_quality_zero() -> None:
    with pytest.raises(ConfigError, match="two orders"):
        preset(PRESETS["codeformer"].model_dump() | {"final_sinc": {"p": 1, "cutoff": (1, 2)}})
    broken = PRESETS["codeformer"].model_dump()
    broken["orders"][0]["jpeg"] = (0, 50)
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        preset(broken)


def test_profiles_are_listed_without_torch() -> None:
    code = "import sys, pnp_irib.profile; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
