"""`ling bench`: what it sends, what it measures, and what it says of servers that misbehave."""

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.streaming_server import PIECE_SECONDS, stream_from

from ling.cli.bench.figures import figures, spread
from ling.cli.bench.load import Outcome
from ling.cli.bench.prompts import RandomPrompts
from ling.cli.bench.traffic import weight_bytes
from ling.scaling.parameters import count_parameters
from ling.testing.models import tiny_model


def serve(ling, url: str, tmp_path: Path, *more: object) -> tuple[dict[str, Any], str]:
    """Run `ling bench serve` with small numbers; return what it wrote and what it printed."""
    out = tmp_path / "result.json"
    arguments = ["--base-url", url, "--num-prompts", 6, "--random-input-len", 5, "--random-output-len", 3]
    result = ling("bench", "serve", *arguments, "--save-result", out, *more)
    assert result.code == 0, result.err
    return json.loads(out.read_text()), result.out


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions"])
def test_times_and_rates_are_those_of_the_server(ling, tmp_path: Path, endpoint: str) -> None:
    with stream_from() as server:
        found, out = serve(ling, server.url, tmp_path, "--endpoint", endpoint, "--max-concurrency", 2)
    assert found["completed"] == 6
    assert found["failed"] == 0
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (6 * 7, 6 * 3)
    piece = 1e3 * PIECE_SECONDS
    for name, expected in (("ttft", piece), ("itl", piece), ("tpot", piece), ("e2el", 3 * piece)):
        assert expected * 0.9 < found[f"median_{name}_ms"] < expected + 25, (name, found)
    assert found["output_throughput"] == pytest.approx(18 / found["duration"])
    assert server.most_at_once == found["max_concurrent_requests"] == 2
    assert found["model_id"] == "scripted"
    assert "TTFT" in out
    assert "machine: cpu" in out
    assert "threads" not in out  # the model runs elsewhere


def test_random_prompts_are_ids_all_different_and_the_same_again(ling, tmp_path: Path) -> None:
    with stream_from() as server:
        serve(ling, server.url, tmp_path, "--ignore-eos", "--temperature", 0, "--extra-body", '{"top_k": 4}')
        first, server.asked = server.asked, []
        serve(ling, server.url, tmp_path)
        again, server.asked = server.asked, []
        serve(ling, server.url, tmp_path, "--seed", 1)
    prompts = sorted(body["prompt"] for body in first)
    assert all(len(p) == 5 and all(8 <= x < 1024 for x in p) for p in prompts)
    assert len({tuple(p) for p in prompts}) == len(prompts) == 7  # one to see whether the server is there
    assert prompts == sorted(body["prompt"] for body in again)
    assert prompts != sorted(body["prompt"] for body in server.asked)
    assert all(body["ignore_eos"] and body["temperature"] == 0 and body["top_k"] == 4 for body in first)
    assert not any("ignore_eos" in body or "temperature" in body for body in again)


def test_lengths_vary_around_the_one_asked_for_and_prefixes_are_shared() -> None:
    made = list(RandomPrompts(input_len=20, output_len=10, range_ratio=0.5, prefix_len=3, seed=2).ids(200))
    inputs = [len(p.content) - 3 for p in made]
    assert min(inputs) == 10
    assert max(inputs) == 30
    assert {p.output_tokens for p in made} == set(range(5, 16))
    assert len({tuple(p.content[:3]) for p in made}) == 1


def test_a_server_without_ids_gets_words(ling, tmp_path: Path) -> None:
    with stream_from("text only") as server:
        found, _ = serve(ling, server.url, tmp_path)
    assert found["completed"] == 6
    assert all(isinstance(body["prompt"], str) and len(body["prompt"].split()) == 5 for body in server.asked[3:])


def test_a_file_of_prompts_is_sent_as_it_is(ling, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}\n{"prompt": "and you?"}\n')
    options = ("--dataset-name", "jsonl", "--dataset-path", file, "--endpoint", "/v1/chat/completions")
    with stream_from() as server:
        serve(ling, server.url, tmp_path, *options)
        told = ling("bench", "serve", "--base-url", server.url, *options[:4])
    asked = {(body["messages"][0]["content"], body["max_tokens"]) for body in server.asked}
    assert asked == {("hi", 2), ("and you?", 3)}
    assert told.code == 2
    assert "messages need --endpoint /v1/chat/completions" in told.err


