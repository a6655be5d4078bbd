"""A model hub on this machine: what huggingface_hub asks for to make, fill, list and fetch a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_this_hub"
OWNER, GROUP = "someone", "a-group"


@dataclass
class Repo:
    """A repository; `commits` has the files of each, the first is empty but for the hub's own."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.safetensors filter=lfs\n"}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def oid(self) -> str:
        return _oid(len(self.commits))


@dataclass
class Hub:
    """The server.

    Attributes:
        endpoint: its address.
        repos: by OWNER/NAME.
        requests: METHOD PATH of what it was asked for.
        refuse: says of a method and a path with which status it is refused; 0 where it is not.
    """

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuse: Callable[[str, str], int] = lambda method, path: 0
    blobs: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """An empty hub, until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if status := self.hub.refuse(self.command, path):
            self._send(status, {"error": "refused"})
            return
        for method, pattern, act in _ROUTES:
            if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, path)):
                act(self, *found.groups(), content)
                return
        self._send(404, {"error": f"nothing is known of {path}"})

    def _send(self, status: int, answer: Any, **headers: str) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _seen(self, name: str) -> Repo | None:
        """A repository, where whoever asks may see it."""
        repo = self.hub.repos.get(name)
        if repo is not None and (self._is_owner or not repo.private):
            return repo
        self._send(404 if self._is_owner else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return None

    def who(self, _content: bytes) -> None:
        if self._is_owner:
            self._send(200, {"name": OWNER, "type": "user", "orgs": [{"name": GROUP}]})
        else:
            self._send(401, {"error": "Invalid credentials"})

    def create(self, content: bytes) -> None:
        asked = json.loads(content)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            self._send(409, {"error": "You already created this model repo"})
            return
        self.hub.repos[name] = Repo(asked["visibility"] == "private")
        self._send(200, {"url": f"{self.hub.endpoint}/{name}"})

    def info(self, name: str, content: bytes) -> None:
        if repo := self._seen(name):
            siblings = [{"rfilename": path} for path in sorted(repo.files)]
            card = _front_matter(repo.files.get("README.md", b"").decode())
            known = {"id": name, "sha": repo.oid, "private": repo.private, "siblings": siblings, "cardData": card}
            self._send(200, known)

    def check_card(self, content: bytes) -> None:
        card = _front_matter(json.loads(content)["content"])
        problems = [{"message": f"{key!r} is empty"} for key, value in card.items() if value in (None, [], "")]
        self._send(400 if problems else 200, {"errors": problems, "warnings": []})

    def how_to_upload(self, name: str, content: bytes) -> None:
        if repo := self._seen(name):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": _git_oid(repo.files[one["path"]]) if one["path"] in repo.files else None,
                }
                for one in json.loads(content)["files"]
            ]
            self._send(200, {"files": files})

    def batch(self, name: str, content: bytes) -> None:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                **(
                    {}
                    if one["oid"] in self.hub.blobs
                    else {"actions": {"upload": {"href": f"{self.hub.endpoint}/upload/{one['oid']}"}}}
                ),
            }
            for one in json.loads(content)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str, content: bytes) -> None:
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.blobs[oid] = content
        self._send(200, {})

    def commit(self, name: str, content: bytes) -> None:
        repo = self._seen(name)
        if repo is None:
            return
        files = dict(repo.files)
        for line in content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    if value.get("parentCommit", repo.oid) != repo.oid:
                        self._send(412, {"error": "A commit has happened since"})
                        return
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        repo.commits.append(files)
        self._send(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{repo.oid}", "commitOid": repo.oid})

    def tree(self, name: str, revision: str, _content: bytes) -> None:
        if repo := self._seen(name):
            entries = []
            for path, content in sorted(_at(repo, revision).items()):
                entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
                if path.endswith(".safetensors"):
                    sha256 = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
                entries.append(entry)
            self._send(200, entries)

    def file(self, name: str, revision: str, path: str, _content: bytes) -> None:
        if repo := self._seen(name):
            content = _at(repo, revision).get(path)
            if content is None:
                self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=repo.oid)
                return
            self._send(200, content, ETag=f'"{_git_oid(content)}"', X_Repo_Commit=repo.oid)


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    ("GET", "/api/whoami-v2", _Handler.who),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.check_card),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/[^/]+", _Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    ("POST", f"/api/models/{_NAME}/preupload/[^/]+", _Handler.how_to_upload),
    ("POST", f"/api/models/{_NAME}/commit/[^/]+", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/upload/([0-9a-f]{64})", _Handler.upload),
    ("GET", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.file),
)


def _oid(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _at(repo: Repo, revision: str) -> dict[str, bytes]:
    numbers = {_oid(number): number for number in range(1, len(repo.commits) + 1)}
    return repo.commits[numbers.get(revision, len(repo.commits)) - 1]


def _front_matter(text: str) -> dict[str, Any]:
    import yaml

    found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return dict(yaml.safe_load(found[1]) or {}) if found else {}
