"""A live server over the bundled model, and servers over an engine that only pretends."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import httpx
import openai
import pytest

from ling.config.engine import EngineConfig
from ling.engine.build import open_engine
from ling.engine.bundled import bundled_directory
from ling.engine.core import Engine
from ling.engine.loop import EngineLoop
from ling.engine.request import Delta
from ling.engine.stats import RequestStats
from ling.server.run import Server, address, bind
from ling.server.sampling import SamplingDefaults
from ling.server.service import Service
from ling.server.settings import ServerSettings
from tests.server.guarded import KEYS, finished


class PretendLoop:
    """Stands in for `EngineLoop`: takes requests and answers only what a test says."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.alive, self.draining = True, False
        self.seconds_since_progress = 0.0
        self.submitted: dict[str, dict[str, Any]] = {}
        self.aborted: list[str] = []
        self.arrived, self.left = threading.Event(), threading.Event()
        self.refuse: Exception | None = None
        self.answer: Callable[[str, int], list[Delta]] | None = None
        """Deltas to give at once, by request id and n."""

    @property
    def num_unfinished(self) -> int:
        return len(self.submitted) - len(self.aborted)

    def submit(
        self, id: str, prompt: Any, params: Any, deliver: Any, *, grammar: Any = None, salt: str = ""
    ) -> RequestStats:
        if self.refuse is not None:
            raise self.refuse
        self.submitted[id] = {"prompt": prompt, "params": params, "salt": salt, "deliver": deliver}
        self.arrived.set()
        for delta in self.answer(id, params.n) if self.answer else ():
            deliver(delta)
        return RequestStats(time.monotonic())

    def abort(self, id: str) -> None:
        self.aborted.append(id)
        self.left.set()

    def stop(self, drain_seconds: float = 0.0) -> None:
        self.draining = True
        for id, request in self.submitted.items():
            if id not in self.aborted:
                for index in range(request["params"].n):
                    request["deliver"](Delta(request_id=id, index=index, finish_reason="abort"))


class Live:
    """A server on a free port."""

    def __init__(self, service: Service, url: str, server: Server) -> None:
        self.service, self.url, self.server = service, url, server
        self.http = httpx.Client(base_url=url, timeout=30, verify=False)  # reading certificates takes a while

    @cached_property
    def client(self) -> openai.OpenAI:
        plain = openai.DefaultHttpxClient(verify=False)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=30, http_client=plain)

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def ask(self, **body: Any) -> httpx.Response:
        """Ask a question in a chat, with more fields."""
        return self.post(**{"messages": [{"role": "user", "content": "What is the capital of France?"}], **body})


@contextmanager
def _serve(loop: Any, **settings: Any) -> Iterator[Live]:
    settings.setdefault("shutdown_seconds", 0.0)
    chosen = ServerSettings(**{"served_names": ("ling", "other/name"), "port": 0, **settings})
    taken = bind(chosen)
    service = Service(loop, chosen, SamplingDefaults())
    server = Server(service, taken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    live = Live(service, address(taken), server)
    try:
        yield live
    finally:
        live.http.close()
        if "client" in vars(live):
            live.client.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def engine() -> Engine:
    return open_engine(bundled_directory(), EngineConfig(batch_invariant=True))


@pytest.fixture(scope="session")
def live(engine: Engine) -> Iterator[Live]:
    """The bundled model, served. Tests share it."""
    loop = EngineLoop(engine).start()
    with _serve(loop, vllm_metrics=True) as live:
        yield live


@pytest.fixture
def pretend(engine: Engine) -> PretendLoop:
    return PretendLoop(engine)


@pytest.fixture
def serve() -> Callable[..., Any]:
    """Serve a loop with settings of one's own, as a context manager."""
    return _serve


@pytest.fixture
def guarded(pretend, serve):
    pretend.answer = finished
    limits = {"max_body_bytes": 20_000, "read_seconds": 0.4, "max_connections": 6}
    with serve(pretend, api_keys=KEYS, allowed_origins=("https://good.example",), **limits) as live:
        live.http.headers["Authorization"] = f"Bearer {KEYS[0]}"
        yield live
