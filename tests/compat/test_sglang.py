"""SGLang's own loader on what `ling export --for sglang` writes. It runs on a CPU; the model itself was not run."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers import ROOT, peer_packages

from ling.checkpoint import save_model
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import Precision
from ling.checkpoint.source import TensorSource
from ling.compat.handover import plan_handover, write_handover
from ling.compat.serving import Serving
from ling.testing.models import tiny_model

BLOCKS: dict[str, Any] = dict(  # noqa: C408
    vocab_size=256, hidden_size=256, num_hidden_layers=3, intermediate_size=256, first_k_dense_replace=1,
    num_attention_heads=4, num_key_value_heads=2, head_dim=128, rotary_dim=64, num_experts=8, num_experts_per_tok=2,
    moe_intermediate_size=128, n_group=4, topk_group=2, routed_scaling_factor=2.5, num_nextn_predict_layers=1,
    max_position_embeddings=64, rope_theta=600000.0, pad_token_id=1, eos_token_id=1,
)  # fmt: skip


def hand_over(directory: Path, precision: Precision, **serving: Any) -> None:
    save_model(tiny_model(**BLOCKS), directory / "source")
    plan = plan_handover(
        open_pieces(directory / "source"), "sglang", "model", dtype=precision, serving=Serving(**serving)
    )
    write_handover(plan, directory / "model")


def load_in_sglang(directory: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.compat.sglang_stand_in", peer_packages("sglang"), directory / "model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["bfloat16", "float8"])
def test_sglang_takes_every_tensor_into_its_place(tmp_path: Path, precision: Precision) -> None:
    hand_over(tmp_path, precision)
    found = load_in_sglang(tmp_path)
    keys = set(TensorSource(tmp_path / "model").tensors)
    mtp = {key for key in keys if key.startswith("model.layers.3.")}
    assert set(found["target"]["taken"]) == keys - mtp
    assert found["target"]["unfilled"] == []
    assert set(found["draft"]["taken"]) == mtp
    assert found["draft"]["unfilled"] == ["model.word_embeddings.weight", "lm_head.weight"]  # shared with the target
    assert found["target"]["unquantised"] == []
    assert found["draft"]["unquantised"] == (["model.layers.3.eh_proj"] if precision == "float8" else [])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_the_list_of_what_fp8_leaves_alone_sglang_misses_scales_of_the_draft(tmp_path: Path) -> None:
    """What happens to checkpoints of the published converter, and what would to ours without the list."""
    hand_over(tmp_path, "float8")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["quantization_config"]["modules_to_not_convert"]
    path.write_text(json.dumps(config), encoding="utf-8")
    assert "model.eh_proj.weight_scale_inv" in load_in_sglang(tmp_path)["draft"]["unfilled"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sglang_reads_the_network_we_mean(tmp_path: Path) -> None:
    hand_over(tmp_path, "bfloat16", yarn=4.0)
    found = load_in_sglang(tmp_path)["target"]
    (rotation,) = found["rotations"]
    assert (rotation["rotary_dim"], rotation["base"], rotation["max_position"]) == (64, 600000.0, 256)
    scaling = rotation["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"], scaling["original_max_position_embeddings"]) == ("yarn", 4.0, 64)
    routing = found["routing"]
    assert (routing["scoring_func"], routing["renormalize"], routing["routed_scaling_factor"]) == ("sigmoid", True, 2.5)
    assert (routing["top_k"], routing["num_expert_group"], routing["topk_group"]) == (2, 4, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sglang_knows_every_flag_of_its_launch_line(tmp_path: Path) -> None:
    save_model(tiny_model(**BLOCKS), tmp_path / "source")
    lines = plan_handover(open_pieces(tmp_path / "source"), "sglang", "model").launch
    assert len(lines) == 2
    used = {word for line in lines for word in line.split() if word.startswith("--")}
    unknown = used - known_flags(peer_packages("sglang") / "sglang/srt")
    assert not unknown


def known_flags(source: Path) -> set[str]:
    """Return the flags of SGLang's server: its argument fields' names, and every flag spelt out beside them."""
    flags = set()
    for file in (source / "arg_groups/fields").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                flags.add("--" + node.target.id.replace("_", "-"))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--"):
                flags.add(node.value)
    return flags
