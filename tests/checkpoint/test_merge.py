"""Merging: the weights of each decay, sums against float64, any kinds and shards together, and what is refused."""

import itertools
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ling.checkpoint import load_model, save_model
from ling.checkpoint.convert import to_megatron, to_safetensors, to_training, verify
from ling.checkpoint.dcp import DcpSource
from ling.checkpoint.merge import DECAYS, MergedPieces, decay_weights, given_weights
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.errors import CheckpointError, ConfigError
from ling.testing.models import tiny_model


@given(st.sampled_from(DECAYS), st.integers(2, 40))
def test_the_updates_are_kept_along_the_decay(decay: str, count: int) -> None:
    weights = decay_weights(decay, count)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) > 0
    kept = list(itertools.accumulate(reversed(weights)))[::-1]  # w_i = c_i + ... + c_k
    curve = {"cosine": lambda x: torch.cos(torch.tensor(torch.pi * x)).item() / 2 + 0.5, "1-sqrt": lambda x: 1 - x**0.5}
    expected = [curve.get(decay, lambda x: 1 - x)(i / count) for i in range(count)]
    assert kept == pytest.approx(expected, abs=1e-6)


def test_given_weights_are_scaled() -> None:
    assert given_weights([1, 1, 2], 3) == [0.25, 0.25, 0.5]
    for wrong in ([1, 2], [1, -1, 1], [0, 0, 0], [1, float("nan"), 1]):
        with pytest.raises(ConfigError, match="weights"):
            given_weights(wrong, 3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models: FP8 in one file, BF16 in many, a training checkpoint."""
    base = tmp_path_factory.mktemp("merge")
    models = [tiny_model(seed=seed).bfloat16() for seed in (1, 2, 3)]
    save_model(models[0], base / "a", export=ExportFormat(precision="float8"))
    save_model(models[1], base / "b", max_shard_bytes=50_000)
    save_model(models[2], base / "plain", export=ExportFormat(precision="float32"))
    to_training(open_pieces(base / "plain"), base / "c")
    return [base / name for name in "abc"]


def state(directory: Path, scratch: Path) -> dict[str, Tensor]:
    if (directory / ".metadata").exists():
        to_safetensors(open_pieces(directory), scratch / "as-float32", ExportFormat(precision="float32"))
        directory = scratch / "as-float32"
    return load_model(directory, dtype=torch.float32).state_dict()


def test_the_sum_is_that_of_float64_whatever_the_inputs_are(checkpoints: list[Path], tmp_path: Path) -> None:
    weights = [0.2, 0.3, 0.5]
    merged = MergedPieces([open_pieces(path) for path in checkpoints], weights)
    to_safetensors(merged, tmp_path / "out", ExportFormat(precision="float32"), workers=2, max_shard_bytes=200_000)
    found = load_model(tmp_path / "out", dtype=torch.float32).state_dict()
    states = [state(path, tmp_path) for path in checkpoints]
    for name, value in found.items():
        expected = sum(w * s[name].double() for w, s in zip(weights, states))
        largest = torch.stack([s[name] for s in states]).abs().amax(0)
        assert bool(((value - expected).abs() <= 4 * 2**-24 * largest).all()), name  # four float32 roundings
    assert any(name.endswith("expert_bias") for name in found)


@pytest.mark.parametrize("precision", ["bfloat16", "float8"])
def test_a_merge_verifies(checkpoints: list[Path], precision: str, tmp_path: Path) -> None:
    export = ExportFormat(precision=precision)
    merged = MergedPieces([open_pieces(path) for path in checkpoints], decay_weights("1-sqrt", 3))
    to_safetensors(merged, tmp_path / "out", export)
    assert verify(merged, tmp_path / "out", export) > 100
    assert "merge of 3 checkpoints" in (tmp_path / "out/README.md").read_text()


def test_merging_a_checkpoint_with_itself_changes_nothing(checkpoints: list[Path], tmp_path: Path) -> None:
    merged = MergedPieces([open_pieces(checkpoints[1])] * 3, decay_weights("mean", 3))
    to_safetensors(merged, tmp_path / "out", ExportFormat())
    assert verify(open_pieces(checkpoints[1]), tmp_path / "out", ExportFormat()) > 100


def test_merges_become_training_checkpoints_too(checkpoints: list[Path], tmp_path: Path) -> None:
    merged = MergedPieces([open_pieces(path) for path in checkpoints], decay_weights("cosine", 3))
    to_megatron(merged, tmp_path / "megatron")
    assert verify(merged, tmp_path / "megatron", None) > 100


def test_different_models_are_refused(checkpoints: list[Path], tmp_path: Path) -> None:
    save_model(tiny_model(rope_theta=5000.0), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"are different models: rope_theta"):
        MergedPieces([open_pieces(checkpoints[1]), open_pieces(tmp_path / "other")], [0.5, 0.5])


def test_different_tokenizers_are_refused(checkpoints: list[Path], tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(checkpoints[1], tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"name": name}))
    with pytest.raises(CheckpointError, match="different tokenizers"):
        MergedPieces([open_pieces(tmp_path / "a"), open_pieces(tmp_path / "b")], [0.5, 0.5])


@pytest.mark.parametrize(
    ("order", "weights"), [((0, 1), [0.5, 0.5]), ((1, 0), [0.25, 0.75]), ((0, 1), [0.25 + 4e-6, 0.75 - 4e-6])]
)
def test_an_interrupted_merge_does_not_go_on_with_another_one_s_files(
    order: tuple[int, ...], weights: list[float], tmp_path: Path
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for seed, path in enumerate(paths):
        save_model(tiny_model(seed=seed), path)

    def interrupt(now: int, total: int) -> None:
        if now == total // 2:
            raise KeyboardInterrupt

    def merged(order: tuple[int, ...], weights: list[float]) -> MergedPieces:
        return MergedPieces([open_pieces(paths[i]) for i in order], weights)

    float32 = ExportFormat(precision="float32")
    with pytest.raises(KeyboardInterrupt):
        to_safetensors(
            merged((0, 1), [0.25, 0.75]), tmp_path / "out", float32, max_shard_bytes=50_000, progress=interrupt
        )
    to_safetensors(merged(order, weights), tmp_path / "out", float32, max_shard_bytes=50_000)
    assert verify(merged(order, weights), tmp_path / "out", float32) > 100


def test_weights_whose_sum_overflows_are_refused() -> None:
    with pytest.raises(ConfigError, match="finite sum"):
        given_weights([1e308, 1e308], 2)


def test_many_distributed_checkpoints_merge_in_the_memory_of_a_few_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(5):
        save_model(tiny_model(seed=seed).bfloat16(), tmp_path / f"bf16-{seed}")
        to_training(open_pieces(tmp_path / f"bf16-{seed}"), tmp_path / str(seed))
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    read = DcpSource.read

    def counted(self: DcpSource, *arguments: object) -> Tensor:
        nonlocal most
        tensor = read(self, *arguments)  # type: ignore[arg-type]
        alive.append(weakref.ref(tensor.untyped_storage()))
        alive[:] = [one for one in alive if one() is not None]
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(DcpSource, "read", counted)
    merged = MergedPieces([open_pieces(tmp_path / str(seed)) for seed in range(5)], decay_weights("mean", 5))
    plain = MergedPieces([open_pieces(tmp_path / f"bf16-{seed}") for seed in range(5)], decay_weights("mean", 5))
    to_safetensors(merged, tmp_path / "out", ExportFormat(precision="float32"))
    assert most <= 3, "the newest one's, another one's, and one about to be replaced"
    assert verify(plain, tmp_path / "out", ExportFormat(precision="float32")) > 100


def test_megatron_and_published_checkpoints_of_one_run_merge(tmp_path: Path) -> None:
    save_model(tiny_model(seed=1, eos_token_id=(1, 2), num_shared_experts=2).bfloat16(), tmp_path / "a")
    save_model(tiny_model(seed=2, eos_token_id=(1, 2), num_shared_experts=2).bfloat16(), tmp_path / "b")
    to_megatron(open_pieces(tmp_path / "b"), tmp_path / "megatron")
    common = tmp_path / "megatron/iter_0000001/common.pt"
    content = torch.load(common, weights_only=False)
    del content["args"].ling_config, content["args"].init_method_std  # as Megatron itself writes it
    torch.save(content, common)
    merged = MergedPieces([open_pieces(tmp_path / "a"), open_pieces(tmp_path / "megatron")], [0.5, 0.5])
    to_safetensors(merged, tmp_path / "out", ExportFormat())
    plain = MergedPieces([open_pieces(tmp_path / "a"), open_pieces(tmp_path / "b")], [0.5, 0.5])
    assert verify(plain, tmp_path / "out", ExportFormat()) > 100
