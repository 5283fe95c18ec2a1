"""Profiles between two others."""

from __future__ import annotations

import pytest
import torch

from pnp_irib.degrade import degrade
from pnp_irib.errors import ConfigError
from pnp_irib.profile import PRESETS, DegradationProfile, Sinc, between

LIGHT, EXTREME = PRESETS["light"], PRESETS["extreme"]


def test_ends_are_the_profiles_themselves() -> None:
    assert between(LIGHT, EXTREME, 0) is LIGHT
    assert between(LIGHT, EXTREME, 1) is EXTREME


def test_a_quarter_of_the_way() -> None:
    # By hand: three quarters of the numbers of light and one of those of extreme.
    first, second = between(LIGHT, EXTREME, 0.25).orders
    assert first.noise.sigma == pytest.approx((0.75 * 1 + 0.25 * 25, 0.75 * 15 + 0.25 * 50))
    assert first.jpeg == pytest.approx((0.75 * 60 + 0.25 * 10, 0.75 * 95 + 0.25 * 30))
    assert first.blur.sigma == pytest.approx((0.65, 2.375))
    assert first.blur.size == (9, 23)  # 9 and 23.5: odd
    assert (first.resize.p_up, first.resize.p_down, first.resize.p_keep) == pytest.approx((0.15, 0.775, 0.075))
    assert first.resize.factor == pytest.approx((0.255, 1.1875))
    assert second.blur.p == pytest.approx(0.625)
    assert not second.blur_after_resize


def test_without_enlargement_in_the_range_its_share_goes_to_the_reduction() -> None:
    resize = between(LIGHT, EXTREME, 0.5).orders[0].resize
    assert resize.factor == pytest.approx((0.21, 0.875))
    assert (resize.p_up, resize.p_down, resize.p_keep) == pytest.approx((0, 0.95, 0.05))


def test_flags_are_those_of_the_nearer_profile() -> None:
    assert [between(LIGHT, EXTREME, at).orders[1].blur_after_resize for at in (0.49, 0.5)] == [False, True]


def test_a_filter_that_one_of_them_lacks_fades_in() -> None:
    bare = EXTREME.model_copy(update={"final_sinc": None})
    assert EXTREME.final_sinc is not None
    for profile, expected in ((between(bare, EXTREME, 0.25), 0.25), (between(EXTREME, bare, 0.25), 0.75)):
        assert profile.final_sinc is not None
        assert profile.final_sinc.p == pytest.approx(expected * EXTREME.final_sinc.p)
        assert profile.final_sinc.cutoff == EXTREME.final_sinc.cutoff


def test_a_cut_off_that_is_not_stated_is_the_other_one() -> None:
    sinc = Sinc(p=0.5, cutoff=(1.0, 2.0))
    profile = between(LIGHT.model_copy(update={"final_sinc": sinc}), EXTREME, 0.5)
    assert profile.final_sinc is not None
    assert profile.final_sinc.cutoff_small == pytest.approx(((1 + torch.pi / 3) / 2, (2 + torch.pi) / 2))


@pytest.mark.parametrize("ends", [("light", "extreme"), ("standard", "stress"), ("extreme", "stress")])
def test_damage_grows_along_the_way(ends: tuple[str, str]) -> None:
    milder, harsher = (PRESETS[name] for name in ends)
    row = torch.linspace(0, 12, 96)
    hq = (0.5 + 0.5 * torch.sin(row[None, :] * row[:, None])).expand(1, 3, 96, 96).contiguous()
    truth = torch.nn.functional.avg_pool2d(hq, 4)

    def damage(profile: DegradationProfile) -> float:
        seeds = range(24)
        return sum((degrade(hq, profile, seeds=[seed]) - truth).square().mean().item() for seed in seeds) / len(seeds)

    found = [damage(between(milder, harsher, at)) for at in (0, 0.5, 1)]
    assert found == sorted(found), found


def test_what_has_nothing_between_says_why() -> None:
    with pytest.raises(ConfigError, match="'codeformer' and 'extreme': they degrade 1 and 2 times"):
        between(PRESETS["codeformer"], EXTREME, 0.5)
    with pytest.raises(ConfigError, match=r"at=1\.5: expected a number from 0"):
        between(LIGHT, EXTREME, 1.5)
