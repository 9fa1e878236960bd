"""`ling doctor --compare`: our engine beside another program, or another checkpoint, on the same prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.engine.llm import LLM
    from ling.eval.agreement import Agreement, Continuation
    from ling.eval.endpoint import Endpoint

PROMPTS = (
    "What is the capital of France?",
    "Who are you?",
    "Tell me a story about a dog that learns to swim.",
    "What is 17 + 25?",
    "List three things that float on water.",
    "Write one sentence about the sea.",
    "Translate into Chinese: Good morning.",
    "Which is larger, 9.11 or 9.8?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of both sides."""

    prompts: tuple[str, ...]
    max_tokens: int
    raw: bool = False
    """Prompts are continued as text, not put into the chat format."""
    model: str | None = None
    """Name that an endpoint serves the model under; None: what it lists first."""
    api_key: str | None = None
    timeout: float = 60.0


def read_prompts(file: Path | None, count: int | None) -> tuple[str, ...]:
    """Return the prompts of a file, one a line, or the built-in ones; `count` of them."""
    try:
        lines = PROMPTS if file is None else tuple(filter(None, file.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --prompts {file}: {getattr(error, 'strerror', None) or error}") from None
    if not lines:
        raise ConfigError(f"--prompts {file} holds no line")
    return lines[:count]


def run_comparison(directory: Path, other: str, question: Question) -> "Agreement":
    """Continue every prompt on both sides; a second checkpoint is loaded before ours, not beside it."""
    from ling.cli.models import open_model
    from ling.cli.progress import progress_bar
    from ling.eval.agreement import Agreement, compare

    endpoint = _endpoint(other, question)  # first: one that does not answer costs no loading
    if endpoint is None:
        second = open_model(Path(other), num_drafts=0)
        theirs = _ours(second, _encode(second, question), question.max_tokens)
        del second
    llm = open_model(directory, num_drafts=0)
    prompts = _encode(llm, question)
    if endpoint is not None:
        with progress_bar(f"asking {other}") as progress:
            theirs = _ask(endpoint, llm, prompts, question, progress)
    ours = _ours(llm, prompts, question.max_tokens)

    def nats(tokens: Any) -> float:
        inside = tokens[-1] < llm.model.config.vocab_size
        return llm.negative_log_likelihoods([tokens])[0][-1] if inside else float("inf")

    stops = sorted(llm.stop_ids)
    return Agreement(tuple(compare(p, x, y, stops, nats) for p, x, y in zip(prompts, ours, theirs, strict=True)))


def agreement_json(agreement: "Agreement", other: str) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    return {
        "with": other,
        "agreement_percent": agreement.agreement_percent,
        "agreed_tokens": agreement.agreed_tokens,
        "compared_tokens": agreement.compared_tokens,
        "parted": len(agreement.parted),
        "parted_at_near_ties": len(agreement.parted) - len(agreement.real_partings),
        "mean_logprob_difference": agreement.mean_difference,
        "max_logprob_difference": max(agreement.differences, default=None),
        "complaint": agreement.complaint,
        "prompts": [
            {"agreed": c.agreed, "parted": c.parted, "gap_nats": _finite(c.gap_nats), "near_tie": c.near_tie}
            for c in agreement.comparisons
        ],
    }


def print_agreement(agreement: "Agreement", other: str, prompts: tuple[str, ...]) -> None:
    """Print a row per prompt and the sum."""
    console = Console(highlight=False)
    table = Table("prompt", "agreed", "parts at", "by nats", "mean diff", "max diff", box=None, header_style="bold")
    for prompt, c in zip(prompts, agreement.comparisons):
        mean = sum(c.differences) / len(c.differences) if c.differences else None
        gap = "" if c.gap_nats is None else f"{c.gap_nats:.3f}{' (near tie)' if c.near_tie else ''}"
        at = f"token {c.agreed + 1}" if c.parted else "nowhere"
        shown = prompt if len(prompt) <= 40 else prompt[:37] + "..."
        largest = max(c.differences, default=None)
        table.add_row(Text(shown), str(c.agreed), at, gap, _number(mean), _number(largest))
    console.print(table)
    near = len(agreement.parted) - len(agreement.real_partings)
    console.print(
        f"beside {other}: {agreement.agreed_tokens} of {agreement.compared_tokens} tokens agree "
        f"({agreement.agreement_percent:.1f} %), {len(agreement.parted)} of {len(agreement.comparisons)} part, "
        f"{near} of them at near ties; log-probabilities differ by {_number(agreement.mean_difference)} on average, "
        f"{_number(max(agreement.differences, default=None))} at most",
        soft_wrap=True,
    )


def _encode(llm: "LLM", question: Question) -> list[list[int]]:
    if question.raw or not llm.tokenizer.is_chat:
        return [llm.tokenizer.encode(prompt, special=False) for prompt in question.prompts]
    return [llm.chat_prompt([{"role": "user", "content": prompt}]) for prompt in question.prompts]


def _ours(llm: "LLM", prompts: list[list[int]], max_tokens: int) -> "list[Continuation]":
    """Continue greedily and score what came."""
    from ling.engine.request import SamplingParams
    from ling.eval.agreement import Continuation

    done = llm.generate(prompts, SamplingParams(max_tokens=max_tokens))
    results = []
    for prompt, completion in zip(prompts, done):
        ended = completion.finish_reason == "stop"
        tokens = completion.token_ids[:-1] if ended else completion.token_ids
        nats = llm.negative_log_likelihoods([[*prompt, *tokens]])[0] if tokens else []
        results.append(Continuation(tuple(tokens), ended, tuple(-x for x in nats[len(nats) - len(tokens) :])))
    return results


def _endpoint(other: str, question: Question) -> "Endpoint | None":
    from ling.eval.endpoint import Endpoint

    if not other.startswith(("http://", "https://")):
        return None
    return Endpoint(other, model=question.model, api_key=question.api_key, timeout=question.timeout)


def _ask(
    endpoint: "Endpoint", llm: "LLM", prompts: list[list[int]], question: Question, progress: Any
) -> "list[Continuation]":
    results: list[Continuation] = []
    for text, prompt in zip(question.prompts, prompts):
        answer = endpoint.complete(prompt, question.max_tokens, llm.tokenizer)
        if answer is None:
            if question.raw or not llm.tokenizer.is_chat:
                raise ConfigError(f"{endpoint.url} has no /v1/completions, which raw text needs")
            if not results:
                told = f"{endpoint.url} has no /v1/completions: it renders and tokenizes the chats itself"
                Console(stderr=True, highlight=False).print(told, soft_wrap=True)
            answer = endpoint.chat(text, question.max_tokens, llm.tokenizer)
        results.append(answer)
        progress(len(results), len(prompts))
    return results


def _number(x: float | None) -> str:
    return "not told" if x is None else f"{x:.4f}"


def _finite(x: float | None) -> float | None:
    return None if x is None else min(max(x, -1e9), 1e9)
