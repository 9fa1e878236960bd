"""What `ling generate --input` does, from the check of both files to the last line on stderr."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ling.cli.batch.answers import AnswerFile
from ling.cli.batch.lines import Line, Reader, read_lines
from ling.cli.batch.resume import count_lines, unanswered
from ling.cli.batch.run import answer_all
from ling.cli.progress import progress_bar
from ling.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ling.engine.llm import LLM
    from ling.engine.request import SamplingParams


def generate_file(
    source: Path,
    output: Path,
    *,
    open_llm: "Callable[[], LLM]",
    params: "SamplingParams",
    raw: bool,
    model: Callable[[], Mapping[str, Any]],
    restart: bool,
) -> None:
    """Answer the lines of `source` that `output` does not answer yet.

    model  returns what tells this model from others; answers of another one are not continued
    Raises LingError before anything is written if files do not fit; what is wrong with one line is said in its answer.
    """
    if not source.is_file():
        raise DataError(f"--input {source}: there is no such file, or it is none")
    if output.exists() and output.samefile(source):
        raise ConfigError("--output must be another file than --input")
    settings = {"params": repr(params), "raw": raw, "model": model()}
    answers = AnswerFile(output, restart=restart)
    try:
        total = count_lines(read_lines(source, settings), answers.answered, source, output)
        if answers.was_torn:
            print(f"the last line of {output} was torn; it is answered again", file=sys.stderr)
        if len(answers.answered) == total:
            print(f"all {total:,} lines are answered already", file=sys.stderr)
            return
        llm = open_llm()
        encode = (lambda text: llm.tokenizer.encode(text, special=False)) if raw else None
        reader = Reader(params=params, encode=encode, chat_prompt=llm.chat_prompt)
        _Batch(answers, total).run(llm, unanswered(read_lines(source, settings), answers.answered), reader)
    finally:
        answers.close()


class _Batch:
    """Counts what is written, for the bar and for the line at the end."""

    def __init__(self, answers: AnswerFile, total: int) -> None:
        self.answers, self.total = answers, total
        self.before = len(answers.answered)
        self.written = self.failed = self.tokens = 0

    def run(self, llm: "LLM", asked: Iterable[Line], reader: Reader) -> None:
        begin = time.perf_counter()
        try:
            with progress_bar("answers") as progress:
                progress(self.before, self.total)

                def write(answer: dict[str, Any]) -> None:
                    self.answers.append(answer)
                    self.written += 1
                    self.failed += "error" in answer
                    self.tokens += sum(o["output_tokens"] for o in answer.get("outputs", [answer]) if "text" in o)
                    progress(self.before + self.written, self.total)

                answer_all(llm, asked, reader, write)
        except KeyboardInterrupt:
            there = f"{self.before + self.written:,} of {self.total:,} lines"
            print(f"interrupted; {there} are answered, and the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None
        seconds = time.perf_counter() - begin
        already = f", {self.before:,} were there already" if self.before else ""
        failed = f", {self.failed:,} of them with an error" if self.failed else ""
        lines = f"{self.written:,} line{'' if self.written == 1 else 's'}"
        rate = f"{self.tokens:,} tokens, {self.tokens / seconds:,.1f} per second"
        print(f"{lines} answered{failed}{already}; {rate}", file=sys.stderr)
