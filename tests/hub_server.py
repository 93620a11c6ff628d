"""The Hugging Face Hub, played on 127.0.0.1: a few repositories, as its client asks for them, releases 0.30 to 2."""

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".safetensors", ".bin", ".h5", ".msgpack", ".parquet")  # files that the Hub keeps in LFS
API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """A model or a data set on the Hub, with one commit."""

    name: str
    commit: str
    files: dict[str, bytes]
    kind: str = "model"
    branch: str = "main"


def checksum(name: str, body: bytes) -> str:
    """Return a file's ETag: its SHA-256 where it is in LFS, else the SHA-1 under which git keeps it."""
    if name.endswith(LARGE):
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does when all is well. ``server.asked`` collects what was asked, in order.

    Used as a proxy, it notes the address of another host and refuses.
    """

    def do_HEAD(self):
        self.respond()

    def do_GET(self):
        self.respond()

    def do_POST(self):
        self.respond()

    def do_CONNECT(self):
        self.respond()

    def respond(self):
        self.server.asked.append(self.path)
        path = urllib.parse.urlsplit(self.path).path
        if not self.path.startswith("/"):
            self.answer(b"", 403)
        elif found := API.fullmatch(path):
            kind, name, what, revision = found.groups()
            if repository := self.repository(kind, name, revision):
                self.tell(self.listing(repository) if what == "tree" else self.facts(repository))
        elif found := FILE.fullmatch(path):
            data_set, name, revision, file = found.groups()
            if repository := self.repository("dataset" if data_set else "model", name, revision):
                self.send(repository, urllib.parse.unquote(file))
        else:
            self.answer(b"", 404)

    def repository(self, kind: str, name: str, revision: str | None) -> Repository | None:
        """Return what is asked for; else answer that it does not exist."""
        repository = self.server.repositories.get((kind, name))
        if repository is None:
            return self.answer(b"", 404, **{"X-Error-Code": "RepoNotFound"})
        if urllib.parse.unquote(revision or "main") not in (repository.commit, repository.branch):
            return self.answer(b"", 404, **{"X-Error-Code": "RevisionNotFound"})
        return repository

    def facts(self, repository: Repository) -> dict:
        names = [{"rfilename": name} for name in repository.files]
        return {"id": repository.name, "sha": repository.commit, "siblings": names}

    def listing(self, repository: Repository) -> list[dict]:
        listed = []
        for name, body in repository.files.items():
            entry = {"type": "file", "path": name, "size": len(body), "oid": self.server.checksum(name, body)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": entry["oid"], "size": len(body), "pointerSize": 134}
            listed.append(entry)
        return listed

    def tell(self, content: dict | list):
        self.answer(json.dumps(content).encode())

    def send(self, repository: Repository, name: str):
        """Send a file, or the rest of it."""
        if name not in repository.files:
            return self.answer(b"", 404, **{"X-Error-Code": "EntryNotFound"})
        body = repository.files[name]
        facts = {"ETag": f'"{self.server.checksum(name, body)}"', "X-Repo-Commit": repository.commit}
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.deliver(name, body, start, facts)

    def deliver(self, name: str, body: bytes, start: int, facts: dict[str, str]):
        self.answer(body[start:], 206 if start else 200, **facts)

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str):
        self.send_response(status)
        for name, value in {"Content-Length": len(body) if length is None else length, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.wfile.flush()

    def log_message(self, *_):
        pass


class Hub(ThreadingHTTPServer):
    """A server for some repositories; `playing` starts and ends it."""

    daemon_threads = True

    def __init__(self, repositories: list[Repository], handler: type[Handler] = Handler) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.repositories = {(item.kind, item.name): item for item in repositories}
        self.checksum: Callable[[str, bytes], str] = checksum
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """Say nothing: a client has given up."""

    @contextlib.contextmanager
    def playing(self) -> Iterator["Hub"]:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