def test_a_rate_spreads_the_requests(ling, tmp_path: Path) -> None:
    with stream_from() as server:
        slow, _ = serve(ling, server.url, tmp_path, "--request-rate", 40, "--save-detailed")
        fast, _ = serve(ling, server.url, tmp_path)
    starts = [request["started"] for request in slow["requests"]]
    assert starts == sorted(starts)
    assert starts[-1] > 0.03
    assert slow["request_rate"] == 40
    assert fast["max_concurrent_requests"] == 6


def test_failures_are_counted_by_reason_and_kept_out_of_the_times(ling, tmp_path: Path) -> None:
    with stream_from("refuse every third") as server:
        found, out = serve(ling, server.url, tmp_path)
    assert found["failed"] == 2
    assert found["errors"] == {"HTTP 503: too many wait": 2}
    assert found["completed"] == 4
    assert "failed, 2 times: HTTP 503: too many wait" in out


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("broken", "HTTP 503: too many wait"),
        ("cut", "broke off before its [DONE]"),
        ("error event", "the engine died"),
        ("not a stream", "is no stream but application/json"),
        ("short only", "the prompt is too long"),
        ("odd event", "choices that are no list of objects"),
        ("hang", "no byte came within the time limit"),
    ],
)
def test_a_server_that_cannot_be_measured_is_refused_in_one_line(ling, manner: str, reason: str) -> None:
    with stream_from(manner) as server:
        given = [
            "--base-url",
            server.url + "/v1",
            "--random-output-len",
            3,
            "--timeout",
            0.2 if manner == "hang" else 30,
        ]
        result = ling("bench", "serve", *given)
    assert result.code == 2
    assert reason in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--base-url", "127.0.0.1:1"], "no address of a server"),
        (["--base-url", "http://127.0.0.1:1"], "cannot reach http://127.0.0.1:1: Connection refused"),
        (["--request-rate", "0"], "--request-rate must be above 0"),
        (["--percentile-metrics", "ttft,ttlt"], "unknown metric ttlt"),
        (["--metric-percentiles", "101"], "between 0 and 100"),
        (["--extra-body", "{"], "--extra-body is not JSON"),
        (["--extra-body", '{"stream": false}'], "cannot set stream"),
        (["--dataset-name", "jsonl"], "go together"),
        (["--save-result", "/"], "cannot write /"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(ling, arguments: list[str], reason: str) -> None:
    rest = [] if "--base-url" in arguments else ["--base-url", "http://127.0.0.1:1", "--model", "x"]
    result = ling("bench", "serve", *arguments, *rest)
    assert result.code == 2
    assert reason in result.err


def test_tokens_are_counted_as_pieces_where_the_server_tells_no_usage(ling, tmp_path: Path) -> None:
    with stream_from("no usage") as server:
        found, out = serve(ling, server.url, tmp_path)
    assert found["total_output_tokens"] == 18
    assert "the server tells no usage" in out


def test_what_does_not_speak_http_is_refused(ling) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"SSH-2.0-nothing for you\r\n")
                connection.recv(1000)

        greeter = threading.Thread(target=greet)
        greeter.start()
        result = ling("bench", "serve", "--port", listening.getsockname()[1])
        greeter.join()
    assert result.code == 2
    assert "the answer is not HTTP" in result.err


def test_an_answer_of_known_length_is_read_as_well(ling, tmp_path: Path) -> None:
    with stream_from("sized") as server:
        assert serve(ling, server.url, tmp_path)[0]["completed"] == 6


def test_the_key_is_sent(ling, tmp_path: Path) -> None:
    with stream_from() as server:
        serve(ling, server.url, tmp_path, "--api-key", "secret")
    assert {body["key"] for body in server.asked} == {"Bearer secret"}


