"""As much of Hugging Face's server as its client asks for: listing, tree, files with hashes, ranges; and accidents."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONVERTED_COMMIT = "f" * 40
LARGE = (".safetensors", "tokenizer.json", ".bin")


needs_kept_listings = pytest.mark.skipif(
    not hasattr(huggingface_hub, "get_cached_repo_tree"), reason="this huggingface_hub keeps no listing in its cache"
)


class FakeHub:
    """One repository, `owner/tiny`, whose files are those of a directory.

    kind  `model` or `dataset`
    """

    def __init__(self, directory: Path, kind: str = "model") -> None:
        self.kind = kind
        self.files = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        self.converted: dict[str, bytes] = {}
        """Files of a data set's branch `refs/convert/parquet`, which is there if it has any."""
        self.gated = False
        """Whether files, though not their listing, are refused."""
        self.requests: list[str] = []
        """`METHOD path` and the range, if one was asked for."""
        self.cut: dict[str, int] = {}
        """Bytes after which the connection breaks, the next time a file is sent."""
        self.slow = ""
        """A file that stops coming after its first bytes, for as long as this stands here."""
        self.url = ""

    def got(self, name: str) -> list[str]:
        return [line for line in self.requests if line.startswith("GET") and f"/{name}" in line]

    def commit(self, revision: str) -> str | None:
        """Return the commit of a branch, or None if there is none."""
        if revision in ("", "main", COMMIT):
            return COMMIT
        return CONVERTED_COMMIT if self.converted and revision in ("refs/convert/parquet", CONVERTED_COMMIT) else None

    def at(self, commit: str) -> dict[str, bytes]:
        return self.files if commit == COMMIT else self.converted

    def listing(self, commit: str) -> dict[str, object]:
        files = self.at(commit).items()
        siblings = [{"rfilename": name, **self.told(name, content, "blobId", "sha256")} for name, content in files]
        return {"id": "owner/tiny", "modelId": "owner/tiny", "sha": commit, "siblings": siblings}

    def tree(self, commit: str) -> list[dict[str, object]]:
        files = self.at(commit).items()
        return [{"type": "file", "path": name, **self.told(name, content, "oid", "oid")} for name, content in files]

    def told(self, name: str, content: bytes, git: str, lfs: str) -> dict[str, object]:
        told: dict[str, object] = {"size": len(content), git: git_sha1(content)}
        if name.endswith(LARGE):
            told["lfs"] = {lfs: hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return told

    def etag(self, name: str, content: bytes) -> str:
        return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_sha1(content)


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have the client ask `url`, for the length of a test."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for module in (constants, file_download):  # before 1.0 the latter has a copy
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._route(send=False)

        def do_GET(self) -> None:
            self._route(send=True)

        def _route(self, *, send: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            wanted = self.headers.get("Range", "")
            hub.requests.append(f"{self.command} {path} {wanted}".rstrip())
            api, files = f"/api/{hub.kind}s/owner/", "/owner/tiny/resolve/"
            if hub.kind != "model":
                files = f"/{hub.kind}s{files}"
            if path.startswith(f"{api}gated"):
                return self._refuse(403, "GatedRepo")
            if path == f"{api}tiny" or path.startswith((f"{api}tiny/revision/", f"{api}tiny/tree/")):
                what, _, revision = path.removeprefix(f"{api}tiny").removeprefix("/").partition("/")
                if (commit := hub.commit(revision)) is None:
                    return self._refuse(404, "RevisionNotFound")
                return self._json(hub.tree(commit) if what == "tree" else hub.listing(commit))
            revision, name = self._inside(path.removeprefix(files)) if path.startswith(files) else ("none", "")
            commit = hub.commit(revision)
            if commit is None or name not in hub.at(commit):
                return self._refuse(404, "RepoNotFound" if path.startswith("/api/") else "EntryNotFound")
            if hub.gated:
                return self._refuse(403, "GatedRepo")
            return self._file(name, commit, wanted, send)

        @staticmethod
        def _inside(path: str) -> tuple[str, str]:
            """Split `refs/convert/parquet/FILE` or `REVISION/FILE`."""
            branch = "refs/convert/parquet"
            if path.startswith(f"{branch}/"):
                return branch, path.removeprefix(f"{branch}/")
            revision, _, name = path.partition("/")
            return revision, name

        def _file(self, name: str, commit: str, wanted: str, send: bool) -> None:
            content, start = hub.at(commit)[name], 0
            if wanted.startswith("bytes="):
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hub.etag(name, content)}"')
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if not send:
                return
            if (stop := hub.cut.pop(name, None)) is not None:
                self.wfile.write(content[start:stop])
                self.close_connection = True
                return
            if name == hub.slow:
                self.wfile.write(content[start : start + 1000])
                while hub.slow:
                    time.sleep(0.02)
                self.close_connection = True
                return
            self.wfile.write(content[start:])

        def _json(self, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "no")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
