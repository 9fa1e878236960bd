"""Who proposes tokens: the MTP layer (spec: serving.md 5), or a search in the text so far.

After the main model has run and the token behind is known, the MTP layer runs over the slots that became known with
the main model's true hidden states; the last one proposes the next token. Further drafts feed the layer its own
output. Rejected drafts leave stale slots, which the next pass overwrites.

While nobody drafts, hidden states wait in `Sequence.pending`; when they exceed a bound, the oldest are dropped and the
MTP layer sees the sequence from later on. While nobody will for long, none are kept. That costs acceptance, never
correctness.
"""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from ling.engine.cache import Part
from ling.engine.runner import Runner
from ling.engine.sampler import Row, sample
from ling.engine.sequence import Sequence
from ling.errors import RequestError

READ_BACK = 16
"""Hidden states that the first draft behind a pause reads; up to twice as many wait for it, per sequence."""
_LONGEST_MATCH, _SHORTEST_MATCH = 4, 2
_SEARCHED = 8192
"""Tokens back that a match is looked for."""


def keep_hidden(sequence: Sequence, hidden: Tensor) -> None:
    """Add main hidden states (n, H) of the tokens before `num_computed` to what the MTP layer has not seen."""
    s, count = sequence, hidden.shape[0]
    if s.mtp_next - 1 + s.num_pending != s.num_computed - count:  # those between were not kept
        s.begin_drafting(s.num_computed - count + 1)
    s.pending.append(hidden)
    s.num_pending += count


def hold_back(sequence: Sequence, *, apart: bool) -> None:
    """Keep the last of what waits, where that is much, for nothing was drafted.

    apart  it lies beside much else, whose memory is not to be kept with it
    """
    if sequence.num_pending > 2 * READ_BACK:
        rows = torch.cat(sequence.pending)[-READ_BACK:].clone()
        sequence.begin_drafting(sequence.num_computed - rows.shape[0] + 1)
        sequence.wait([rows], rows.shape[0])
    elif apart:
        sequence.pending = [rows.clone() for rows in sequence.pending]


