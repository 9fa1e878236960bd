"""The bundled model's tokenizer, and a way to write data files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ling.engine.bundled import bundled_directory
from ling.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(bundled_directory())


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write records as jsonl; strings are lines as they are."""

    def write(*records: Any, name: str = "train.jsonl") -> str:
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write
