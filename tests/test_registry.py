"""Plug-ins are proven with real installed distributions: a dist-info folder and a module on the path of a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pnp_irib.errors import UnknownRestorerError
from pnp_irib.registry import broken_plugins, find_spec, list_restorers, load_restorer, placed, restorer_names
from pnp_irib.spec import RestorerSpec
from tests.restorers import OURS

GOOD = """
from pnp_irib.spec import Licence, RestorerSpec
MIT = Licence(name="MIT", commercial=True)
SPEC = RestorerSpec(name="{name}", title="T", factory="{module}:load", scale=2, code_licence=MIT, weights_licence=MIT)
def load(size=1):
    return ("loaded", size)
"""


def install(site: Path, dist: str, entries: dict[str, str], modules: dict[str, str]) -> None:
    """Lay a distribution out as pip would."""
    info = site / f"{dist.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[pnp_irib.restorers]\n{lines}\n")
    for name, code in modules.items():
        (site / f"{name}.py").write_text(code)


def run(code: str, *sites: Path) -> str:
    """What a fresh process prints."""
    path = os.pathsep.join([*map(str, sites), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ours_are_listed() -> None:
    assert set(OURS) <= set(restorer_names())
    assert [spec.name for spec in list_restorers("realesr*")] == [name for name in OURS if name.startswith("realesr")]
    assert [spec.name for spec in list_restorers("*anime")] == ["realesrgan-x4plus-anime"]
    assert list_restorers("nothing*") == []
    assert broken_plugins() == []
    assert find_spec("realesrgan-x4plus").scale == 4


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(
        UnknownRestorerError, match=r"no restorer named 'realesrgan'.*Did you mean 'realesrgan-x4plus'"
    ) as caught:
        load_restorer("realesrgan")
    assert f"Installed: {', '.join(OURS)}" in str(caught.value)
    with pytest.raises(LookupError, match=r"no restorer named 'zzz'\. Installed"):
        find_spec("zzz")


def test_a_third_party_comes_in_by_the_same_door(tmp_path: Path) -> None:
    install(tmp_path, "other-sr", {"other-x2": "other_sr:SPEC"}, {"other_sr": GOOD.format(name="other-x2", module="other_sr")})
    out = run(
        "from pnp_irib import list_restorers, load_restorer\n"
        "from pnp_irib.errors import ConfigError\n"
        "print([s.name for s in list_restorers()], load_restorer('other-x2', size=3))\n"
        "try: load_restorer('other-x2', wings=2)\n"
        "except ConfigError as e: print(e)",
        tmp_path,
    )
    assert out.splitlines()[0] == str(sorted(["other-x2", *OURS])) + " ('loaded', 3)"
    assert "unexpected keyword argument 'wings'. Its options: size." in out


BROKEN = {
    "raises": ("import no_such_thing", "SPEC", "ModuleNotFoundError: No module named 'no_such_thing'"),
    "exits": ("raise SystemExit(3)", "SPEC", "SystemExit: 3"),
    "syntax": ("def (", "SPEC", "SyntaxError"),
    "absent": ("", "SPEC", "has no attribute 'SPEC'"),
    "another-type": ("SPEC = 3", "SPEC", "is a int; expected a RestorerSpec"),
    "other-name": (GOOD.format(name="something-else", module="m"), "SPEC", "leads to a spec named 'something-else'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_reported_and_breaks_nothing_else(tmp_path: Path, kind: str) -> None:
    code, attribute, reason = BROKEN[kind]
    module = f"broken_{kind.replace('-', '_')}"
    install(tmp_path, "broken-dist", {kind: f"{module}:{attribute}"}, {module: code})
    out = run(
        "from pnp_irib.registry import *\n"
        "from pnp_irib.errors import BrokenPluginError\n"
        "print([s.name for s in list_restorers()])\n"
        "(b,) = broken_plugins()\n"
        "print(b.name, b.distribution)\n"
        "print(b.reason)\n"
        "try: load_restorer(b.name)\n"
        "except BrokenPluginError as e: print(str(e) == b.reason)\n"
        f"print({kind!r} in restorer_names())",
        tmp_path,
    ).splitlines()
    assert out[0] == str(OURS)
    assert out[1] == f"{kind} broken-dist"
    assert reason in out[2]
    assert "broken-dist" in out[2]
    assert out[3:] == ["True", "True"]


def test_duplicate_names_are_an_error_that_names_both(tmp_path: Path) -> None:
    entries = {"realesrgan-x4plus": "thief:SPEC"}
    install(tmp_path, "thief-sr", entries, {"thief": GOOD.format(name="realesrgan-x4plus", module="thief")})
    out = run(
        "from pnp_irib.registry import *\n"
        "from pnp_irib.errors import DuplicateRestorerError\n"
        "for call in (restorer_names, list_restorers, broken_plugins, lambda: load_restorer('realesr-animevideov3')):\n"
        "    try: call()\n"
        "    except DuplicateRestorerError as e: print(e)",
        tmp_path,
    ).splitlines()
    assert len(out) == 4
    assert all("pnp-irib" in line and "thief-sr" in line and "uninstall one of them" in line for line in out)


def test_the_same_distribution_seen_twice_is_no_conflict(tmp_path: Path) -> None:
    for site in ("a", "b"):  # an editable install beside a wheel of the same project
        code = GOOD.format(name="other-x2", module="other_sr")
        install(tmp_path / site, "other-sr", {"other-x2": "other_sr:SPEC"}, {"other_sr": code})
    code = "from pnp_irib import list_restorers; print([s.name for s in list_restorers('other*')])"
    assert run(code, tmp_path / "a", tmp_path / "b") == "['other-x2']"


def test_listing_imports_no_model_code() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'pnp_irib_realesrgan.restorer'}"
    code = f"import sys; from pnp_irib import list_restorers; list_restorers(); print({heavy} & set(sys.modules))"
    assert run(code) == "set()"


def test_specs_know_what_a_user_asks_first() -> None:
    for spec in list_restorers("realesr*"):
        assert spec.weights_licence.commercial is not None
        assert spec.lq_profile is not None
        assert spec.weights
        for file in spec.weights:
            assert file.size
            assert file.sha256
            assert file.places


@pytest.mark.parametrize("factory", ["no_such_module:load", "half_sr:no_such_function"])
def test_a_factory_that_cannot_be_loaded_is_told(tmp_path: Path, factory: str) -> None:
    code = GOOD.format(name="half-x2", module="half_sr").replace("half_sr:load", factory)
    install(tmp_path, "half-sr", {"half-x2": "half_sr:SPEC"}, {"half_sr": code})
    out = run(
        "from pnp_irib import load_restorer\n"
        "from pnp_irib.errors import BrokenPluginError\n"
        "try: load_restorer('half-x2')\n"
        "except BrokenPluginError as e: print(e)",
        tmp_path,
    )
    assert out.startswith(f"the factory {factory} of restorer 'half-x2' cannot be loaded: ")
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize("name", ["hf-hub:owner/repo", "local-dir:/weights"])
def test_places_are_no_restorers(name: str) -> None:
    with pytest.raises(UnknownRestorerError, match=r"is a place.*weights='hf-hub:owner/repo/file'"):
        load_restorer(name)


@pytest.mark.parametrize("name", OURS)
def test_ours_are_built_where_they_run_and_in_their_dtype(name: str) -> None:
    assert placed(name, "cpu", "float32") == {"device": "cpu", "dtype": "float32"}
    assert not find_spec(name).states("device", "nothing of the kind")


def test_those_that_do_not_say_so_are_moved_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RestorerSpec, "_imported", lambda *_: lambda checkpoint: checkpoint)
    assert placed("osediff", "cpu", "float32") == {}