class MtpDrafter:
    """Drafts with the first MTP layer."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def draft(self, going: SequenceOf[Sequence], prefilling: SequenceOf[Sequence], most: int) -> None:
        """Run the layer over every slot whose token and hidden state are known; set up to `most` drafts of `going`."""
        parts, tokens, hidden = [], [], []
        for s in (*going, *prefilling):
            begin, rows = s.mtp_next, torch.cat(s.pending) if len(s.pending) > 1 else s.pending[0]
            s.mtp_next += s.num_pending
            s.wait([], 0)
            parts.append(Part(s.blocks, begin, rows.shape[0], s.mtp_first))
            tokens.append(s.tokens[begin : s.mtp_next])
            hidden.append(rows)
            assert len(tokens[-1]) == rows.shape[0], (len(tokens[-1]), rows.shape)
        useful = [most_useful(s, most) for s in going]
        most = max(useful, default=0)
        if most > 0 and (found := self._propose_at_once(going, most, parts, tokens, hidden)) is not None:
            for s, drafts, own in zip(going, found, useful):
                stop = next((i for i, token in enumerate(drafts) if token in s.stop_ids), most)
                s.drafts = drafts[: max(0, min(stop, own))]
            return
        outputs = self.runner.draft(parts, tokens, hidden)
        self._propose(going, [rows[-1:] for rows in outputs[: len(going)]], most)

    def _propose_at_once(
        self,
        going: SequenceOf[Sequence],
        most: int,
        parts: list[Part],
        tokens: list[list[int]],
        hidden: list[Tensor],
    ) -> list[list[int]] | None:
        """Have the runner do it all, if nothing but logits and temperatures decides and it can; else None."""
        rows = [choice_row(s, (), None) for s in going]
        if not all(row.is_free and s.matcher is None for row, s in zip(rows, going)):
            return None
        keys = [row.noise_key(depth) for depth in range(most) for row in rows]
        return self.runner.propose(parts, tokens, hidden, [row.params.temperature for row in rows], keys)

    def _propose(self, sequences: SequenceOf[Sequence], hidden: list[Tensor], most: int) -> None:
        """Set `drafts` of each sequence, from the output (1, H) for its last slot, by one pass of the layer a depth."""
        live = list(zip(sequences, hidden))
        for depth in range(most):
            live = [(s, h) for s, h in live if len(s.drafts) == depth < most_useful(s, most)]
            if not live:
                return
            if depth:
                parts = [Part(s.blocks, s.mtp_next + depth - 1, 1, s.mtp_first) for s, _ in live]
                outputs = self.runner.draft(parts, [s.drafts[-1:] for s, _ in live], [h for _, h in live])
                live = [(s, out) for (s, _), out in zip(live, outputs)]
            self._choose(live)

    def _choose(self, live: list[tuple[Sequence, Tensor]]) -> None:
        """Append one draft to each sequence; a stop id ends drafting, since the row before it chooses it anyway."""
        rows = []
        for s, _ in live:
            try:
                rows.append(choice_row(s, s.drafts, _allowed_after(s)))
            except RequestError:  # a grammar at its limits: the next choice ends this request with the reason
                rows.append(choice_row(s, s.drafts, None))
        chosen = sample(self.runner.logits(torch.cat([h for _, h in live]), rows), rows)
        for (s, _), token in zip(live, chosen):
            if token not in s.stop_ids:
                s.drafts.append(token)


def propose_from_text(sequence: Sequence, most: int) -> None:
    """Set `drafts` to what followed the last tokens when they stood in the text before."""
    tokens = sequence.tokens[-_SEARCHED:]
    for length in range(_LONGEST_MATCH, _SHORTEST_MATCH - 1, -1):
        if len(tokens) <= length:
            continue
        wanted = tokens[-length:]
        for begin in range(len(tokens) - length - 1, -1, -1):
            if tokens[begin] == wanted[0] and tokens[begin : begin + length] == wanted:
                follow = tokens[begin + length : begin + length + most_useful(sequence, most)]
                stop = next((i for i, token in enumerate(follow) if token in sequence.stop_ids), len(follow))
                sequence.drafts = _grammatical(sequence, follow[:stop])
                return


def most_useful(sequence: Sequence, most: int) -> int:
    """Return how many drafts can still become tokens: the last one of an answer is never a draft."""
    return min(most, sequence.max_new - sequence.num_generated - 1)


def choice_row(sequence: Sequence, drafts: SequenceOf[int], allowed: Tensor | None) -> Row:
    """Describe the choice behind `drafts`."""
    s = sequence
    too_short = s.num_generated + len(drafts) < s.params.min_tokens
    return Row(
        s.params,
        s.seed,
        s.index,
        s.tokens,
        s.num_prompt,
        tuple(drafts),
        allowed,
        tuple(s.stop_ids) if too_short else (),
    )


def count_accepted(drafts: SequenceOf[int], chosen: SequenceOf[int]) -> int:
    """Return how many drafts the main model would have chosen itself, counted from the first."""
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == chosen[accepted]:
        accepted += 1
    return accepted


def _allowed_after(sequence: Sequence) -> Tensor | None:
    """Return what the grammar allows behind the sequence's drafts; None: anything."""
    return None if sequence.matcher is None else sequence.matcher.allowed(sequence.drafts)[0][-1]


def _grammatical(sequence: Sequence, drafts: list[int]) -> list[int]:
    """Cut drafts at the first that the grammar refuses."""
    if sequence.matcher is None:
        return drafts
    try:
        return drafts[: sequence.matcher.allowed(drafts)[1]]
    except RequestError:  # at its limits: the next choice meets it again, and ends this request with the reason
        return []
