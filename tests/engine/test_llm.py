"""The engine's promises: batches, drafting and seeds change nothing; limits are said in one line."""

import re

import pytest
import torch

from ling.engine import llm as module
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams, StructuredOutputsParams
from ling.errors import CheckpointError, ConfigError, RequestError
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer

MODEL = tiny_model(seed=1)
PROMPTS = ["5 6 7", "9", "11 12 13 14 15 16 17", "5 6 8"]
SAMPLINGS = [
    {},
    {"temperature": 0.8, "seed": 7},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.2, "logit_bias": {7: 3.0}},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "seed": 3},
    {"temperature": 1.0, "n": 3, "seed": 5},
]


def llm(**options) -> LLM:
    return LLM(MODEL, IdTokenizer(128), **{"drafting": "none", **options})


def drafting(count: int, **options) -> LLM:
    return llm(drafting="mtp", num_speculative_tokens=count, adaptive_drafts=False, **options)


def tokens(engine: LLM, prompts=PROMPTS, **params) -> list[list[int]]:
    given = {"max_tokens": 20, "ignore_eos": True, "temperature": 0, "seed": 0, **params}
    return [o.token_ids for r in engine.generate(prompts, SamplingParams(**given)) for o in r.outputs]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_request_gives_the_same_tokens_alone_in_a_batch_and_with_drafts(sampling: dict) -> None:
    plain = llm()
    alone = [answer for p in PROMPTS for answer in tokens(plain, [p], **sampling)]
    assert tokens(llm(), **sampling) == alone
    assert tokens(llm(max_num_seqs=2, max_num_batched_tokens=8, block_size=4), **sampling) == alone
    for count in (1, 2, 4):
        assert tokens(drafting(count), **sampling) == alone, count
    assert tokens(llm(drafting="ngram"), **sampling) == alone
    assert tokens(llm(drafting="auto"), **sampling) == alone


def test_a_second_run_finds_the_prompt_in_the_cache_and_gives_the_same() -> None:
    engine = drafting(2, block_size=4)
    prompts = ["5 6 7 8 9 10 11 12 13 14", "5 6 7 8 9 10 11 12 20"]
    first = tokens(engine, prompts)
    assert engine.stats.cached_tokens == 0
    assert tokens(engine, prompts) == first
    assert engine.stats.cached_tokens == 16  # two whole blocks of each: the last token is computed again
    off = drafting(2, block_size=4, enable_prefix_caching=False)
    assert tokens(off, prompts) == first == tokens(off, prompts)
    assert off.stats.cached_tokens == 0


def test_drafting_goes_on_behind_a_prompt_from_the_cache_as_if_it_had_been_computed() -> None:
    engine = drafting(3, block_size=4)
    prompt = ["5 6 7 8 9 10 11 12 13 14"]
    tokens(engine, prompt)
    fresh = engine.stats
    tokens(engine, prompt)
    assert (engine.stats.drafted, engine.stats.accepted) == (fresh.drafted, fresh.accepted)


def test_seeds_differ_and_repeat_and_answers_to_one_prompt_differ() -> None:
    first = tokens(llm(), temperature=1.0, seed=1)
    assert first == tokens(llm(), temperature=1.0, seed=1)
    assert first != tokens(llm(), temperature=1.0, seed=2)
    three = tokens(llm(), ["5 6 7"], temperature=1.0, seed=1, n=3)
    assert len({tuple(answer) for answer in three}) == 3
    unseeded = llm()
    assert tokens(unseeded, temperature=1.0, seed=None) != tokens(unseeded, temperature=1.0, seed=None)
    assert tokens(llm(), temperature=1.0, seed=None) == tokens(llm(), temperature=1.0, seed=None)  # a fresh engine


def test_drafts_that_the_model_itself_makes_are_counted() -> None:
    engine = drafting(2)
    tokens(engine)
    stats = engine.stats
    assert stats.tokens == 20 * len(PROMPTS)
    assert 0 <= stats.accepted <= stats.drafted
    assert sum(stats.accepted_per_position) == stats.accepted
    assert stats.steps <= 20


