"""From arrival to the end: clients that leave, deadlines, health, metrics, an orderly stop."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from random import Random

import httpx
import pytest

from ling.engine.request import Delta

MESSAGES = [{"role": "user", "content": "Tell me a story."}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_forgotten_by_the_engine(pretend, serve, stream):
    with serve(pretend) as live:
        with pytest.raises(httpx.ReadTimeout):
            live.http.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": stream, "n": 2}, timeout=0.3)
        assert pretend.left.wait(20), "the engine was not told"
        assert pretend.aborted == list(pretend.submitted)


def test_a_client_that_leaves_in_the_middle_stops_the_real_engine(live):
    engine = live.service.engine
    body = {"prompt": "Alice", "max_tokens": 450, "ignore_eos": True, "stream": True, "temperature": 0}
    with live.http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
        assert engine.num_unfinished == 1
    deadline = time.monotonic() + 20
    while engine.num_unfinished and time.monotonic() < deadline:
        time.sleep(0.005)
    assert engine.num_unfinished == 0
    assert engine.engine.stats.ended.get("abort", 0) >= 1


def test_a_request_without_an_answer_in_time_is_aborted_and_told(pretend, serve):
    with serve(pretend, request_seconds=0.3) as live:
        late = live.ask()
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        stream = live.ask(stream=True)
        events = [e.removeprefix("data: ") for e in stream.text.split("\n\n")]
        assert json.loads(events[-3])["error"]["code"] == "timeout"
        assert events[-2] == "[DONE]"
        assert pretend.aborted == list(pretend.submitted)


def test_prompts_of_one_request_are_all_queued_or_none(pretend, serve):
    submit = pretend.submit

    def third_fails(id, *rest, **more):
        if len(pretend.submitted) == 2:
            raise RuntimeError("no more")
        submit(id, *rest, **more)

    pretend.submit = third_fails
    with serve(pretend) as live:
        assert live.post("/v1/completions", prompt=["a", "b", "c"]).status_code == 500
    assert pretend.aborted == list(pretend.submitted)


def test_health_is_the_engines(pretend, serve):
    with serve(pretend, stalled_seconds=60) as live:
        assert live.http.get("/health").status_code == 200
        pretend.seconds_since_progress = 100
        assert live.http.get("/health").status_code == 200  # idle
        pretend.submitted["x"] = {}
        assert live.http.get("/health").status_code == 503
        pretend.seconds_since_progress = 1
        assert live.http.get("/health").status_code == 200
        pretend.draining = True
        assert live.http.get("/health").status_code == 503
        pretend.draining, pretend.alive = False, False
        assert live.http.get("/health").status_code == 503
        pretend.submitted.clear()


def test_metrics_count_what_happened_under_our_names_and_vllms(live):
    live.ask(max_tokens=3, temperature=0, ignore_eos=True)
    live.ask(temperature="x")
    text = live.http.get("/metrics").text
    values = {k: float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}
    assert values["ling_generated_tokens_total"] >= 3
    assert values['vllm:generation_tokens_total{model_name="ling"}'] == values["ling_generated_tokens_total"]
    assert values["ling_time_to_first_token_seconds_count"] >= 1
    assert values['vllm:time_to_first_token_seconds_count{model_name="ling"}'] >= 1
    assert values['ling_answers_total{finished_reason="length"}'] >= 1
    assert values['vllm:request_success_total{finished_reason="length",model_name="ling"}'] >= 1
    assert values['ling_refused_requests_total{status="400"}'] >= 1
    assert values["ling_requests_running"] == 0
    assert "_created" not in text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "prompt_tokens_total", "inter_token_latency_seconds_sum",
        "request_time_per_output_token_seconds_sum", "e2e_request_latency_seconds_sum", "num_preemptions_total",
        "request_decode_time_seconds_sum", "spec_decode_num_draft_tokens_total", "corrupted_requests_total",
        "spec_decode_num_accepted_tokens_total", "spec_decode_num_drafts_total", "request_queue_time_seconds_sum",
        "request_prefill_time_seconds_sum", "request_inference_time_seconds_sum", "request_prompt_tokens_sum",
        "request_generation_tokens_sum", "request_params_n_sum", "request_params_max_tokens_sum",
    ):  # fmt: skip
        assert f'vllm:{name}{{model_name="ling"}}' in values, name


def test_the_stages_of_an_answer_add_up(live):
    def read():
        lines = live.http.get("/metrics").text.splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if line.startswith("ling_"))}

    before = read()
    begin = time.monotonic()
    live.post("/v1/completions", prompt="Alice was", max_tokens=30, n=2, ignore_eos=True)
    seconds = time.monotonic() - begin
    grown = {name: value - before.get(name, 0) for name, value in read().items()}
    stages = ("queue", "prefill", "decode", "inference")
    assert [grown[f"ling_{stage}_seconds_count"] for stage in stages] == [2] * 4
    queue, prefill, decode, inference = (grown[f"ling_{stage}_seconds_sum"] for stage in stages)
    assert prefill + decode == pytest.approx(inference)
    assert 0 <= queue < 2 * seconds
    assert 0 < inference < 2 * seconds
    assert grown["ling_answer_tokens_sum"] == 60
    assert (grown["ling_request_choices_sum"], grown["ling_request_max_tokens_sum"]) == (2, 30)
    assert grown["ling_request_prompt_tokens_sum"] == len(live.service.tokenizer.encode("Alice was"))


def test_without_being_asked_no_foreign_names_are_exported(pretend, serve):
    with serve(pretend) as live:
        assert "vllm:" not in live.http.get("/metrics").text


def test_the_document_of_the_routes_names_every_field(live):
    document = live.http.get("/openapi.json").json()
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False
    assert {"messages", "max_completion_tokens", "response_format", "top_k"} <= chat["properties"].keys()
    assert document["paths"].keys() >= {"/v1/chat/completions", "/v1/completions", "/health", "/tokenize"}
    assert live.http.get("/version").json()["version"] == document["info"]["version"]


def test_the_page_is_served_with_its_policy(live):
    answer = live.http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_client_that_reads_nothing_cannot_hold_the_engine(pretend, serve):
    """Its socket is full; the deadline ends the request all the same."""
    flood = [Delta(request_id="", index=0, text="x" * 100_000, token_ids=[1]) for _ in range(200)]
    pretend.answer = lambda id, n: [replace(delta, request_id=id) for delta in flood]
    body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
    with serve(pretend, request_seconds=0.5) as live:
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            assert pretend.left.wait(20), "the engine was not told"


def test_running_answers_are_told_when_the_server_ends(pretend, serve):
    answers = {}

    def ask(stream):
        answers[stream] = live.ask(stream=stream)

    with serve(pretend) as live:
        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while len(pretend.submitted) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        live.server.should_exit = True
        for thread in threads:
            thread.join(20)
    assert answers[False].status_code == 503
    assert "shutting down" in answers[True].text
    assert answers[True].text.endswith("data: [DONE]\n\n")


def test_answers_that_fit_into_the_drain_are_finished(pretend, serve):
    def stop(drain_seconds):
        pretend.draining = True
        time.sleep(0.2)
        for id, request in pretend.submitted.items():
            request["deliver"](Delta(request_id=id, index=0, text="done", token_ids=[1], finish_reason="stop"))

    pretend.stop = stop
    answers = []
    with serve(pretend, shutdown_seconds=5.0) as live:
        thread = threading.Thread(target=lambda: answers.append(live.ask()))
        thread.start()
        assert pretend.arrived.wait(20)
        live.server.should_exit = True
        thread.join(20)
    assert answers[0].json()["choices"][0]["message"]["content"] == "done"


@pytest.mark.slow
def test_whatever_clients_do_nothing_of_theirs_is_left_behind(live):
    """A crowd that asks, streams, leaves at any moment, and sends nonsense."""

    async def one(client, random):
        body = {"prompt": "Alice was " * random.randrange(1, 20), "max_tokens": random.randrange(1, 60)}
        body |= {"stream": random.random() < 0.5, "n": random.randrange(1, 4), "ignore_eos": True}
        if random.random() < 0.1:
            body["guided_regex"] = "[a-z ]{5,40}"
        patience = random.choice([0.001, 0.01, 0.05, 0.2, 60])
        try:
            answer = await asyncio.wait_for(client.post("/v1/completions", json=body), patience)
            assert answer.status_code == 200, answer.text
        except (TimeoutError, httpx.HTTPError):
            return False
        return True

    async def crowd():
        random = Random(7)
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=live.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(one(client, random) for _ in range(200)))

    done = asyncio.run(crowd())
    assert any(done)
    assert not all(done)
    engine = live.service.engine
    deadline = time.monotonic() + 10
    while (engine.num_unfinished or engine.engine.has_work) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.num_unfinished == 0
    assert engine.engine.num_running == engine.engine.num_waiting == 0
    assert engine.engine.blocks.num_free == engine.engine.blocks.num_blocks
    assert live.ask(max_tokens=2).status_code == 200


@pytest.mark.slow
def test_the_command_serves_and_ends_at_sigterm():
    command = [
        sys.executable,
        "-m",
        "ling",
        "serve",
        "--port",
        "0",
        "--trust-remote-code",
        "--attention-backend",
        "fa3",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("serving"):
                break
        url = lines[-1].split(" at ")[1].strip()
        answer = httpx.post(f"{url}/chat/completions", json={"model": "auto", "messages": MESSAGES, "max_tokens": 3})
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, process.stderr.read()
    said = "".join(lines)
    assert "--attention-backend has no effect" in said
    assert "loaded in" in said
