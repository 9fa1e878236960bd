"""How many tokens to draft: decided from measured step times and running acceptance, never from belief alone.

What a step with K drafts per answer costs is measured, per number of answers in the step and K, and so is what it
yields: at most 1 + p1 + p1 p2 + ... tokens, where p_i is the share of drafts at depth i that are accepted once those
before them were, and less where answers end. Drafts that lose time are not made. Numbers not in use are tried now and
then, the more seldom the longer trying them changes nothing, so a model whose drafts are always wrong pays a fraction
of a per cent.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

_REMEMBERED = 9
"""Step times kept per choice: their median shrugs off a disturbance."""
_TRIAL = 3
"""Steps for which a number is tried: the first verifies what was drafted under another and is not counted."""
_SOONEST, _LATEST = 24, 1536
"""Steps between two trials."""
_ROSE = 1.05
"""Acceptance that promises so much more than before a trial asks for the next one soon: the text has changed."""
_RECONSIDERED = 8
"""Steps after which the best number is looked for anew, beside after each trial: it takes as long as a short step."""
_MEMORY = 0.97
"""What remains of old acceptance with each new draft."""
_APART = 4
"""Up to so many answers each number has its own record; beyond, twice as many share one."""
_YIELD_WEIGHT = 0.05
"""Of a new step in the running mean of what steps yield."""
_WITHOUT = 1.03
"""Not drafting counts for so much more: it spares reading prompts with the MTP layer, which no decoding step shows."""
_MARGIN = 1.02
"""Another number must promise so much more to be taken: times are noisy and changes cost a step."""


@dataclass(slots=True)
class _Load:
    """What is known for one number of answers per step."""

    best: int
    seconds: dict[int, deque[float]] = field(default_factory=dict)
    yields: dict[int, float] = field(default_factory=dict)
    """By number of drafts: tokens of a step as a share of what acceptance promises, a running mean."""
    trying: int | None = None
    steps_left: int = 0
    """Of the trial."""
    until_trial: int = 2
    pause: int = _SOONEST
    promised: float = math.inf
    """Tokens of a step with all drafts, as acceptance had it before the last trial."""


class DraftLength:
    """Chooses K, 0 to `most`.

    adaptive      False: always `most`
    most_answers  with more answers in a step nothing is drafted, unless it is always
    """

    def __init__(self, most: int, *, adaptive: bool = True, most_answers: int = 2**30) -> None:
        self.most = most
        self.most_answers = most_answers
        self.adaptive = adaptive
        self._accepted = [2.0 * 0.9**i for i in range(most)]  # a hopeful start that a few drafts overrule
        self._drafted = [2.5] * most
        self._loads: dict[int, _Load] = {}

    def may_draft(self, num_answers: int) -> bool:
        """Whether anything is ever drafted behind so many answers in a step."""
        return self.most > 0 and not (self.adaptive and num_answers > self.most_answers)

    def soon(self, num_answers: int, steps: int) -> bool:
        """Whether something may be drafted behind so many answers within so many steps."""
        if not self.adaptive or not self.may_draft(num_answers):
            return self.may_draft(num_answers)
        load = self._load(num_answers)
        return load.best > 0 or load.trying is not None or load.until_trial <= steps

    def choose(self, num_answers: int) -> int:
        """Return how many tokens to draft behind each of `num_answers` answers, for the next step."""
        if not self.may_draft(num_answers):
            return 0
        if not self.adaptive:
            return self.most
        load = self._load(num_answers)
        return load.best if load.trying is None else load.trying

    def observe(self, num_answers: int, verified: int, made: int, seconds: float, tokens: int | None = None) -> None:
        """Take the time of a step that verified some drafts per answer and made some for the next.

        tokens  that it added to all answers; None: as many as acceptance promises
        """
        if not self.adaptive or not self.may_draft(num_answers):
            return
        load = self._load(num_answers)
        if verified == made:
            if made not in load.seconds:
                load.seconds[made] = deque(maxlen=_REMEMBERED)
            load.seconds[made].append(seconds)
        if tokens is not None and verified:
            share = tokens / num_answers / self.tokens_per_step(verified)
            before = load.yields.get(verified, 1.0)
            load.yields[verified] = before + (share - before) * _YIELD_WEIGHT
        if load.trying is not None:
            load.steps_left -= 1
            if load.steps_left:
                return
            load.trying = None
            self._choose_best(load)
        load.until_trial -= 1
        if load.until_trial % _RECONSIDERED == 0:
            self._choose_best(load)
        if load.until_trial <= 0:
            self._try_another(load)

    def count(self, drafted: int, accepted: int) -> None:
        """Take the outcome of one answer's verification."""
        for depth in range(min(accepted + 1, drafted)):  # those behind the first wrong one were never judged
            self._drafted[depth] = self._drafted[depth] * _MEMORY + 1
            self._accepted[depth] = self._accepted[depth] * _MEMORY + (depth < accepted)

    def acceptance(self, depth: int) -> float:
        """Return the share of drafts at `depth` (from 0) that are accepted once those before them were."""
        return self._accepted[depth] / self._drafted[depth]

    def tokens_per_step(self, drafts: int) -> float:
        """Return the expected tokens of a step, per answer."""
        total = share = 1.0
        for depth in range(drafts):
            share *= self.acceptance(depth)
            total += share
        return total

    def _load(self, num_answers: int) -> _Load:
        bucket = num_answers if num_answers <= _APART else _APART + (num_answers // _APART).bit_length()
        load = self._loads.get(bucket)
        if load is None:
            near = min(self._loads, key=lambda b: abs(b - bucket), default=None)
            load = self._loads[bucket] = _Load(self._loads[near].best if near is not None else 1)
        return load

    def _choose_best(self, load: _Load) -> None:
        before = load.best
        if before in load.seconds:
            load.best = max(load.seconds, key=lambda k: self._rate(load, k) * (_MARGIN if k == before else 1))
        if load.best != before:
            load.pause = load.until_trial = _SOONEST

    def _try_another(self, load: _Load) -> None:
        """Try a number that was never tried, a neighbour of the best, none or all; or the most promising other one."""
        near = [k for k in (0, load.best - 1, load.best + 1, self.most) if 0 <= k <= self.most and k != load.best]
        untried = [k for k in near if k not in load.seconds]
        others = {*near, *load.seconds} - {load.best}
        load.trying = untried[0] if untried else max(others, key=lambda k: self._rate(load, k))
        load.steps_left = _TRIAL
        more = len(untried) > 1
        before, load.promised = load.promised, self.tokens_per_step(self.most)
        if load.promised > _ROSE * before:  # the last trial did better than what was known of drafts
            load.pause = max(load.pause // 2, _SOONEST)
        else:
            load.pause = _SOONEST if more else min(2 * load.pause, _LATEST)
        load.until_trial = 1 if more else load.pause

    def _rate(self, load: _Load, drafts: int) -> float:
        """Return tokens per second and answer."""
        times = load.seconds.get(drafts)
        if not times:
            return 0.0
        margin = 1.0 if drafts else _WITHOUT
        return margin * self.tokens_per_step(drafts) * load.yields.get(drafts, 1.0) / median(times)