def test_generation_stops_at_a_stop_id_and_says_so() -> None:
    plain = tokens(llm(), ["5 6 7"])[0]
    engine = llm()
    engine.engine.stop_ids = {plain[4]}
    (done,) = engine.generate(["5 6 7"], SamplingParams(max_tokens=20, temperature=0))
    answer = done.outputs[0]
    assert (answer.token_ids, answer.finish_reason) == (plain[: plain.index(plain[4]) + 1], "stop")
    assert (answer.stop_reason, done.finished) == (None, True)
    (ignored,) = engine.generate(["5 6 7"], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))
    assert (len(ignored.outputs[0].token_ids), ignored.outputs[0].finish_reason) == (20, "length")


@pytest.mark.parametrize("count", [0, 3])
def test_stop_texts_end_an_answer_inside_a_draft_too_and_are_left_out(count: int) -> None:
    plain = tokens(llm(), ["5 6 7"])[0]
    text = " ".join(map(str, plain))
    stop = f"{plain[5]} {plain[6]}"  # the text of two tokens
    params = {"max_tokens": 20, "ignore_eos": True, "temperature": 0, "stop": ["never", stop]}
    engine = drafting(count) if count else llm()
    (done,) = engine.generate(["5 6 7"], SamplingParams(**params))
    assert done.outputs[0].text == text[: text.index(stop)]
    assert (done.outputs[0].finish_reason, done.outputs[0].stop_reason) == ("stop", stop)
    (kept,) = engine.generate(["5 6 7"], SamplingParams(**params, include_stop_str_in_output=True))
    assert kept.outputs[0].text == text[: text.index(stop) + len(stop)]
    streamed = "".join(delta.text for delta in engine.stream("5 6 7", SamplingParams(**params)))
    assert streamed == done.outputs[0].text


def test_a_minimum_of_tokens_holds_stop_ids_back() -> None:
    plain = tokens(llm(), ["5 6 7"])[0]
    for engine in (llm(), drafting(3)):
        (answer,) = tokens(engine, ["5 6 7"], min_tokens=9, stop_token_ids=[plain[2]])
        assert plain[2] not in answer[:9]


def test_a_minimum_of_tokens_holds_stop_texts_back() -> None:
    plain = tokens(llm(), ["5 6 7"])[0]
    stop = f"{plain[2]}"
    for engine in (llm(), drafting(3)):
        (answer,) = tokens(engine, ["5 6 7"], min_tokens=9, stop=[stop])
        assert len(answer) > 9
        assert answer == plain[: len(answer)]
        assert len(tokens(engine, ["5 6 7"], stop=[stop])[0]) <= 3


def test_streaming_gives_the_same_tokens() -> None:
    whole = tokens(llm(), ["5 6 7"])[0]
    params = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0)
    assert [t for delta in drafting(2).stream("5 6 7", params) for t in delta.token_ids] == whole


def test_streams_and_calls_that_overlap_get_their_own_answers() -> None:
    params = SamplingParams(max_tokens=9, ignore_eos=True, temperature=0)
    one, other, third = tokens(llm(), ["5 6 7", "9", "11 12"], max_tokens=9)
    engine = llm()
    first, second = engine.stream("5 6 7", params), engine.stream("9", params)
    got = [*next(first).token_ids], [*next(second).token_ids]
    assert engine.generate("11 12", params)[0].outputs[0].token_ids == third
    for delta, also in zip(first, second, strict=True):
        got[0].extend(delta.token_ids)
        got[1].extend(also.token_ids)
    assert got == (one, other)
    assert not engine.engine.has_work


def test_a_stream_that_is_closed_leaves_nothing_behind() -> None:
    engine = llm()
    stream = engine.stream("5 6 7", SamplingParams(max_tokens=20, ignore_eos=True, temperature=0))
    next(stream)
    stream.close()
    assert not engine.engine.has_work
    assert engine.engine.blocks.num_free == engine.engine.blocks.num_blocks


def test_the_context_ends_a_completion() -> None:
    length = MODEL.config.max_position_embeddings
    (done,) = drafting(1).generate([[5] * (length - 3)], SamplingParams(max_tokens=50, ignore_eos=True))
    assert (len(done.outputs[0].token_ids), done.outputs[0].finish_reason) == (3, "length")


