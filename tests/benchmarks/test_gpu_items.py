"""The GPU measurements on a CPU, with a tiny model: every line of them runs before a GPU is at hand."""

import json
from pathlib import Path

import pytest
from benchmarks.plain_recipe import plain_recipe

from benchmarks import gpu, gpu_items, gpu_training
from ling.config import preset
from ling.config.recipe import load_recipe
from ling.testing.models import tiny_config


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    mini = tiny_config(vocab_size=512, max_position_embeddings=4096, num_nextn_predict_layers=0, num_hidden_layers=2)
    monkeypatch.setattr(gpu_items, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_items, "MINI", mini)
    monkeypatch.setattr(gpu_items, "LARGE_COPY", 2**16)
    monkeypatch.setattr(gpu_items, "LARGE_PRODUCT", 64)
    for name in ("max_memory_allocated", "max_memory_reserved", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda: 0)
    for name, value in {"SHRINK": SMALL, "STEPS": 2, "GAP_TOKENS": 2048, "GAP_TOKENS_PER_STEP": 512}.items():
        monkeypatch.setattr(gpu_training, name, value)
    gpu_training.train.cache_clear()
    gpu_items.ceilings.cache_clear()
    gpu_items.mini.cache_clear()


SLOW = "train-"  # tens of steps of bfloat16, which a CPU emulates
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name.startswith(SLOW) else ())
    for name, _, _ in gpu.ITEMS
    if not name.startswith("kernels-")
]
SMALL = [
    *(f"model.{key}={json.dumps(value)}" for key, value in preset("tiny")["model"].items() if "nextn" not in key),
    "model.first_k_dense_replace=1", "model.vocab_size=4096", "model.max_position_embeddings=64",
    "train.sequence_length=32", "train.micro_batch_size=1", "data.max_document_tokens=192",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("on_cpu")
def test_every_measurement_runs(name: str) -> None:
    (item,) = (run for known, _, run in gpu.ITEMS if known == name)
    numbers = item()
    assert all(isinstance(v, int | float) for v in numbers.values())
    assert json.dumps(numbers)


@pytest.mark.usefixtures("on_cpu")
def test_a_failing_measurement_is_kept_and_does_not_stop_the_others(tmp_path: Path) -> None:
    def fail() -> dict:
        raise RuntimeError("out of memory, say")

    assert gpu.run_item("broken", fail, tmp_path) == 1
    (file,) = tmp_path.iterdir()
    assert "out of memory, say" in json.loads(file.read_text())["numbers"]["error"]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu.main()


def test_bytes_read_per_token_are_those_of_the_specification() -> None:
    """spec serving.md 6: (789 M + head 322 M) * 2 bytes, about 2.22 GB."""
    counts = gpu_items.count_parameters(gpu_items.MINI)
    read = 2 * (counts.activated - gpu_items.MINI.vocab_size * gpu_items.MINI.hidden_size)
    assert read == pytest.approx(2.22e9, rel=0.01)


def test_training_is_measured_as_the_recipe_says_and_at_full_size() -> None:
    recipe = plain_recipe(gpu_training.RECIPE, ["model.num_nextn_predict_layers=0"], preset_name="ling_mini")
    whole = load_recipe(file=Path(gpu_training.RECIPE), overrides=["model.num_nextn_predict_layers=0"])
    assert (recipe.optim, recipe.data) == (whole.optim, whole.data)
    assert (recipe.train.precision, recipe.train.fp8) == (whole.train.precision, whole.train.fp8)
    assert gpu_items.count_parameters(recipe.model) == gpu_items.count_parameters(whole.model)
    assert 16_384 <= recipe.train.micro_batch_size * recipe.train.sequence_length <= 32_768


def test_published_ratios_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_training, "train", lambda name, mtp: {"fp8_tokens_per_second": 15_000 if mtp else 20_000})
    found = gpu_training._against_mini("llama31_8b", {"fp8_tokens_per_second": 10_000})
    assert (found["mini_over_this"], found["mini_with_mtp_over_this"]) == (2.0, 1.5)
    assert (found["mini_over_this_published"], found["mini_with_mtp_over_this_published"]) == (1.58, 1.35)