def test_ctrl_c_prints_what_is_measured_so_far(ling, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    with stream_from("none from the fourth") as server:

        def interrupt() -> None:
            while len(server.asked) < 4:
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        arguments = ["--base-url", server.url, "--num-prompts", 50, "--max-concurrency", 1, "--random-output-len", 3]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        try:
            result = ling("bench", "serve", *arguments, "--save-result", out)
        finally:
            signal.signal(signal.SIGINT, before)
    found = json.loads(out.read_text())
    assert result.code == 130
    assert "interrupted" in result.err
    assert found["completed"] == 2
    assert found["unfinished"] == 1
    assert "requests answered" in result.out


def test_percentiles_are_numpys_and_one_token_has_no_time_per_further_one() -> None:
    outcomes = [
        Outcome(ended=1.0, ttft=0.2, gaps=[0.4, 0.4], output_tokens=3, done=True),
        Outcome(ended=0.5, ttft=0.5, output_tokens=1, done=True),
        Outcome(error="no"),
    ]
    found = figures(outcomes, 2.0, [50, 99])
    assert found["mean_tpot_ms"] == pytest.approx(400)
    assert found["median_ttft_ms"] == found["p50_ttft_ms"] == pytest.approx(350)
    assert found["request_throughput"] == 1.0
    assert spread([], "x", [50]) == {}


SMALL = ("--input-len", 6, "--output-len", 5)


def test_latency_tells_seconds_rates_and_bytes(ling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ling.cli.bench.traffic.free_memory", lambda: 2**26)
    out = tmp_path / "latency.json"
    result = ling("bench", "latency", *SMALL, "--batch-size", 2, "--num-iters", 3, "--output-json", out)
    assert result.code == 0, result.err
    found = json.loads(out.read_text())
    assert len(found["latencies"]) == 3
    assert found["avg_latency"] == pytest.approx(sum(found["latencies"]) / 3)
    assert found["output_tokens_per_second"] == pytest.approx(2 * 5 / found["avg_latency"])
    read = found["step_weight_bytes"] + found["step_cache_bytes"]
    assert found["gb_per_second"] == pytest.approx(read / found["decode_step_ms"] / 1e6)
    assert found["memory_percent"] == pytest.approx(100 * found["gb_per_second"] / found["memory_gb_per_second"])
    assert found["machine"]["threads"] >= 1
    assert "per cent of the memory's rate" in result.out
    assert "over 0.016 GiB" in result.out


def test_latency_with_drafts_tells_acceptance_in_place_of_bytes(ling) -> None:
    result = ling("bench", "latency", *SMALL, "--num-iters", 1, "--num-iters-warmup", 0, "--drafting", "mtp")
    assert result.code == 0, result.err
    assert "drafts accepted" in result.out
    assert "GB per second" not in result.out


def test_throughput_counts_every_token(ling, tmp_path: Path) -> None:
    out = tmp_path / "throughput.json"
    result = ling("bench", "throughput", *SMALL, "--num-prompts", 7, "--max-num-seqs", 3, "--output-json", out)
    assert result.code == 0, result.err
    found = json.loads(out.read_text())
    assert (found["total_output_tokens"], found["total_num_tokens"]) == (7 * 5, 7 * 11)
    assert found["requests_per_second"] == pytest.approx(7 / found["elapsed_time"])
    assert found["steps"] >= 3 * 5


def test_throughput_reads_prompts_of_a_file(ling, tmp_path: Path) -> None:
    file, out = tmp_path / "asked.jsonl", tmp_path / "throughput.json"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}\n{"prompt": [5, 6]}\n')
    arguments = ("--input", file, "--num-prompts", 2, "--output-len", 3, "--output-json", out)
    assert ling("bench", "throughput", *arguments).code == 0
    assert json.loads(out.read_text())["total_output_tokens"] == 2 + 3


@pytest.mark.parametrize("command", ["latency", "throughput"])
def test_prompts_longer_than_the_context_are_refused(ling, command: str) -> None:
    result = ling("bench", command, "--input-len", 600)
    assert result.code == 2
    assert "do not fit into the model's context of 512" in result.err


def test_bytes_of_weights_are_those_that_the_scaling_counts_name() -> None:
    model = tiny_model()
    config, counted = model.config, count_parameters(model.config)
    one, experts = weight_bytes(model, 1)
    assert experts == config.num_experts_per_tok
    rows = config.vocab_size - 1  # of the embedding, one token reads one row
    biases = config.num_moe_layers * config.num_experts
    assert one == 4 * (counted.activated - rows * config.hidden_size + biases)
    many, all_of_them = weight_bytes(model, 10**6)
    assert all_of_them == pytest.approx(config.num_experts)
    assert many == pytest.approx(4 * (counted.total + biases))
