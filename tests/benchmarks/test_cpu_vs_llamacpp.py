"""What a step reads, how bursts are summed up and judged, what is asked of whom; random models in compared forms."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.cpu_race.bursts import Bursts, ratio
from benchmarks.cpu_race.contenders import BEST_Q4, Contender
from benchmarks.cpu_race.figures import figures, lines, verdicts
from benchmarks.cpu_race.meeting import Turns, meet, split_by_memory
from benchmarks.cpu_race.ours import OurSteps, fill, remember, tidy, unique_experts
from benchmarks.cpu_race.record import Record
from benchmarks.cpu_race.side import by_steps
from benchmarks.cpu_vs_llamacpp import PARTS, arguments, decoding, questions, stages_of
from benchmarks.random_mini import make, shape

from ling.checkpoint import load_model
from ling.checkpoint.packing import read_weights
from ling.checkpoint.prepared import packed_bytes
from ling.engine.blocks import BlockPool, extend_digests
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.testing.models import tiny_config


def contender(form: str, *, preset: str = "ling_mini", layers: int = 3, **options: Any) -> Contender:
    engine = "llama.cpp" if form.startswith("q") else "ling"
    return Contender(engine, Path("nowhere"), shape(preset, layers), form, options)


def step_bytes(of: Contender, experts: float, context: int = 0) -> float:
    return of.step_bytes(decoding(context, 0), experts)


def test_a_step_reads_every_weight_but_the_embedding_and_the_experts_left_out() -> None:
    ours = contender("int4")
    config = ours.config
    everything = packed_bytes(config, read_weights("int4"))
    embedding = 2 * config.vocab_size * config.hidden_size
    assert step_bytes(ours, config.num_experts) == pytest.approx(everything - embedding)
    expert = 3 * config.hidden_size * config.moe_intermediate_size * 4.5 / 8  # 4 bits, and 16 per 32
    assert step_bytes(ours, 9) - step_bytes(ours, 8) == pytest.approx(2 * expert)


@pytest.mark.parametrize(("form", "theirs"), [("int4,head=int8", "q4_0"), ("int8", "q8_0")])
def test_both_sides_read_the_same_within_two_percent(form: str, theirs: str) -> None:
    assert step_bytes(contender(form), 8) == pytest.approx(step_bytes(contender(theirs), 8), rel=0.02)


def test_the_head_of_llama_cpps_own_q4_file_is_smaller_than_that_of_ours() -> None:
    config = shape("ling_mini", 3)
    less = step_bytes(contender("q4_0"), 8) - step_bytes(contender(BEST_Q4), 8)
    assert less == pytest.approx(config.vocab_size * config.hidden_size * (8.5 - 6.5625) / 8)


@pytest.mark.parametrize(("form", "options", "channel"), [("int8", {}, 4), ("q8_0", {}, 2)])
def test_the_cache_counts_by_its_length_and_dtype(form: str, options: dict[str, Any], channel: int) -> None:
    one = contender(form, **options)
    config = one.config
    row = 2 * 3 * config.num_key_value_heads * config.head_dim * channel
    assert step_bytes(one, 8, 1000) - step_bytes(one, 8) == 1000 * row


def test_a_prompt_is_not_judged_by_its_bytes() -> None:
    assert contender("int8").step_bytes({"do": "prefill", "tokens": 512}, 8) == 0


def test_bursts_are_summed_up() -> None:
    told = Bursts([[0.2, 0.1], [0.4, 0.2]], [10.0, 20.0], 3).summary(8, 1e9)
    assert told["fastest_ms"] == 100
    assert told["median_ms"] == 200
    assert told["tokens_per_second"] == {"fastest": 80, "median": 40}
    assert told["percent_of_bandwidth"] == {"fastest": 50, "median": 33}  # of 20 GB/s, and of 15
    assert told["major_faults"] == 3


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    told = ratio(Bursts([[1.0], [1.0], [2.0]]), Bursts([[1.0], [1.5], [4.0]]))
    assert told == {"median": 1.5, "least": 1.0, "most": 2.0, "of_fastest": 1.0}


def test_a_dense_preset_stays_dense_at_any_depth() -> None:
    dense = contender("int8", preset="qwen3_8b", layers=2)
    config = dense.config
    assert not any(config.is_moe(layer) for layer in range(2))
    assert step_bytes(dense, 0) > 2 * 3 * config.hidden_size * config.intermediate_size


def test_a_random_model_has_an_mtp_layer_where_one_is_asked_for() -> None:
    assert shape("ling_mini", 2).num_nextn_predict_layers == 0
    assert shape("ling_mini", 2, mtp=True).num_nextn_predict_layers == 1


def test_parts_become_questions_and_stages() -> None:
    given = arguments(["--parts", *PARTS[:3], "curve", "load", "--contexts", "0", "8192", "--layers", "2"])
    assert list(questions(given)) == ["decode at 0", "decode at 8192", "prefill 512", "1 at once", "8 at once"]
    stages = {stage.key: stage for stage in stages_of(4, Path("models"), given)}
    assert list(stages) == ["int4", "int4 curve", "int4 load"]
    assert list(stages["int4"].contenders) == ["ling", "llama.cpp"]
    assert [c.form for c in stages["int4"].contenders.values()] == ["int4,head=int8", "q4_0"]
    assert stages["int4 curve"].contenders["dense"].config.num_hidden_layers == 2
    assert [q["context"] for q in stages["int4 curve"].asked.values()] == given.curve_contexts
    assert not stages["int4 load"].asked


def test_what_does_not_fit_into_memory_is_left_out_and_said() -> None:
    contenders = {"sparse": contender("int4", layers=1), "dense": contender("int4", preset="qwen3_8b")}
    asked = {f"decode at {n}": decoding(n, 8) for n in (0, 32000)}
    room = int(contenders["dense"].needs_bytes(16000))
    fitting, left_out = split_by_memory(contenders, asked, together=False, memory=room)
    assert list(fitting["sparse"]) == list(asked)
    assert list(fitting["dense"]) == ["decode at 0"]
    assert list(left_out) == ["dense, decode at 32000"]
    together, _ = split_by_memory(contenders, asked, together=True, memory=room)
    assert together == {"sparse": {}, "dense": {}}


def numbers() -> dict[str, Any]:
    """Return figures of one round: 100 tokens per second beside 80, 8 answers as fast as 2."""
    contenders = {"ling": contender("int4,head=int8"), "llama.cpp": contender("q4_0")}
    asked = {"decode at 0": decoding(0, 2), "1 at once": decoding(16, 2), "8 at once": decoding(16, 2, 8)}
    steps = {"ling": (0.01, 0.01, 0.04), "llama.cpp": (0.0125, 0.0125, 0.1)}
    bursts = {
        name: {part: Bursts([[seconds]], [40.0]) for part, seconds in zip(asked, steps[name])} for name in contenders
    }
    return figures(contenders, dict.fromkeys(contenders, asked), bursts, {"1": 8.0, "8": 57.0})


def test_figures_compare_contenders_and_numbers_of_answers() -> None:
    found = numbers()
    assert found["decode at 0"]["ratio"]["llama.cpp"]["median"] == 1.25
    assert found["decode at 0"]["ratio"]["llama.cpp"]["percent_of_bytes"] == pytest.approx(125, abs=2)
    assert found["8 at once"]["ling"]["times_one"] == 2
    assert found["8 at once"]["llama.cpp"]["times_one"] == 1
    assert found["8 at once"]["ling"]["gb_per_step"] > 1.4 * found["1 at once"]["ling"]["gb_per_step"]
    assert found["unique_experts_per_layer"] == {"1": 8.0, "8": 57.0}


def test_a_line_tells_of_each_contender_in_each_part() -> None:
    told = lines("int4", numbers())
    assert len(told) == 6
    assert told[1].startswith("int4, decode at 0, llama.cpp: 12.5 ms (fastest 12.5), 80 tok/s, ")
    assert told[1].endswith(" % of the bandwidth; ours 1.25x")


def test_verdicts_name_what_is_met_and_what_is_missed() -> None:
    lines = verdicts({"int4": numbers(), "int4 load": {"load_seconds": [2.0, 11.0]}})
    assert lines[0] == "met: int4, decode at 0, against llama.cpp: 1.25, target 1.15"
    assert "met: int4, 8 at once, times one: 2, target 1.6" in lines
    assert lines[-1] == "MISSED: int4, load, s: 11, target 10"


def test_a_record_goes_on_from_a_run_of_the_same_settings(tmp_path: Path) -> None:
    Record("cpu", {"layers": 2}, tmp_path).keep("int8", {"x": 1})
    Record("cpu", {"layers": 2}, tmp_path).keep("int4", {"x": 2})
    again = Record("cpu", {"layers": 2}, tmp_path).numbers
    assert (again["int8"]["x"], again["int4"]["x"]) == (1, 2)
    assert "int8" not in Record("cpu", {"layers": 3}, tmp_path).numbers


def test_a_remembered_context_lies_side_by_side_and_is_found_again() -> None:
    pool = BlockPool(20, 16)
    pool.release([pool.take() for _ in range(7)])
    tidy(pool)
    ids = list(range(100))
    remember(pool, ids)
    digests: list[bytes] = []
    extend_digests(digests, ids, 16, "")
    assert pool.match(digests) == [0, 1, 2, 3, 4, 5]
    assert pool.take() == 6
    pool.check([[0, 1, 2, 3, 4, 5], [6]])


def test_our_side_decodes_behind_a_context_that_it_never_computed() -> None:
    engine = LLM(bundled_directory(), num_blocks=64, max_num_seqs=2, drafting="none").engine
    fill(engine.runner.cache)
    steps = OurSteps(engine)
    answer = by_steps(steps, engine.model.config.vocab_size)
    told = answer({"do": "decode", "context": 320, "tokens": 20, "streams": 2})
    assert len(told["seconds"]) == 20  # past the length that an answer has where nobody says
    assert engine.scheduler.num_found == 2 * 304  # but for the last block, whose end is computed
    assert len(answer({"do": "prefill", "tokens": 40})["seconds"]) == 1
    assert not engine.has_work


def test_experts_that_a_step_reads_are_counted_in_every_layer() -> None:
    llm = LLM(bundled_directory())
    one, many = (unique_experts(llm.model, llm.tokenizer, streams, 3) for streams in (1, 8))
    config = llm.model.config
    assert one == config.num_experts_per_tok
    assert one < many <= config.num_experts
    assert not any(module._forward_hooks for module in llm.model.modules())


@pytest.mark.slow  # each side imports torch: ten seconds and more
@pytest.mark.parametrize("alternate", [False, True])
def test_two_of_ours_meet(alternate: bool, tmp_path: Path) -> None:
    make(tmp_path / "model", tiny_config(vocab_size=2080), "int8")
    options = {"threads": 1, "pages": "mapped", "cache": "auto"}
    one = Contender("ling", tmp_path / "model", tiny_config(vocab_size=2080), "int8", options)
    kept: list[dict[str, Any]] = []
    asked = {"decode at 0": decoding(0, 2), "prefill 8": {"do": "prefill", "tokens": 8}}
    meet({"ling": one, "other": one}, asked, Turns(alternate, 2), kept.append)
    assert len(kept) == 2  # after every round
    assert kept[-1]["decode at 0"]["other"]["steps"] == (8 if alternate else 4)
    assert kept[-1]["told"]["ling"]["engine"]


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
