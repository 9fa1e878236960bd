"""`import ling` makes transformers' Auto classes know Ling, and costs those who do not use transformers nothing."""

import os
import subprocess
import sys

import pytest

from ling.engine.bundled import bundled_directory

LOAD = f"""
model = AutoModelForCausalLM.from_pretrained({str(bundled_directory())!r})
assert type(model).__module__ == "ling.compat.hf.modeling", type(model)
assert type(model.config).__module__ == "ling.compat.hf.configuration"
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter: imports happen once in a process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    "imports",
    [
        "import ling; from transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM; import ling",
        "import ling, transformers.generation.utils; from transformers import AutoModelForCausalLM",
    ],
    ids=["before", "after", "from within"],
)
@pytest.mark.slow
def test_auto_classes_load_ling_whichever_is_imported_first(imports: str) -> None:
    done = run(imports + LOAD)
    assert done.returncode == 0, done.stderr


def test_importing_ling_imports_neither_transformers_nor_torch() -> None:
    done = run("import sys, ling; assert not {'torch', 'transformers'} & sys.modules.keys(), 'imported'")
    assert done.returncode == 0, done.stderr


def test_a_class_that_is_registered_already_is_left_alone() -> None:
    done = run(
        "from transformers import AutoConfig, PretrainedConfig\n"
        "class Other(PretrainedConfig): model_type = 'bailing_moe'\n"
        "AutoConfig.register('bailing_moe', Other)\n"
        "import ling\n"
        f"assert type(AutoConfig.from_pretrained({str(bundled_directory())!r})) is Other"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_transformers_that_lacks_what_we_need_is_still_usable() -> None:
    done = run(
        "import logging, sys; logging.basicConfig(); sys.modules['ling.compat.hf.modeling'] = None\n"
        "import ling; from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig\n"
        "LlamaConfig(); AutoModelForCausalLM"
    )
    assert done.returncode == 0, done.stderr
    assert "Ling's classes are not known to transformers' Auto classes: " in done.stderr
