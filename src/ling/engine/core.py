"""The engine: requests in, one step at a time, deltas out.

A step asks the scheduler who runs, runs the model once over all of it, chooses tokens where a sequence is up to date,
and drafts what may follow. Whatever goes wrong with one request ends that request; whatever goes wrong with a step
ends the requests of the step; the engine goes on.
"""

import logging
import time
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ling.config.engine import EngineConfig
from ling.engine.admission import check_request
from ling.engine.blocks import BlockPool
from ling.engine.cache import PagedCache, Part
from ling.engine.choosing import Choice, choose, extend, score_prompt
from ling.engine.draft_length import DraftLength
from ling.engine.request import Delta, SamplingParams
from ling.engine.runner import Runner
from ling.engine.sampler import derive_seed
from ling.engine.scheduler import Scheduler
from ling.engine.sequence import Sequence
from ling.engine.sizing import Sizes, choose_sizes, draft_method, held_dtype
from ling.engine.speculative import READ_BACK, MtpDrafter, count_accepted, hold_back, keep_hidden, propose_from_text
from ling.engine.stats import EngineStats
from ling.engine.text import AnswerText
from ling.errors import LingError, RequestError
from ling.model import CausalLM
from ling.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ling.engine.grammar import Grammar

logger = logging.getLogger(__name__)


_MOST_DRAFT_FAILURES = 3
_MANY_VALUES = 2**18
"""Of a step's hidden states, from which on a part of them that waits is copied: it is not to hold on to the rest."""


class StepError(LingError):
    """A step that failed and took its requests with it; the engine goes on."""


