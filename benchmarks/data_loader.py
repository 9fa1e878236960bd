"""How fast text becomes tokens, and how soon a run reads on in the middle of a billion of them.

    python -m benchmarks.data_loader [SCRATCH]

Makes a token file of 10^9 tokens in SCRATCH (2 GB, deleted at the end; by default where temporary files lie). A
process of its own then opens it, which has mapped nothing yet, and reads the sequences of one step at several
positions; the file itself may be in memory. Tokenising is measured over the books in the package, with the tokenizer
of the bundled model, in one process: seconds of its CPU.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import save
from ling.data.token_file import NAME, TokenFile, write_tokens
from ling.data.token_sequences import TokenSequences

TOKENS = 10**9
MEAN_DOCUMENT = 700
SEQUENCE_LENGTH = 4096
STEP = 128
TARGET_SECONDS = 1.0


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(resume(Path(sys.argv[1]), int(sys.argv[2]))))
        return
    scratch = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()) / "ling-data-loader"
    scratch.mkdir(parents=True)
    try:
        documents = make(scratch)
        count = TOKENS // SEQUENCE_LENGTH
        found = []
        for position in (0, count // 3, count - STEP, 5 * count + 17):
            command = [sys.executable, "-m", "benchmarks.data_loader", str(scratch), str(position)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append({"position": position, **json.loads(done.stdout)})
            print(f"sequence {position:,}: opened and placed in {found[-1]['resume_seconds'] * 1e3:.1f} ms, "
                  f"{found[-1]['tokens_per_second']:,.0f} tokens/s of reading")  # fmt: skip
        numbers: dict[str, Any] = {
            "tokens": TOKENS, "documents": documents, "resume": found, "target_seconds": TARGET_SECONDS,
            "tokenising": tokenising(),
        }  # fmt: skip
        print(f"tokenising: {numbers['tokenising']['tokens_per_cpu_second']:,.0f} tokens per CPU second")
        print(f"kept in {save('data-loader', numbers)}")
    finally:
        shutil.rmtree(scratch)


def make(directory: Path) -> int:
    """Write the file; return its documents."""
    draw = np.random.default_rng(0)
    left = TOKENS
    with write_tokens(directory, NAME, 2**16) as writer:
        while left:
            lengths = draw.integers(1, 2 * MEAN_DOCUMENT, 4096)
            block = draw.integers(0, 2**16, int(lengths.sum()), np.uint16)
            for piece in np.split(block, lengths.cumsum()[:-1]):
                if left:
                    writer.add(piece[:left])
                    left -= len(piece[:left])
    return len(writer.lengths)


def resume(directory: Path, position: int) -> dict[str, float]:
    """Open the file and read a step's sequences from `position` on."""
    start = time.perf_counter()
    sequences = TokenSequences([TokenFile(directory / NAME)], None, sequence_length=SEQUENCE_LENGTH, seed=0)
    _ = sequences.fingerprint, sequences.tokens(position)
    placed = time.perf_counter() - start
    start = time.perf_counter()
    tokens = sum(len(piece.tolist()) for i in range(STEP) for piece in sequences.tokens(position + i))
    return {"resume_seconds": placed, "tokens_per_second": tokens / (time.perf_counter() - start)}


def tokenising() -> dict[str, float]:
    """Tokenise the books in this process."""
    from ling.data.books import split_books
    from ling.engine.bundled import bundled_directory
    from ling.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_directory(bundled_directory())
    books = split_books(1.0)[0]
    start = time.process_time()
    tokens = sum(len(tokenizer.encode(book, special=False)) for book in books)
    seconds = time.process_time() - start
    num_bytes = sum(len(book.encode()) for book in books)
    return {"tokens_per_cpu_second": tokens / seconds, "mb_per_cpu_second": num_bytes / seconds / 1e6}


if __name__ == "__main__":
    main()
