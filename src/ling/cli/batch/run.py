"""Many jobs through one engine: as many run together as it takes, and each is finished by itself."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ling.cli.batch.lines import Job, Line, Reader, describe
from ling.errors import LingError

if TYPE_CHECKING:
    from ling.engine.llm import LLM
    from ling.engine.request import Delta, TokenLogprobs

_WAITING = 32
"""Jobs that the engine holds ready beside those that run."""


@dataclass(slots=True)
class _Answer:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: "list[TokenLogprobs]" = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, delta: "Delta") -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    def record(self) -> dict[str, Any]:
        told: dict[str, Any] = {"text": self.text, "finish_reason": self.finish_reason}
        if self.stop_reason is not None:
            told["stop_reason"] = self.stop_reason
        if self.logprobs:
            told["logprobs"] = [
                [{"id": id, "token": p.decoded_token, "logprob": p.logprob} for id, p in token.items()]
                for token in self.logprobs
            ]
        return told | {"output_tokens": len(self.token_ids)}


def answer_all(llm: "LLM", lines: Iterable[Line], reader: Reader, write: Callable[[dict[str, Any]], None]) -> None:
    """Answer every line and `write` each answer when it is done; a line that cannot be asked gets an error in place."""
    running: dict[str, tuple[Job, list[_Answer]]] = {}
    left = iter(lines)
    engine = llm.engine
    while True:
        _fill(llm, left, reader, running, write)
        if not running:
            return
        for delta in engine.step():
            if (found := running.get(delta.request_id)) is None:
                continue  # of a job one of whose answers failed
            job, answers = found
            answers[delta.index].add(delta)
            if delta.error is not None or delta.finish_reason == "error":
                del running[delta.request_id]
                engine.abort(delta.request_id)
                write(_failed(job.line, job.id, delta.error or LingError("the engine failed")))
            elif all(answer.finish_reason is not None for answer in answers):
                del running[delta.request_id]
                write(_done(job, answers))


def _fill(
    llm: "LLM",
    left: Iterator[Line],
    reader: Reader,
    running: dict[str, tuple[Job, list[_Answer]]],
    write: Callable[[dict[str, Any]], None],
) -> None:
    """Give the engine jobs until enough wait."""
    while llm.engine.num_waiting < _WAITING and (line := next(left, None)) is not None:
        id = None
        try:
            job = reader.job(line)
            id = job.id
            form = job.params.structured_outputs
            grammar = None if form is None else llm.grammars.compile(form)
            llm.engine.add(str(line.index), job.prompt, job.params, grammar=grammar)
        except LingError as error:
            write(_failed(line, id, error))
        else:
            running[str(line.index)] = job, [_Answer() for _ in range(job.params.n)]


def _done(job: Job, answers: list[_Answer]) -> dict[str, Any]:
    told = answers[0].record() if len(answers) == 1 else {"outputs": [answer.record() for answer in answers]}
    return {**_named(job.line, job.id), **told, "prompt_tokens": len(job.prompt), "fingerprint": job.line.fingerprint}


def _failed(line: Line, id: Any, error: Exception) -> dict[str, Any]:
    return {**_named(line, id), "error": describe(error), "fingerprint": line.fingerprint}


def _named(line: Line, id: Any) -> dict[str, Any]:
    return {"index": line.index} | ({} if id is None else {"id": id})
