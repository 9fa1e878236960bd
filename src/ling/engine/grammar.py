"""What an answer may be: structured output, compiled by llguidance to masks over the vocabulary.

A `GrammarCompiler` turns what a request asks for into a `Grammar`, which is immutable, cached and shared; each answer
follows its own `Matcher`. Every form becomes one Lark text, because that is where llguidance's option `no_forcing`
is: without it, text that can only go on in one way is computed to its end at once, a second of a step for
`(a{1000}){1000}`. What a request may ask for is in `grammar_limits`, what keeps JSON from running on in `json_bounds`.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ling.engine import grammar_limits
from ling.engine.json_bounds import JsonBounds
from ling.engine.matcher import Matcher as Matcher  # whoever has a Grammar names its matchers too
from ling.engine.matcher import Vocabulary, one_line
from ling.engine.request import StructuredOutputsParams
from ling.errors import QueueFullError, RequestError
from ling.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""JSON on one line, at most one space after `,` and `:`: whitespace cannot go on for ever."""
BOUNDED_JSON = "// ling: bounded json\n"
"""A Lark grammar that begins so writes JSON with plain text around it, and `JsonBounds` holds for it."""

MOST_COMPILING = 4
MOST_CACHED = 128
MOST_CACHED_BYTES = 256 * 2**20
_COMPILED_BYTES_PER_BYTE = 256
"""Memory of a compiled grammar per byte of its text; 230 were measured for a schema of 1000 properties."""
_OF_OUR_LARK = re.compile(
    r"at \d+\(\d+\): (?:invalid regex .* \(in regex\): |failed to compile JSON schema: )?"
    r"(?:regex parse error: error: )?"
)


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A compiled grammar; one serves any number of answers, from any thread."""

    template: "LLMatcher"
    vocabulary: Vocabulary
    bounds: JsonBounds | None

    def matcher(self) -> Matcher:
        """Begin an answer."""
        return Matcher(self.template.deep_copy(), self.vocabulary, self.bounds)


class GrammarCompiler:
    """Compiles for one tokenizer, from any thread."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, deadline_seconds: float = 5.0) -> None:
        """Masks get `vocab_size` columns, the rows of the model's embedding; the tokenizer's ids come first."""
        self._vocabulary = Vocabulary(tokenizer, vocab_size)
        self._deadline_seconds = deadline_seconds
        self._cache: OrderedDict[tuple[str, bool], Grammar] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(MOST_COMPILING)
        self._ll_tokenizer: LLTokenizer | None = None
        self._bounds: JsonBounds | None = None

    def compile(self, params: StructuredOutputsParams) -> Grammar:
        """Compile what `params` asks for, or take it from the cache.

        Raises RequestError, in one line, for what is malformed, too large or not supported, or takes too long; and
        QueueFullError while too many others are being compiled.
        """
        name, lark, is_json = _lark_of(params)
        key = (lark, is_json)
        with self._lock:
            if (known := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return known
        ll_tokenizer = self._prepare()
        bounds = self._bounds if is_json else None
        grammar = self._in_time(name, lambda: Grammar(_compile(name, lark, ll_tokenizer), self._vocabulary, bounds))
        self._keep(key, grammar)
        return grammar

    def _prepare(self) -> "LLTokenizer":
        """Give the vocabulary to llguidance, once: about half a second for 157,184 tokens."""
        with self._lock:
            if self._ll_tokenizer is None:
                self._ll_tokenizer = _ll_tokenizer(self._vocabulary)
                self._bounds = JsonBounds(self._vocabulary.token_bytes)
            return self._ll_tokenizer

    def _in_time(self, name: str, work: Callable[[], Grammar]) -> Grammar:
        """Run `work` on a thread of its own and wait for it until the deadline.

        A thread cannot be stopped: one that is late keeps its slot until llguidance's own limits end it.
        """
        if not self._slots.acquire(timeout=self._deadline_seconds):
            raise QueueFullError(f"{MOST_COMPILING} grammars are being compiled and none was ready in time; try again")
        outcome: Future[Grammar] = Future()

        def run() -> None:
            try:
                outcome.set_result(work())
            except Exception as error:
                outcome.set_exception(error)
            except BaseException as error:  # a panic of llguidance's Rust is no Exception; it ends this request alone
                outcome.set_exception(RequestError(f"{name} cannot be compiled: {one_line(str(error))}"))
            finally:
                self._slots.release()

        threading.Thread(target=run, name="grammar", daemon=True).start()
        try:
            return outcome.result(self._deadline_seconds)
        except TimeoutError:
            raise RequestError(
                f"{name} took longer than {self._deadline_seconds:g} s to compile; make it simpler"
            ) from None

    def _keep(self, key: tuple[str, bool], grammar: Grammar) -> None:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = grammar
                self._cached_bytes += _cost(key)
            while len(self._cache) > MOST_CACHED or self._cached_bytes > MOST_CACHED_BYTES:
                oldest, _ = self._cache.popitem(last=False)
                self._cached_bytes -= _cost(oldest)


def _cost(key: tuple[str, bool]) -> int:
    return len(key[0].encode()) * _COMPILED_BYTES_PER_BYTE


def _lark_of(params: StructuredOutputsParams) -> tuple[str, str, bool]:
    """Check `params` and spell it in Lark: its name in messages, the text, and whether the answer is JSON."""
    if params.json is not None:
        schema = grammar_limits.checked_schema(params.json, "the JSON schema")
        return "the JSON schema", f"start: {json_rule(schema)}", True
    if params.json_object:
        return "json_object", f"start: {json_rule({'type': 'object'})}", True
    if params.regex is not None:
        grammar_limits.check_regex(params.regex, "the regex")
        # `\d` means 0-9, as people mean it; letters of `\w` are those of any script.
        return "the regex", f"start: /{_llguidance().regex_to_lark(params.regex, use_ascii='d')}/", False
    if params.choice is not None:
        choices = grammar_limits.checked_choices(params.choice)
        # One terminal: as terminals of their own, the first would win where one begins another.
        return "choice", "start: CHOICE\nCHOICE: " + " | ".join(map(grammar_limits.to_json, choices)), False
    assert params.grammar is not None, params
    grammar_limits.check_lark(params.grammar)
    return "the grammar", params.grammar, params.grammar.startswith(BOUNDED_JSON)


def json_rule(schema: dict[str, object], *, lenient: bool = False) -> str:
    """Spell a checked schema as a nonterminal of Lark.

    lenient  leave out keywords that cannot be enforced instead of refusing them
    """
    return "%json " + grammar_limits.to_json({"x-guidance": {**COMPACT, "lenient": lenient}, **schema})


def _compile(name: str, lark: str, tokenizer: "LLTokenizer") -> "LLMatcher":
    ll = _llguidance()
    # Options stand last, so that the line numbers in messages are those of the given text.
    source = ll.LLMatcher.grammar_from_lark(lark + '\n%llguidance {"no_forcing": true}\n')
    matcher = ll.LLMatcher(tokenizer, source, log_level=0, limits=ll.LLParserLimits(verbose_errors=False))
    if not matcher.is_error():
        matcher.compute_bitmask()  # what nothing satisfies shows here; and copies begin with the work done
    if matcher.is_error():
        reason = one_line(matcher.get_error())
        # The Lark is ours where the request has none: neither places in it nor its words mean anything to a stranger.
        reason = reason if name == "the grammar" else _OF_OUR_LARK.sub("", reason, count=1)
        raise RequestError(f"{name} cannot be compiled: {reason}")
    return matcher


def _ll_tokenizer(vocabulary: Vocabulary) -> "LLTokenizer":
    ll = _llguidance()
    stops = list(vocabulary.stop_ids)
    return ll.LLTokenizer(ll.TokenizerWrapper(_AsGuidanceWants(vocabulary)), len(vocabulary.token_bytes), stops)


class _AsGuidanceWants:
    """Our vocabulary under the names that `llguidance.TokenizerWrapper` reads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.stop_ids[0]
        self.bos_token_id = None
        self.tokens = vocabulary.token_bytes
        self.special_token_ids = vocabulary.special_ids
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode(errors="replace"))


def _llguidance():  # type: ignore[no-untyped-def]  # a module has no useful type
    try:
        import llguidance
    except ImportError:
        raise RequestError("structured output needs llguidance, which is missing: pip install ling[serve]") from None
    return llguidance
