"""The entry point by which engines find our configuration class."""

import json
import tomllib
from pathlib import Path

import pytest

from ling.compat.plugin import register
from ling.engine.bundled import bundled_directory

GROUPS = ("vllm.general_plugins", "sglang.srt.plugins")


def test_both_engines_are_told_of_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group in GROUPS:
        assert project["entry-points"][group] == {"ling": "ling.compat.plugin:register"}


def test_a_registered_configuration_is_read_without_remote_code() -> None:
    transformers = pytest.importorskip("transformers", reason="an optional dependency")
    register()
    register()  # engines call it once in each process, and some twice
    config = transformers.AutoConfig.from_pretrained(bundled_directory())
    assert type(config).__name__ == "LingConfig"
    said = json.loads((bundled_directory() / "config.json").read_text(encoding="utf-8"))
    assert config.rotary_dim == said["rotary_dim"]
    assert config.rope_parameters["rope_theta"] == said["rope_theta"]
