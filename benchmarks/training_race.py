"""Two implementations of one network take the same training steps in turns on a CPU: same weights, routing, optimizer.

Reported are tokens per CPU-second of one thread and, beside it, per wall second of two, with ratios of neighbouring
pairs.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import describe_machine, save
from ling.config import ModelConfig
from ling.model import CausalLM, PackedBatch, init_weights
from ling.ops.ragged import Ragged
from ling.train.loss import compute_loss

B, S = 8, 512
ROUNDS = 7

# research shape: 51.0 M parameters, one dense layer, 64 experts top 4.
CONFIG = ModelConfig(
    vocab_size=8192, hidden_size=256, num_hidden_layers=8, intermediate_size=512, first_k_dense_replace=1,
    num_attention_heads=4, num_key_value_heads=2, head_dim=64, rotary_dim=32, num_experts=64, num_experts_per_tok=4,
    moe_intermediate_size=128, n_group=8, topk_group=4, routed_scaling_factor=2.5, max_position_embeddings=S,
    pad_token_id=None, eos_token_id=None, torch_dtype="float32",
)  # fmt: skip


def build_ours() -> CausalLM:
    return init_weights(CausalLM(CONFIG), torch.Generator().manual_seed(0))


def assert_same_routing(ours: CausalLM, tokens: Tensor, theirs: dict[int, Tensor]) -> None:
    """Compare the experts (N, k) that the peer chose in each sparse layer with ours."""
    rows = Ragged([S] * B)
    with torch.no_grad():
        routings = ours(tokens.flatten(), rows.index_in_sequence, PackedBatch(rows)).routings
    assert routings.keys() == theirs.keys()
    for layer, routing in routings.items():
        peers = theirs[layer].view_as(routing.ids)
        same = (routing.ids.sort(1).values == peers.sort(1).values).all(1).float().mean().item()
        assert same > 0.999, f"layer {layer}: only {100 * same:.2f} % of tokens go to the same experts"


def draw_tokens() -> Tensor:
    """Return the (B, S) batch that all steps are taken on."""
    return torch.randint(CONFIG.vocab_size, (B, S), generator=torch.Generator().manual_seed(0))


def renamed(ours: CausalLM, names: dict[str, str]) -> dict[str, Tensor]:
    """Return our tensors under a peer's names, the fused projection as q, k and v.

    names  parts of our names to parts of the peer's, applied in order
    """
    c = ours.config
    sizes = [heads * c.head_dim for heads in (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)]
    found: dict[str, Tensor] = {}
    for name, value in ours.state_dict().items():
        if name.endswith("attention.query_key_value.weight"):
            for letter, part in zip("qkv", value.split(sizes), strict=True):
                found[name.replace("attention.query_key_value", f"self_attn.{letter}_proj")] = part
            continue
        for mine, theirs in names.items():
            name = name.replace(mine, theirs)
        found[name] = value
    return found


@torch.no_grad()
def fill(peer: torch.nn.Module, values: dict[str, Tensor]) -> None:
    """Copy every tensor of a peer; assert that none is left out."""
    target = peer.state_dict()
    assert values.keys() == target.keys(), values.keys() ^ target.keys()
    for name, value in values.items():
        assert target[name].shape == value.shape, (name, target[name].shape, value.shape)
        target[name].copy_(value)


def race(
    name: str, version: str, ours: CausalLM, peer: torch.nn.Module, peer_loss: Callable[[], Tensor], target: float
) -> None:
    """Measure, record, and exit with 1 if the target is missed; `peer_loss` is of `draw_tokens`."""
    tokens, rows = draw_tokens(), Ragged([S] * B)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    labels = torch.cat([tokens[:, 1:], torch.full((B, 1), -100)], 1).flatten()

    def our_loss() -> Tensor:
        output = ours(tokens.flatten(), rows.index_in_sequence, PackedBatch(rows))
        return compute_loss(ours, output, labels, labels[:0]).total

    steps = {"ling": step_of(ours, our_loss), name: step_of(peer, peer_loss)}
    numbers: dict[str, Any] = {"shape": f"51.0M parameters, {B} x {S} tokens, float32", "rounds": ROUNDS}
    numbers[name] = version
    furthest: list[float] = []
    for threads, clock, unit in ((1, time.process_time, "cpu_second"), (2, time.perf_counter, "wall_second")):
        torch.set_num_threads(threads)
        numbers |= measure(steps, clock, f"{threads}_thread_tokens_per_{unit}", furthest)
    numbers["largest_loss_difference_of_first_8_steps"] = max(furthest[: ROUNDS + 1])
    path = save(f"train-vs-{name}", numbers)
    print(f"{path.name}\n{describe_machine()}\n{numbers}")
    ratio = numbers["1_thread_tokens_per_cpu_second_ratio_median"]
    print(f"ling trains {ratio:.2f}x as fast as {name} per CPU-second (target {target})")
    sys.exit(0 if ratio >= target else 1)


def step_of(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def measure(
    steps: dict[str, Callable[[], float]], clock: Callable[[], float], label: str, differences: list[float]
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
        mine, theirs = losses.values()
        check_losses(mine, theirs, steps_taken=len(differences))
        differences.append(abs(mine - theirs))
    mine_first, theirs_second = speeds.values()
    ratios = [a / b for a, b in zip(mine_first, theirs_second, strict=True)]
    summary = {f"{label}_{name}_median": round(statistics.median(v), 1) for name, v in speeds.items()}
    summary |= {f"{label}_{name}_best": round(max(v), 1) for name, v in speeds.items()}
    return summary | {
        f"{label}_ratio_median": round(statistics.median(ratios), 3),
        f"{label}_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def check_losses(mine: float, theirs: float, steps_taken: int) -> None:
    """Assert that both sides train alike: to rounding at first, and near each other when routings begin to differ."""
    allowed = 2e-4 if steps_taken < 3 else 0.05
    assert abs(mine - theirs) < allowed, (steps_taken, mine, theirs)
