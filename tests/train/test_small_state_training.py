"""BF16 weights and one-byte moments in a run: resumed to the bit, exchanged with plain AdamW, and 4.05 bytes in all."""

import gc
from pathlib import Path

import pytest
import torch
from tests.train.test_loop import read_batches, recipe, weights

from ling.config import ModelConfig, preset
from ling.config.recipe import load_recipe
from ling.config.training import OptimConfig
from ling.errors import ConfigError
from ling.model import CausalLM, init_weights
from ling.optim.build import build_optimizer
from ling.train.loop import Training

SHORT = [
    "train.steps=4", "train.average_last=0", "model.num_hidden_layers=2", "train.tokens_per_step=192",
    "train.checkpoint_every=2", "optim.warmup_steps=0",
]  # fmt: skip
SMALL = [*SHORT, "train.precision=bfloat16", "optim.weights=bfloat16", "optim.moments=fp8"]


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = Training(recipe(*SMALL), tmp_path / "whole", read_batches)
    losses = [report.loss for report in whole.run()]
    cut = Training(recipe(*SMALL), tmp_path / "cut", read_batches)
    for report in cut.run():
        if report.step == 3:  # killed: what is after the checkpoint of step 2 is lost
            cut._saver.wait()
            break
    (tmp_path / "cut/checkpoints/step_000003").rename(tmp_path / "lost")
    resumed = Training(recipe(*SMALL), tmp_path / "cut", read_batches)
    assert resumed.resume() == 2
    assert resumed.state.optimizer.updates == 2
    assert [report.loss for report in resumed.run()] == losses[2:]
    for name, value in weights(whole).items():
        assert value.dtype == (torch.float32 if ".gate." in name else torch.bfloat16), name
        assert torch.equal(weights(resumed)[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(SHORT, SMALL), (SMALL, SHORT)], ids=["to small", "from small"])
def test_a_run_goes_on_with_other_states(tmp_path: Path, before: list[str], after: list[str]) -> None:
    first = Training(recipe(*before, "train.steps=2"), tmp_path, read_batches)
    list(first.run())
    second = Training(recipe(*after), tmp_path, read_batches)
    assert second.resume() == 2
    losses = [report.loss for report in second.run()]
    whole = [report.loss for report in Training(recipe(*before), tmp_path / "whole", read_batches).run()]
    assert losses == pytest.approx(whole[2:], rel=0.01)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["optim.weights=bfloat16"], "with optim.weights bfloat16 products are in bfloat16; use train.precision"),
        (
            ["optim.moments=fp8", "parallel.pipeline=2"],
            "optim.moments fp8 does without tensor and pipeline ranks, but parallel.pipeline is 2; use 1",
        ),
        (
            ["optim.weights=bfloat16", "train.precision=bfloat16", "parallel.tensor=2"],
            "optim.weights bfloat16 does without tensor and pipeline ranks, but parallel.tensor is 2; use 1",
        ),
        (["optim.rounding_seed=-1"], "optim.rounding_seed must not be negative"),
    ],
)
def test_what_small_states_cannot_do_is_refused_in_one_line(changes: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_recipe(preset_name="tiny", overrides=changes)


def live_storages() -> dict[int, torch.UntypedStorage]:
    """Return the storage of every tensor that Python knows, by address."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # not subclasses: tensors without memory that other tests left behind
    tensors = [t for t in gc.get_objects() if type(t) in kinds and t.device.type == "cpu"]
    storages = [t.untyped_storage() for t in tensors if t.layout == torch.strided]
    return {storage.data_ptr(): storage for storage in storages}


@pytest.mark.parametrize(
    ("optim", "most"),
    [
        (OptimConfig(weights="bfloat16", moments="fp8"), 4.05),
        pytest.param(OptimConfig(weights="bfloat16", moments="dynamic8"), 4.05, marks=pytest.mark.slow),
        pytest.param(OptimConfig(weights="bfloat16", moments="bfloat16", method="muon"), 4.35, marks=pytest.mark.slow),
        pytest.param(OptimConfig(weights="bfloat16", moments="fp8", method="muon"), 3.25, marks=pytest.mark.slow),
    ],
    ids=["adamw fp8", "adamw dynamic8", "muon bfloat16", "muon fp8"],
)
def test_weights_and_moments_take_so_many_bytes_per_parameter(optim: OptimConfig, most: float) -> None:
    """In the proportions of Ling-mini, 1/8 as wide. Gradients are not counted: whoever releases them holds none.

    Muon leaves the vocabulary, here a larger share than in Ling-mini, to AdamW.
    """
    before = live_storages()  # held, so that no address is used again
    model = CausalLM(small_mini())
    model.bfloat16()
    init_weights(model, torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in model.parameters())
    held = sum(s.nbytes() for at, s in live_storages().items() if at not in before) / parameters
    assert parameters > 10e6
    assert held <= most, (held, parameters)
    assert held > most - 0.3, (held, "something that was counted on is not there")


def small_mini() -> ModelConfig:
    shape = {
        "hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 640, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 64, "rotary_dim": 32, "num_experts": 64, "n_group": 8,
        "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64, "vocab_size": 4096,
        "num_nextn_predict_layers": 1, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    return ModelConfig(**(preset("ling_mini")["model"] | shape))


@pytest.mark.parametrize(("mtp", "gib"), [(0, 61.1), (1, 64.2)])
def test_the_whole_of_ling_mini_takes_four_bytes_per_parameter(mtp: int, gib: float) -> None:
    """The true sizes, without memory: 16.26 and 17.08 billion parameters, in GiB of weights and FP8 moments."""
    with torch.device("meta"):
        model = CausalLM(ModelConfig(**preset("ling_mini")["model"] | {"num_nextn_predict_layers": mtp})).bfloat16()
    optimizer = build_optimizer(model, OptimConfig(weights="bfloat16", moments="fp8"))
    tensors = [*model.parameters(), *model.buffers(), *(t for s in optimizer.state.values() for t in s.values())]
    held, parameters = sum(t.nbytes for t in tensors), sum(p.numel() for p in model.parameters())
    assert parameters > (17.0e9 if mtp else 16.2e9)
    assert held / parameters <= 4.04
    assert held / 2**30 == pytest.approx(gib, abs=0.1)
