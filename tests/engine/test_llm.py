"""The engine's promises: batches, drafting and seeds change nothing; limits are said in one line."""

import pytest
import torch

from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.engine.sampler import Row, gumbel_noise, sample
from ling.errors import CheckpointError, RequestError
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer

MODEL = tiny_model(seed=1)
PROMPTS = ["5 6 7", "9", "11 12 13 14 15 16 17", "5 6 8"]


def llm(**options) -> LLM:
    return LLM(MODEL, IdTokenizer(128), **options)


def tokens(engine: LLM, prompts=PROMPTS, **params) -> list[list[int]]:
    given = {"max_tokens": 20, "ignore_eos": True, **params}
    return [c.token_ids for c in engine.generate(prompts, SamplingParams(**given))]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.5, "min_p": 0.2, "logit_bias": {7: 3.0}},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
        {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "seed": 3},
    ],
)
def test_a_request_gives_the_same_tokens_alone_in_a_batch_and_with_drafts(sampling: dict) -> None:
    alone = [tokens(llm(), [p], **sampling)[0] for p in PROMPTS]
    assert tokens(llm(), **sampling) == alone
    assert tokens(llm(max_batch=2), **sampling) == alone
    for num_drafts in (1, 2, 4):
        assert tokens(llm(num_drafts=num_drafts), **sampling) == alone, num_drafts


def test_seeds_differ_and_repeat() -> None:
    first = tokens(llm(), temperature=1.0, seed=1)
    assert first == tokens(llm(), temperature=1.0, seed=1)
    assert first != tokens(llm(), temperature=1.0, seed=2)


def test_drafts_that_the_model_itself_makes_are_accepted() -> None:
    """An MTP layer whose answer is always the model's next choice would save a step per token; count that it could."""
    engine = llm(num_drafts=2)
    tokens(engine)
    stats = engine.stats
    assert stats.tokens == 20 * len(PROMPTS)
    assert 0 <= stats.accepted <= stats.drafted
    assert stats.steps <= 20


def test_generation_stops_at_a_stop_id_and_says_so() -> None:
    plain = tokens(llm(), ["5 6 7"])[0]
    engine = llm()
    engine.stop_ids = {plain[4]}
    (done,) = engine.generate(["5 6 7"], SamplingParams(max_tokens=20))
    assert (done.token_ids, done.finish_reason) == (plain[: plain.index(plain[4]) + 1], "stop")
    (ignored,) = engine.generate(["5 6 7"], SamplingParams(max_tokens=20, ignore_eos=True))
    assert (len(ignored.token_ids), ignored.finish_reason) == (20, "length")


def test_streaming_gives_the_same_tokens() -> None:
    whole = tokens(llm(), ["5 6 7"])[0]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    assert list(llm(num_drafts=2).stream("5 6 7", params)) == whole


def test_the_context_ends_a_completion() -> None:
    length = MODEL.config.max_position_embeddings
    (done,) = llm(num_drafts=1).generate([[5] * (length - 3)], SamplingParams(max_tokens=50, ignore_eos=True))
    assert (len(done.token_ids), done.finish_reason) == (3, "length")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([5] * 256, "the prompt has 256 tokens, the context 256"),
        ([], "the prompt is empty"),
        ([5, 128], "token id 128 is not in a vocabulary of 128"),
        ([5, -1], "token id -1 is not in a vocabulary of 128"),
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
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_p": float("nan")}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {5: 101}}, "logit_bias must lie"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias must lie"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "logit_bias may name 1024 tokens"),
    ],
)
def test_wrong_parameters_are_named(params: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**params)


def test_a_tokenizer_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the tokenizer has 129 tokens, the model's vocabulary 128"):
        LLM(MODEL, IdTokenizer(129))


def test_noise_is_a_function_of_its_arguments_with_gumbel_moments() -> None:
    noise = gumbel_noise(3, 5, 200_000, torch.device("cpu"))
    assert torch.equal(noise, gumbel_noise(3, 5, 200_000, torch.device("cpu")))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(1.6449, rel=0.02)
    for other in (gumbel_noise(4, 5, 200_000, noise.device), gumbel_noise(3, 6, 200_000, noise.device)):
        assert abs(torch.corrcoef(torch.stack([noise, other]))[0, 1].item()) < 0.01


