"""Directories for other programs: what they say, what becomes of the weights, and what our own reader makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ling.checkpoint import load_model, save_model
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.checkpoint.shards import Shards
from ling.compat.handover import PROGRAMS, plan_handover, write_handover
from ling.compat.serving import Serving
from ling.engine.bundled import bundled_directory
from ling.errors import ConfigError
from ling.model.batch import pack
from ling.testing.models import tiny_model


def hand_over(source: Path, program: str, target: Path, **options: Any) -> tuple[dict[str, Any], Shards | None]:
    shards = write_handover(plan_handover(open_pieces(source), program, str(target), **options), target)
    return json.loads((target / "config.json").read_text()), shards


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint in several files, with an MTP layer in two of them, as nobody's cache holds it: behind links."""
    save_model(tiny_model(num_nextn_predict_layers=1), tmp_path / "blobs", max_shard_bytes=40_000)
    (tmp_path / "tiny").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "tiny" / file.name).symlink_to(Path("..") / "blobs" / file.name)
    return tmp_path / "tiny"


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_every_key_that_an_engine_may_misread_is_spelt_out(program: str, tmp_path: Path) -> None:
    config, _ = hand_over(bundled_directory(), program, tmp_path / "model")
    wanted = {
        "architectures": ["BailingMoeV2ForCausalLM"], "model_type": "bailing_moe", "head_dim": 32, "rotary_dim": 16,
        "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "score_function": "sigmoid", "n_group": 8, "topk_group": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "num_nextn_predict_layers": 0 if program == "vllm" else 1, "eos_token_id": [2042, 2045],
    }  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted
    assert ("auto_map" in config) == (program == "llamafactory")
    assert "quantization_config" not in config
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert generation["eos_token_id"] == [2042, 2045]
    assert generation["pad_token_id"] == 2042
    tokenizer = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert "ASSISTANT" in tokenizer["chat_template"]


def test_yarn_is_written_in_both_spellings_and_raises_the_context(tmp_path: Path) -> None:
    config, _ = hand_over(bundled_directory(), "vllm", tmp_path / "model", serving=Serving(yarn=4.0))
    for key in ("rope_scaling", "rope_parameters"):
        assert config[key]["rope_type"] == "yarn"
        assert config[key]["factor"] == 4.0
        assert config[key]["original_max_position_embeddings"] == 512
    assert config["max_position_embeddings"] == 2048
    assert load_model(tmp_path / "model").config.max_position_embeddings == 2048


def test_weights_that_stay_are_linked_and_the_mtp_layer_is_cut_out(tiny: Path, tmp_path: Path) -> None:
    _, shards = hand_over(tiny, "sglang", tmp_path / "sglang")
    files = sorted(tiny.glob("*.safetensors"))
    assert shards == Shards(linked=len(files))
    for file in files:
        assert (tmp_path / "sglang" / file.name).samefile(file)
        assert not (tmp_path / "sglang" / file.name).is_symlink()
    _, shards = hand_over(tiny, "vllm", tmp_path / "vllm")
    assert shards is not None
    assert shards.linked > 0
    assert shards.cut > 0
    whole, cut = load_model(tiny, mtp=False).state_dict(), load_model(tmp_path / "vllm").state_dict()
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_files_are_copied_where_links_cannot_be(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("ling.checkpoint.shards.os.link", refuse)
    _, shards = hand_over(tiny, "sglang", tmp_path / "model")
    assert shards == Shards(copied=len(list(tiny.glob("*.safetensors"))))
    assert load_model(tmp_path / "model").config.num_nextn_predict_layers == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float8"])
def test_the_stored_precision_is_kept_unless_another_is_asked_for(precision: str, tmp_path: Path) -> None:
    widths = ("intermediate_size", "moe_intermediate_size", "moe_shared_expert_intermediate_size", "head_dim")
    wide = dict.fromkeys(widths, 128) | {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
    wide |= {"rotary_dim": 64, "num_nextn_predict_layers": 0}
    export = ExportFormat(precision=precision)  # type: ignore[arg-type]
    save_model(tiny_model(**wide), tmp_path / "source", export=export)
    config, shards = hand_over(tmp_path / "source", "vllm", tmp_path / "kept")
    assert shards is not None
    assert shards.linked == 1
    assert config["torch_dtype"] == ("float32" if precision == "float32" else "bfloat16")
    assert ("quantization_config" in config) == (precision == "float8")
    config, shards = hand_over(tmp_path / "source", "vllm", tmp_path / "asked", dtype="float8")
    assert (shards is None) == (precision != "float8")
    assert config["quantization_config"]["modules_to_not_convert"] == ["lm_head", "eh_proj", "gate"]
    assert config["quantization_config"]["weight_block_size"] == [128, 128]


def test_no_groups_become_one_group_of_all_for_vllm(tmp_path: Path) -> None:
    model = tiny_model(n_group=0, topk_group=0)
    save_model(model, tmp_path / "source", export=ExportFormat(precision="float32"))
    config, _ = hand_over(tmp_path / "source", "vllm", tmp_path / "model")
    assert (config["n_group"], config["topk_group"]) == (1, 1)
    ids = torch.arange(24) % model.config.vocab_size
    logits = [
        m.logits(m(*pack([ids.tolist()])).hidden) for m in (model, load_model(tmp_path / "model", dtype=torch.float32))
    ]
    assert torch.equal(*logits)
    config, _ = hand_over(tmp_path / "source", "sglang", tmp_path / "sglang")
    assert (config["n_group"], config["topk_group"]) == (0, 0)


@pytest.mark.parametrize("program", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [({"use_bias": True}, "use_bias: "), ({"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias")],
)
def test_networks_that_an_engine_would_build_otherwise_are_refused(
    program: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save_model(tiny_model(**changes), tmp_path / "source")
    with pytest.raises(ConfigError, match=said):
        plan_handover(open_pieces(tmp_path / "source"), program, "model")


def test_a_directory_without_tokenizer_says_so_and_keeps_the_models_stops(tiny: Path, tmp_path: Path) -> None:
    plan = plan_handover(open_pieces(tiny), "vllm", "model")
    assert "no tokenizer came with the weights: give it with --tokenizer" in plan.notes
    plan = plan_handover(open_pieces(bundled_directory()), "vllm", "model", tokenizer=bundled_directory())
    assert not any("tokenizer" in note for note in plan.notes)


def test_a_tokenizer_of_another_model_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="do not belong together"):
        plan_handover(open_pieces(tiny), "vllm", "model", tokenizer=bundled_directory())


def test_drafts_are_offered_where_there_is_an_mtp_layer_and_one_stage() -> None:
    def lines(**sizes: int) -> list[str]:
        return plan_handover(open_pieces(bundled_directory()), "sglang", "model", serving=Serving(**sizes)).launch

    assert [("--speculative-algorithm NEXTN" in line) for line in lines()] == [False, True]
    assert len(lines(pipeline_parallel_size=2)) == 1
