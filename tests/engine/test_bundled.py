"""The model in the package: what PROVENANCE.json says of it, measured again."""

import json
from pathlib import Path

import pytest
import torch

from ling.checkpoint import load_model
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.cli.demo.evaluate import GATED_PROMPTS, compare_speculation
from ling.config.recipe import load_recipe, recipe_from_tree, recipe_tree
from ling.data.books import split_books
from ling.data.dialogues import heldout_set
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.eval.bits_per_byte import bits_per_byte, ngram_bits_per_byte
from ling.eval.byte_ngram import ByteNgram
from ling.eval.tasks import run_task
from ling.tokenizer import Tokenizer

LARGEST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def provenance() -> dict:
    return json.loads((bundled_directory() / "PROVENANCE.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def llm() -> LLM:
    directory = bundled_directory()
    return LLM(load_model(directory, dtype=torch.float32), Tokenizer.from_directory(directory))


def test_it_is_small_and_bfloat16() -> None:
    files = [f for f in bundled_directory().iterdir() if f.suffix in (".json", ".safetensors")]
    assert sum(f.stat().st_size for f in files) <= LARGEST_BYTES
    assert load_model(bundled_directory()).lm_head.weight.dtype == torch.bfloat16


def test_it_has_an_mtp_layer_and_one_expert_in_32(llm: LLM) -> None:
    config = llm.model.config
    assert config.num_nextn_predict_layers == 1
    assert config.num_experts == 32 * config.num_experts_per_tok


def test_its_recipe_is_the_one_in_the_repository(provenance: dict, request: pytest.FixtureRequest) -> None:
    written = load_recipe(file=request.config.rootpath / "src/ling/config/recipes/bundled.yaml")
    assert recipe_tree(recipe_from_tree(provenance["recipe"])) == recipe_tree(written)
    assert provenance["seed"] == written.train.seed
    assert len(provenance["commit"]) == 40


def test_it_still_answers_what_was_recorded(llm: LLM, provenance: dict) -> None:
    def answer(dialogues) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=120)
        return [r.outputs[0].text for r in llm.chat([d.prompt for d in dialogues], params)]

    level, recorded = provenance["recipe"]["data"]["dialogue_level"], provenance["measured"]["tasks"]
    correct = 0
    for task, count in GATED_PROMPTS.items():
        result = run_task(answer, task, count, level=level)
        assert result.total == recorded[task]["total"]
        assert abs(result.correct - recorded[task]["correct"]) <= 1, task  # another machine may break one tie
        correct += result.correct
    assert correct >= 0.9 * sum(GATED_PROMPTS.values())


@pytest.mark.slow
def test_it_reads_held_out_books_better_than_order_3_bytes(llm: LLM, provenance: dict) -> None:
    training, heldout = split_books(provenance["recipe"]["data"]["heldout_percent"])
    window = provenance["recipe"]["data"]["max_document_tokens"]
    score = llm.negative_log_likelihoods
    value = bits_per_byte(score, llm.tokenizer, heldout, window=window, stride=window // 2).value
    baseline = ByteNgram(3).fit([text.encode() for text in training])
    assert value < ngram_bits_per_byte(baseline, llm.tokenizer, heldout).value
    assert value == pytest.approx(provenance["measured"]["bits_per_byte"]["bfloat16"], rel=1e-4)


def test_drafting_changes_no_text_and_is_mostly_accepted(llm: LLM, provenance: dict) -> None:
    measured = compare_speculation(llm)
    assert measured.same_text
    recorded = provenance["measured"]["mtp_acceptance_percent"]
    assert measured.acceptance_percent == pytest.approx(recorded, abs=2)


def test_an_answer_that_ends_anywhere_inside_its_drafts_leaves_the_engine_whole(llm: LLM) -> None:
    """Whatever it is stopped at: drafts behind the stop were computed, accepted, and are no tokens."""
    drafting = LLM(llm.model, llm.tokenizer, block_size=2, num_speculative_tokens=4, adaptive_drafts=False)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (whole,) = drafting.chat(question, SamplingParams(temperature=0, max_tokens=40))
    text = whole.outputs[0].text
    assert drafting.stats.accepted > 4
    for stop in dict.fromkeys(text.split()):
        (done,) = drafting.chat(question, SamplingParams(temperature=0, max_tokens=40, stop=stop))
        assert done.outputs[0].text == text[: text.index(stop)]
        assert not drafting.engine.has_work
        drafting.engine.blocks.check([])


def test_drafts_change_no_bit_with_bf16_or_fp8_weights_and_are_accepted_alike(llm: LLM, tmp_path: Path) -> None:
    to_safetensors(open_pieces(bundled_directory()), tmp_path / "fp8", ExportFormat(precision="float8"))
    prompts = [d.prompt for d in heldout_set("stories", 12)]
    params = SamplingParams(temperature=0, max_tokens=48, logprobs=1)
    accepted = {}
    for name, model in (
        ("bf16", llm),
        ("fp8", LLM(tmp_path / "fp8")),
        ("kept", LLM(tmp_path / "fp8", quantization="fp8")),
    ):
        sides = []
        for options in ({"drafting": "none"}, {"num_speculative_tokens": 2, "adaptive_drafts": False}):
            side = LLM(model.model, model.tokenizer, batch_invariant=True, **options)
            answers = side.chat(prompts if name != "kept" else prompts[:2], params)
            sides.append([(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in answers])
            accepted[name] = 100 * side.stats.acceptance_fraction
        assert sides[0] == sides[1], name
    assert accepted["fp8"] == pytest.approx(accepted["bf16"], abs=3)
