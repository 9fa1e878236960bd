"""`LLM`: prompts in, completions out.

Batches are static: prompts run together until all of them are done. Each step gives every sequence its last token
and its drafts, so plain decoding and verification are the same pass.
"""

import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ling.checkpoint import load_model
from ling.engine.request import Completion, GenerationStats, SamplingParams, Sequence
from ling.engine.runner import Runner
from ling.engine.sampler import Row, sample
from ling.engine.scoring import negative_log_likelihoods
from ling.engine.speculative import count_accepted, propose
from ling.errors import CheckpointError, RequestError
from ling.model import CausalLM
from ling.tokenizer import Tokenizer, encode_chat

MOST_DRAFTS = 16
"""Every draft costs a pass of the MTP layer, and hardly one so far ahead is accepted."""

Prompt = str | SequenceOf[int]
Message = Mapping[str, Any]


class LLM:
    """A model and its tokenizer, ready to generate.

    num_drafts  tokens the MTP layer proposes per step; 0: no drafting. Ignored by models without MTP
    max_batch   prompts that run together
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, *, num_drafts: int = 0, max_batch: int = 64) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {model.config.vocab_size}: "
                "they do not belong together"
            )
        if not 0 <= num_drafts <= MOST_DRAFTS:
            raise RequestError(f"num_drafts must lie between 0 and {MOST_DRAFTS}, got {num_drafts}")
        if max_batch < 1:
            raise RequestError(f"max_batch must be at least 1, got {max_batch}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.num_drafts = num_drafts if model.config.num_nextn_predict_layers else 0
        self.max_batch = max_batch
        self.stop_ids = {*tokenizer.stop_ids, *model.config.eos_token_ids}
        self.stats = GenerationStats()
        """Of the last call."""

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> "LLM":
        """Open a checkpoint directory with its tokenizer.

        dtype  that weights are held and computed in; None: float32 on a CPU, elsewhere as published
        """
        directory = Path(directory)
        on_cpu = torch.device(device).type == "cpu"
        model = load_model(directory, dtype=dtype or (torch.float32 if on_cpu else None), device=device)
        return cls(model, Tokenizer.from_directory(directory), **options)

    def generate(self, prompts: SequenceOf[Prompt], params: SamplingParams | None = None) -> list[Completion]:
        """Complete each prompt, text or token ids; the order is kept."""
        self.stats = GenerationStats()
        done: list[Completion] = []
        for first in range(0, len(prompts), self.max_batch):
            sequences = self._admit(prompts[first : first + self.max_batch], params or SamplingParams())
            for _ in self._run(sequences):
                pass
            done += [self._complete(s) for s in sequences]
        return done

    def chat(
        self,
        conversations: SequenceOf[SequenceOf[Message]],
        params: SamplingParams | None = None,
        *,
        tools: SequenceOf[SequenceOf[Any]] | None = None,
    ) -> list[Completion]:
        """Answer each conversation of OpenAI messages; `tools` holds the tools of each conversation."""
        given = tools or [()] * len(conversations)
        prompts = [self.chat_prompt(messages, own) for messages, own in zip(conversations, given, strict=True)]
        return self.generate(prompts, params)

    def chat_prompt(self, messages: SequenceOf[Message], tools: SequenceOf[Any] = ()) -> list[int]:
        """Return the tokens after which the model answers."""
        return encode_chat(self.tokenizer, messages, tools=tools or None, add_generation_prompt=True)[0]

    def negative_log_likelihoods(self, sequences: SequenceOf[SequenceOf[int]]) -> list[list[float]]:
        """Return the nats of each token after the first, per sequence."""
        return negative_log_likelihoods(self.model, sequences)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[int]:
        """Yield the tokens of one completion as they come, the stop token left out."""
        self.stats = GenerationStats()
        (sequence,) = self._admit([prompt], params or SamplingParams())
        for new in self._run([sequence]):
            yield from (t for t in new[0] if not self._ends(sequence, t))

    # ---- the loop ----

    def _admit(self, prompts: SequenceOf[Prompt], params: SamplingParams) -> list[Sequence]:
        context = self.model.config.max_position_embeddings
        sequences = []
        for slot, prompt in enumerate(prompts):
            tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            if not tokens:
                raise RequestError("the prompt is empty; give at least one token")
            if len(tokens) >= context:
                raise RequestError(
                    f"the prompt has {len(tokens)} tokens, the context {context}, and the answer needs one too"
                )
            vocabulary = self.model.config.vocab_size
            if (stray := next((t for t in tokens if not 0 <= t < vocabulary), None)) is not None:
                raise RequestError(f"token id {stray} is not in a vocabulary of {vocabulary}")
            named = (*params.logit_bias, *params.stop_token_ids)
            if (stray := next((t for t in named if not 0 <= t < vocabulary), None)) is not None:
                raise RequestError(
                    f"logit_bias or stop_token_ids names token id {stray}, which is not in a vocabulary of {vocabulary}"
                )
            max_new = min(params.max_tokens, context - len(tokens))
            sequences.append(Sequence(slot=slot, tokens=tokens, num_prompt=len(tokens), params=params, max_new=max_new))
        return sequences

    def _run(self, sequences: list[Sequence]) -> Iterator[list[list[int]]]:
        """Generate until every sequence is done; yield the new tokens of each after every step."""
        start = time.perf_counter()
        room = max(len(s.tokens) + s.max_new for s in sequences) + self.num_drafts
        runner = Runner(self.model, len(sequences), room)
        active = list(sequences)
        new = [s.tokens for s in active]
        while active:
            before = [len(s.tokens) for s in sequences]
            self._step(runner, active, new)
            now = time.perf_counter()
            self.stats.seconds += now - start
            start = now
            yield [s.tokens[n:] for s, n in zip(sequences, before)]
            active = [s for s in active if s.finish_reason is None]
            new = [[s.tokens[-1], *s.drafts] for s in active]

    def _step(self, runner: Runner, active: list[Sequence], new: list[list[int]]) -> None:
        """Run `new` tokens of each sequence, extend it by what the model chooses, and draft what may follow."""
        hidden = runner.forward(active, new).split([len(tokens) for tokens in new])
        # A prompt is asked for its last row only; a verification for every row.
        asked = [h[-1 - len(s.drafts) :] for s, h in zip(active, hidden)]
        rows = [Row(s.params, s.tokens, s.num_prompt, s.drafts[:i]) for s in active for i in range(1 + len(s.drafts))]
        chosen = iter(sample(runner.logits(torch.cat(asked)), rows))
        still: list[tuple[Sequence, Tensor]] = []
        for s, h, tokens in zip(active, hidden, new):
            own = [next(chosen) for _ in range(1 + len(s.drafts))]
            accepted = count_accepted(s.drafts, own)
            self.stats.drafted += len(s.drafts)
            self.stats.accepted += accepted
            kept = len(tokens) - len(s.drafts) + accepted
            s.num_cached += kept
            s.drafts = ()
            self._extend(s, own[: accepted + 1])
            if s.finish_reason is None:
                still.append((s, h[:kept]))
        self.stats.steps += 1
        if self.num_drafts and still:
            propose(runner, [s for s, _ in still], [h for _, h in still], self.num_drafts)

    def _extend(self, s: Sequence, tokens: list[int]) -> None:
        for token in tokens:
            s.tokens.append(token)
            self.stats.tokens += 1
            if self._ends(s, token):
                s.finish_reason = "stop"
                return
            if len(s.generated) >= s.max_new:
                s.finish_reason = "length"
                return

    def _ends(self, s: Sequence, token: int) -> bool:
        return token in s.params.stop_token_ids or (token in self.stop_ids and not s.params.ignore_eos)

    def _complete(self, s: Sequence) -> Completion:
        assert s.finish_reason is not None
        text = self.tokenizer.decode(s.generated, skip_special=True)
        return Completion(text=text, token_ids=s.generated, finish_reason=s.finish_reason)