def test_log_probabilities_are_the_models_whatever_is_drafted_and_however_it_is_sampled() -> None:
    params = {"max_tokens": 12, "ignore_eos": True, "logprobs": 3, "prompt_logprobs": 2, "seed": 4, "min_p": 0.05}
    for engine in (llm(), drafting(3), llm(max_num_batched_tokens=4, max_num_seqs=1, num_speculative_tokens=0)):
        (done,) = engine.generate(["5 6 7 8 9 10"], SamplingParams(**params))
        answer = done.outputs[0]
        ids = [*done.prompt_token_ids, *answer.token_ids]
        (nats,) = engine.negative_log_likelihoods([ids])
        assert done.prompt_logprobs is not None
        assert done.prompt_logprobs[0] is None
        entries = [*done.prompt_logprobs[1:], *(answer.logprobs or ())]
        assert [e[t].logprob for e, t in zip(entries, ids[1:], strict=True)] == pytest.approx(
            [-x for x in nats], abs=1e-4
        )
        assert answer.cumulative_logprob == pytest.approx(-sum(nats[5:]), abs=1e-3)
        for entry in answer.logprobs:
            best = sorted(entry.values(), key=lambda x: -x.logprob)
            assert [x.rank for x in best[:3]] == [1, 2, 3]
            assert len(entry) in (3, 4)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([5] * 256, "the prompt has 256 tokens, the context 256"),
        ([], "the prompt is empty"),
        ([5, 128], "token id 128 is not in a vocabulary of 128"),
        ([5, -1], "token id -1 is not in a vocabulary of 128"),
        ([5, True], "a token id of a prompt must be a whole number, got True"),
    ],
)
def test_prompts_that_cannot_be_run_say_why(prompt: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm().generate([prompt])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_p": float("nan")}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {5: 101}}, "logit_bias must lie"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias must lie"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "logit_bias may name 1024 tokens"),
        ({"n": 17}, "n must lie between 1 and 16"),
        ({"stop": ["x"] * 17}, "stop may name 16 texts"),
        ({"stop": ""}, "a text of stop must have 1 to 256 characters"),
        ({"logprobs": 21}, "logprobs must lie between 0 and 20"),
        ({"min_tokens": 17}, "min_tokens must lie between 0 and max_tokens"),
        ({"seed": 2**63}, "seed must fit 64 bits"),
    ],
)
def test_wrong_parameters_are_named(params: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**params)


def test_structured_outputs_take_one_form() -> None:
    with pytest.raises(RequestError, match="got json and regex"):
        StructuredOutputsParams(json="{}", regex="a")


def test_a_tokenizer_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the tokenizer has 129 tokens, the model's vocabulary 128"):
        _ = LLM(MODEL, IdTokenizer(129)).engine


def test_own_stop_ids_end_an_answer_even_where_the_models_are_ignored() -> None:
    plain = tokens(llm(), ["5 6 7"])[0]
    params = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0, stop_token_ids=(plain[3],))
    (done,) = drafting(2).generate(["5 6 7"], params)
    answer = done.outputs[0]
    assert (answer.token_ids, answer.finish_reason) == (plain[: plain.index(plain[3]) + 1], "stop")
    assert answer.stop_reason == plain[3]
    assert answer.text.split() == [str(t) for t in plain[: plain.index(plain[3])]]  # the stop token has no text


