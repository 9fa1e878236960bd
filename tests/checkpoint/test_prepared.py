"""Prepared checkpoints hold what quantising at load gives, to the bit, and say what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ling.checkpoint import load_model, save_model
from ling.checkpoint.packing import KINDS, Weights, formats_told, read_weights
from ling.checkpoint.pages import PAGE_MODES
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.prepare import to_packed, verify_packed
from ling.checkpoint.prepared import packed_bytes
from ling.checkpoint.save import ExportFormat
from ling.cli.convert import Conversion, run_conversion
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.errors import CheckpointError, ConfigError, LingError
from ling.model import CausalLM
from ling.testing.models import tiny_model

# No width is a multiple of 16 or 32, so that tiles and groups have ragged ends.
ODD = {"hidden_size": 72, "moe_intermediate_size": 40, "num_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
       "topk_group": 1, "num_hidden_layers": 2}  # fmt: skip
EVEN = {**ODD, "hidden_size": 128, "moe_intermediate_size": 64, "num_experts": 16}


def save_tiny(directory: Path, precision: Any = "bfloat16", **changes: Any) -> Path:
    save_model(tiny_model(seed=3, **changes), directory, export=ExportFormat(precision=precision))
    return directory


def prepare(source: Path, target: Path, weights: Weights = "int4", **options: Any) -> Path:
    to_packed(open_pieces(source), target, weights, **options)
    return target


def assert_same(ours: CausalLM, theirs: CausalLM) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        assert torch.equal(a[key], b[key]), key


def edit(directory: Path, change: Any) -> None:
    """Apply `change` to the tensors, and write them as one file."""
    tensors: dict[str, Tensor] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    change(tensors)
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(tensors, directory / "model.safetensors")


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("precision", "weights", "shape"),
    [
        ("float32", "int4", ODD),
        ("bfloat16", "int8", ODD),
        ("bfloat16", "int4,head=int8,attention=int8", EVEN),
        ("float8", "int4", EVEN),
        ("float8", "int8", ODD),
    ],
)
def test_prepared_is_what_quantising_at_load_gives(
    precision: str, weights: str, shape: dict[str, int], tmp_path: Path
) -> None:
    source = save_tiny(tmp_path / "source", precision, **shape)
    formats = read_weights(weights)
    prepared = prepare(source, tmp_path / "prepared", formats, max_shard_bytes=60_000, workers=2)
    assert len(list(prepared.glob("*.safetensors"))) > 2
    quantised = load_model(source, dtype=torch.float32, weights=formats)
    assert_same(load_model(prepared), quantised)
    assert_same(load_model(prepared, weights=formats, dtype=torch.float32), quantised)
    size = sum(t.nbytes for t in quantised.state_dict().values())
    assert packed_bytes(quantised.config, formats) == size


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"use_qkv_bias": True, "use_bias": True},
                                     {"moe_router_enable_expert_bias": False}])  # fmt: skip
def test_networks_of_other_kinds(changes: dict[str, Any], tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", **ODD, **changes)
    prepared = prepare(source, tmp_path / "prepared", {"experts": "int4"})  # other kinds stay values
    assert_same(load_model(prepared), load_model(source, dtype=torch.float32, weights={"experts": "int4"}))


@pytest.mark.parametrize("pages", PAGE_MODES)
def test_pages_hold_the_same_wherever_they_lie(pages: Any, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", **ODD)
    prepared = prepare(source, tmp_path / "prepared")
    before = {file: file.read_bytes() for file in prepared.glob("*.safetensors")}
    model = load_model(prepared, pages=pages)
    assert_same(model, load_model(source, dtype=torch.float32, weights="int4"))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert all(file.read_bytes() == held for file, held in before.items()), "a write reached the file"


def test_parameters_of_even_shapes_are_the_mapped_file(tmp_path: Path) -> None:
    prepared = prepare(save_tiny(tmp_path / "source", **EVEN), tmp_path / "prepared")
    (file,) = prepared.glob("*.safetensors")
    model = load_model(prepared)  # it must live while the maps are read
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
    spans = [tuple(int(x, 16) for x in line[0].split("-")) for line in maps]
    for key, tensor in model.state_dict().items():
        address = tensor.data_ptr()
        assert address % 64 == 0, key
        assert any(begin <= address < end for begin, end in spans), f"{key} was copied"


def test_mtp_layers_can_be_left_out(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", **ODD)
    prepared = prepare(source, tmp_path / "prepared")
    assert_same(load_model(prepared, mtp=False), load_model(source, dtype=torch.float32, weights="int4", mtp=False))


def test_an_interrupted_conversion_goes_on(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", **ODD)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "prepared", max_shard_bytes=60_000, progress=interrupt)
    kept = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob(".prepared.partial-*/model-*.safetensors")}
    assert kept
    prepared = prepare(source, tmp_path / "prepared", max_shard_bytes=60_000)
    assert all((prepared / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert_same(load_model(prepared), load_model(source, dtype=torch.float32, weights="int4"))


def test_verification_sees_one_changed_code(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", **ODD)
    prepared = prepare(source, tmp_path / "prepared")
    assert verify_packed(open_pieces(source), prepared, "int4") == len(load_model(prepared).state_dict())
    key = "model.layers.1.mlp.experts.down_proj"
    edit(prepared, lambda tensors: tensors[key].view(-1)[77].bitwise_xor_(1))
    with pytest.raises(CheckpointError, match=key):
        verify_packed(open_pieces(source), prepared, "int4")


def test_the_bundled_model_answers_as_when_quantised_at_load(tmp_path: Path) -> None:
    conversion = Conversion(source=bundled_directory(), target=tmp_path / "int8", dtype="int8", verify=True)
    run_conversion(conversion)
    params = SamplingParams(temperature=0, max_tokens=24)
    prepared, quantised = LLM(tmp_path / "int8"), LLM(bundled_directory(), quantization="int8")
    ours, theirs = (llm.generate("Who are you?", params)[0].outputs[0] for llm in (prepared, quantised))
    assert ours.token_ids == theirs.token_ids
    card = (tmp_path / "int8/README.md").read_text()
    assert "int8 (ling_packed)" in card
    assert json.loads((tmp_path / "int8/config.json").read_text())["quantization_config"] == {
        "quant_method": "ling_packed", "version": 1, "group_size": 32, "tile_rows": 16,
        "formats": {"head": "int8", "attention": "int8", "experts": "int8", "dense": "int8"},
    }  # fmt: skip


def test_the_format_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared = prepare(save_tiny(tmp_path / "source", **ODD), tmp_path / "prepared", read_weights("int4,head=int8"))
    with caplog.at_level("INFO"):
        load_model(prepared)
    assert "prepared int4, head int8 weights" in caplog.text


# ---- what is refused ----


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return prepare(save_tiny(tmp_path / "source", **ODD), tmp_path / "prepared")


QKV = "model.layers.0.attention.query_key_value.weight"


def poison(tensors: dict[str, Tensor]) -> None:
    tensors[QKV + "_scales"].view(-1)[5] = float("inf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (poison, f"{QKV}_scales in model.safetensors has scales that are NaN or infinite"),
        (lambda t: t["model.norm.weight"].fill_(float("nan")), "model.norm.weight in model.safetensors has values"),
        (lambda t: t.pop(QKV + "_scales"), f"lacks {QKV}_scales"),
        (lambda t: t.update(stray=torch.zeros(3)), "holds stray"),
        (lambda t: t.update({QKV: t[QKV][:-1].clone()}), f"tensor {QKV} is U8"),
        (lambda t: t.update({QKV: t[QKV].view(torch.int8)}), f"tensor {QKV} is I8"),
    ],
)
def test_damage_is_named(change: Any, said: str, prepared: Path) -> None:
    edit(prepared, change)
    with pytest.raises(CheckpointError) as caught:
        load_model(prepared)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "version of the packed weights is not 1"),
        ({"group_size": 64}, "group_size"),
        ({"formats": {"head": "int5"}}, "not as int5"),
        ({"formats": {"tail": "int4"}}, "of kind tail"),
        ({"formats": []}, "must name formats"),
        ({"formats": {"head": ["int4"]}}, "int4"),
        ({"formats": {"head": "int4"}}, "weight_scales and"),
    ],
)
def test_a_description_that_cannot_be_is_refused(changes: dict[str, Any], said: str, prepared: Path) -> None:
    edit_config(prepared, **changes)
    with pytest.raises(LingError) as caught:
        load_model(prepared)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"weights": "int8"}, {"fp8": "keep"}, {"device": "cuda"}, {"dtype": torch.bfloat16}],
)
def test_what_a_prepared_checkpoint_cannot_be_is_refused(options: dict[str, Any], prepared: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model(prepared, **options)
    assert "\n" not in str(caught.value)


def test_nothing_is_made_of_a_prepared_checkpoint(prepared: Path) -> None:
    with pytest.raises(CheckpointError, match="converts no further"):
        open_pieces(prepared)


def test_a_truncated_file_is_named(prepared: Path) -> None:
    (file,) = prepared.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_model(prepared)


def test_values_that_fit_no_scale_are_named(tmp_path: Path) -> None:
    model = tiny_model(seed=3, **ODD)
    with torch.no_grad():
        model.lm_head.weight[3, 7] = 1e9  # type: ignore[union-attr]
    save_model(model, tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight: .*does not fit float16"):
        prepare(tmp_path / "source", tmp_path / "prepared")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dtype": "int5"}, "--dtype int5 is not known"),
        ({"dtype": "int4,tail=int8"}, "tail is no kind of weights"),
        ({"dtype": "int4,head=q8"}, "not as q8"),
        ({"dtype": "int4", "to": "megatron"}, "form of safetensors"),
        ({"dtype": "int4", "mtp": "separate"}, "keep or drop"),
        ({"dtype": "int4", "fp8_scales": "pow2"}, "is for --dtype float8"),
    ],
)
def test_conversions_that_make_no_sense_are_refused(asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_conversion(Conversion(source=bundled_directory(), target=tmp_path / "out", **asked))
    assert said in str(caught.value)


def test_formats_are_told_as_they_are_given() -> None:
    for text in ("int8", "int4", "int4,head=int8"):
        assert formats_told(read_weights(text)).replace(", head int8", ",head=int8") == text
    assert formats_told(read_weights("mixed")) == "int4, head int8"
    assert read_weights("mixed,head=int4") == dict.fromkeys(KINDS, "int4")


def test_packed_weights_are_not_saved_as_a_published_checkpoint(tmp_path: Path) -> None:
    model = load_model(save_tiny(tmp_path / "source"), weights="int4")
    with pytest.raises(CheckpointError, match=r"cannot write .*out: the model's weights are packed; save what they"):
        save_model(model, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
