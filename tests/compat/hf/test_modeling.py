"""What transformers' users do with a model: load, save, pad, pack, resize, and what they do wrong."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ling.checkpoint import load_model
from ling.checkpoint.load import read_config
from ling.checkpoint.save import ExportFormat, save_model
from ling.compat.hf import LingConfig, LingForCausalLM
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.errors import CheckpointError, ConfigError, RequestError
from ling.testing.models import tiny_model
from ling.testing.tolerances import BATCHING, SUM_ORDER, assert_close


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint in several files: sparse and dense layers, MTP, expert biases."""
    target = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny_model(), target, export=ExportFormat(precision="float32"), max_shard_bytes=200_000)
    assert len(list(target.glob("*.safetensors"))) > 2
    return target


def load(directory: Path, **options: Any) -> LingForCausalLM:
    return LingForCausalLM.from_pretrained(directory, **{"dtype": torch.float32, **options})


def tokens(directory: Path, B: int, S: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, read_config(directory).vocab_size, (B, S), generator=generator)


def test_every_tensor_is_loaded_as_our_own_loader_loads_it(directory: Path) -> None:
    ours, theirs = load_model(directory, dtype=torch.float32).state_dict(), load(directory).state_dict()
    assert theirs.keys() == ours.keys()
    for name, expected in ours.items():
        assert torch.equal(theirs[name], expected), name


def test_bfloat16_leaves_the_router_in_float32(directory: Path) -> None:
    state, ours = (
        m.state_dict() for m in (load(directory, dtype=torch.bfloat16), load_model(directory, dtype=torch.bfloat16))
    )
    assert {name: tensor.dtype for name, tensor in state.items()} == {name: t.dtype for name, t in ours.items()}
    assert torch.equal(state["model.layers.1.mlp.gate.expert_bias"], ours["model.layers.1.mlp.gate.expert_bias"])


def test_a_saved_model_has_the_published_tensors_and_comes_back_equal(directory: Path, tmp_path: Path) -> None:
    load(directory).save_pretrained(tmp_path, max_shard_size="200KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"].keys()
    assert read_config(tmp_path) == read_config(directory)
    again = load_model(tmp_path, dtype=torch.float32).state_dict()
    for name, expected in load(directory).state_dict().items():
        assert torch.equal(again[name], expected), name


def test_published_tensors_load_into_a_model_with_load_state_dict(directory: Path) -> None:
    published = {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}
    model = LingForCausalLM(LingConfig.from_pretrained(directory))
    model.load_state_dict(published)
    for name, expected in load(directory).state_dict().items():
        assert torch.equal(model.state_dict()[name], expected), name


def test_fp8_directories_are_dequantised(tmp_path: Path) -> None:
    wide = tiny_model(hidden_size=128, moe_intermediate_size=128, intermediate_size=256)
    save_model(wide, tmp_path / "fp8", export=ExportFormat(precision="float8"))
    model = load(tmp_path / "fp8")
    assert not hasattr(model.config, "quantization_config")
    expected = load_model(tmp_path / "fp8", dtype=torch.float32).state_dict()
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_another_quantisation_is_refused_with_the_reason(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "m")
    change(tmp_path / "m", quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]})
    with pytest.raises(CheckpointError, match=r"blocks \[64, 64\] is not supported"):
        load(tmp_path / "m")


def test_a_missing_tensor_is_named(directory: Path, tmp_path: Path) -> None:
    published = {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}
    del published["model.layers.1.mlp.experts.3.up_proj.weight"]
    shutil.copy(directory / "config.json", tmp_path)
    save_file(published, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight, which"):
        load(tmp_path)


def test_a_configuration_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads"):
        LingConfig(num_attention_heads=7, num_key_value_heads=2)


def test_a_configuration_says_every_published_key_and_comes_back_equal(directory: Path, tmp_path: Path) -> None:
    config = LingConfig.from_pretrained(directory)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((directory / "config.json").read_text())
    assert {key: written.get(key) for key in published if key != "torch_dtype"} == {
        key: value for key, value in published.items() if key != "torch_dtype"
    }
    assert LingConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_yarn_in_either_spelling_is_the_same_network() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    old = LingConfig(rope_scaling=yarn, max_position_embeddings=2048)
    new = LingConfig(
        rope_parameters={"rope_type": "yarn", "rope_theta": old.rope_theta, **yarn}, max_position_embeddings=2048
    )
    assert old.to_ling() == new.to_ling()
    assert old.to_ling().rope_scaling is not None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(directory: Path, side: str, attention: str) -> None:
    model = load(directory, attn_implementation=attention)
    ids = tokens(directory, 3, 9)
    lengths = [9, 4, 1]
    mask = torch.stack([torch.arange(9) < n for n in lengths])
    if side == "left":
        mask = mask.flip(1)
    padded = model(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100))
    losses, counts = [], []
    for row, keep in zip(ids, mask):
        alone = model(input_ids=row[keep][None], labels=row[keep][None])
        assert_close(padded.logits[len(counts)][keep], alone.logits[0], BATCHING, f"{side}, {int(keep.sum())} tokens")
        losses.append(alone.loss - model.config.mtp_loss_scaling_factor * alone.mtp_loss[0])
        counts.append(int(keep.sum()) - 1)
    main = padded.loss - model.config.mtp_loss_scaling_factor * padded.mtp_loss[0]
    expected = sum(loss * count for loss, count in zip(losses, counts)) / sum(counts)
    assert_close(main, expected, SUM_ORDER, "loss over what is not padding")


