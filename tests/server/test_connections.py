"""Connections that are slow, crowded, too large or no HTTP (research: serving anchors 5.2, class 10)."""

import contextlib
import gzip
import json
import socket
import threading
import time

import httpx
import pytest

from ling.engine.request import Delta
from tests.server.guarded import MESSAGES, finished


def send(live, *pieces: bytes, pause: float = 0.0, wait: float = 20.0) -> bytes:
    """Send raw bytes and return what comes back before the connection ends or `wait` is over."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            while chunk := connection.recv(65536):
                answer += chunk
        except (TimeoutError, OSError):
            pass
        return answer


def wait_until(true, otherwise: str) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer first-key\r\n"
JSON = b"Content-Type: application/json\r\n"


def test_10_a_body_is_bounded_before_it_is_read_as_json(guarded):
    assert guarded.post(messages=[{"role": "user", "content": "x" * 30_000}]).status_code == 413
    said = send(guarded, HEAD + JSON + b"Content-Length: 999999999\r\n\r\n")
    assert b" 413 " in said.split(b"\r\n")[0]
    chunked = send(
        guarded, HEAD + JSON + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1000\r\n" + b"x" * 4096 + b"\r\n"] * 6
    )
    assert b" 413 " in chunked.split(b"\r\n")[0]  # fmt: skip


def test_10_nothing_is_unpacked(guarded):
    """A small body that becomes a large one would be bounded too late."""
    for coding in ("gzip", "deflate", "br", "x" * 2000, "identity, gzip"):
        answer = guarded.http.post(
            "/v1/chat/completions", content=gzip.compress(json.dumps({"messages": MESSAGES}).encode()),
            headers={"Content-Type": "application/json", "Content-Encoding": coding},
        )  # fmt: skip
        assert answer.status_code == 415, coding
        assert "without Content-Encoding" in answer.json()["error"]["message"]
    plain = guarded.http.post(
        "/v1/chat/completions", json={"messages": MESSAGES}, headers={"Content-Encoding": "identity"}
    )
    assert plain.status_code == 200


def test_10_headers_are_bounded(guarded):
    many = guarded.http.get("/health", headers={f"x-{i}": "1" for i in range(80)})
    assert many.status_code == 431
    assert b" 400 " in send(guarded, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 60_000)


def test_10_what_is_no_http_gets_an_error_of_the_api(guarded):
    for sent in (b"\x16\x03\x01\r\n\r\n", HEAD + b"Host: localhost\r\n\r\n",
                 HEAD + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):  # fmt: skip
        head, _, body = send(guarded, sent).partition(b"\r\n\r\n")
        assert b" 400 " in head.split(b"\r\n")[0]
        assert b"content-type: application/json" in head.lower()
        assert b'"type":"invalid_request_error"' in body


def test_10_json_cannot_be_nested_without_end(live):
    for body in ("[" * 100_000, '{"a":' * 100_000, '{"messages": ' + "[" * 5000 + "]" * 5000 + "}"):
        answer = live.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400


def test_10_a_request_that_dawdles_is_ended(guarded):
    begin = time.monotonic()
    assert send(guarded, b"GET /health HT") == b""
    assert send(guarded) == b""
    late = send(guarded, HEAD + JSON + b"Content-Length: 50\r\n\r\n{")
    assert b" 408 " in late.split(b"\r\n")[0]
    assert send(guarded, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he").count(b"HTTP/1.1") == 1
    assert time.monotonic() - begin < 20


def test_10_a_body_that_dawdles_behind_its_answer_is_ended(guarded):
    """Nobody reads the body of a GET, so nobody's deadline would end it; each piece is a sign of life."""
    for method in (b"GET", b"PUT"):
        head = method + b" /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer first-key\r\n"
        host, port = guarded.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            assert b"HTTP/1.1" in connection.recv(65536)
            begin = time.monotonic()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while time.monotonic() - begin < 30:
                    connection.sendall(b"1\r\na\r\n")
                    time.sleep(0.05)
            assert time.monotonic() - begin < 20


def test_10_a_length_said_in_two_ways_is_refused(guarded):
    """Where a proxy believes the one and the server the other, the rest of the body is somebody else's request."""
    both = HEAD + JSON + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n"
    answer = send(guarded, both)
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "ab " * 400_000}),
        ("/tokenize", {"messages": [{"role": "user", "content": "ab " * 20_000}] * 20}),
        ("/v1/completions", {"prompt": ["a", "x" * 1_200_000]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 2_000}] * 600}),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [
            {"type": "function", "function": {"name": f"f{i}", "description": "d" * 20_000}} for i in range(60)
        ]}),
        ("/v1/chat/completions", {"messages": [*MESSAGES, {
            "role": "assistant", "content": "", "reasoning_content": "x" * 1_200_000
        }]}),
    ],
)  # fmt: skip
def test_10_a_text_that_cannot_fit_the_context_is_not_encoded(live, monkeypatch, path, body):
    """A text of 7 MB took seconds, in which nobody else was answered, and two gigabytes."""
    monkeypatch.setattr(live.service.tokenizer, "encode", lambda *_, **__: pytest.fail("it was encoded"))
    answer = live.post(path, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded"), answer.text[:300]


def test_10_long_texts_to_tokenise_do_not_keep_answers_waiting(pretend, serve):
    pretend.answer = finished
    with serve(pretend) as live:
        going, goes_on = threading.Event(), threading.Event()
        for _ in range(20):
            live.service.tokenizing.submit(lambda: (going.set(), goes_on.wait(30)))
        assert going.wait(20)
        try:
            assert live.post(messages=MESSAGES).status_code == 200
        finally:
            goes_on.set()


def test_10_connections_are_bounded(guarded):
    host, port = guarded.url.removeprefix("http://").split(":")
    held = [socket.create_connection((host, int(port))) for _ in range(8)]
    connections = guarded.server.server_state.connections
    wait_until(lambda: len(connections) >= 8, "not all were taken")
    try:
        crowded = httpx.get(f"{guarded.url}/health")
        assert (crowded.status_code, crowded.headers["retry-after"]) == (503, "1")
        assert crowded.json()["error"]["type"] == "service_unavailable_error"
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: not connections, "they are still held")
    assert httpx.get(f"{guarded.url}/health").status_code == 200


def test_10_a_client_that_takes_no_answer_is_cut_off(guarded, pretend):
    """Closing alone would wait for it for ever, and connections are counted."""
    pretend.answer = lambda id, n: [
        Delta(request_id=id, index=0, text="x" * 20_000_000, token_ids=[1], finish_reason="stop")
    ]
    body = json.dumps({"messages": MESSAGES}).encode()
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(HEAD + JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        connections = guarded.server.server_state.connections
        wait_until(lambda: any(c.transport.get_write_buffer_size() for c in connections), "no answer began")
        wait_until(lambda: not connections, "the connection is still held")
