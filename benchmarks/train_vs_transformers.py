"""Training speed on a CPU against transformers' glm4_moe, its closest model: same weights, same routing, float32.

    python -m benchmarks.run train_vs_transformers

Both sides take the same steps on the same batch with fused AdamW, in turns, in one process. Reported are tokens per
CPU-second of one thread and, beside it, per wall second of two; ratios are of neighbouring pairs. glm4_moe runs its
experts through grouped GEMMs (its default). MTP is off: glm4_moe has none.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.results import describe_machine, save
from ling.config import ModelConfig
from ling.model import CausalLM, PackedBatch, init_weights
from ling.ops.ragged import Ragged
from ling.train.loss import compute_loss

B, S = 8, 512
ROUNDS = 7
TARGET = 1.3

# research shape: 51.0 M parameters, one dense layer, 64 experts top 4.
CONFIG = ModelConfig(
    vocab_size=8192, hidden_size=256, num_hidden_layers=8, intermediate_size=512, first_k_dense_replace=1,
    num_attention_heads=4, num_key_value_heads=2, head_dim=64, rotary_dim=32, num_experts=64, num_experts_per_tok=4,
    moe_intermediate_size=128, n_group=8, topk_group=4, routed_scaling_factor=2.5, max_position_embeddings=S,
    pad_token_id=None, eos_token_id=None, torch_dtype="float32",
)  # fmt: skip


def build_ours() -> CausalLM:
    return init_weights(CausalLM(CONFIG), torch.Generator().manual_seed(0))


def build_peer(ours: CausalLM) -> Any:
    """Return glm4_moe of the same shape with `ours`' weights."""
    c = ours.config
    peer_config = AutoConfig.for_model(
        "glm4_moe", vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
        intermediate_size=c.intermediate_size, first_k_dense_replace=c.first_k_dense_replace,
        num_attention_heads=c.num_attention_heads, num_key_value_heads=c.num_key_value_heads, head_dim=c.head_dim,
        n_routed_experts=c.num_experts, num_experts_per_tok=c.num_experts_per_tok, n_shared_experts=1,
        moe_intermediate_size=c.moe_intermediate_size, n_group=c.n_group, topk_group=c.topk_group,
        routed_scaling_factor=c.routed_scaling_factor, norm_topk_prob=True, use_qk_norm=True, attention_bias=False,
        rms_norm_eps=c.rms_norm_eps, max_position_embeddings=c.max_position_embeddings, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta, "partial_rotary_factor": 0.5},
        pad_token_id=None, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    peer = AutoModelForCausalLM.from_config(peer_config, attn_implementation="sdpa", dtype=torch.float32)
    copy_weights(ours, peer)
    return peer


@torch.no_grad()
def copy_weights(ours: CausalLM, peer: Any) -> None:
    """Fill every tensor of the peer from ours; assert that none is left out."""
    c, source = ours.config, ours.state_dict()
    sizes = [heads * c.head_dim for heads in (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)]
    renamed: dict[str, Tensor] = {}
    for name, value in source.items():
        if name.endswith("attention.query_key_value.weight"):
            for letter, part in zip("qkv", value.split(sizes), strict=True):
                renamed[name.replace("attention.query_key_value", f"self_attn.{letter}_proj")] = part
            continue
        for ling_name, peer_name in (
            ("model.word_embeddings", "model.embed_tokens"), ("attention.dense", "self_attn.o_proj"),
            ("attention.query_layernorm", "self_attn.q_norm"), ("attention.key_layernorm", "self_attn.k_norm"),
            ("gate.expert_bias", "gate.e_score_correction_bias"),
        ):  # fmt: skip
            name = name.replace(ling_name, peer_name)
        renamed[name] = value
    target = peer.state_dict()
    assert renamed.keys() == target.keys(), renamed.keys() ^ target.keys()
    for name, value in renamed.items():
        target[name].copy_(value)


def step_of(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def assert_same_routing(ours: CausalLM, peer: Any, tokens: Tensor) -> None:
    """Compare the experts that both choose in every sparse layer."""
    chosen: dict[int, Tensor] = {}
    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda _m, args, i=i: chosen.__setitem__(i, args[1]))
        for i, layer in enumerate(peer.model.layers)
        if i >= CONFIG.first_k_dense_replace
    ]
    rows = Ragged([S] * B)
    with torch.no_grad():
        routings = ours(tokens.flatten(), rows.index_in_sequence, PackedBatch(rows)).routings
        peer(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer, routing in routings.items():
        theirs = chosen[layer].view_as(routing.ids)
        same = (routing.ids.sort(1).values == theirs.sort(1).values).all(1).float().mean().item()
        assert same > 0.999, f"layer {layer}: only {100 * same:.2f} % of tokens go to the same experts"


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(CONFIG.vocab_size, (B, S))
    ours = build_ours()
    peer = build_peer(ours)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    assert_same_routing(ours, peer, tokens)
    rows = Ragged([S] * B)
    labels = torch.cat([tokens[:, 1:], torch.full((B, 1), -100)], 1).flatten()

    def our_loss() -> Tensor:
        output = ours(tokens.flatten(), rows.index_in_sequence, PackedBatch(rows))
        return compute_loss(ours, output, labels, labels[:0]).total

    def peer_loss() -> Tensor:
        return peer(input_ids=tokens, labels=tokens, use_cache=False).loss

    steps = {"ling": step_of(ours, our_loss), "transformers": step_of(peer, peer_loss)}
    numbers: dict[str, Any] = {"shape": f"51.0M parameters, {B} x {S} tokens, float32", "rounds": ROUNDS}
    numbers["transformers"] = transformers.__version__
    taken = 0
    for threads, clock, unit in ((1, time.process_time, "cpu_second"), (2, time.perf_counter, "wall_second")):
        torch.set_num_threads(threads)
        numbers |= measure(steps, clock, f"{threads}_thread_tokens_per_{unit}", taken)
        taken += ROUNDS + 1
    path = save("train-vs-transformers", numbers)
    print(f"{path.name}\n{describe_machine()}\n{numbers}")
    ratio = numbers["1_thread_tokens_per_cpu_second_ratio_median"]
    print(f"ling trains {ratio:.2f}x as fast as transformers per CPU-second (target {TARGET})")
    sys.exit(0 if ratio >= TARGET else 1)


def measure(
    steps: dict[str, Callable[[], float]], clock: Callable[[], float], label: str, taken: int
) -> dict[str, Any]:
    """Take the steps of both sides in turns; the first round warms up and is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(ROUNDS + 1):
        losses = {}
        for name, step in steps.items():
            start = clock()
            losses[name] = step()
            if i:
                speeds[name].append(B * S / (clock() - start))
        check_losses(losses, steps_taken=taken + i)
    ratios = [a / b for a, b in zip(speeds["ling"], speeds["transformers"], strict=True)]
    summary = {f"{label}_{name}_median": round(statistics.median(v), 1) for name, v in speeds.items()}
    summary |= {f"{label}_{name}_best": round(max(v), 1) for name, v in speeds.items()}
    return summary | {
        f"{label}_ratio_median": round(statistics.median(ratios), 3),
        f"{label}_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def check_losses(losses: dict[str, float], steps_taken: int) -> None:
    """Assert that both sides train alike: to rounding at first, and near each other when routings begin to differ."""
    allowed = 2e-4 if steps_taken < 3 else 0.05
    assert abs(losses["ling"] - losses["transformers"]) < allowed, (steps_taken, losses)


if __name__ == "__main__":
    main()