def rows(params: SamplingParams, count: int = 500) -> list[Row]:
    """One choice per position, of a sequence whose tokens do not count."""
    return [Row(params, range(position), 0) for position in range(count)]


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(4000, 4)
    params = SamplingParams(temperature=1.0, seed=11)
    chosen = torch.tensor(sample(logits, rows(params, 4000)))
    shares = torch.bincount(chosen, minlength=4) / 4000
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.03, rtol=0)


def test_top_k_and_top_p_keep_the_most_likely() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(500, 4)  # 0.64, 0.24, 0.09, 0.03
    few = SamplingParams(temperature=1.0, top_k=2)
    assert set(sample(logits, rows(few))) == {0, 1}
    nucleus = SamplingParams(temperature=1.0, top_p=0.7)
    assert set(sample(logits, rows(nucleus))) == {0, 1}
    for min_p, kept in ((0.3, {0, 1}), (0.1, {0, 1, 2}), (0.4, {0}), (1.0, {0})):
        assert set(sample(logits, rows(SamplingParams(temperature=1.0, min_p=min_p)))) == kept, min_p


@pytest.mark.parametrize(
    ("steering", "expected"),
    [
        ({}, 0),
        (
            {"repetition_penalty": 4.0},
            3,
        ),  # 0 and 1 stand in the prompt or the answer: 1, 0.75; 2 is twice in the answer
        ({"presence_penalty": 2.0}, 0),  # the prompt does not count: 4, 1, 0, 1.5
        ({"presence_penalty": 2.0, "logit_bias": {0: -3.0}}, 3),
        ({"frequency_penalty": 0.6}, 0),
        ({"frequency_penalty": 0.6, "logit_bias": {0: -2.3}}, 1),  # 1.7, 2.4, 0.8, 1.5
        ({"frequency_penalty": 1.6, "logit_bias": {0: -2.6}}, 3),  # 1.4, 1.4, -1.2, 1.5
        ({"presence_penalty": -2.0}, 1),  # a negative penalty repeats: 4, 5, 4, 1.5
        ({"logit_bias": {3: 100.0}}, 3),
    ],
)
def test_penalties_and_biases_steer_greedy_choices(steering: dict, expected: int) -> None:
    """Prompt: 0 0; answer so far: 1 2, and a draft of 2."""
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.5]])
    row = Row(SamplingParams(**steering), [0, 0, 1, 2], 2, (2,))
    assert sample(logits, [row]) == [expected]


def test_a_repetition_penalty_makes_unlikely_tokens_less_likely_too() -> None:
    row = Row(SamplingParams(repetition_penalty=2.0), [0], 1)
    assert sample(torch.tensor([[-1.0, -1.5]]), [row]) == [1]  # -2 beside -1.5


def test_own_stop_ids_end_an_answer_even_where_the_models_are_ignored() -> None:
    plain = tokens(llm(), ["5 6 7"])[0]
    params = SamplingParams(max_tokens=20, ignore_eos=True, stop_token_ids=(plain[3],))
    (done,) = llm(num_drafts=2).generate(["5 6 7"], params)
    assert (done.token_ids, done.finish_reason) == (plain[: plain.index(plain[3]) + 1], "stop")
    assert list(llm(num_drafts=2).stream("5 6 7", params)) == plain[: plain.index(plain[3])]


@pytest.mark.parametrize("stray", [{"logit_bias": {128: 1.0}}, {"stop_token_ids": (-1,)}])
def test_tokens_named_by_parameters_must_exist(stray: dict) -> None:
    with pytest.raises(RequestError, match="logit_bias or stop_token_ids names token id"):
        llm().generate(["5"], SamplingParams(**stray))


def test_the_time_of_every_batch_counts() -> None:
    whole = llm(max_batch=1)
    tokens(whole)
    one = whole.stats.seconds / len(PROMPTS)
    alone = llm()
    tokens(alone, [PROMPTS[0]])
    assert whole.stats.tokens == 20 * len(PROMPTS)
    assert whole.stats.seconds > 1.5 * one
    assert alone.stats.steps == 20  # the prompt's pass gives the first token


@pytest.mark.parametrize("num_drafts", [-1, 17])
def test_absurd_numbers_of_drafts_are_refused(num_drafts: int) -> None:
    with pytest.raises(RequestError, match="num_drafts must lie between 0 and 16"):
        llm(num_drafts=num_drafts)
