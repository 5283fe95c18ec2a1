"""A Hugging Face Hub in memory, for tests that point the real ``huggingface_hub`` client at it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER = "owner"
TOKEN = "hf_owner"
"""Reads and writes every repository."""
STRANGER_TOKEN = "hf_stranger"
"""Valid, but opens no gated or private repository and may write nowhere."""

LFS_SUFFIXES = {".bin", ".ckpt", ".onnx", ".pt", ".pth", ".safetensors", ".tar", ".zip"}
LFS_SIZE = 10_000_000
CARD_TEXTS = ("license", "license_name", "license_link", "library_name", "pipeline_tag")
CARD_LISTS = ("base_model", "tags", "datasets", "language", "metrics")
DATE = "2026-01-01T00:00:00.000Z"


class Answer(NamedTuple):
    """What goes back to the client; ``cut_after`` bytes of the body, where it is set, and then nothing."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = {}
    cut_after: int | None = None


class Refusal(Exception):  # noqa: N818
    """Ends a request with an error as the Hub words it."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: str) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **more}
        self.answer = _json({"error": message}, status, headers)


@dataclass(frozen=True)
class Asked:
    """A request: the parts of its path that a route names, and what came with it."""

    method: str
    parts: Mapping[str, str]
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What the body holds."""
        return json.loads(self.body or b"{}")

    @property
    def user(self) -> str | None:
        """Whose token it carries, or None without one."""
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in (TOKEN, STRANGER_TOKEN):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return {TOKEN: OWNER, STRANGER_TOKEN: "stranger"}.get(token)

    def known_user(self) -> str:
        """The same, where a token is needed."""
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.user


