"""A small Hugging Face hub on 127.0.0.1, with just what huggingface_hub requests. It counts the bytes it serves."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BOT = "SFconvertbot"


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their names in a repository."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass
class Repo:
    """Files by commit, and commits by branch; `parents` and `pulls` are for the bot's conversions."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    gated: bool = False
    refuse: int = 0


@dataclass(frozen=True)
class Served:
    """One answer: the request with its headers (names in lower case), and the bytes of the body that were sent."""

    method: str
    path: str
    n_bytes: int
    headers: dict[str, str]


class FakeHub:
    """repos: by name. stall: files that stop halfway until released. cut: files whose connection breaks once."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.served: list[Served] = []
        self.stall: set[str] = set()
        self.cut: set[str] = set()
        self.ignore_ranges = False
        self.url = ""

    def add(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit to a branch, and return its hash."""
        repo = self.repos.setdefault(repo_id, Repo())
        commit = hashlib.sha1(repr((repo_id, branch, sorted(files), len(repo.commits))).encode()).hexdigest()
        repo.commits[commit] = files
        repo.parents[commit] = repo.branches.get(branch, "")
        repo.branches[branch] = commit
        return commit

    def convert(self, repo_id: str, files: dict[str, bytes], author: str = BOT) -> str:
        """Add a pull request with safetensors to a repository of pickles, and return its commit."""
        repo = self.repos[repo_id]
        number = len(repo.pulls) + 1
        commit = self.add(repo_id, repo.commits[repo.branches["main"]] | files, f"refs/pr/{number}")
        repo.parents[commit] = repo.branches["main"]
        pull = {"title": "Adding `safetensors` variant of this model", "num": number, "status": "open"}
        details = {"author": {"name": author}, "createdAt": "2024-01-01T00:00:00.000Z", "isPullRequest": True}
        repo.pulls.append({**pull, **details, "repo": {"name": repo_id, "type": "model"}})
        return commit

    def bytes_of(self, suffix: str) -> int:
        """The bytes served of files whose name ends with `suffix`."""
        return sum(one.n_bytes for one in self.served if one.method == "GET" and one.path.endswith(suffix))


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub until the block ends."""

    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.stall.clear()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|commits|discussions)(?:/([^/]+))?.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            self._api(api[1], api[2] or "revision", unquote(api[3] or "main"))
        elif file:
            self._file(file[1], unquote(file[2]), unquote(file[3]))
        else:
            self._answer(404, b"", {})

    def _repo(self, repo_id: str, revision: str) -> tuple[Repo, str] | None:
        repo = self.fake.repos.get(repo_id)
        if repo is None:
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if repo.refuse:
            return self._answer(repo.refuse, b"", {"Retry-After": "17"} if repo.refuse == 429 else {})
        commit = revision if revision in repo.commits else repo.branches.get(revision)
        if commit is None:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return repo, commit

    def _api(self, repo_id: str, what: str, revision: str) -> None:
        found = self._repo(repo_id, "main" if what == "discussions" else revision)
        if found is None:
            return
        repo, commit = found
        files = {name: _entry(name, data) for name, data in repo.commits[commit].items()}
        answers: dict[str, Any] = {
            "revision": {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": list(files.values())},
            "tree": [{"type": "file", **entry} for entry in files.values()],
            "discussions": {"count": len(repo.pulls), "start": 0, "discussions": repo.pulls},
            "commits": [
                {"id": one, "authors": [], "date": "2024-01-01T00:00:00.000Z", "title": "", "message": ""}
                for one in (commit, repo.parents[commit])
                if one
            ],
        }
        self._answer(200, json.dumps(answers[what]).encode(), {"Content-Type": "application/json"})

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        found = self._repo(repo_id, revision)
        if found is None:
            return
        repo, commit = found
        if repo.gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        data = repo.commits[commit].get(name)
        if data is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"ETag": f'"{_blob(name, data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if "lfs" in _entry(name, data):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not self.fake.ignore_ranges:
            start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
            part = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            self._answer(206, data[start:stop], headers | {"Content-Range": part}, name)
        else:
            self._answer(200, data, headers, name)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        n_bytes, asked_with = 0, {key.lower(): value for key, value in self.headers.items()}
        if self.command == "GET":
            try:
                n_bytes = self._body(body, name)
            except OSError:  # the client has disconnected
                self.close_connection = True
        self.fake.served.append(Served(self.command, self.path.split("?")[0], n_bytes, asked_with))

    def _body(self, body: bytes, name: str) -> int:
        half = len(body) // 2
        if name in self.fake.cut and "Range" not in self.headers:
            self.fake.cut.discard(name)
            self.close_connection = True
            self.wfile.write(body[:half])
            return half
        self.wfile.write(body[:half])
        self.wfile.flush()
        while name in self.fake.stall and "Range" not in self.headers:
            time.sleep(0.02)
        self.wfile.write(body[half:])
        return len(body)


def _blob(name: str, data: bytes) -> str:
    large = name.endswith((".safetensors", ".bin"))
    return hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "path": name, "size": len(data)}
    entry["blobId"] = entry["oid"] = hashlib.sha1(data).hexdigest()
    if name.endswith((".safetensors", ".bin")):
        lfs = {"sha256": _blob(name, data), "oid": _blob(name, data), "size": len(data), "pointerSize": 134}
        entry["lfs"] = lfs
    return entry
