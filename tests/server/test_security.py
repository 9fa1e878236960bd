"""Classes of weakness that servers of this kind had (research: serving anchors 5.2), one by one.

Those of the checkpoint's files are guarded by tests/checkpoint, those of grammars by tests/engine.
"""

import ast
import json
import time
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route

import ling.server
from ling.engine.request import Delta
from ling.errors import ConfigError, QueueFullError
from ling.server.app import build_app
from ling.server.guard import OPEN
from ling.server.run import bind
from ling.server.settings import ServerSettings
from tests.server.guarded import KEYS, MESSAGES, finished


@pytest.mark.parametrize("module", sorted(Path(ling.server.__file__).parent.rglob("*.py")), ids=lambda p: p.stem)
def test_1_and_3_nothing_is_unpickled_imported_by_name_or_fetched(module):
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "subprocess", "urllib.request", "requests", "httpx"}
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not banned & set(names), (module, names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__"), (module, node.lineno)


def test_2_and_18_no_tensor_and_no_path_comes_with_a_request(guarded):
    for field in ("prompt_embeds", "lora_path", "chat_template", "logits_processors"):
        answer = guarded.ask(**{field: "/etc/passwd"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_4_and_5_templates_take_two_switches_and_no_jinja(guarded):
    for options in ({"tokenize": True}, {"messages": []}, {"tools": "x"}, {"x" * 2000: 1}):
        assert guarded.ask(chat_template_kwargs=options).status_code == 400
    hostile = "{{ ''.__class__.__mro__ }}{% for i in range(10**9) %}x{% endfor %}"
    answer = guarded.post("/tokenize", messages=[{"role": "user", "content": hostile}]).json()
    assert hostile in guarded.service.tokenizer.decode(answer["tokens"])


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 17}, {"n": 10**9}, {"best_of": 100}, {"stop": ["x"] * 17}, {"stop": "x" * 257}, {"top_logprobs": 21},
        {"prompt_logprobs": 21}, {"logit_bias": dict.fromkeys(map(str, range(1025)), 1)},
        {"messages": [{"role": "user", "content": ""}] * 2049}, {"stop_token_ids": [1] * 17},
        {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]},
    ],
)  # fmt: skip
def test_6_counts_are_bounded(live, extra):
    assert live.ask(**{"logprobs": True, **extra}).status_code == 400
    assert live.post("/v1/completions", prompt=["x"] * 65).status_code == 400


@pytest.mark.parametrize(
    "extra",
    [
        {"stop_token_ids": [-1]}, {"stop_token_ids": [10**6]}, {"logit_bias": {"-1": 1}}, {"seed": 2**64},
        {"logit_bias": {"99999": 1}}, {"logit_bias": {"1": 1e9}}, {"max_tokens": -1}, {"max_tokens": 2**40},
        {"n": True}, {"temperature": True}, {"top_k": -5}, {"min_tokens": -1}, {"logit_bias": {"\u0661": 1}},
    ],
)  # fmt: skip
def test_7_numbers_out_of_range_never_reach_the_engine(live, extra):
    steps = live.service.engine.engine.stats.requests
    assert live.ask(**extra).status_code == 400
    assert live.service.engine.engine.stats.requests == steps


def test_7_infinity_and_nan_and_half_a_character_are_no_json(live):
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"messages": [{{"role": "user", "content": "x"}}], "temperature": {number}}}'
        answer = live.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, number
    body = '{"messages": [{"role": "user", "content": "\\ud800"}]}'
    answer = live.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_8_a_request_that_fails_in_the_engine_fails_alone_and_says_little(pretend, serve, caplog):
    pretend.answer = lambda id, n: [
        Delta(request_id=id, index=0, finish_reason="error", error=ValueError("inside: a secret prompt"))
    ]
    with serve(pretend) as live:
        answer = live.post(messages=MESSAGES)
        stream = live.post(messages=MESSAGES, stream=True)
        healthy = live.http.get("/health").status_code
        pretend.answer = finished
        assert live.post(messages=MESSAGES).status_code == 200
    assert (answer.status_code, healthy) == (500, 200)
    error = answer.json()["error"]
    assert error["message"].endswith(answer.headers["x-request-id"])
    for text in (answer.text, stream.text):
        assert "secret" not in text
        assert "Traceback" not in text
        assert "ValueError" not in text
    assert "data: [DONE]" in stream.text
    assert answer.headers["x-should-retry"] == "false"


def test_9_grammars_that_would_explode_are_refused_in_time(live):
    deep: dict = {"type": "string"}
    for _ in range(90):
        deep = {"type": "array", "items": deep}
    begin = time.monotonic()
    for extra in (
        {"guided_json": deep},
        {"guided_json": {"enum": list(range(5000))}},
        {"guided_regex": "((a{0,1000}){0,1000}){0,1000}" * 3},
        {"guided_json": {"type": "string", "pattern": "(a+)+" * 2000}},
    ):
        assert live.ask(**extra, max_tokens=4).status_code in (200, 400)
    assert time.monotonic() - begin < 20
    assert live.ask(max_tokens=1).status_code == 200


def routes(service):
    app = build_app(service)._inner
    assert all(isinstance(route, Route) for route in app.routes)
    return [(method, route.path) for route in app.routes for method in route.methods]


