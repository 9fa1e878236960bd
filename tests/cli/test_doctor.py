"""`ling doctor` from outside: table, exit codes, mending, and comparing with servers, honest or not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.openai_server import HONEST, NOT_HTTP, serve

from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM

SHORT = ("--num-prompts", 2, "--max-tokens", 8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_directory(), tmp_path / "model"))


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(bundled_directory())


def edit(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_the_model_in_the_package_is_sound(ling) -> None:
    result = ling("doctor", bundled_directory(), "--strict", "--weights")
    assert result.code == 0, result.err
    assert "0 errors, 0 warnings" in result.out


def test_warnings_are_shown_and_count_only_if_asked(ling, model: Path) -> None:
    edit(model, router_dtype="None")
    result = ling("doctor", model)
    assert result.code == 0
    assert "0 errors, 1 warning," in result.out
    assert "--fix mends 1" in result.out
    result = ling("doctor", model, "--strict")
    assert result.code == 2
    assert result.err.rstrip().splitlines()[-1].startswith(f"ling: {model}: config.json: router_dtype: 'None'")


def test_errors_end_in_one_line_and_exit_code_2(ling, model: Path) -> None:
    edit(model, num_hidden_layers=5)
    result = ling("doctor", model, "--json")
    assert result.code == 2
    told = json.loads(result.out)
    assert told["counts"]["error"] == len([f for f in told["findings"] if f["severity"] == "error"]) > 0
    assert set(told["findings"][0]) == {"severity", "check", "where", "what", "fix", "fixable"}


def test_fix_mends_and_says_what(ling, model: Path) -> None:
    edit(model, router_dtype="None", n_group=0, topk_group=0, rope_theta=5e5, eos_token_id=2042)
    (model / "generation_config.json").unlink()
    result = ling("doctor", model, "--fix", "--strict")
    assert result.code == 0, result.out + result.err
    assert "mended config.json" in result.out
    assert "mended generation_config.json" in result.out
    assert (model / "config.json.bak").exists()
    assert ling("doctor", model, "--strict").code == 0


def test_what_a_file_says_never_moves_the_cursor(ling, model: Path) -> None:
    edit(model, **{"architectures": ["\x1b[2J\x1b[1;31m"]})
    for command in (("doctor", model), ("doctor", model, "--json"), ("generate", "hi", "--model", model)):
        result = ling(*command)
        assert result.code == 2
        assert "\x1b[2J" not in result.out + result.err
        assert "is not BailingMoeV2ForCausalLM" in result.err
    edit(model, **{"architectures": ["BailingMoeV2ForCausalLM"], "\x1b[2J": 1, "quantization_config": {"x": 1}})
    result = ling("doctor", model)
    assert "\x1b[2J" not in result.out + result.err


def test_a_broken_file_is_told_once_with_weights_too(ling, model: Path) -> None:
    (file,) = model.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    result = ling("doctor", model, "--weights")
    assert result.code == 2
    assert "is truncated" in result.err.splitlines()[-1]


# ---- --compare ----


@pytest.mark.parametrize("manner", HONEST)
def test_an_honest_server_agrees_in_every_manner(ling, llm: LLM, manner: str) -> None:
    with serve(llm, manner) as url:
        result = ling("doctor", bundled_directory(), "--json", "--compare", url, *SHORT)
    assert result.code == 0, result.err
    told = json.loads(result.out)["comparison"]
    assert told["agreement_percent"] == 100
    assert told["agreed_tokens"] > 8
    assert told["parted"] == 0
    if manner == "text":
        assert told["max_logprob_difference"] is None
    else:
        assert told["max_logprob_difference"] < 1e-4
    assert ("renders and tokenizes the chats itself" in result.err) == manner.startswith("chat")


@pytest.mark.parametrize(
    ("manner", "line"),
    [
        ("other text", "2 of 2 continuations part from ours where there is no near tie"),
        ("other numbers", "the tokens agree, their log-probabilities differ by 1.00 nats on average"),
        ("outside", "part from ours where there is no near tie (by up to inf nats)"),
        ("negative", "answers a negative token id, -1"),
        ("too long", "tokens to max_tokens 8"),
        ("no choices", "answers without choices"),
        ("broken", "answers 500: out of memory"),
        ("cut", "something that is not a JSON object"),
        ("hang up", "Remote end closed connection without response"),
        *((manner, "something that is not a JSON object") for manner in NOT_HTTP),
    ],
)
def test_a_server_that_lies_or_fails_is_one_line(ling, llm: LLM, manner: str, line: str) -> None:
    with serve(llm, manner) as url:
        result = ling("doctor", bundled_directory(), "--compare", url, *SHORT)
    assert result.code == 2, result.out
    last = result.err.rstrip().splitlines()[-1]
    assert last.startswith("ling: ")
    assert line in last


def test_a_server_without_numbers_is_compared_by_tokens(ling, llm: LLM) -> None:
    with serve(llm, "no numbers") as url:
        result = ling("doctor", bundled_directory(), "--compare", url, *SHORT)
    assert result.code == 0, result.err
    assert "there are no log-probabilities to compare" in result.out


def test_a_server_that_hangs_is_left_after_the_timeout(ling, llm: LLM) -> None:
    with serve(llm, "hang") as url:
        result = ling("doctor", bundled_directory(), "--compare", url, "--timeout", 0.3, *SHORT)
    assert result.code == 2
    assert "did not answer within 0.3 seconds" in result.err


def test_nobody_there_costs_no_loading(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLM, "__init__", None)
    result = ling("doctor", bundled_directory(), "--compare", "http://127.0.0.1:1", *SHORT)
    assert result.code == 2
    assert "cannot reach http://127.0.0.1:1: Connection refused" in result.err


def test_a_key_is_read_from_a_file(ling, llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n", encoding="utf-8")
    with serve(llm, "key") as url:
        refused = ling("doctor", bundled_directory(), "--compare", url, *SHORT)
        result = ling("doctor", bundled_directory(), "--compare", url, "--api-key-file", tmp_path / "key", *SHORT)
    assert "answers 401: no key" in refused.err
    assert result.code == 0, result.err


def test_another_checkpoint_of_the_same_model_agrees(ling, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("Who are you?\n\nWhat is 2 + 3?\n", encoding="utf-8")
    arguments = ("--prompts", tmp_path / "prompts", "--max-tokens", 10)
    result = ling("doctor", model, "--compare", bundled_directory(), *arguments)
    assert result.code == 0, result.err
    assert "(100.0 %), 0 of 2 part" in result.out
    assert "differ by 0.0000 on average" in result.out


def test_another_tokenizer_is_refused_before_anything_is_loaded(
    ling, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LLM, "__init__", None)
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [token for token in vocabulary if len(token) > 3][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    result = ling("doctor", bundled_directory(), "--compare", model, *SHORT)
    assert result.code == 2
    assert "have different tokenizers (2048 and 2048 tokens)" in result.err.splitlines()[-1]


def test_a_base_model_beside_a_chat_model_asks_for_raw_text(ling, model: Path) -> None:
    path = model / "tokenizer_config.json"
    told = {**json.loads(path.read_text(encoding="utf-8")), "eos_token": "<|endoftext|>"}
    path.write_text(json.dumps(told), encoding="utf-8")
    result = ling("doctor", bundled_directory(), "--compare", model, *SHORT)
    assert "makes other token ids of the prompts" in result.err
    assert result.err.rstrip().endswith("compare them with --raw")
    assert ling("doctor", bundled_directory(), "--compare", model, "--raw", *SHORT).code == 0


@pytest.mark.parametrize("route", ["/", "/v1", "/v1/", "/v1/completions", "/v1/chat/completions/"])
def test_a_pasted_address_is_understood(ling, llm: LLM, route: str) -> None:
    with serve(llm, "vllm") as url:
        assert ling("doctor", bundled_directory(), "--compare", url + route, "--num-prompts", 1).code == 0


def test_where_texts_part_both_tokens_are_shown(ling, llm: LLM) -> None:
    with serve(llm, "other text") as url:
        result = ling("doctor", bundled_directory(), "--compare", url, *SHORT)
        told = json.loads(ling("doctor", bundled_directory(), "--json", "--compare", url, *SHORT).out)["comparison"]
    assert "0 of 1" in result.out
    assert "'The'" in result.out
    assert "'z" in result.out
    (first, _) = told["prompts"]
    assert llm.tokenizer.decode([first["our_token"]]) == "The"
    assert first["their_token"] == llm.tokenizer.encode("zebra")[0]


def test_fixing_a_model_in_a_hub_cache_is_refused(ling, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ling.checkpoint.hub.resolve_checkpoint", lambda name: model)
    edit(model, router_dtype="None")
    before = (model / "config.json").read_bytes()
    result = ling("doctor", "owner/name", "--fix")
    assert result.code == 2
    assert f"owner/name lies in a hub's cache, which others read too; copy it (cp -rL {model} MY_COPY)" in result.err
    assert (model / "config.json").read_bytes() == before


def test_findings_in_a_pipe_are_whole_lines(ling, model: Path) -> None:
    edit(model, router_dtype="None")
    lines = ling("doctor", model).out.splitlines()
    assert "warning  config.json: router_dtype" in lines
    assert "         'None': vLLM and SGLang then hold the router in bfloat16 and choose other experts" in lines
    assert "         fix: write fp32 [--fix]" in lines


def test_another_model_does_not(ling, model: Path) -> None:
    (file,) = model.glob("*.safetensors")
    tensors = load_file(file)
    tensors["lm_head.weight"] = torch.roll(tensors["lm_head.weight"], 1, 0)
    save_file(tensors, file, metadata={"format": "pt"})
    result = ling("doctor", bundled_directory(), "--compare", model, *SHORT)
    assert result.code == 2
    assert "continuations part from ours where there is no near tie" in result.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--num-prompts", 2), "need --compare URL|DIR"),
        (("--compare", "http://127.0.0.1:1", "--prompts", "none.txt"), "cannot read --prompts none.txt"),
        (("--compare", "http://127.0.0.1:1", "--api-key-file", "none"), "cannot read --api-key-file none"),
        (("--compare", "http://"), "cannot"),
        (("--compare", "http://[bad"), "cannot talk to http://[bad"),
        (("--compare", "http://a b"), "cannot talk to http://a b"),
        (("--compare", "localhost:8000"), "an endpoint's address starts with http:// or https://"),
        (("--compare", "ftp://x/y"), "an endpoint's address starts with http:// or https://"),
        (("--compare", "./none"), "there is no directory none"),
    ],
)
def test_wrong_flags_are_one_line(ling, arguments: tuple[object, ...], line: str) -> None:
    result = ling("doctor", bundled_directory(), *arguments)
    assert result.code == 2
    assert line in result.err.rstrip().splitlines()[-1]
