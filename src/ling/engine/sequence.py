"""The one state of an answer on its way."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from ling.engine.request import SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from ling.engine.grammar import Matcher
    from ling.engine.sampler import Row
    from ling.engine.text import AnswerText


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One answer: its tokens so far, and how far the caches have got.

    Slot i of the main layers' cache holds token i. Slot i of the MTP layer's holds what was computed from token i
    and the main model's hidden state of token i - 1, so every slot depends on tokens up to its own and blocks can be
    shared; slot 0 stays unused.
    """

    request_id: str
    index: int
    """Which of the request's answers."""
    params: SamplingParams
    tokens: list[int]
    num_prompt: int
    max_new: int
    """Tokens it may grow by in all: `max_tokens`, or less where the context ends."""
    seed: int
    text: "AnswerText"
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end it."""
    matcher: "Matcher | None" = None
    salt: str = ""
    after: "Sequence | None" = None
    """An answer to the same prompt; when its prompt has been computed, this one finds it in the prefix cache."""

    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """Of the full blocks of `tokens`."""
    num_published: int = 0
    num_computed: int = 0
    """Tokens whose keys and values the main layers hold."""
    drafts: list[int] = field(default_factory=list)
    """Proposed tokens behind the last one."""

    pending: list[Tensor] = field(default_factory=list)
    """(n, H) hidden states that the MTP layer has not seen: of tokens from `mtp_next` - 1 on."""
    num_pending: int = 0
    """Rows of `pending`. They reach to `num_computed` - 1 where the last step kept them."""
    mtp_next: int = 1
    """The MTP slot to be filled next."""
    mtp_first: int = 1
    """The first MTP slot with content; later than 1 where drafting paused for long."""

    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    num_cached_prompt: int = 0
    """Of the prompt, taken from the prefix cache when it was first admitted."""
    row: "Row | None" = None
    """What its choices depend on while it has no drafts, kept from step to step."""
    is_announced: bool = False
    """Whether a delta was given out."""
    finished: bool = False

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_new(self) -> int:
        """Rows that bring it up to date: tokens not computed, then drafts."""
        return len(self.tokens) - self.num_computed + len(self.drafts)

    @property
    def is_prefilling(self) -> bool:
        """Whether more is to be computed than the last token."""
        return len(self.tokens) - self.num_computed > 1

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.params.prompt_logprobs is not None and self.index == 0

    def wait(self, hidden: list[Tensor], count: int) -> None:
        """Make `hidden`, of `count` rows, what the MTP layer has not seen."""
        self.pending, self.num_pending = hidden, count

    def begin_drafting(self, first: int) -> None:
        """Have the MTP layer see nothing before slot `first`."""
        self.mtp_next = self.mtp_first = first
        self.wait([], 0)

    def forget_cache(self) -> None:
        """Return to the state before anything was computed; the caller has released the blocks."""
        self.blocks, self.drafts, self.pending = [], [], []
        self.num_computed = self.num_published = self.num_pending = 0
        self.mtp_next = self.mtp_first = 1
        self.prompt_logprobs = []
