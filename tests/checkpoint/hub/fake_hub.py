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

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", "tokenizer.json", ".bin")


class FakeHub:
    """One model, `owner/tiny`, whose files are those of a directory."""

    def __init__(self, directory: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in directory.iterdir()}
        self.requests: list[str] = []
        """`METHOD path` and the range, if one was asked for."""
        self.cut: dict[str, int] = {}
        """Bytes after which the connection breaks, the next time a file is sent."""
        self.slow = ""
        """A file that stops coming after its first bytes, for as long as this stands here."""
        self.url = ""

    def got(self, name: str) -> list[str]:
        return [line for line in self.requests if line.startswith("GET") and f"/{name}" in line]

    def listing(self) -> dict[str, object]:
        siblings = [{"rfilename": name, **self.told(name, "blobId", "sha256")} for name in self.files]
        return {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "siblings": siblings}

    def tree(self) -> list[dict[str, object]]:
        return [{"type": "file", "path": name, **self.told(name, "oid", "oid")} for name in self.files]

    def told(self, name: str, git: str, lfs: str) -> dict[str, object]:
        content = self.files[name]
        told: dict[str, object] = {"size": len(content), git: git_sha1(content)}
        if name.endswith(LARGE):
            told["lfs"] = {lfs: hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return told

    def etag(self, name: str) -> str:
        content = self.files[name]
        return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_sha1(content)


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
            if path.startswith("/api/models/owner/tiny/tree/"):
                return self._json(hub.tree())
            if path in ("/api/models/owner/tiny", "/api/models/owner/tiny/revision/main"):
                return self._json(hub.listing())
            if path.startswith("/api/models/owner/gated"):
                return self._refuse(403, "GatedRepo")
            if path.startswith("/api/models/owner/tiny/revision/"):
                return self._refuse(404, "RevisionNotFound")
            name = path.rpartition("/")[2]
            if not path.startswith("/owner/tiny/resolve/") or name not in hub.files:
                return self._refuse(404, "RepoNotFound" if path.startswith("/api/") else "EntryNotFound")
            return self._file(name, wanted, send)

        def _file(self, name: str, wanted: str, send: bool) -> None:
            content, start = hub.files[name], 0
            if wanted.startswith("bytes="):
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hub.etag(name)}"')
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
