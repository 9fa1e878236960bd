"""Choosing tokens: noise that is a function, distributions that are followed, penalties that count."""

import pytest
import torch

from ling.engine.request import SamplingParams
from ling.engine.sampler import Row, _penalise, derive_seed, logprobs_of, noise_key, sample
from ling.testing.text import IdTokenizer


def rows(params: SamplingParams, count: int = 500, seed: int = 11) -> list[Row]:
    """One choice per position, of a sequence whose tokens do not count."""
    return [Row(params, seed, 0, range(position), 0) for position in range(count)]


def test_keys_of_noise_differ_by_seed_answer_and_position() -> None:
    assert len({noise_key(*own) for own in ((3, 0, 5), (4, 0, 5), (3, 1, 5), (3, 0, 6))}) == 4
    row = Row(SamplingParams(temperature=1.0), 3, 1, [7, 7], 1, (7,))
    assert row.noise_key() == noise_key(3, 1, 3)
    assert row.noise_key(2) == noise_key(3, 1, 5)


def test_derived_seeds_differ_and_fit() -> None:
    seeds = [derive_seed(0, i) for i in range(1000)] + [derive_seed(1, i) for i in range(1000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("steering", [{}, {"top_p": 0.9999}, {"top_k": 3}, {"min_p": 1e-6}])
def test_sampling_follows_the_distribution(steering: dict) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(4000, 4)
    chosen = torch.tensor(sample(logits, rows(SamplingParams(temperature=1.0, **steering), 4000)))
    shares = torch.bincount(chosen, minlength=4) / 4000
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.03, rtol=0)


def test_temperature_flattens() -> None:
    logits = torch.tensor([[0.0, 2.0]]).expand(4000, 2)
    chosen = sample(logits, rows(SamplingParams(temperature=4.0), 4000))
    assert sum(chosen) / 4000 == pytest.approx(torch.tensor([0.0, 0.5]).softmax(0)[1].item(), abs=0.03)


def test_top_k_and_top_p_keep_the_most_likely() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(500, 4)  # 0.64, 0.24, 0.09, 0.03
    assert set(sample(logits, rows(SamplingParams(temperature=1.0, top_k=2)))) == {0, 1}
    assert set(sample(logits, rows(SamplingParams(temperature=1.0, top_k=-1)))) == {0, 1, 2, 3}
    assert set(sample(logits, rows(SamplingParams(temperature=1.0, top_p=0.7)))) == {0, 1}
    for min_p, kept in ((0.3, {0, 1}), (0.1, {0, 1, 2}), (0.4, {0}), (1.0, {0})):
        assert set(sample(logits, rows(SamplingParams(temperature=1.0, min_p=min_p)))) == kept, min_p


def test_a_top_p_that_rounds_to_nothing_keeps_the_most_likely() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(20, 4)
    assert set(sample(logits, rows(SamplingParams(temperature=1.0, top_p=1e-300), 20))) == {0}


def test_a_nucleus_wider_than_what_is_ranked_first_is_whole() -> None:
    logits = torch.zeros(3000, 3000)
    chosen = sample(logits, rows(SamplingParams(temperature=1.0, top_p=0.9), 3000))
    assert len(set(chosen)) > 1500  # of 2,700 equal ones, drawn 3,000 times


@pytest.mark.parametrize(
    ("steering", "expected"),
    [
        ({}, 0),
        # 0 and 1 stand in the prompt or the answer: 1, 0.75; 2 is twice in the answer
        ({"repetition_penalty": 4.0}, 3),
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
    row = Row(SamplingParams(temperature=0, **steering), 0, 0, [0, 0, 1, 2], 2, (2,))
    assert sample(logits, [row]) == [expected]


def test_a_repetition_penalty_makes_unlikely_tokens_less_likely_too() -> None:
    row = Row(SamplingParams(temperature=0, repetition_penalty=2.0), 0, 0, [0], 1)
    assert sample(torch.tensor([[-1.0, -1.5]]), [row]) == [1]  # -2 beside -1.5


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_only_allowed_tokens_are_chosen_and_barred_ones_never(temperature: float) -> None:
    logits = torch.tensor([[9.0, 8.0, 0.0, 0.0]]).expand(200, 4)
    params = SamplingParams(temperature=temperature, min_tokens=1)
    allowed = torch.tensor([False, True, True, False])
    given = [Row(params, i, 0, [0], 1, (), allowed, (1,)) for i in range(200)]
    assert set(sample(logits, given)) == {2}


def test_a_grammar_that_allows_only_the_end_ends_an_answer_that_is_too_short() -> None:
    allowed = torch.tensor([False, True, False])
    row = Row(SamplingParams(temperature=0, min_tokens=5), 0, 0, [0], 1, (), allowed, (1,))
    assert sample(torch.zeros(1, 3), [row]) == [1]


def test_a_batch_of_greedy_and_sampled_rows_chooses_as_each_row_alone() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    kinds = [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.5, "top_p": 0.8, "top_k": 10}]
    given = [Row(SamplingParams(**kinds[i % 3]), i, 0, [1, 2], 1) for i in range(6)]
    assert sample(logits, given) == [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(given)]


def test_log_probabilities_name_the_chosen_token_and_the_best_ones() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    (entry,) = logprobs_of(logits, [3], 2, IdTokenizer(4))
    values = logits[0].log_softmax(0)
    assert list(entry) == [3, 1, 2]
    assert [(x.rank, x.decoded_token) for x in entry.values()] == [(4, "3"), (1, "1"), (2, "2")]
    assert [x.logprob for x in entry.values()] == pytest.approx([values[i].item() for i in (3, 1, 2)])


def test_penalties_touch_the_tokens_that_occur_and_no_others() -> None:
    """Against the plain spelling over the whole vocabulary, to the bit."""
    params = SamplingParams(repetition_penalty=1.3, frequency_penalty=0.3, presence_penalty=0.7)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    tokens, drafts = [1, 2, 2, 7, 7, 9], (7, 11)
    counts = torch.tensor([[*tokens[3:], *drafts].count(i) for i in range(50)], dtype=torch.float32)
    seen = torch.tensor([i in (*tokens, *drafts) for i in range(50)])
    plain = torch.where(seen, torch.where(logits > 0, logits / 1.3, logits * 1.3), logits)
    plain = plain - 0.3 * counts - 0.7 * (counts > 0)
    before = logits.clone()
    assert torch.equal(_penalise(logits, Row(params, 0, 0, tokens, 3, drafts)), plain)
    assert torch.equal(logits, before)
