from __future__ import annotations

from pathlib import Path

import pytest

from pnp_irib.errors import ConfigError
from pnp_irib.hub import Name, parse_name


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
