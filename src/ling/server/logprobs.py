"""Log-probabilities in the three shapes that the API has for them."""

from typing import Any

from ling.engine.request import Logprob, TokenLogprobs
from ling.tokenizer import Tokenizer

_LEAST = -9999.0
"""What OpenAI's API says for impossible; JSON has no infinity."""


class LogprobSpeller:
    """Spells tokens as their text, or as `token_id:7` where that was asked for."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer, self._as_ids = tokenizer, as_ids
        self._texts: dict[int, str] = {}

    def chat(self, steps: list[TokenLogprobs], num_top: int) -> list[dict[str, Any]]:
        """Spell as `choices[].logprobs.content`; of each step the chosen token and the `num_top` most likely."""
        spelt = []
        for step in steps:
            chosen, *_ = step
            top = [id for id, entry in step.items() if entry.rank <= num_top]
            top.sort(key=lambda id: step[id].rank)
            spelt.append({**self._token(chosen, step), "top_logprobs": [self._token(id, step) for id in top[:num_top]]})
        return spelt

    def completion(
        self, ids: list[int], steps: list[TokenLogprobs | None], offsets: list[int], num_top: int
    ) -> dict[str, Any]:
        """Spell as a completion's `logprobs`; a step of None is a prompt's first token."""
        assert len(ids) == len(steps) == len(offsets), (len(ids), len(steps), len(offsets))
        return {
            "tokens": [self.token(id) for id in ids],
            "token_logprobs": [step and _finite(step[id].logprob) for id, step in zip(ids, steps)],
            "top_logprobs": [step and self._top(id, step, num_top) for id, step in zip(ids, steps)],
            "text_offset": offsets,
        }

    def prompt(self, steps: list[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
        """Spell as vLLM's `prompt_logprobs`: by token id."""
        return [None if step is None else {str(id): _spell(entry) for id, entry in step.items()} for step in steps]

    def token(self, id: int) -> str:
        if (text := self._texts.get(id)) is None:
            text = self._texts[id] = f"token_id:{id}" if self._as_ids else self._tokenizer.decode([id])
        return text

    def _token(self, id: int, step: TokenLogprobs) -> dict[str, Any]:
        data = list(self._tokenizer.token_bytes(id))
        return {"token": self.token(id), "logprob": _finite(step[id].logprob), "bytes": data}

    def _top(self, chosen: int, step: TokenLogprobs, num_top: int) -> dict[str, float]:
        top: dict[str, float] = {}
        for id, entry in step.items():
            if id == chosen or entry.rank <= num_top:
                text = self.token(id)  # several ids may be spelt alike; the likeliest counts
                top[text] = max(_finite(entry.logprob), top.get(text, _LEAST))
        return top


def _spell(entry: Logprob) -> dict[str, Any]:
    return {**entry._asdict(), "logprob": _finite(entry.logprob)}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
