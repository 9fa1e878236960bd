"""A thousand requests of all kinds: every answer is well formed, and nothing of them is left behind."""

import asyncio
import contextlib
import gc
import json
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

WARM_UP, REQUESTS, AT_ONCE = 300, 1000, 24
MOST_GROWTH_MIB = 16
"""Of the process, this client included, from the end of the warm-up: 16 KiB a request. What one leaves behind if it is
forgotten, with its tokens, text and chunks, is more; allocators settle within half of it."""
REASONS = {"stop", "length"}

BAD: list[tuple[str, Any]] = [
    ("/v1/completions", b'{"prompt": "a", '),
    ("/v1/completions", {"prompt": "a", "max_tokens": -1}),
    ("/v1/completions", {"prompt": [99999999], "max_tokens": 1}),
    ("/v1/completions", {"prompt": "a " * 5000, "max_tokens": 1}),
    ("/v1/completions", {"prompt": "a", "guided_regex": "(", "max_tokens": 4}),
    ("/v1/completions", {"prompt": "a", "no_such_field": 1}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": [{"role": "king", "content": "?"}]}),
    ("/v1/chat/completions", {"model": "another", "messages": [{"role": "user", "content": "?"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}], "temperature": "hot"}),
]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_requests_leave_blocks_files_and_memory_as_they_were(live):
    files = num_open_files()
    cache = live.service.engine.engine.runner.cache
    for held in (cache.keys, cache.values):
        held.zero_()  # nothing runs yet: its pages come in now, and not as blocks are used for the first time
    asyncio.run(soak(live.url, WARM_UP, Random(0)))
    wait_until_idle(live, files)
    memory = resident_mib()
    outcomes = asyncio.run(soak(live.url, REQUESTS, Random(1)))
    wait_until_idle(live, files)
    grown = resident_mib() - memory
    print(f"{dict(outcomes)}; {grown:.1f} MiB more; {num_open_files() - files} files more")
    assert sum(outcomes.values()) == REQUESTS
    assert min(outcomes[kind] for kind in ("whole", "streamed", "left", "refused")) > REQUESTS / 20, outcomes
    loop, engine = live.service.engine, live.service.engine.engine
    assert loop.num_unfinished == engine.num_running == engine.num_waiting == 0
    assert engine.blocks.num_free == engine.blocks.num_blocks
    assert engine.stats.failed == 0
    assert grown < MOST_GROWTH_MIB, f"{grown:.1f} MiB"
    assert num_open_files() <= files
    assert live.ask(max_tokens=2).status_code == 200


async def soak(url: str, count: int, random: Random) -> Counter[str]:
    """Send `count` requests, some at once; return how they went."""
    limits = httpx.Limits(max_connections=AT_ONCE)
    gate = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one(own: Random) -> str:
            async with gate:
                return await a_request(client, own)

        return Counter(await asyncio.gather(*(one(Random(random.random())) for _ in range(count))))


async def a_request(client: httpx.AsyncClient, random: Random) -> str:
    if random.random() < 0.12:
        path, body = random.choice(BAD)
        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        check_refusal(await client.post(path, headers={"Content-Type": "application/json"}, **sent))
        return "refused"
    path, body = draw_body(random)
    body["stream"] = random.random() < 0.5
    if random.random() < 0.2:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read_some(client, path, body, random), random.choice([0.002, 0.02, 0.1, 0.5]))
        return "left"
    if not body["stream"]:
        check_whole(await client.post(path, json=body), body)
        return "whole"
    async with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        check_stream([line async for line in answer.aiter_lines()], body)
    return "streamed"


def draw_body(random: Random) -> tuple[str, dict[str, Any]]:
    """Draw a request that is answered, of any length that fits the context of 512."""
    body: dict[str, Any] = {
        "max_tokens": random.choice([1, 3, 10, 40, 90]),
        "temperature": random.choice([0, 0.7, 1.2]),
        "n": random.choice([1, 1, 1, 2, 3]),
    }
    if random.random() < 0.2:
        body["stop"] = [".", "the"]
    if random.random() < 0.1:
        body["guided_regex"] = "[a-z ]{5,40}"
    if random.random() < 0.5:
        if random.random() < 0.3:
            body["logprobs"] = 2
        return "/v1/completions", body | {"prompt": "Alice was not here " * random.randrange(1, 60)}
    if random.random() < 0.3:
        body |= {"logprobs": True, "top_logprobs": 2}
    asked = random.choice(["What is the capital of France?", "Tell me a story about a fox.", "Add 3 and 4. " * 20])
    return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": asked}]}


async def read_some(client: httpx.AsyncClient, path: str, body: dict[str, Any], random: Random) -> None:
    """Begin to read an answer and leave in the middle."""
    async with client.stream("POST", path, json=body) as answer:
        lines = answer.aiter_lines()
        for _ in range(random.randrange(12)):
            if await anext(lines, None) is None:
                break


def check_refusal(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"]


def check_whole(answer: httpx.Response, body: dict[str, Any]) -> None:
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [choice["index"] for choice in found["choices"]] == list(range(body["n"]))
    assert all(choice["finish_reason"] in REASONS for choice in found["choices"]), found
    used = found["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
    assert body["n"] <= used["completion_tokens"] <= body["n"] * body["max_tokens"], used


def check_stream(lines: list[str], body: dict[str, Any]) -> None:
    events = [line.removeprefix("data: ") for line in lines if line]
    assert all(line.startswith("data: ") for line in lines if line and not line.startswith(":")), lines
    assert events[-1] == "[DONE]", events[-3:]
    chunks = [json.loads(event) for event in events[:-1]]
    assert not any("error" in chunk for chunk in chunks), chunks[-1]
    assert len({chunk["id"] for chunk in chunks}) == 1
    ends = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"] in REASONS]
    assert sorted(ends) == list(range(body["n"])), ends


def wait_until_idle(live: Any, files: int) -> None:
    """Wait, a while at most, until the engine has nothing to do and connections are closed."""
    deadline = time.monotonic() + 30
    engine = live.service.engine
    while (engine.num_unfinished or engine.engine.has_work or num_open_files() > files) and time.monotonic() < deadline:
        time.sleep(0.05)


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_mib() -> float:
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
