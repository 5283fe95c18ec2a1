from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import CommitOperationDelete, HfApi, ModelCard, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import _CACHED_NO_EXIST

from tests.hub.server import STRANGER_TOKEN, TOKEN, HubServer

REPO = "owner/model"
CARD = b"---\nlicense: apache-2.0\nlibrary_name: pnp-irib\npipeline_tag: image-to-image\n---\n# Model\n"
WEIGHTS = bytes(range(256)) * 16
FILES = {"README.md": CARD, "config.json": b"{}", "model.safetensors": WEIGHTS, "sub/notes.txt": b"notes"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    # The client reads these from the environment when it is imported, which may be long before this test.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with HubServer() as server:
        yield server


def client(hub: HubServer, token: str | None = None) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token or False)


def test_a_snapshot_brings_the_files_that_match(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO, FILES)
    folder = Path(client(hub).snapshot_download(REPO, allow_patterns=["*.json", "*.safetensors"], cache_dir=tmp_path))
    assert folder.name == commit
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: FILES[name] for name in ("config.json", "model.safetensors")}
    assert ("GET", f"/api/models/{REPO}/tree/{commit}") in hub.requests
    assert len(hub.gets()) == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_cached_file_is_not_fetched_again(hub: HubServer, tmp_path: Path, name: str) -> None:
    hub.add_repo(REPO, FILES)
    first = client(hub).hf_hub_download(REPO, name, cache_dir=tmp_path)
    hub.requests.clear()
    assert client(hub).hf_hub_download(REPO, name, cache_dir=tmp_path) == first
    assert hub.requests == [("HEAD", f"/{REPO}/resolve/main/{name}")]


def test_local_files_only_asks_nothing(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, FILES)
    folder = client(hub).snapshot_download(REPO, cache_dir=tmp_path)
    hub.requests.clear()
    assert client(hub).snapshot_download(REPO, cache_dir=tmp_path, local_files_only=True) == folder
    path = client(hub).hf_hub_download(REPO, "config.json", cache_dir=tmp_path, local_files_only=True)
    assert Path(path).parent == Path(folder)
    with pytest.raises(LocalEntryNotFoundError):
        client(hub).snapshot_download("owner/other", cache_dir=tmp_path, local_files_only=True)
    assert hub.requests == []


def test_a_server_that_is_gone_leaves_the_cache(hub: HubServer, tmp_path: Path) -> None:
    with HubServer() as gone:
        gone.add_repo(REPO, FILES)
        api = client(gone)
        path = api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    assert api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path) == path


