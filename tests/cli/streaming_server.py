"""A server that streams scripted answers, in the manners of several programs, honest or not."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE_SECONDS = 0.02


class Streaming:
    """What a server was asked, and how it answers.

    manner  plain; no usage; text only (no token ids); short only (prompts); refuse every third; broken (503);
            cut (before the end); error event; odd event; hang; not a stream; sized (Content-Length, no chunks);
            none from the fourth
    """

    def __init__(self, manner: str = "plain") -> None:
        self.manner = manner
        self.asked: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.url = ""
        self.lock = threading.Lock()
        self.closing = threading.Event()


@contextmanager
def stream_from(manner: str = "plain") -> Iterator[Streaming]:
    told = Streaming(manner)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._json(200, {"data": [{"id": "scripted"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with told.lock:
                told.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
                number = len(told.asked)
                told.at_once += 1
                told.most_at_once = max(told.most_at_once, told.at_once)
                self.is_counted = True
            try:
                self._answer(body, number)
            finally:
                self._leave()

        def _leave(self) -> None:
            """Count no more: before the last of an answer is sent, behind which the client may ask again at once."""
            with told.lock:
                told.at_once -= self.is_counted
                self.is_counted = False

        def _answer(self, body: dict[str, Any], number: int) -> None:
            ids = isinstance(body.get("prompt"), list)
            if manner == "none from the fourth" and number >= 4:
                told.closing.wait()
                return None
            if manner == "broken" or (manner == "refuse every third" and number % 3 == 0):
                return self._json(503, {"error": {"message": "too many\nwait"}})
            if manner == "text only" and ids:
                return self._json(400, {"error": {"message": "prompt must be text"}})
            if manner == "short only" and len(body.get("prompt", "")) > 4:
                return self._json(400, {"error": {"message": "the prompt is too long"}})
            if manner == "not a stream":
                return self._json(200, {"choices": []})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            events = list(_events(body, manner))
            if manner == "sized":
                self.send_header("Content-Length", str(sum(map(len, events))))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in events:
                time.sleep(PIECE_SECONDS if b"x" in event else 0)
                if event is events[-1]:
                    self._leave()
                self.wfile.write(event if manner == "sized" else b"%x\r\n%b\r\n" % (len(event), event))
            if manner != "sized":
                self.wfile.write(b"0\r\n\r\n")
            return None

        def _json(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that hang up
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield told
    finally:
        told.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _events(body: dict[str, Any], manner: str) -> Iterator[bytes]:
    chat = "messages" in body
    if chat:
        yield _event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    yield b": still here\n\n"
    count = body["max_tokens"]
    for index in range(count):
        if manner == "cut" and index == 1:
            return
        if manner == "hang" and index == 1:
            time.sleep(0.5)
        if manner == "odd event" and index == 1:
            yield _event({"choices": ["x"]})
        if manner == "error event" and index == 1:
            yield _event({"error": {"message": "the engine died"}})
            return
        said = {"delta": {"content": "x"}} if chat else {"text": "x"}
        yield _event({"choices": [{**said, "finish_reason": "length" if index == count - 1 else None}]})
    if manner != "no usage":
        yield _event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count}})
    yield b"data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