@torch.no_grad()
def test_documents_side_by_side_do_not_see_each_other(directory: Path) -> None:
    model = load(directory)
    ids, lengths = tokens(directory, 1, 12), (5, 1, 6)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    together = model(input_ids=ids, position_ids=positions, labels=ids)
    pieces = ids.split(lengths, 1)
    alone = [model(input_ids=piece).logits for piece in pieces]
    assert_close(together.logits, torch.cat(alone, 1), BATCHING)
    labels = torch.cat([torch.cat([piece[:, 1:], torch.tensor([[-100]])], 1) for piece in pieces], 1)
    main = torch.nn.functional.cross_entropy(torch.cat(alone, 1)[0], labels[0])
    assert_close(together.loss - model.config.mtp_loss_scaling_factor * together.mtp_loss[0], main, SUM_ORDER)


@torch.no_grad()
def test_embeddings_instead_of_ids_give_the_same_logits(directory: Path) -> None:
    model, ids = load(directory), tokens(directory, 2, 7)
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(input_ids=ids).logits)
    first = model.generate(inputs_embeds=embeddings, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(first, model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)[:, 7:])


@torch.no_grad()
def test_only_the_wanted_logits_are_computed(directory: Path) -> None:
    model, ids = load(directory), tokens(directory, 2, 7)
    whole = model(input_ids=ids).logits
    assert_close(model(input_ids=ids, logits_to_keep=2).logits, whole[:, -2:], BATCHING)
    assert_close(model(input_ids=ids, logits_to_keep=torch.tensor([0, 3])).logits, whole[:, [0, 3]], BATCHING)


@torch.no_grad()
def test_the_network_without_its_head_gives_what_the_head_reads(directory: Path) -> None:
    model, ids = load(directory), tokens(directory, 2, 7)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    found = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    expected = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert found.past_key_values is None
    assert len(found.hidden_states) == len(expected.hidden_states)
    assert torch.equal(found.last_hidden_state, expected.hidden_states[-1])
    assert_close(model.lm_head(found.last_hidden_state), expected.logits, BATCHING)


@torch.no_grad()
def test_eager_attention_gives_its_weights_and_sdpa_says_that_it_cannot(directory: Path) -> None:
    ids = tokens(directory, 2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    model = load(directory, attn_implementation="eager")
    weights = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    assert len(weights) == model.config.num_hidden_layers
    assert weights[0].shape == (2, model.config.num_attention_heads, 7, 7)
    assert_close(weights[0].sum(-1), torch.ones(2, model.config.num_attention_heads, 7), SUM_ORDER)
    assert not weights[0].triu(1).any()
    with pytest.raises(RequestError, match="sdpa attention keeps no weights; load with attn_implementation='eager'"):
        load(directory)(input_ids=ids, output_attentions=True)


def test_expert_biases_count_no_gradient_and_stay_in_training(directory: Path) -> None:
    model, ids = load(directory).train(), tokens(directory, 2, 7)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "expert_bias" in name}
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert before
    for name, buffer in model.named_buffers():
        if name in before:
            assert torch.equal(buffer, before[name])


def test_recomputation_is_possible_with_inputs_that_need_gradients(directory: Path) -> None:
    model, ids = load(directory).train(), tokens(directory, 1, 7)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    output = model(input_ids=ids, labels=ids, use_cache=True)
    assert output.past_key_values is None
    output.loss.backward()
    assert model.model.layers[0].attention.query_key_value.weight.grad is not None


@torch.no_grad()
def test_more_tokens_can_be_added(directory: Path) -> None:
    model, ids = load(directory), tokens(directory, 1, 7)
    before, size = model(input_ids=ids).logits, model.config.vocab_size
    model.resize_token_embeddings(size + 8)
    assert model.config.to_ling().vocab_size == size + 8
    assert_close(model(input_ids=ids).logits[..., :size], before, BATCHING)


def test_autocast_is_named_and_changes_nothing(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, ids = load(directory).eval(), tokens(directory, 1, 7)
    logging.getLogger("transformers").propagate = True
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with caplog.at_level(logging.WARNING), torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(input_ids=ids).logits, expected)
    assert "autocast is on, but Ling computes in the dtype of its weights" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "give either input_ids or inputs_embeds"),
        (
            {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 2)},
            r"give \(2, 3\): 1 for",
        ),
        ({"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.zeros(1, 1, 3, 3)}, "is float32"),
    ],
)
def test_a_call_that_cannot_be_meant_is_one_line(directory: Path, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(RequestError, match=line):
        load(directory)(**arguments)


def test_an_attention_that_is_not_ours_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="flex_attention"):
        load(directory, attn_implementation="flex_attention")(input_ids=tokens(directory, 1, 3))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_ways_of_generating_that_take_the_cache_apart(directory: Path, options: dict[str, Any]) -> None:
    model, ids = load(directory), tokens(directory, 1, 3).repeat(1, 4)
    given = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}  # 4.57 needs one
    found = model.generate(ids, **given, **options)
    if "num_beams" in options:
        assert torch.equal(found, model.generate(ids, **given, **options, use_cache=False))
    else:
        assert torch.equal(found, model.generate(ids, **given))


def test_a_conversation_gives_the_engine_s_answer() -> None:
    llm = LLM(bundled_directory())
    model, tokenizer = load(bundled_directory()), AutoTokenizer.from_pretrained(bundled_directory())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 3 plus 4?"}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer([text], return_tensors="pt", return_token_type_ids=False)
    answer = model.generate(**inputs, max_new_tokens=48)[0, inputs.input_ids.shape[1] :].tolist()
    (output,) = llm.generate([inputs.input_ids[0].tolist()], SamplingParams(max_tokens=48, temperature=0))
    (expected,) = output.outputs
    assert answer == expected.token_ids


def change(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
