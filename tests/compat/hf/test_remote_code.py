"""Code in a checkpoint: what the package computes, with transformers alone."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.golden_cases import GOLDEN

from ling.checkpoint.load import read_config
from ling.compat.hf import LingForCausalLM
from ling.compat.hf.inline import inline
from ling.compat.hf.remote_code import remote_code, write_remote_code
from ling.config.published import write_published
from ling.errors import CheckpointError, ConfigError
from ling.ops.backend import use_backend

CASES = ["base", "yarn", "mtp2", "flags_a", "flags_b"]


def computed(model: Any) -> dict[str, torch.Tensor]:
    """Return logits, loss, gradients and greedy tokens of a batch with padding."""
    ids = (torch.arange(24).reshape(2, 12) * 7 + 3) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    model.train()
    output = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    output.loss.backward()
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.eval().generate(ids, attention_mask=mask, **greedy)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach(), "loss": output.loss.detach(), "tokens": tokens, **gradients}


RUN = """
from typing import Any
import importlib.abc, sys
class NoLing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "ling":
            raise ImportError("ling is not installed here")
sys.meta_path.insert(0, NoLing())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
{computed}
for source, out, saved in zip(*[iter(sys.argv[1:])] * 3):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=True)
    assert type(model).__module__.endswith("modeling_ling"), type(model)
    save_file(computed(model), out)
    model.save_pretrained(saved)
"""


def test_generated_code_computes_exactly_what_the_package_s_reference_computes(tmp_path: Path) -> None:
    paths = {case: [tmp_path / case / part for part in ("model", "computed", "saved")] for case in CASES}
    for case, (source, _, _) in paths.items():
        shutil.copytree(GOLDEN / "forward" / case, source, ignore=shutil.ignore_patterns("run_*"))
        write_remote_code(source)
    code = RUN.replace("{computed}", inspect.getsource(computed))
    given = [str(path) for of_case in paths.values() for path in of_case]
    own = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr
    for case, (source, out, saved) in paths.items():
        got = load_file(out)
        with use_backend("reference"):
            expected = computed(LingForCausalLM.from_pretrained(source, dtype=torch.float32))
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(got[name], value), f"{case} {name}"
        assert write_published(read_config(saved)) == write_published(read_config(source))
        files = {file.name for file in saved.iterdir()}
        assert {"configuration_ling.py", "modeling_ling.py"} <= files, "a saved model takes its code along"


def test_only_config_json_changes_and_only_by_the_map(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "forward" / "base", tmp_path / "m")
    before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}
    written = write_remote_code(tmp_path / "m")
    assert [path.name for path in written] == ["configuration_ling.py", "modeling_ling.py", "config.json"]
    after = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {path.name for path in written}
    config = json.loads(after["config.json"])
    assert config.pop("auto_map") == {
        "AutoConfig": "configuration_ling.LingConfig", "AutoModelForCausalLM": "modeling_ling.LingForCausalLM",
    }  # fmt: skip
    assert config == {k: v for k, v in json.loads(before["config.json"]).items() if k != "auto_map"}
    write_remote_code(tmp_path / "m")
    assert after == {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}, "written twice, the same"


def test_the_files_import_torch_transformers_and_the_standard_library_only() -> None:

    packages = set()
    for text in remote_code().values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                packages |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                packages.add((node.module or "").split(".")[0])
    assert packages - set(sys.stdlib_module_names) == {"torch", "transformers"}


def test_the_code_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some/parts.py").write_text(
        '"""Parts."""\n\nK = 1\n\n\ndef f() -> int:\n    return K\n\n\ndef g() -> int:\n    return 3\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "return K" in inline(["some.parts"], ["f"]).body
    assert "def g" not in inline(["some.parts"], ["f"]).body
    (tmp_path / "some/parts.py").write_text('"""Parts."""\n\n\ndef f() -> int:\n    return 2\n')
    assert inline(["some.parts"], ["f"]).body.endswith("def f() -> int:\n    return 2")


@pytest.mark.parametrize("what", ["nothing", "another family"])
def test_a_directory_that_is_no_checkpoint_of_ours_is_left_as_it_was(tmp_path: Path, what: str) -> None:
    if what == "another family":
        (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises((CheckpointError, ConfigError)):
        write_remote_code(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
