"""What a step reads, and how bursts are summed up; random models in the forms that are compared."""

import argparse
from pathlib import Path

import pytest
from benchmarks.cpu_vs_llamacpp import Bursts, our_bytes, questions, read_bytes, their_bytes
from benchmarks.random_mini import make, shape

from ling.checkpoint import load_model
from ling.checkpoint.packing import read_weights
from ling.checkpoint.prepared import packed_bytes
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.testing.models import tiny_config


def test_a_step_reads_every_weight_but_the_embedding_and_the_experts_left_out() -> None:
    config = shape("ling_mini", 3)
    everything = packed_bytes(config, read_weights("int4"))
    embedding = 2 * config.vocab_size * config.hidden_size
    assert our_bytes(config, "int4", config.num_experts) == everything - embedding
    expert = 3 * config.hidden_size * config.moe_intermediate_size * 4.5 / 8  # 4 bits, and 16 per 32
    two_layers = our_bytes(config, "int4", 9) - our_bytes(config, "int4", 8)
    assert two_layers == pytest.approx(2 * expert)


@pytest.mark.parametrize("bits", [4, 8])
def test_both_sides_read_the_same_within_two_percent(bits: int) -> None:
    config = shape("ling_mini", 3)
    form = {4: "int4,head=int8", 8: "int8"}[bits]
    assert our_bytes(config, form, 8) == pytest.approx(their_bytes(config, bits, 8), rel=0.02)


def test_the_cache_counts_by_its_length_and_dtype() -> None:
    config, given = shape("ling_mini", 3), argparse.Namespace(cache="auto")
    asked = {"do": "decode", "context": 1000, "tokens": 0, "streams": 2}
    long = read_bytes("ling", "", asked, config, 4, {}, given) - read_bytes(
        "ling", "", {**asked, "context": 0}, config, 4, {}, given
    )
    assert long == 2 * 1000 * 3 * 2 * config.num_key_value_heads * config.head_dim * 4


def test_bursts_are_summed_up() -> None:
    told = Bursts([[0.2, 0.1], [0.4, 0.2]], [10.0, 20.0]).summary(8, 1e9)
    assert told["fastest_ms"] == 100
    assert told["median_ms"] == 200
    assert told["tokens_per_second"] == {"fastest": 80, "median": 40}
    assert told["percent_of_bandwidth"] == {"fastest": 50, "median": 33}  # of 20 GB/s, and of 15


def test_a_dense_preset_stays_dense_at_any_depth() -> None:
    config = shape("qwen3_8b", 2)
    assert not any(config.is_moe(layer) for layer in range(2))
    assert our_bytes(config, "int8", 0) > 2 * 3 * config.hidden_size * config.intermediate_size


def test_parts_become_questions() -> None:
    given = argparse.Namespace(parts=["decode", "prefill", "streams"], contexts=[0, 8192], tokens=4)
    assert list(questions(given)) == ["decode at 0", "decode at 8192", "prefill 512", "1 at once", "8 at once"]


@pytest.mark.parametrize("form", ["int4,head=int8", "bfloat16"])
def test_random_models_run_in_every_form(form: str, tmp_path: Path) -> None:
    make(tmp_path / "model", tiny_config(vocab_size=2080), form)
    llm = LLM(tmp_path / "model", drafting="none")
    (answer,) = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert len(answer.outputs[0].token_ids) == 4


def test_the_same_tensor_whatever_the_form(tmp_path: Path) -> None:
    config = tiny_config()
    make(tmp_path / "float32", config, "float32")
    make(tmp_path / "int8", config, "int8", workers=2)
    ours, theirs = load_model(tmp_path / "int8"), load_model(tmp_path / "float32", weights="int8")
    for key, value in theirs.state_dict().items():
        assert value.equal(ours.state_dict()[key]), key