class Engine:
    """A model and its tokenizer behind a scheduler, a cache and a sampler. Not thread-safe: see `EngineLoop`."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.sizes: Sizes = choose_sizes(model, tokenizer, self.config)
        self.drafting = draft_method(model.config, self.config)
        """`mtp`, `ngram` or `none`."""
        self.stop_ids = {*tokenizer.stop_ids, *model.config.eos_token_ids}
        self.stats = EngineStats()
        most = self.config.num_speculative_tokens if self.drafting != "none" else 0
        self.draft_length = DraftLength(
            most, adaptive=self.config.adaptive_drafts, most_answers=self.config.max_drafting_seqs
        )
        self.blocks = BlockPool(
            self.sizes.num_blocks, self.config.block_size, caching=self.config.enable_prefix_caching
        )
        cache = PagedCache(
            model.config,
            self.sizes.num_blocks,
            self.config.block_size,
            self.sizes.dtype,
            self.sizes.device,
            held=held_dtype(self.config, self.sizes.dtype),
        )
        lookahead = most if self.drafting == "mtp" else 0
        longest = self.sizes.max_model_len + lookahead + 1
        drafts, invariant = self.drafting == "mtp", self.config.batch_invariant
        shortlist = self.config.head_shortlist
        self.runner = Runner(model, cache, longest, invariant=invariant, drafts=drafts, shortlist=shortlist)
        self._mtp = MtpDrafter(self.runner) if self.drafting == "mtp" else None
        self.scheduler = Scheduler(self.blocks, self.sizes.max_num_batched_tokens, self.config.max_num_seqs, lookahead)
        self._answers: dict[str, list[Sequence]] = {}
        self._num_requests = 0
        self._draft_failures = 0

    # ---- requests ----

    @property
    def max_model_len(self) -> int:
        return self.sizes.max_model_len

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    def check(self, prompt: SequenceOf[int], params: SamplingParams) -> None:
        """Raise RequestError if this can never run."""
        check_request(prompt, params, self.model.config.vocab_size, self.max_model_len)

    def add(
        self,
        request_id: str,
        prompt: SequenceOf[int],
        params: SamplingParams,
        *,
        grammar: "Grammar | None" = None,
        salt: str = "",
    ) -> None:
        """Queue a request. Raises RequestError if it can never run, or its id is in use.

        grammar  what `params.structured_outputs` was compiled to
        salt     prompts share cached blocks only with prompts of the same salt
        """
        self.check(prompt, params)
        if request_id in self._answers:
            raise RequestError(f"request id {request_id} is in use")
        if params.structured_outputs is not None and grammar is None:
            raise RequestError("structured_outputs must be compiled before the engine takes the request")
        tokens = list(prompt)
        room = self.max_model_len - len(tokens)
        seed = derive_seed(self.config.seed, self._num_requests) if params.seed is None else params.seed
        self._num_requests += 1
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(self.stop_ids))
        answers: list[Sequence] = []
        for index in range(params.n):
            answers.append(
                Sequence(
                    request_id=request_id,
                    index=index,
                    params=params,
                    tokens=list(tokens),
                    num_prompt=len(tokens),
                    max_new=room if params.max_tokens is None else min(params.max_tokens, room),
                    seed=seed,
                    text=AnswerText(self.tokenizer, params),
                    stop_ids=stops,
                    matcher=None if grammar is None else grammar.matcher(),
                    salt=salt,
                    after=answers[0] if answers else None,
                )
            )
        self._answers[request_id] = answers
        self.stats.requests += 1
        self.stats.prompt_tokens += len(tokens)
        for sequence in answers:
            self.scheduler.add(sequence)

    def abort(self, request_id: str) -> list[Delta]:
        """Forget a request, whatever it is doing; return the last deltas of its unfinished answers."""
        return [self._end(s, Delta(request_id=s.request_id, index=s.index, finish_reason="abort"))
                for s in list(self._answers.get(request_id, ()))]  # fmt: skip

    # ---- a step ----

    def step(self) -> list[Delta]:
        """Run one step; return what it adds to each answer. Never raises for what a request or the model does."""
        begin = time.perf_counter()
        plan: dict[Sequence, int] = {}
        deltas: list[Delta] = []
        try:
            plan = self.scheduler.schedule()
            if not plan:
                return []
            self._run(plan, begin, deltas)
        except Exception as error:
            deltas += self._fail_step(plan, error)
        self.stats.steps += 1
        self.stats.seconds += time.perf_counter() - begin
        self.stats.preemptions = self.scheduler.num_preempted
        self.stats.queried_tokens, self.stats.cached_tokens = self.scheduler.num_queried, self.scheduler.num_found
        return [d for d in deltas if d.token_ids or d.text or d.finish_reason or d.prompt_logprobs]

    def _run(self, plan: dict[Sequence, int], begin: float, deltas: list[Delta]) -> None:
        """Run the rows of a plan; what that adds to answers goes into `deltas` as it comes, so that a failure behind
        it cannot lose the end of an answer."""
        sequences = list(plan)
        only_decoding = all(not s.is_prefilling for s in sequences)
        tried = max(len(s.drafts) for s in sequences)
        keeps = self._mtp is not None and self.draft_length.soon(len(sequences), READ_BACK)
        if keeps:
            for s in sequences:
                self._resume_drafting(s)
        hidden, finite = self._forward(sequences, plan)
        if not finite:
            deltas += self._fail_not_finite(sequences, hidden)
        ready, prefilling = [], []
        for s, h in zip(sequences, hidden):
            if s.finished:
                continue
            if s.wants_prompt_logprobs:
                try:
                    score_prompt(self.runner, s, h, self.tokenizer)
                except Exception as error:
                    deltas.append(self._fail(s, error))
                    continue
            if s.num_computed + plan[s] >= len(s.tokens):
                ready.append((s, h))
            else:
                self._count(s, h if keeps else None, plan[s])
                prefilling.append(s)
        choices = choose(self.runner, [s for s, _ in ready], [h for _, h in ready])
        deltas.extend(self._advance(s, plan[s], h if keeps else None, own) for (s, h), own in zip(ready, choices))
        going = [s for s, _ in ready if not s.finished]
        made = self.draft_length.choose(max(1, len(going))) if keeps or self._mtp is None else 0
        if made and (going or prefilling):
            self._draft(going, prefilling, made)
        elif keeps:
            many = sum(plan.values()) * self.model.config.hidden_size > _MANY_VALUES
            for s in (*going, *prefilling):
                hold_back(s, apart=many)
        for s in (*going, *prefilling):
            self.scheduler.publish(s)
        if only_decoding and going:
            added = sum(len(delta.token_ids) for delta in deltas)
            self.draft_length.observe(len(sequences), tried, made, time.perf_counter() - begin, added)

    def _forward(self, sequences: list[Sequence], plan: dict[Sequence, int]) -> tuple[list[Tensor], bool]:
        """Run the planned rows of each sequence; return its hidden states (n, H), and whether all are finite."""
        parts, tokens = [], []
        for s in sequences:
            begin, count = s.num_computed, plan[s]
            known = s.tokens[begin : begin + count]
            parts.append(Part(s.blocks, begin, count))
            tokens.append(known + s.drafts if len(known) < count else known)
        return self.runner.forward(parts, tokens)

    def _resume_drafting(self, s: Sequence) -> None:
        """Behind a prefix from the cache, go on where its MTP slots end, or see nothing of it where it has none."""
        if not s.num_computed or s.mtp_next > 1 or s.pending:
            return
        shared = s.blocks[: s.num_published]
        is_fresh = s.num_computed == len(shared) * self.config.block_size
        if is_fresh and self.blocks.drafting_is_filled(shared):
            s.mtp_next = s.num_computed
            s.wait([self.runner.cache.states[shared[-1:]]], 1)
        else:
            s.begin_drafting(s.num_computed + 1)

    def _count(self, s: Sequence, hidden: Tensor | None, count: int) -> None:
        """Count so many tokens as computed; drafting reads their hidden states (count, H) later, if they are kept."""
        size, begin = self.config.block_size, s.num_computed
        s.num_computed += count
        if hidden is None:
            return
        rows = hidden if hidden.shape[0] == count else hidden[:count]
        keep_hidden(s, rows)
        if begin // size < s.num_computed // size:  # where blocks end, for those who will share them
            ends = range(begin + (-(begin + 1)) % size, s.num_computed, size)
            blocks = torch.tensor([s.blocks[i // size] for i in ends], device=rows.device)
            self.runner.cache.states[blocks] = rows[ends[0] - begin :: size]

    def _advance(self, s: Sequence, rows: int, hidden: Tensor | None, choice: Choice) -> Delta:
        """Take what was chosen into the answer: the drafts it agrees with and one token more.

        rows    that were computed for it
        hidden  theirs, (rows, H), where drafting is to read them
        """
        logits, chosen = choice
        if isinstance(chosen, Exception):
            return self._fail(s, chosen)
        try:
            accepted = 0
            if s.drafts:
                accepted = count_accepted(s.drafts, chosen)
                self.stats.count_drafts(len(s.drafts), accepted)
                self.draft_length.count(len(s.drafts), accepted)
            self._count(s, hidden, rows - len(s.drafts) + accepted)
            s.drafts = []
            delta = extend(s, chosen[: accepted + 1], logits, self.stop_ids, self.tokenizer)
            s.num_computed = min(s.num_computed, len(s.tokens))  # the answer may end inside its drafts
        except Exception as error:
            return self._fail(s, error)
        self.stats.tokens += len(delta.token_ids)
        return delta if delta.finish_reason is None else self._end(s, delta)

    # ---- drafting ----

    def _draft(self, going: list[Sequence], prefilling: list[Sequence], most: int) -> None:
        """Propose up to `most` tokens behind each answer that goes on. A failure costs drafts, not answers."""
        try:
            if self._mtp is not None:
                self._mtp.draft(going, [s for s in prefilling if s.pending], most)
            else:
                for s in going:
                    propose_from_text(s, most)
        except Exception:
            self._draft_failures += 1
            logger.exception("drafting failed")
            if self._draft_failures >= _MOST_DRAFT_FAILURES:
                logger.error("drafting failed %d times; the engine goes on without it", self._draft_failures)
                self.draft_length.most = 0
            for s in [*going, *prefilling]:
                s.drafts = []
                s.begin_drafting(s.num_computed + 1)

    # ---- ends ----

    def _end(self, s: Sequence, delta: Delta) -> Delta:
        if delta.finish_reason in ("stop", "length"):
            self.scheduler.publish(s)
        self.scheduler.remove(s)
        s.finished = True
        answers = self._answers[s.request_id]
        answers.remove(s)
        if not answers:
            del self._answers[s.request_id]
        self.stats.count_end(delta.finish_reason)
        return delta

    def _fail(self, s: Sequence, error: Exception) -> Delta:
        """End one answer with an error; what it computed is wiped, so that no later holder of its blocks reads it."""
        if not isinstance(error, LingError):
            logger.error("request %s failed", s.request_id, exc_info=error)
        try:
            self.runner.cache.wipe(s.blocks[s.num_published :])
        except Exception:
            logger.exception("the blocks of request %s could not be wiped", s.request_id)
        return self._end(s, Delta(request_id=s.request_id, index=s.index, finish_reason="error", error=error))

    def _fail_not_finite(self, sequences: list[Sequence], hidden: list[Tensor]) -> list[Delta]:
        wrong = [s for s, h in zip(sequences, hidden) if not bool(torch.isfinite(h).all())]
        return [self._fail(s, StepError("the model computed numbers that are not finite")) for s in wrong]

    def _fail_step(self, plan: dict[Sequence, int], error: Exception) -> list[Delta]:
        logger.error("a step of %d answers failed", len(plan), exc_info=error)
        wrapped = StepError(f"the step failed: {type(error).__name__}")
        # Where nothing could even be planned and nobody runs, the cause is among those who wait.
        victims = [s for s in plan or [*self.scheduler.running] or [*self.scheduler.waiting] if not s.finished]
        return [self._fail(s, wrapped) for s in victims]