def test_11_every_route_but_health_and_the_page_needs_the_key(guarded):
    found = routes(guarded.service)
    assert len(found) >= 12
    paths = [(m, p.replace("{model:path}", "ling")) for m, p in found]
    others = [("GET", "/nothing"), ("GET", "/docs"), ("OPTIONS", "/v1/models"), ("PUT", "//v1/models"),
              ("GET", "/health/../v1/models"), ("GET", "/health/"), ("GET", "/%2e%2e/health"), ("GET", "/V1/models"),
              ("GET", "/health%2f..%2fmetrics"), ("GET", "/health;/metrics")]  # fmt: skip
    del guarded.http.headers["Authorization"]
    for method, path in (*paths, *others):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEYS[0]},
                       {"Authorization": f"Basic {KEYS[0]}"}, {"Authorization": f"Bearer {KEYS[0]}x"}):  # fmt: skip
            status = guarded.http.request(method, path, headers=header).status_code
            assert (status != 401) == (path in OPEN), (method, path, header, status)
    assert guarded.http.get("/v1/models", headers={"Authorization": f"Bearer {KEYS[0]}"}).status_code == 200
    assert {"/health", "/"} == OPEN


def test_11_keys_are_compared_in_constant_time():
    source = Path(ling.server.__file__).parent.joinpath("guard.py").read_text(encoding="utf-8")
    assert "hmac.compare_digest(known, given)" in source


def test_12_no_address_in_a_request_is_opened(live):
    for kind in ("image_url", "video_url", "input_audio", "file"):
        part = {"type": kind, kind: {"url": "http://169.254.169.254/latest"}}
        answer = live.ask(messages=[{"role": "user", "content": [part]}])
        assert answer.status_code == 400
        assert "text" in answer.json()["error"]["message"]


def test_13_what_is_cached_is_shared_within_a_key_alone(guarded, pretend):
    for key in (*KEYS, KEYS[0]):
        guarded.http.headers["Authorization"] = f"Bearer {key}"
        guarded.post(messages=MESSAGES)
    guarded.post(messages=MESSAGES, cache_salt="own")
    first, second, again, own = (request["salt"] for request in pretend.submitted.values())
    assert first == again
    assert len({first, second, own}) == 3
    assert KEYS[0] not in first
    assert first


def test_14_pages_of_other_origins_are_kept_out(guarded, live):
    for origin in (
        "https://evil.example",
        "null",
        "http://[",
        "http://localhost:1",
        "https://good.example.evil.example",
    ):
        answer = guarded.http.post("/v1/chat/completions", json={"messages": MESSAGES}, headers={"Origin": origin})
        assert answer.status_code == 403, origin
        assert "access-control-allow-origin" not in answer.headers
    good = {"Origin": "https://good.example"}
    answer = guarded.http.post("/v1/chat/completions", json={"messages": MESSAGES}, headers=good)
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-credentials" not in answer.headers
    asked = {**good, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert httpx.options(f"{guarded.url}/v1/models", headers=asked).status_code == 200
    assert live.http.get("/v1/models", headers={"Origin": live.url}).status_code == 200
    assert live.http.get("/v1/models", headers=good).status_code == 403
    form = live.http.post("/v1/chat/completions", content=json.dumps({"messages": MESSAGES}))
    assert form.status_code == 415  # what a page may send without asking first


def test_14_a_loopback_server_answers_to_its_own_names_only(live, guarded):
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert live.http.get("/health", headers={"Host": host}).status_code in (400, 421), host
    for host in ("localhost", "LOCALHOST:5", "127.0.0.1:80", "[::1]:80"):
        assert live.http.get("/health", headers={"Host": host}).status_code == 200, host


def test_15_it_listens_on_loopback_and_nowhere_else(live):
    assert ServerSettings(served_names=("x",)).host == "127.0.0.1"
    assert live.server._taken.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ConfigError, match="in use"):
        bind(ServerSettings(served_names=("x",), port=live.server._taken.getsockname()[1]))


def test_16_prompts_and_keys_are_in_no_log_and_no_error(guarded, caplog):
    caplog.set_level("DEBUG", logger="ling")
    answers = [guarded.post(messages=MESSAGES), guarded.post(messages=MESSAGES, temperature="a secret prompt")]
    answers.append(guarded.post("/v1/completions", prompt="a secret prompt " * 500))
    answers.append(guarded.ask(messages="a secret prompt"))
    assert [a.status_code for a in answers] == [200, 400, 400, 400]
    assert not any("secret" in a.text for a in answers)
    assert not any("secret" in record.getMessage() or KEYS[0] in record.getMessage() for record in caplog.records)
    assert "server" not in answers[0].headers


def test_17_a_full_queue_is_told_to_come_back(pretend, serve, caplog):
    with serve(pretend) as live:
        pretend.refuse = QueueFullError("8 requests wait already; try again later")
        full = live.post(messages=MESSAGES)
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        assert live.post(messages=MESSAGES, stream=True).status_code == 429
        pretend.alive = False
        dead = live.post(messages=MESSAGES)
        assert (dead.status_code, dead.json()["error"]["type"]) == (503, "service_unavailable_error")
        assert "retry-after" in dead.headers
    assert not caplog.records, "a full queue is no failure of ours to be traced"
