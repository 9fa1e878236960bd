"""Auto classes on published directories, with ling imported and no code in them: the tensors our own loader reads."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import ling
from ling.checkpoint import load_model
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat, save_model
from ling.engine.bundled import bundled_directory
from ling.errors import RequestError

assert ling.__version__

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled model as it is, in several files, and with its weights as FP8 blocks."""
    made = tmp_path_factory.mktemp("models")
    save_model(load_model(bundled_directory()), made / "sharded", max_shard_bytes=1_000_000)
    assert len(list((made / "sharded").glob("*.safetensors"))) > 5
    to_safetensors(open_pieces(bundled_directory()), made / "fp8", ExportFormat(precision="float8"))
    assert "quantization_config" in json.loads((made / "fp8/config.json").read_text())
    return {"bundled": bundled_directory(), "sharded": made / "sharded", "fp8": made / "fp8"}


def load(directory: Path, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(directory, **options)
    assert type(model).__module__ == "ling.compat.hf.modeling"
    return model


def on_meta(model: Any) -> list[str]:
    return [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]


@pytest.mark.parametrize("options", [{"dtype": "auto"}, {"dtype": torch.float32, "low_cpu_mem_usage": True}], ids=str)
@pytest.mark.parametrize("kind", ["bundled", "sharded", "fp8"])
def test_every_tensor_is_the_one_our_loader_reads(
    kind: str, options: dict[str, Any], directories: dict[str, Path]
) -> None:
    compare(load(directories[kind], **options), directories[kind])


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
@pytest.mark.parametrize("kind", ["bundled", "sharded", "fp8"])
def test_a_device_map_gives_the_same_tensors(kind: str, device_map: Any, directories: dict[str, Path]) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate: test_environments.py has it")
    compare(load(directories[kind], dtype="auto", device_map=device_map), directories[kind])


def compare(model: Any, directory: Path) -> None:
    assert not on_meta(model)
    assert not model.training
    state, ours = model.state_dict(), load_model(directory, dtype=model.dtype).state_dict()
    assert state.keys() == ours.keys()
    for name, expected in ours.items():
        assert state[name].dtype == expected.dtype, name
        assert torch.equal(state[name], expected), name


def test_auto_is_the_dtype_of_the_checkpoint(directories: dict[str, Path]) -> None:
    for directory in directories.values():
        dtypes = Counter(
            t.dtype for name, t in load(directory, dtype="auto").state_dict().items() if "gate." not in name
        )
        assert dtypes.keys() == {torch.bfloat16}, dtypes


def test_a_saved_model_has_the_source_s_tensors_under_their_published_names(tmp_path: Path) -> None:
    load(bundled_directory(), dtype="auto").save_pretrained(tmp_path)
    was, now = (
        {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}
        for directory in (bundled_directory(), tmp_path)
    )
    assert now.keys() == was.keys()
    for name, expected in was.items():
        # The router is held in float32, and saved so: a resumed training goes on with what it had.
        assert now[name].dtype == (torch.float32 if "mlp.gate." in name else torch.bfloat16), name
        assert torch.equal(now[name].to(expected.dtype), expected), name
        assert torch.equal(now[name], expected.to(now[name].dtype)), name
    compare(load(tmp_path, dtype="auto"), bundled_directory())
    ours, source = load_model(tmp_path).state_dict(), load_model(bundled_directory()).state_dict()
    assert all(torch.equal(ours[name], source[name]) for name in source)
    assert AutoConfig.from_pretrained(tmp_path).to_ling() == AutoConfig.from_pretrained(bundled_directory()).to_ling()


@torch.no_grad()
def test_parts_that_lie_on_the_disk_compute_and_save_the_same(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate: test_environments.py has it")
    given: dict[str, Any] = {
        "dtype": "auto", "device_map": "auto", "max_memory": {"cpu": "3MB"}, "offload_folder": tmp_path / "rest",
    }  # fmt: skip
    if transformers.__version__.startswith("4."):
        with pytest.raises(
            RequestError, match=r"cannot leave parts of Ling on the disk, because .*; use transformers 5"
        ):
            load(bundled_directory(), **given)
        return
    model, whole = load(bundled_directory(), **given), load(bundled_directory(), dtype="auto")
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert len(on_meta(model)) > 20
    for attempt in range(2):
        found, expected = model(input_ids=IDS, labels=IDS), whole(input_ids=IDS, labels=IDS)
        assert torch.equal(found.logits, expected.logits), attempt
        assert torch.equal(found.loss, expected.loss)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(model.generate(IDS, **options), whole.generate(IDS, **options))
    model.save_pretrained(tmp_path / "saved")
    compare(load(tmp_path / "saved", dtype="auto"), bundled_directory())
