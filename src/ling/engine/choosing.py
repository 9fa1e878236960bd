"""From hidden states to tokens of an answer: sampling, stop conditions, text, log-probabilities."""

import logging
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from ling.engine.request import Delta
from ling.engine.runner import Runner
from ling.engine.sampler import Row, logprobs_of, sample
from ling.engine.sequence import Sequence
from ling.engine.speculative import choice_row
from ling.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_LOGIT_ROWS = 64
"""Rows of logits held at once when a whole prompt is scored."""

Choice = tuple[Tensor, list[int] | Exception]
"""Logits of a sequence's last rows (n, V), and what was chosen behind each of them, or why nothing could be."""


def choose(runner: Runner, sequences: SequenceOf[Sequence], hidden: SequenceOf[Tensor]) -> list[Choice]:
    """Choose a token behind the last one of each sequence and behind each of its drafts.

    hidden  per sequence (n, H), its last rows among them
    """
    if not sequences:
        return []
    # A prompt is asked for its last row only; a verification for every row.
    counts = [1 + len(s.drafts) for s in sequences]
    asked = [h if h.shape[0] == n else h[-n:] for h, n in zip(hidden, counts)]
    rows = _rows_that_choose(sequences)
    logits = runner.logits(torch.cat(asked) if len(asked) > 1 else asked[0], rows)
    by_sequence = logits.split(counts)
    return list(zip(by_sequence, _sample_all(sequences, logits, by_sequence, rows)))


def _rows_that_choose(sequences: SequenceOf[Sequence]) -> list[Row] | None:
    """Return the rows of all, if choices are all that their logits are for; None as well where one has none to give."""
    if any(s.matcher is not None or s.params.logprobs is not None for s in sequences):
        return None
    try:
        return [row for s in sequences for row in _rows(s)]
    except Exception:  # asked again when logits are there, and then its error is its own
        return None


def _sample_all(
    sequences: SequenceOf[Sequence], logits: Tensor, by_sequence: SequenceOf[Tensor], rows: list[Row] | None
) -> list[list[int] | Exception]:
    """Sample all rows at once; where that fails each sequence by itself, so that an error takes only its own."""
    try:
        chosen = iter(sample(logits, [row for s in sequences for row in _rows(s)] if rows is None else rows))
        return [[next(chosen) for _ in range(1 + len(s.drafts))] for s in sequences]
    except Exception:
        logger.debug("a batch could not be sampled; each sequence by itself", exc_info=True)
    results: list[list[int] | Exception] = []
    for s, own in zip(sequences, by_sequence):
        try:
            results.append(sample(own, _rows(s)))
        except Exception as error:
            results.append(error)
    return results


def _rows(s: Sequence) -> list[Row]:
    if s.matcher is None:
        if not s.drafts and not s.params.min_tokens:  # the same in every step
            s.row = s.row or choice_row(s, (), None)
            return [s.row]
        return [choice_row(s, s.drafts[:i], None) for i in range(1 + len(s.drafts))]
    masks, valid = s.matcher.allowed(s.drafts)
    assert valid == len(s.drafts), (valid, s.drafts)
    return [choice_row(s, s.drafts[:i], masks[i]) for i in range(1 + len(s.drafts))]


def extend(
    s: Sequence, tokens: SequenceOf[int], logits: Tensor, model_stop_ids: Collection[int], tokenizer: Tokenizer
) -> Delta:
    """Take chosen tokens into an answer, up to the one that ends it; return what that adds.

    logits          (n, V), of the rows that they were chosen from
    model_stop_ids  end an answer without being named as the reason
    """
    delta = Delta(request_id=s.request_id, index=s.index)
    if not s.is_announced:
        s.is_announced = True
        delta.num_cached_tokens = s.num_cached_prompt
        delta.prompt_logprobs = s.prompt_logprobs if s.wants_prompt_logprobs else None
    for token in tokens:
        s.tokens.append(token)
        delta.token_ids.append(token)
        _extend_text(s, token, delta, model_stop_ids)
        if delta.finish_reason is not None:
            break
    if s.matcher is not None:
        s.matcher.advance(delta.token_ids)
    if s.params.logprobs is not None:
        delta.logprobs = logprobs_of(logits[: len(delta.token_ids)], delta.token_ids, s.params.logprobs, tokenizer)
    return delta


def _extend_text(s: Sequence, token: int, delta: Delta, model_stop_ids: Collection[int]) -> None:
    """Add a token's text and say whether the answer ends with it."""
    if token in s.stop_ids:
        named = token in s.params.stop_token_ids or token not in model_stop_ids
        delta.finish_reason, delta.stop_reason = "stop", token if named else None
        delta.text += s.text.finish()
        return
    text, stop = s.text.push(token)
    delta.text += text
    if stop is not None:
        delta.finish_reason, delta.stop_reason = "stop", stop
    elif s.num_generated >= s.max_new:
        delta.finish_reason = "length"
        delta.text += s.text.finish()


def score_prompt(runner: Runner, s: Sequence, hidden: Tensor, tokenizer: Tokenizer) -> None:
    """Add the log-probabilities of the prompt's tokens behind each of these rows, (n, H) from `num_computed` on."""
    if s.is_announced or s.num_computed >= s.num_prompt:
        return
    if not s.prompt_logprobs:
        s.prompt_logprobs.append(None)
    following = s.tokens[s.num_computed + 1 : min(s.num_prompt, s.num_computed + 1 + len(hidden))]
    most = s.params.prompt_logprobs
    assert most is not None
    for first in range(0, len(following), _LOGIT_ROWS):
        tokens = following[first : first + _LOGIT_ROWS]
        logits = runner.logits(hidden[first : first + len(tokens)])
        s.prompt_logprobs += logprobs_of(logits, tokens, most, tokenizer)
