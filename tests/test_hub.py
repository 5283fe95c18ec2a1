from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.hub import Name, bundled_projectors, load_projector, parse_name
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.pixel import PixelArchitecture

SMALL = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pixel-standard", Name("name", "pixel-standard")),
        ("a", Name("name", "a")),
        ("x4+_v1.0", Name("name", "x4+_v1.0")),
        ("hf-hub:owner/repo", Name("hf-hub", "owner/repo")),
        ("hf-hub:Owner/re.po-1@v1.0", Name("hf-hub", "Owner/re.po-1", "v1.0")),
        ("hf-hub:owner/repo@refs/pr/1", Name("hf-hub", "owner/repo", "refs/pr/1")),
        ("owner/repo", Name("hf-hub", "owner/repo")),
        ("owner/repo@abc123", Name("hf-hub", "owner/repo", "abc123")),
        ("local-dir:some/where", Name("local-dir", "some/where")),
        ("local-dir:/a b/c@d", Name("local-dir", "/a b/c@d")),
        ("local-dir:c:/x", Name("local-dir", "c:/x")),
    ],
)
def test_names(text: str, name: Name) -> None:
    assert parse_name(text) == name
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Upper",
        "a b",
        "hf-hub:",
        "hf-hub:name",
        "hf-hub:a/b/c",
        "hf-hub:a/b@",
        "hf-hub:a/b@c d",
        "hf-hub:../b",
        "hf-hub:a/..",
        "local-dir:",
        "./a",
        "../a",
        "/a",
        "~/a",
        "a/b/c",
        "https://x.org/a",
        "a/b\n",
        "name\n",
        "-a",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Expected a name, hf-hub:owner/repo\[@revision\] or local-dir:path"):
        parse_name(text)


def test_a_folder_is_told_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for text in ("owner/repo", str(tmp_path), "./owner"):
        with pytest.raises(ConfigError, match=f"write 'local-dir:{text}'"):
            parse_name(text)
    assert parse_name("hf-hub:owner/repo").kind == "hf-hub"


def test_a_local_folder_is_loaded(tmp_path: Path) -> None:
    projector = PixelProjector(SMALL)
    projector.save_pretrained(tmp_path / "mine")
    loaded = load_projector(f"local-dir:{tmp_path}/mine")
    assert torch.equal(loaded.state_dict()["stem.weight"], projector.stem.weight)
    with pytest.raises(WeightsError, match="is not a projector folder"):
        load_projector(f"local-dir:{tmp_path}/absent")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no bundled projector named 'nothing-like-it'\. Bundled: "):
        load_projector("nothing-like-it")
    for name, folder in bundled_projectors().items():
        assert load_projector(name).provenance.name == name
        assert (folder / "README.md").is_file()


def test_without_network_the_hub_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="hf-hub:owner/repo@v1 cannot be fetched from the Hub") as caught:
        load_projector("owner/repo@v1")
    assert "\n" not in str(caught.value)
