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
    from ling.tokenizer import Tokenizer

_WIDTH = 120
"""Of a table that goes into a file or a pipe."""
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


def run_comparison(directory: Path, other: str, question: Question) -> "tuple[Agreement, Tokenizer]":
    """Continue every prompt on both sides; return how far they agree, and the tokenizer that spells it.

    A second checkpoint is loaded before ours, not beside it.
    """
    from ling.cli.models import open_model
    from ling.cli.progress import progress_bar
    from ling.eval.agreement import Agreement, compare

    endpoint = _endpoint(other, question)  # first: one that does not answer costs no loading
    if endpoint is None:
        asked, theirs = _of_second(other, directory, question)
    llm = open_model(directory, num_drafts=0)
    prompts = _encode(llm, question)
    if endpoint is None and asked != prompts:  # such as a base model's beside a chat model's
        raise ConfigError(f"{other} makes other token ids of the prompts than {directory}; compare them with --raw")
    if endpoint is not None:
        with progress_bar(f"asking {other}") as progress:
            theirs = _ask(endpoint, llm, prompts, question, progress)
    ours = _ours(llm, prompts, question.max_tokens)

    def nats(tokens: Any) -> float:
        inside = tokens[-1] < llm.model.config.vocab_size
        return llm.negative_log_likelihoods([tokens])[0][-1] if inside else float("inf")

    stops = sorted(llm.engine.stop_ids)
    each = tuple(compare(p, x, y, stops, nats) for p, x, y in zip(prompts, ours, theirs, strict=True))
    return Agreement(each), llm.tokenizer


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
            {
                "agreed": c.agreed,
                "parted": c.parted,
                "gap_nats": _finite(c.gap_nats),
                "near_tie": c.near_tie,
                "our_token": c.parting[0],
                "their_token": c.parting[1],
            }
            for c in agreement.comparisons
        ],
    }


def print_agreement(agreement: "Agreement", tokenizer: "Tokenizer", other: str, prompts: tuple[str, ...]) -> None:
    """Print a row per prompt and the sum."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("prompt", "agreed", "ours", "theirs", "nats between", "mean diff", "max diff"):
        table.add_column(title, no_wrap=True)
    for prompt, c in zip(prompts, agreement.comparisons):
        mean = sum(c.differences) / len(c.differences) if c.differences else None
        gap = "" if c.gap_nats is None else f"{c.gap_nats:.3f}{' (near tie)' if c.near_tie else ''}"
        spelt = [_spelt(token, tokenizer) if c.parted else "" for token in c.parting]
        shown = prompt if len(prompt) <= 32 else prompt[:29] + "..."
        largest = max(c.differences, default=None)
        agreed = f"{c.agreed} of {c.agreed + c.parted}"
        table.add_row(Text(shown), agreed, Text(spelt[0]), Text(spelt[1]), gap, _number(mean), _number(largest))
    console.print(table)
    near = len(agreement.parted) - len(agreement.real_partings)
    told = "there are no log-probabilities to compare"
    if agreement.mean_difference is not None:
        told = (
            f"log-probabilities differ by {agreement.mean_difference:.4f} on average, "
            f"{max(agreement.differences):.4f} at most"
        )
    console.print(
        f"beside {other}: {agreement.agreed_tokens} of {agreement.compared_tokens} tokens agree "
        f"({agreement.agreement_percent:.1f} %), {len(agreement.parted)} of {len(agreement.comparisons)} part, "
        f"{near} of them at near ties; {told}",
        soft_wrap=True,
    )


def _of_second(other: str, directory: Path, question: Question) -> "tuple[list[list[int]], list[Continuation]]":
    """Return the prompts in token ids and what a second checkpoint continues them with."""
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.cli.models import open_model
    from ling.tokenizer import Tokenizer

    if "://" in other or (":" in other and not Path(other).exists()):
        raise ConfigError(f"--compare {other}: an endpoint's address starts with http:// or https://")
    place = resolve_checkpoint(other)
    tokenizers = [Tokenizer.from_directory(path) for path in (directory, place)]  # before anything large is read
    if not _same_tokens(*tokenizers):
        raise ConfigError(
            f"{directory} and {other} have different tokenizers ({tokenizers[0].vocab_size} and "
            f"{tokenizers[1].vocab_size} tokens): their token ids cannot be compared"
        )
    second = open_model(place, num_drafts=0)
    prompts = _encode(second, question)
    return prompts, _ours(second, prompts, question.max_tokens)


def _same_tokens(x: "Tokenizer", y: "Tokenizer") -> bool:
    return x.vocab_size == y.vocab_size and all(x.token_bytes(i) == y.token_bytes(i) for i in range(x.vocab_size))


def _encode(llm: "LLM", question: Question) -> list[list[int]]:
    if question.raw or not llm.tokenizer.is_chat:
        return [llm.tokenizer.encode(prompt, special=False) for prompt in question.prompts]
    return [llm.chat_prompt([{"role": "user", "content": prompt}]) for prompt in question.prompts]


def _ours(llm: "LLM", prompts: list[list[int]], max_tokens: int) -> "list[Continuation]":
    """Continue greedily and score what came."""
    from ling.engine.request import SamplingParams
    from ling.eval.agreement import Continuation

    done = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=max_tokens))
    results = []
    for prompt, completion in zip(prompts, (output.outputs[0] for output in done)):
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


def _spelt(token: int | None, tokenizer: "Tokenizer") -> str:
    """Return a token as one can tell it from others; the end of an answer has no text."""
    if token is None:
        return "(end)"
    text = tokenizer.decode([token])
    return f"{text!r}"[:24] if text and "\ufffd" not in text else f"token {token}"


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


def _finite(x: float | None) -> float | None:
    return None if x is None else min(max(x, -1e9), 1e9)
