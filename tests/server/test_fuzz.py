"""Requests made up from the server's own description: none makes it fail."""

import collections

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling.server.openapi import openapi

EXAMPLES = 150
RIGHT = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 2},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [5, 6]},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_no_request_makes_the_server_fail(live, path, mode):
    document = openapi(with_key=False)
    operation = schemathesis.openapi.from_dict(document)[path]["POST"]
    seen = collections.Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode), kept=st.integers(0, 3), random=st.randoms())
    def ask(case, kept, random):
        body = case.body
        if isinstance(body, dict):
            if kept:  # few fields of a made-up body fit together: some of them, over what is right
                body = {
                    **RIGHT[path],
                    **{name: body[name] for name in random.sample(sorted(body), min(kept, len(body)))},
                }
            body = {**body, "max_tokens": 2} if isinstance(body.get("max_tokens"), int) else body
            body = {**body, "n": 2} if isinstance(body.get("n"), int) and body["n"] > 2 else body
        try:
            answer = live.http.post(path, json=body)
        except (TypeError, ValueError):  # what cannot be written as JSON
            return
        seen[answer.status_code] += 1
        assert answer.status_code < 500, (body, answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert error["message"]
        elif "data: " in answer.text:
            assert '"code":"internal"' not in answer.text, (body, answer.text)

    ask()
    print(path, mode, seen)
    assert seen, "nothing was asked"
    assert live.http.get("/health").status_code == 200


@pytest.mark.slow
@given(body=st.binary(max_size=400))
@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_no_bytes_make_the_server_fail(live, body):
    answer = live.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.slow
@given(path=st.text(st.characters(codec="ascii", exclude_characters="?#"), max_size=40))
@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_no_path_makes_the_server_fail(live, path):
    try:
        url = httpx.URL(live.url).copy_with(path=f"/{path.lstrip('/')}")
    except httpx.InvalidURL:
        return
    assert live.http.get(url).status_code < 500