def test_a_revision_is_a_commit_a_branch_or_a_tag(hub: HubServer, tmp_path: Path) -> None:
    first = hub.add_repo(REPO, {"config.json": b"1"})
    hub.tag(REPO, "v1.0")
    second = hub.commit(REPO, {"config.json": b"2"})
    hub.commit(REPO, {"config.json": b"3"}, branch="refs/pr/1")
    texts = {"main": b"2", first: b"1", "v1.0": b"1", second: b"2", "refs/pr/1": b"3"}
    for revision, text in texts.items():
        path = client(hub).hf_hub_download(REPO, "config.json", revision=revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == text
    assert client(hub).model_info(REPO, revision="v1.0").sha == first
    refs = client(hub).list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1.0": first}
    assert {ref.name for ref in refs.branches} == {"main", "refs/pr/1"}


def test_an_interrupted_download_is_resumed(hub: HubServer, tmp_path: Path) -> None:
    # The client drops what it received of an unfinished chunk, so only a file of more than one chunk is resumed.
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    data = WEIGHTS * (chunk // len(WEIGHTS) + 8)
    hub.add_repo(REPO, {"model.safetensors": data})
    hub.cut_after = chunk + 5000
    path = client(hub).hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == data
    assert hub.ranges == [f"bytes={chunk}-"]
    assert len(hub.gets()) == 2


def test_the_client_takes_corrupt_content(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, FILES)
    hub.corrupt = True
    data = Path(client(hub).hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)).read_bytes()
    assert data != WEIGHTS
    assert data[:-1] == WEIGHTS[:-1]


def test_what_does_not_exist(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO, FILES)
    for token, status in ((None, 401), (TOKEN, 404)):
        with pytest.raises(RepositoryNotFoundError) as missing:
            client(hub, token).snapshot_download("owner/missing", cache_dir=tmp_path)
        assert missing.value.response.status_code == status
    with pytest.raises(RevisionNotFoundError):
        client(hub).snapshot_download(REPO, revision="v9", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        client(hub).hf_hub_download(REPO, "config.json", revision="0" * 40, cache_dir=tmp_path)
    with pytest.raises(RemoteEntryNotFoundError):
        client(hub).hf_hub_download(REPO, "absent.json", cache_dir=tmp_path)
    for revision in ("main", commit):
        assert try_to_load_from_cache(REPO, "absent.json", revision=revision, cache_dir=tmp_path) is _CACHED_NO_EXIST


def test_a_gated_repository_opens_for_its_owner(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, FILES, gated=True)
    for token, status in ((None, 401), (STRANGER_TOKEN, 403)):
        with pytest.raises(GatedRepoError) as gated:
            client(hub, token).hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
        assert gated.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            client(hub, token).snapshot_download(REPO, cache_dir=tmp_path)
    assert client(hub).model_info(REPO).gated == "manual"
    path = client(hub, TOKEN).hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS


def test_a_private_repository_is_hidden(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, FILES, private=True)
    for token in (None, STRANGER_TOKEN):
        with pytest.raises(RepositoryNotFoundError):
            client(hub, token).snapshot_download(REPO, cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        client(hub, "hf_wrong").model_info(REPO)
    assert client(hub, TOKEN).snapshot_download(REPO, cache_dir=tmp_path)


def test_what_a_repository_holds(hub: HubServer) -> None:
    hub.add_repo(REPO, FILES)
    info = client(hub).model_info(REPO, files_metadata=True)
    assert info.siblings is not None
    assert {file.rfilename: file.size for file in info.siblings} == {name: len(data) for name, data in FILES.items()}
    assert [file.rfilename for file in info.siblings if file.lfs] == ["model.safetensors"]
    assert (info.library_name, info.pipeline_tag) == ("pnp-irib", "image-to-image")
    api = client(hub)
    assert {entry.path for entry in api.list_repo_tree(REPO)} == {"README.md", "config.json", "model.safetensors", "sub"}
    assert [entry.path for entry in api.list_repo_tree(REPO, "sub")] == ["sub/notes.txt"]
    assert [entry.path for entry in api.get_paths_info(REPO, ["sub", "config.json", "absent"])] == ["sub", "config.json"]
    assert api.file_exists(REPO, "config.json")
    assert not api.file_exists(REPO, "absent.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_bytes(CARD)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def test_a_folder_is_uploaded_and_comes_back(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    api = client(hub, TOKEN)
    assert api.create_repo("mine", private=True).repo_id == "owner/mine"
    assert api.create_repo("owner/mine", exist_ok=True).repo_id == "owner/mine"
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("owner/mine")
    commit = api.upload_folder(repo_id="owner/mine", folder_path=folder)
    assert commit.oid == api.model_info("owner/mine").sha
    assert hub.files("owner/mine") == {".gitattributes": b"", "README.md": CARD, "model.safetensors": WEIGHTS}
    assert {path.split("/")[1] for method, path in hub.requests if method == "PUT"} == {"upload"}
    back = Path(api.snapshot_download("owner/mine", cache_dir=tmp_path / "cache"))
    assert (back / "model.safetensors").read_bytes() == WEIGHTS

    hub.requests.clear()
    assert api.upload_folder(repo_id="owner/mine", folder_path=folder).oid == commit.oid
    assert not [path for method, path in hub.requests if method == "PUT" or "/commit/" in path]


def test_commits_to_a_branch(hub: HubServer, folder: Path) -> None:
    first = hub.add_repo(REPO, FILES)
    api = client(hub, TOKEN)
    api.create_branch(REPO, branch="next")
    api.create_tag(REPO, tag="v1.0")
    api.upload_file(repo_id=REPO, path_in_repo="config.json", path_or_fileobj=b"[]", revision="next")
    gone = [CommitOperationDelete("sub/"), CommitOperationDelete("model.safetensors")]
    api.create_commit(REPO, gone, commit_message="delete", revision="next")
    assert hub.files(REPO, "next") == {"README.md": CARD, "config.json": b"[]"}
    assert hub.files(REPO) == hub.files(REPO, "v1.0") == hub.files(REPO, first) == FILES
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(repo_id=REPO, path_in_repo="a", path_or_fileobj=b"a", revision="next", parent_commit=first)
    with pytest.raises(RevisionNotFoundError):
        api.upload_folder(repo_id=REPO, folder_path=folder, revision="absent")


@pytest.mark.parametrize(("token", "status"), [(None, 401), (STRANGER_TOKEN, 403)])
def test_only_the_owner_writes(hub: HubServer, folder: Path, token: str | None, status: int) -> None:
    hub.add_repo(REPO, FILES)
    with pytest.raises(HfHubHTTPError) as refused:
        client(hub, token).upload_folder(repo_id=REPO, folder_path=folder)
    assert refused.value.response.status_code == status
    with pytest.raises(HfHubHTTPError) as refused:
        client(hub, token).create_repo("owner/new")
    assert refused.value.response.status_code == status
    assert hub.files(REPO) == FILES


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"license": 3}, "license"),
        ({"library_name": ["a"]}, "library_name"),
        ({"pipeline_tag": {}}, "pipeline_tag"),
        ({"base_model": [1]}, "base_model"),
        ({"base_model": "not a model id"}, "base_model"),
        ("just text", "mapping"),
        (None, "Invalid YAML"),
    ],
)
def test_a_wrong_card_is_refused(hub: HubServer, metadata: object, reason: str) -> None:
    hub.add_repo(REPO, FILES)
    front = "a: [" if metadata is None else yaml.safe_dump(metadata)
    card = f"---\n{front}\n---\n# Model\n".encode()
    with pytest.raises(ValueError, match=reason):
        client(hub, TOKEN).upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=card)
    assert hub.files(REPO) == FILES


def test_a_right_card_is_accepted(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    ModelCard(CARD.decode()).validate()
    hub.add_repo(REPO, FILES)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        client(hub, TOKEN).upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=b"# Model\n")


PROGRAM = """
import json, sys
from huggingface_hub import HfApi, snapshot_download, whoami
api = HfApi()
commit = api.upload_folder(repo_id=api.create_repo("mine").repo_id, folder_path=sys.argv[1])
print(json.dumps([whoami()["name"], commit.oid, snapshot_download("owner/mine")]))
"""


def test_a_subprocess_finds_it_by_its_environment(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    name, commit, snapshot = json.loads(done.stdout)
    assert name == "owner"
    assert Path(snapshot) == tmp_path / "home" / "hub" / "models--owner--mine" / "snapshots" / commit
    assert (Path(snapshot) / "model.safetensors").read_bytes() == WEIGHTS
