"""Strict loading and saving: what comes back, and what damaged checkpoints say."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ling.checkpoint import load_model, save_model
from ling.checkpoint.save import ExportFormat
from ling.errors import CheckpointError
from ling.model import CausalLM
from ling.model.batch import pack
from ling.ops.fp8 import quantize_e4m3_block
from ling.testing.models import tiny_model
from ling.testing.tolerances import BATCHING, assert_close

# Wide enough that some weights take several 128x128 blocks, with a ragged edge.
WIDE = {"hidden_size": 160, "moe_intermediate_size": 132, "num_experts": 4, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "num_hidden_layers": 2}  # fmt: skip


@pytest.fixture
def model() -> CausalLM:
    return tiny_model(**WIDE)


@pytest.fixture
def saved(model: CausalLM, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "saved", export=ExportFormat(precision="float32"))
    return tmp_path / "saved"


def all_tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}


def rewrite(directory: Path, change) -> None:
    """Apply `change` to the dictionary of all tensors, and write them back as one file."""
    tensors = all_tensors(directory)
    change(tensors)
    for f in (*directory.glob("*.safetensors"), directory / "model.safetensors.index.json"):
        f.unlink()
    save_file(tensors, directory / "model.safetensors")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("shard_bytes", [1, 200_000, 10**9])
def test_float32_comes_back_to_the_bit(model: CausalLM, tmp_path: Path, shard_bytes: int) -> None:
    export = ExportFormat(precision="float32")
    save_model(model, tmp_path / "out", export=export, max_shard_bytes=shard_bytes)
    back = load_model(tmp_path / "out").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(back[name], value), name
    weight_map = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map.keys() == all_tensors(tmp_path / "out").keys()


def test_bfloat16_is_the_model_rounded_with_biases_in_float32(model: CausalLM, tmp_path: Path) -> None:
    save_model(model, tmp_path / "out")
    for key, stored in all_tensors(tmp_path / "out").items():
        assert stored.dtype == (torch.float32 if key.endswith("expert_bias") else torch.bfloat16), key
    back = load_model(tmp_path / "out", dtype=torch.float32).state_dict()
    for name, value in model.state_dict().items():
        expected = value if name.endswith("expert_bias") else value.bfloat16().float()
        assert torch.equal(back[name], expected), name


@pytest.mark.parametrize("scales", ["published", "pow2", "fp32"])
def test_float8_holds_what_the_quantiser_gives(model: CausalLM, tmp_path: Path, scales: str) -> None:
    save_model(model, tmp_path / "out", export=ExportFormat(precision="float8", fp8_scales=scales))
    tensors = all_tensors(tmp_path / "out")
    state = model.state_dict()
    F = model.config.moe_intermediate_size
    sources = {
        "model.layers.1.attention.query_key_value.weight": (
            state["model.layers.1.attention.query_key_value.weight"],
            False,
        ),
        "model.layers.1.attention.dense.weight": (state["model.layers.1.attention.dense.weight"], True),
        "model.layers.1.mlp.experts.2.gate_proj.weight": (
            state["model.layers.1.mlp.experts.gate_up_proj"][2, :F],
            True,
        ),
        "model.layers.1.mlp.experts.2.up_proj.weight": (
            state["model.layers.1.mlp.experts.gate_up_proj"][2, F:],
            True,
        ),
        "model.layers.1.mlp.experts.2.down_proj.weight": (
            state["model.layers.1.mlp.experts.down_proj"][2],
            False,
        ),
    }
    for key, (values, published_power_of_two) in sources.items():
        power_of_two = published_power_of_two if scales == "published" else scales == "pow2"
        codes, scale = quantize_e4m3_block(values, power_of_two=power_of_two)
        assert torch.equal(tensors[key].view(torch.uint8), codes.view(torch.uint8)), key
        assert torch.equal(tensors[key + "_scale_inv"], scale), key
    for key in ("model.layers.2.eh_proj.weight", "model.layers.1.mlp.gate.weight", "lm_head.weight"):
        assert tensors[key].dtype == torch.bfloat16, key
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["quant_method"] == "fp8"


def test_float8_kept_and_dequantised_are_the_same_network(model: CausalLM, tmp_path: Path) -> None:
    save_model(model, tmp_path / "out", export=ExportFormat(precision="float8"))
    kept = load_model(tmp_path / "out", fp8="keep", dtype=torch.float32)
    values = load_model(tmp_path / "out", dtype=torch.float32)
    experts = kept.model.layers[1].mlp.experts
    assert experts.gate_up_proj.dtype == torch.float8_e4m3fn
    assert experts.gate_up_proj_scale_inv.shape == (4, 2 * 2, 2)  # gate and up take two blocks of rows each
    assert not any(p.requires_grad for p in kept.parameters())
    with torch.no_grad():
        batch = pack([[3, 4, 5, 6], [7, 8]], mtp_depth=1)
        got, expected = kept(*batch), values(*batch)
    assert_close(got.hidden, expected.hidden, BATCHING)
    assert_close(got.mtp_hidden[0], expected.mtp_hidden[0], BATCHING)
    kept.bfloat16()
    assert experts.gate_up_proj.dtype == torch.float8_e4m3fn, "a cast must not touch codes"


def test_a_kept_model_saves_as_what_it_was(model: CausalLM, tmp_path: Path) -> None:
    save_model(model, tmp_path / "a", export=ExportFormat(precision="float8", fp8_scales="pow2"))
    kept = load_model(tmp_path / "a", fp8="keep")
    save_model(kept, tmp_path / "b", export=ExportFormat(precision="float8", fp8_scales="pow2"))
    a, b = all_tensors(tmp_path / "a"), all_tensors(tmp_path / "b")
    values = load_model(tmp_path / "a", dtype=torch.float32).state_dict()
    again = load_model(tmp_path / "b", dtype=torch.float32).state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(values[k], again[k]) for k in values)


def test_mtp_layers_may_be_left_out(saved: Path) -> None:
    model = load_model(saved, mtp=False)
    assert model.config.num_nextn_predict_layers == 0
    assert len(model.model.layers) == 2


def test_a_single_file_without_an_index_is_read(saved: Path, model: CausalLM) -> None:
    rewrite(saved, lambda tensors: None)
    back = load_model(saved).state_dict()
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())


def test_tensors_that_may_be_ignored_are_announced(saved: Path, caplog) -> None:
    def add(tensors) -> None:
        tensors["v_head.weight"] = torch.zeros(3)
        tensors["model.layers.0.attention.rotary_emb.inv_freq"] = torch.zeros(3)

    rewrite(saved, add)
    load_model(saved)
    assert "left out 1 tensors (value head)" in caplog.text
    assert "left out 1 tensors (rotary table)" in caplog.text


GATE = "model.layers.1.mlp.gate.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(GATE), f"lacks {GATE}"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds extra, which this model has no place for"),
        (
            lambda t: t.update({GATE: torch.zeros(5, 160)}),
            rf"tensor {GATE} is \(5, 160\) in .*has \(4, 160\)",
        ),
        (lambda t: t[GATE].fill_(torch.nan), f"tensor {GATE} .* has values that are NaN or infinite"),
        (
            lambda t: t[GATE].view(-1)[-1:].fill_(torch.inf),
            f"tensor {GATE} .* has values that are NaN or infinite",
        ),
        (
            lambda t: t.update({GATE: t[GATE].int()}),
            f"tensor {GATE} .* has dtype I32 where BF16 or F32 or F16 belongs",
        ),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("model.layers.2.")], "promises an MTP layer"),
    ],
    ids=["missing", "unexpected", "misshapen", "nan", "inf", "dtype", "mtp"],
)
def test_wrong_tensors_are_named(saved: Path, change, message: str) -> None:
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, k: t.pop(k + "_scale_inv"), r"has dtype F8_E4M3 without .*_scale_inv"),
        (lambda t, k: t.update({k: t[k].float()}), r"has dtype F32 where F8_E4M3 belongs"),
        (lambda t, k: t[k + "_scale_inv"].fill_(-1), r"_scale_inv .* scales that are not positive"),
        (lambda t, k: t.update({k + "_scale_inv": torch.ones(9, 9)}), r"_scale_inv is \(9, 9\)"),
    ],
    ids=["no scale", "scale without codes", "negative scale", "misshapen scale"],
)
def test_wrong_scales_are_named(model: CausalLM, tmp_path: Path, change, message: str) -> None:
    save_model(model, tmp_path / "out", export=ExportFormat(precision="float8"))
    rewrite(tmp_path / "out", lambda tensors: change(tensors, "model.layers.1.mlp.experts.3.up_proj.weight"))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "out")


def test_codes_that_are_nan_are_named_when_kept(model: CausalLM, tmp_path: Path) -> None:
    save_model(model, tmp_path / "out", export=ExportFormat(precision="float8"))
    key = "model.layers.1.attention.dense.weight"
    rewrite(tmp_path / "out", lambda t: t[key].view(torch.uint8).view(-1)[:1].fill_(0xFF))
    with pytest.raises(CheckpointError, match=f"{key} .* has codes that are NaN"):
        load_model(tmp_path / "out", fp8="keep")
    with pytest.raises(CheckpointError, match=f"{key} .* NaN"):
        load_model(tmp_path / "out")


def test_a_truncated_file_is_not_read(saved: Path) -> None:
    (file,) = saved.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is not a whole safetensors file .* copy it again"):
        load_model(saved)


def test_a_header_that_lies_is_not_believed(saved: Path) -> None:
    (file,) = saved.glob("*.safetensors")
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        load_model(saved)


def index_of(directory: Path) -> tuple[Path, dict[str, str]]:
    path = directory / "model.safetensors.index.json"
    return path, json.loads(path.read_text())["weight_map"]


def test_indexes_that_lie_are_caught(model: CausalLM, tmp_path: Path) -> None:
    save_model(model, tmp_path / "good", max_shard_bytes=200_000)

    def broken(name: str, change) -> Path:
        shutil.copytree(tmp_path / "good", tmp_path / name)
        path, weight_map = index_of(tmp_path / name)
        change(weight_map)
        path.write_text(json.dumps({"weight_map": weight_map}))
        return tmp_path / name

    files = sorted(p.name for p in (tmp_path / "good").glob("*.safetensors"))
    assert len(files) > 3
    with pytest.raises(CheckpointError, match=rf"holds {GATE}, but .* does not list it"):
        load_model(broken("a", lambda m: m.pop(GATE)))
    with pytest.raises(CheckpointError, match=rf"holds {GATE}, but .* places it in {files[-1]}"):
        load_model(broken("b", lambda m: m.update({GATE: files[-1]})))
    with pytest.raises(CheckpointError, match=rf"places nothing.weight in {files[0]}, which does not hold it"):
        load_model(broken("c", lambda m: m.update({"nothing.weight": files[0]})))
    with pytest.raises(CheckpointError, match=r"absent\.safetensors is missing"):
        load_model(broken("d", lambda m: m.update({GATE: "absent.safetensors"})))
    with pytest.raises(CheckpointError, match=r"'\.\./escape\.safetensors', which is not a file name"):
        load_model(broken("e", lambda m: m.update({GATE: "../escape.safetensors"})))


def test_other_directories_say_what_they_lack(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json: No such file"):
        load_model(tmp_path / "nowhere")
    edit_json(saved / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(CheckpointError, match=r"quantization awq .* is not supported"):
        load_model(saved)


def test_a_checkpoint_of_another_size_is_named(saved: Path) -> None:
    edit_json(saved / "config.json", num_experts=8)
    with pytest.raises(
        CheckpointError, match=r"lacks model\.layers\.1\.mlp\.experts\.4\.gate_proj\.weight and \d+ more"
    ):
        load_model(saved)


def test_nothing_is_overwritten_unasked(model: CausalLM, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        save_model(model, saved)
    save_model(model, saved, overwrite=True)
    with safe_open(next(saved.glob("*.safetensors")), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_save_that_fails_leaves_nothing_behind(model: CausalLM, tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device; nothing was left there"):
        save_model(model, tmp_path / "out", finish=fail)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_model(model, tmp_path / "file" / "out")
