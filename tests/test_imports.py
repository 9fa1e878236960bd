"""What may be imported where, beyond the layers that the import contract holds."""

import subprocess
import sys

import pytest

ROOMS_OF_A_BARE_GPU_MACHINE = (
    "ling.config", "ling.ops.moe", "ling.model", "ling.optim.build", "ling.engine.llm", "ling.train.loop",
    "benchmarks.gpu",
)  # fmt: skip
NOT_THERE = ("pydantic", "jinja2", "matplotlib", "typer")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("room", ROOMS_OF_A_BARE_GPU_MACHINE)
def test_the_core_imports_without_the_comforts(room: str) -> None:
    block = "".join(f"sys.modules[{name!r}] = None; " for name in NOT_THERE)
    done = run(f"import sys; {block}import {room}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "what", ["ling", "ling.config.recipe", "ling.scaling.flops", "ling.cli.app", "ling.finetune.work"]
)
def test_torch_is_not_loaded_before_it_is_needed(what: str) -> None:
    done = run(f"import sys, {what}; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, f"{what} imports torch"