@pytest.mark.parametrize("stray", [{"logit_bias": {128: 1.0}}, {"stop_token_ids": (-1,)}])
def test_tokens_named_by_parameters_must_exist(stray: dict) -> None:
    with pytest.raises(RequestError, match="logit_bias or stop_token_ids names token id"):
        llm().generate(["5"], SamplingParams(**stray))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_speculative_tokens": 17}, "num_speculative_tokens must lie between 0 and 16"),
        ({"max_num_sequences": 2}, "LLM has no option max_num_sequences; did you mean max_num_seqs?"),
        ({"tensor_parallel_size": 2}, "one engine runs on one device"),
        ({"speculative_config": {"method": "eagle"}}, "method must be mtp or ngram"),
        ({"speculative_config": {"model": "x"}}, "has no key model"),
        ({"quantization": "int8"}, "are for loading; this model is loaded"),
        ({"weight_pages": "locked"}, "are for loading; this model is loaded"),
        ({"speculative_config": "mtp"}, "speculative_config must map method and num_speculative_tokens to values"),
        ({"threads": 0}, "threads must be a whole number, at least 1, got 0"),
        ({"threads": "2"}, "threads must be a whole number, at least 1, got '2'"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype must be auto, bfloat16, float16 or fp8, got fp8_e4m3"),
        ({"drafting": "eagle"}, "drafting must be auto, mtp, ngram or none, got eagle"),
        ({"kv_cache_gib": float("nan")}, "kv_cache_gib must not be negative, got nan"),
        ({"block_size": 1.5}, "block_size must be a whole number, got 1.5"),
        ({"max_model_len": "64"}, "max_model_len must be a whole number, got 64"),
        ({"speculative_config": {"num_speculative_tokens": "3"}}, "num_speculative_tokens must be a whole number"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(MODEL, IdTokenizer(128), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be cpu, cuda or auto, got gpu"),
        ({"device": "meta"}, "device must be cpu, cuda or auto, got meta"),
        ({"device": 0}, "device must be cpu, cuda or auto, got 0"),
        ({"dtype": "fp16"}, "dtype must be auto, float32, bfloat16 or float16, got fp16"),
        ({"dtype": torch.int8}, "dtype must be auto, float32, bfloat16 or float16, got torch.int8"),
        ({"dtype": ["float32"]}, "dtype must be auto, float32"),
        ({"quantization": "awq"}, "quantization must be fp8, int8, int4, mixed, by kind as in int4,head=int8, or left"),
        ({"quantization": "int4,heads=int8"}, "quantization must be fp8"),
        ({"quantization": 8}, "quantization must be fp8"),
        ({"weight_pages": "huge"}, "weight_pages must be mapped, copied, locked, got huge"),
        ({"hf_overrides": {"rope_scalling": {}}}, "no key of config.json that this model reads; did you mean rope_sca"),
        ({"hf_overrides": [1]}, "hf_overrides must map keys of config.json to values"),
        ({"model": ""}, "model must be a checkpoint directory, a hub's name or a model, got ''"),
        ({"model": None}, "model must be a checkpoint directory"),
    ],
)
def test_options_of_loading_that_cannot_be_meant_are_refused_before_anything_is_read(
    options: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LLM(**{"model": "nowhere/at-all", **options})


def test_threads_pages_and_formats_are_as_the_command_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict = {}
    monkeypatch.setattr(module, "resolve_checkpoint", lambda path: path)
    monkeypatch.setattr(module, "check_sizes", lambda directory, config, **given: None)
    monkeypatch.setattr(module, "load", lambda directory, **given: (asked.update(given), (MODEL, IdTokenizer(128)))[1])
    monkeypatch.setattr(module, "set_threads", lambda count: asked.update(threads=count))
    LLM("somewhere", threads=3, weight_pages="copied", quantization="int4,head=int8", dtype="half", device="cpu")
    assert (asked["threads"], asked["pages"], asked["quantization"]) == (3, "copied", "int4,head=int8")
    assert (asked["dtype"], asked["device"]) == (torch.float16, torch.device("cpu"))


def test_a_tokenizer_beside_a_checkpoint_is_refused_instead_of_ignored() -> None:
    with pytest.raises(ConfigError, match="has its own tokenizer"):
        LLM("somewhere", IdTokenizer(128))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 257}, "max_model_len 257 exceeds the model's context of 256; give the model YaRN"),
        (
            {"max_model_len": 256, "num_blocks": 15},
            "needs 16 blocks of the cache .* and num_blocks is 15; lower .* num_blocks 16",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = llm(**options).engine


def test_a_small_cache_shortens_the_context_where_nobody_asked_for_one() -> None:
    assert llm(num_blocks=4, block_size=16).engine.max_model_len == 64


def test_an_fp8_cache_stays_close_and_halves_memory() -> None:
    plain, small = llm(), llm(kv_cache_dtype="fp8")
    assert small.engine.sizes.bytes_per_block < 0.45 * plain.engine.sizes.bytes_per_block
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=20, prompt_logprobs=0)
    text = " ".join(str(5 + i % 60) for i in range(60))
    exact, close = (e.generate([text], params)[0].prompt_logprobs for e in (plain, small))
    own = [[next(iter(x.values())).logprob for x in p[1:]] for p in (exact, close)]
    # Values are not in the cache when a prompt's own chunk reads them back: they are, as codes of 3 bits' mantissa.
    assert torch.tensor(own[0]).sub(torch.tensor(own[1])).abs().mean() < 0.05