@dataclass
class Repository:
    """Files by path for each commit; branches and tags lead to commits."""

    name: str
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str) -> str:
        """Make ``files`` the whole content of ``branch``."""
        text = json.dumps([self.name, branch, len(self.commits), {path: _sha256(data) for path, data in files.items()}])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit id names."""
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


class HubServer:
    """The Hub; use it as a context manager.

    The CDN that large files are redirected to listens on a port of its own: the client follows a redirect that stays on one
    host, and would then miss the headers that the redirect carries.

    Attributes:
        requests: method and path, without its query, of each request answered.
        ranges: the ``Range`` headers that the CDN was sent.
        cut_after: the next GET of the CDN sends so many bytes of the body and closes the connection.
        always_cut: so do all that follow.
        corrupt: GETs of the CDN flip the last byte of the file.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.cut_after: int | None = None
        self.always_cut = False
        self.corrupt = False
        self._repos: dict[str, Repository] = {}
        self._objects: dict[str, bytes] = {}
        self._lock = threading.RLock()
        self._listeners = [_Listener(self, routes) for routes in (HUB_ROUTES, CDN_ROUTES)]
        self.endpoint, self._cdn = (f"http://127.0.0.1:{listener.server_port}" for listener in self._listeners)

    def __enter__(self) -> Self:
        for listener in self._listeners:
            threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.stop()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables that make the client of a subprocess use this server, with its cache and settings in ``home``."""
        off = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_UPDATE_CHECK")
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
        return {**settings, **dict.fromkeys(off, "1"), "HF_TOKEN": token or "", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}

    def add_repo(self, repo_id: str, files: dict[str, bytes], *, gated: bool = False, private: bool = False) -> str:
        """Make a repository with one commit and return the id of the commit."""
        with self._lock:
            self._repos[repo_id] = Repository(repo_id, gated, private)
            return self.commit(repo_id, files)

    def commit(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add or replace files on a branch, which starts from main if it is new, and return the id of the commit."""
        with self._lock:
            repo = self._repos[repo_id]
            start = repo.branches.get(branch) or repo.branches.get("main", "")
            self._objects.update((_sha256(data), data) for path, data in files.items() if _is_lfs(path, len(data)))
            return repo.commit({**repo.commits.get(start, {}), **files}, branch)

    def tag(self, repo_id: str, tag: str, revision: str = "main") -> None:
        """Name a commit."""
        with self._lock:
            self._repos[repo_id].tags[tag] = self._repos[repo_id].resolve(revision)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        with self._lock:
            return dict(self._repos[repo_id].commits[self._repos[repo_id].resolve(revision)])

    def gets(self) -> list[str]:
        """Paths of the files whose content was asked for."""
        return [path for method, path in self.requests if method == "GET" and re.match("/cdn/|(/[^/]+){2}/resolve/", path)]

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes, routes: Routes) -> Answer:
        """Answer a request by the first of ``routes`` that fits."""
        url = urlsplit(target)
        with self._lock:
            self.requests.append((method, url.path))
            for methods, pattern, route in routes:
                if method in methods.split() and (match := re.fullmatch(pattern, url.path)):
                    parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                    try:
                        return route(self, Asked(method, parts, parse_qs(url.query), headers, body))
                    except Refusal as refusal:
                        return refusal.answer
                    except (KeyError, TypeError, ValueError) as error:
                        return Refusal(400, f"Malformed request: {error!r}").answer
            return Refusal(404, f"No such page: {method} {url.path}").answer

    def _repo(self, asked: Asked, *, write: bool = False) -> Repository:
        """The repository of a request; as on the Hub, one that is private does not exist for others."""
        user = asked.known_user() if write else asked.user
        repo = self._repos.get(asked.parts["repo"])
        if repo is None or (repo.private and user != OWNER):
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user != OWNER:
            raise Refusal(403, "Forbidden: this token may not write to this repository")
        return repo

    def _files(self, asked: Asked) -> tuple[Repository, str, dict[str, bytes]]:
        repo = self._repo(asked)
        commit = repo.resolve(asked.parts.get("revision") or "main")
        return repo, commit, repo.commits[commit]

    def whoami(self, asked: Asked) -> Answer:
        user = asked.known_user()
        token = {"displayName": "test", "role": "write" if user == OWNER else "read"}
        return _json({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": token}})

    def harnesses(self, asked: Asked) -> Answer:
        return _json({"standardEnvVars": [], "harnesses": {}})

    def info(self, asked: Asked) -> Answer:
        repo, commit, files = self._files(asked)
        card, _, _ = read_card(files.get("README.md", b"").decode(errors="replace"))
        about = {"id": repo.name, "modelId": repo.name, "author": repo.name.split("/")[0], "sha": commit, "cardData": card}
        state = {"private": repo.private, "gated": "manual" if repo.gated else False, "createdAt": DATE, "lastModified": DATE}
        found = {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
        for sibling in siblings if asked.query.get("blobs") else []:
            entry = _entry(sibling["rfilename"], files[sibling["rfilename"]])
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                sibling["lfs"] = {**entry["lfs"], "sha256": entry["lfs"]["oid"]}
        return _json({**about, **state, **found, "tags": card.get("tags") or [], "siblings": siblings})

    def tree(self, asked: Asked) -> Answer:
        _, commit, files = self._files(asked)
        folder = asked.parts["path"].strip("/")
        entries = [entry for path, entry in _tree(files).items() if not folder or path.startswith(f"{folder}/")]
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {commit}", "EntryNotFound")
        if asked.query.get("recursive", ["false"])[0].lower() not in ("1", "true"):
            entries = [entry for entry in entries if str(Path(entry["path"]).parent) == (folder or ".")]
        return _json(entries)

    def paths_info(self, asked: Asked) -> Answer:
        entries = _tree(self._files(asked)[2])
        wanted = parse_qs(asked.body.decode()).get("paths", [])
        return _json([entries[path.strip("/")] for path in wanted if path.strip("/") in entries])

    def refs(self, asked: Asked) -> Answer:
        repo = self._repo(asked)

        def listed(kind: str, named: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in named.items()]

        return _json({"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []})

    def resolve(self, asked: Asked) -> Answer:
        repo, commit, files = self._files(asked)
        if repo.gated and asked.user != OWNER:
            message = f"Access to model {repo.name} is restricted"
            raise Refusal(401 if asked.user is None else 403, message, "GatedRepo")
        path = asked.parts["path"]
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        entry = _entry(path, files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" not in entry:
            return Answer(files[path], headers={**headers, "Content-Type": "text/plain; charset=utf-8"})
        linked = {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"'}
        return Answer(b"", 302, {**headers, **linked, "Location": f"{self._cdn}/cdn/{entry['lfs']['oid']}"})

    def download(self, asked: Asked) -> Answer:
        """Send a large file, or the part of it that a ``Range`` header asks for."""
        data = self._objects.get(asked.parts["oid"])
        if data is None:
            raise Refusal(404, "No such object")
        if asked.method == "GET" and self.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 0xFF])
        cut, size = None, len(data)
        if asked.method == "GET":
            cut, self.cut_after = self.cut_after, self.cut_after if self.always_cut else None
        if not (wanted := asked.headers.get("range")):
            return Answer(data, headers={"Accept-Ranges": "bytes"}, cut_after=cut)
        self.ranges.append(wanted)
        first, last = wanted.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if start >= stop:
            raise Refusal(416, "Range not satisfiable", **{"Content-Range": f"bytes */{size}"})
        return Answer(data[start:stop], 206, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}, cut)

    def upload(self, asked: Asked) -> Answer:
        if _sha256(asked.body) != asked.parts["oid"]:
            raise Refusal(400, "The content does not have the announced sha256")
        self._objects[asked.parts["oid"]] = asked.body
        return Answer()

    def create_repo(self, asked: Asked) -> Answer:
        wanted, user = asked.json, asked.known_user()
        owner = wanted.get("organization") or user
        name = f"{owner}/{wanted['name']}"
        about = {"url": f"{self.endpoint}/{name}", "name": name, "id": name}
        if wanted.get("type", "model") != "model":
            raise Refusal(400, "This server holds models only")
        if user != OWNER:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner}")
        if name in self._repos:
            return _json({**about, "error": "You already created this model repo"}, 409)
        self.add_repo(name, {".gitattributes": b""}, private=wanted.get("visibility") == "private")
        return _json(about)

    def create_ref(self, asked: Asked) -> Answer:
        """Make a branch or, where the path names none, a tag."""
        repo, branch = self._repo(asked, write=True), asked.parts.get("branch")
        refs, name = (repo.branches, branch) if branch else (repo.tags, asked.json["tag"])
        if name in refs:
            raise Refusal(409, "Reference already exists")
        refs[name] = repo.resolve(asked.parts.get("revision") or asked.json.get("startingPoint") or "main")
        return _json({}, 201)

    def preupload(self, asked: Asked) -> Answer:
        repo = self._repo(asked, write=True)
        files = repo.commits[repo.resolve(asked.parts["revision"])]
        answers = []
        for path, size in ((wanted["path"], wanted["size"]) for wanted in asked.json["files"]):
            entry = _entry(path, files[path]) if path in files else {}
            mode = "lfs" if _is_lfs(path, size) else "regular"
            answers.append(
                {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": entry.get("lfs", entry).get("oid")}
            )
        return _json({"files": answers})

    def lfs_batch(self, asked: Asked) -> Answer:
        repo = self._repo(asked, write=True)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in asked.json["objects"]]
        verify = {"href": f"{self.endpoint}/{repo.name}.git/info/lfs/verify"}
        for item in objects:
            if item["oid"] not in self._objects:
                item["actions"] = {"upload": {"href": f"{self._cdn}/upload/{item['oid']}"}, "verify": verify}
        return _json({"transfer": "basic", "objects": objects})

    def lfs_verify(self, asked: Asked) -> Answer:
        self._repo(asked, write=True)
        if len(self._objects.get(asked.json["oid"], b"")) != asked.json["size"]:
            raise Refusal(404, "The object was not uploaded")
        return _json({})

    def create_commit(self, asked: Asked) -> Answer:
        """Apply the lines of a commit: a header, then files to add and to delete."""
        repo, branch = self._repo(asked, write=True), asked.parts["revision"]
        if branch not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files = dict(repo.commits[repo.branches[branch]])
        for line in asked.body.splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            path = value.get("path", "")
            if key == "header" and value.get("parentCommit", repo.branches[branch]) != repo.branches[branch]:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[path] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] not in self._objects:
                raise Refusal(400, f"LFS pointer of {path} leads to a file that does not exist")
            elif key == "lfsFile":
                files[path] = self._objects[value["oid"]]
            elif key in ("deletedFile", "deletedFolder"):
                folder = path.rstrip("/") + "/" if key == "deletedFolder" else None
                kept = {
                    name: data for name, data in files.items() if not (name.startswith(folder) if folder else name == path)
                }
                if len(kept) == len(files):
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                files = kept
        commit = repo.commit(files, branch)
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{self.endpoint}/{repo.name}/commit/{commit}"})

    def validate_yaml(self, asked: Asked) -> Answer:
        _, errors, warnings = read_card(asked.json["content"])
        messages = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        return _json(messages, 400 if errors else 200)


def read_card(text: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The metadata that a model card begins with, what is wrong with it, and what is missing."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    try:
        card = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        return {}, [f"Invalid YAML: {error}"], []
    if card is None:
        return {}, [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return {}, ["The metadata must be a mapping"], []
    errors = [f'"{key}" must be a string' for key in CARD_TEXTS if not isinstance(card.get(key, ""), str)]
    for key in CARD_LISTS:
        values = card.get(key, []) if isinstance(card.get(key, []), list) else [card[key]]
        if not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be a string or a list of strings')
        elif key == "base_model" and not all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) for value in values):
            errors.append(f'"base_model" with value {card[key]!r} is not valid. Use a model id.')
    return card, errors, []


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_lfs(path: str, size: int) -> bool:
    return size > 0 and (Path(path).suffix in LFS_SUFFIXES or size > LFS_SIZE)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as a listing shows it; the blob of a large file is its LFS pointer."""
    sha256, size = _sha256(data), len(data)
    lfs = _is_lfs(path, size)
    blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode() if lfs else data
    oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
    more = {"lfs": {"oid": sha256, "size": size, "pointerSize": len(blob)}} if lfs else {}
    return {"type": "file", "path": path, "size": size, "oid": oid, **more}


def _tree(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """All files and folders by path."""
    entries = {path: _entry(path, data) for path, data in files.items()}
    for folder in {str(parent) for path in files for parent in Path(path).parents} - {"."}:
        oid = hashlib.sha1(folder.encode()).hexdigest()
        entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
    return dict(sorted(entries.items()))


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})


Routes = list[tuple[str, str, Callable[[HubServer, Asked], Answer]]]
_REPO, _REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_API = f"/api/models/{_REPO}"
HUB_ROUTES: Routes = [
    ("GET", "/api/whoami-v2", HubServer.whoami),
    ("GET", "/api/agent-harnesses", HubServer.harnesses),
    ("POST", "/api/validate-yaml", HubServer.validate_yaml),
    ("POST", "/api/repos/create", HubServer.create_repo),
    ("GET", f"{_API}(/revision/{_REVISION})?", HubServer.info),
    ("GET", f"{_API}/tree/{_REVISION}(?P<path>/.*)?", HubServer.tree),
    ("GET", f"{_API}/refs", HubServer.refs),
    ("POST", f"{_API}/paths-info/{_REVISION}", HubServer.paths_info),
    ("POST", f"{_API}/branch/(?P<branch>[^/]+)", HubServer.create_ref),
    ("POST", f"{_API}/tag/{_REVISION}", HubServer.create_ref),
    ("POST", f"{_API}/preupload/{_REVISION}", HubServer.preupload),
    ("POST", f"{_API}/commit/{_REVISION}", HubServer.create_commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", HubServer.lfs_batch),
    ("POST", rf"/{_REPO}\.git/info/lfs/verify", HubServer.lfs_verify),
    ("GET HEAD", f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", HubServer.resolve),
]
CDN_ROUTES: Routes = [
    ("GET HEAD", "/cdn/(?P<oid>[0-9a-f]{64})", HubServer.download),
    ("PUT", "/upload/(?P<oid>[0-9a-f]{64})", HubServer.upload),
]


class _Listener(ThreadingHTTPServer):
    """A port of the server, and the connections that clients keep open to it."""

    def __init__(self, hub: HubServer, routes: Routes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.routes = hub, routes
        self.connections: set[socket.socket] = set()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            _close(connection)


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, lets the server answer it, and sends the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the output of the tests quiet."""

    def _respond(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        answer = self.server.hub.answer(self.command, self.path, headers, body, self.server.routes)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.cut_after])
        if answer.cut_after is not None:
            self.close_connection = True
            _close(self.connection)

    do_GET = do_HEAD = do_POST = do_PUT = _respond  # noqa: N815


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
