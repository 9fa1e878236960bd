"""A small OpenAI server over our own model, in the manners of several programs, honest or not."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ling.engine.llm import LLM
from ling.engine.request import SamplingParams

HONEST = ("vllm", "vllm-old", "llama.cpp", "strict", "text", "chat", "chat-strict")
NOT_HTTP = {"html": b"<html>hello</html>", "list": b"[1, 2]", "deep": b"[" * 100_000, "empty": b""}


@contextmanager
def serve(llm: LLM, manner: str) -> Iterator[str]:
    """Serve `llm` and yield the address. Nothing of it goes on behind the `with`: `llm` serves one thread at a time."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"data": [{"id": "served"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chat = self.path == "/v1/chat/completions"
            if manner == "hang up":
                return self.connection.close()
            if manner == "hang":
                return None if closing.wait(60) else self._answer(200, {})
            if manner == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"{")
                return None
            if manner in NOT_HTTP:
                return self._answer(200, NOT_HTTP[manner])
            if manner == "broken":
                return self._answer(500, {"error": {"message": "out of\nmemory"}})
            if manner == "key" and self.headers.get("Authorization") != "Bearer secret":
                return self._answer(401, {"error": "no key"})
            if manner.startswith("chat") and not chat:
                return self._answer(404, {})
            if manner.endswith("strict") and "return_token_ids" in asked:
                return self._answer(400, {"message": "unknown field return_token_ids"})
            return self._answer(200, {"choices": [_choice(llm, asked, manner)]} if manner != "no choices" else {})

        def _answer(self, status: int, content: Any) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # so that closing waits for them
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _choice(llm: LLM, asked: dict[str, Any], manner: str) -> dict[str, Any]:
    assert asked["model"] == "served"
    assert asked["temperature"] == 0
    prompt = asked["prompt"] if "prompt" in asked else llm.chat_prompt(asked["messages"])
    (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=asked["max_tokens"]))
    (done,) = output.outputs
    ended = done.finish_reason == "stop"
    ids = done.token_ids[:-1] if ended else done.token_ids
    logprobs: list[Any] = [-x for x in llm.negative_log_likelihoods([[*prompt, *ids]])[0][len(prompt) - 1 :]]
    told_ids = done.token_ids  # vLLM lists the stop token as well, without a log-probability
    if manner == "other text":
        ids = told_ids = [llm.tokenizer.encode("zebra")[0] for _ in ids]
    elif manner == "other numbers":
        logprobs = [x - 1.0 for x in logprobs]
    elif manner == "no numbers":
        logprobs = [None for _ in logprobs]
    elif manner == "outside":
        told_ids = [10**6 for _ in ids]
    elif manner == "negative":
        told_ids = [-1 for _ in ids]
    elif manner == "too long":
        told_ids = ids = ids * 40
    strings = [llm.tokenizer.decode([x]) for x in ids]
    choice: dict[str, Any] = {"finish_reason": done.finish_reason}
    text = llm.tokenizer.decode(ids)
    choice |= {"message": {"role": "assistant", "content": text}} if "messages" in asked else {"text": text}
    if manner == "text":
        return choice
    if manner == "llama.cpp":
        entries = [{"id": i, "token": s, "logprob": x} for i, s, x in zip(ids, strings, logprobs)]
        return choice | {"logprobs": {"content": entries}}
    if "messages" in asked:
        return choice | {"logprobs": {"content": [{"token": s, "logprob": x} for s, x in zip(strings, logprobs)]}}
    if manner == "vllm-old":
        return choice | {"logprobs": {"tokens": [f"token_id:{x}" for x in ids], "token_logprobs": logprobs}}
    if manner == "strict":
        return choice | {"logprobs": {"tokens": strings, "token_logprobs": logprobs}}
    return choice | {"token_ids": told_ids, "logprobs": {"tokens": strings, "token_logprobs": logprobs}}
