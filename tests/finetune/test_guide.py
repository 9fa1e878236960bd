"""The records that the guide shows are samples of the format they stand under."""

import json
import re
from pathlib import Path

import pytest

from ling.config.finetune import FinetuneConfig
from ling.finetune.render import render_sample
from ling.finetune.sources import default_format
from ling.tokenizer import Tokenizer

GUIDE = Path(__file__).parents[2] / "docs/guides/finetune-data.md"
SECTION = re.compile(r"^### `(\w+)`\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
EXAMPLES = {
    name: re.findall(r"```json\n(.*?)```", text, re.DOTALL) for name, text in SECTION.findall(GUIDE.read_text("utf-8"))
}


def test_each_format_has_an_example() -> None:
    assert EXAMPLES.keys() == {"messages", "openai", "sharegpt", "alpaca"}
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_samples(name: str, tokenizer: Tokenizer) -> None:
    for example in EXAMPLES[name]:
        sample = default_format(name).sample(json.loads(example))  # type: ignore[arg-type]
        assert not sample.ignored_keys
        assert not render_sample(sample, tokenizer, FinetuneConfig(), 4096).notes - {
            "reasoning under `detailed thinking off`"
        }
