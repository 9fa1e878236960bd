"""Small states that ranks share out, each compared with its part of what one process comes to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from tests.parallel.parity import LAYOUTS
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ling.config.parallel import ParallelConfig
from ling.config.training import OptimConfig
from ling.distributed.parts import local, part_of
from ling.errors import ConfigError
from ling.model import CausalLM
from ling.optim.build import build_optimizer, state_tensors
from ling.optim.moments import SCALE
from ling.optim.muon_adamw import ADAMW, MUON, MuonAdamW
from ling.parallel.ranks import Ranks
from ling.parallel.shard import parallelize, policy_of
from ling.scaling.layout import plan_layout
from ling.testing.models import tiny_config, tiny_model

# Uneven shares, one of nothing, scales whose rows are those of several of the weight, a block that is not whole.
UNEVEN: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "experts": ((5, 32, 32), (32,)),
    "one expert": ((1, 96, 64), (48, 48)),
    "one row": ((1, 4096), (1,)),
    "wide": ((7, 768), (7,)),
    "narrow": ((71, 64), (71,)),
}


def model_in(dtype: str) -> CausalLM:
    return tiny_model(num_nextn_predict_layers=1).to(getattr(torch, dtype))


def update_a_model(layout: str, changes: dict[str, Any]) -> tuple[list[str], int, int]:
    """Gather and update by the same gradients on this rank's part and on the whole.

    Returns the names of what differs in any bit; the bytes of codes and scales here; and the one process's.
    """
    optim = OptimConfig(**changes)
    world_size, sizes = LAYOUTS[layout]
    model = model_in(optim.weights)
    ranks = Ranks(plan_layout(ParallelConfig(**sizes), tiny_config(num_nextn_predict_layers=1), world_size, 16))
    model = parallelize(model, ranks, policy_of("bfloat16"))
    whole = model_in(optim.weights)
    optimizers = [build_optimizer(m, optim) for m in (model, whole)]
    gathers = not (optim.method == MUON and optim.muon.nesterov)
    for i in range(4):
        for m, optimizer in zip((model, whole), optimizers, strict=True):
            for p, gradient in zip(m.parameters(), gradients_of(whole, i), strict=True):
                part = part_of(gradient, p.detach())
                p.grad = shared_like(p, part) if isinstance(p, DTensor) else part
            if gathers and i % 2 == 0:
                optimizer.gather_(list(m.parameters()), 0)
            else:
                optimizer.step()
    found, expected = ({**m.state_dict(), **state_tensors(m, o)} for m, o in zip((model, whole), optimizers))
    sizes_of = [sum(bytes_of(t) for name, t in named.items() if is_small(name, named)) for named in (found, expected)]
    return different(found, expected), *sizes_of  # type: ignore[return-value]


def gradients_of(model: CausalLM, index: int) -> list[Tensor]:
    """Return a whole gradient for each parameter, rows of which differ in size."""
    generator = torch.Generator().manual_seed(index)
    found = []
    for p in model.parameters():
        size = torch.logspace(-4, 0, p.shape[0]).view(-1, *[1] * (p.dim() - 1))
        found.append((torch.randn(p.shape, generator=generator) * size).to(p.dtype))
    return found


def shared_like(parameter: DTensor, part: Tensor) -> DTensor:
    return DTensor.from_local(
        part.contiguous(), parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def is_small(name: str, named: dict[str, Tensor]) -> bool:
    return name.endswith(SCALE) or name + SCALE in named


def bytes_of(tensor: Tensor) -> int:
    return local(tensor).numel() * tensor.element_size()


def different(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return the names under which this rank's part is not that of the whole, to the bit."""
    assert found.keys() == expected.keys()
    return [name for name, t in found.items() if bits(local(t)) != bits(part_of(expected[name], t))]


def bits(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(tensor.shape), tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def update_uneven_shares(method: str, moments: str) -> list[str]:
    """Update what two ranks share unevenly; return the names of parts that are not those of one process."""
    mesh = init_device_mesh("cpu", (2,))
    optim = OptimConfig(lr=1e-2, method=method, weights="bfloat16", moments=moments)  # type: ignore[arg-type]
    states = [step_unevenly(cut, optim) for cut in (lambda t: distribute_tensor(t, mesh, [Shard(0)]), lambda t: t)]
    return different(*states)


def step_unevenly(cut: Callable[[Tensor], Tensor], optim: OptimConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.nn.Parameter(cut(torch.randn(shape, generator=generator).bfloat16()))
        for name, (shape, _) in UNEVEN.items()
    }
    method = MUON if optim.method == MUON else ADAMW
    optimizer = MuonAdamW(
        [{"params": list(parameters.values()), "method": method, "weight_decay": 0.1}], optim,
        names={p: name for name, p in parameters.items()},
        parts={parameters[name]: parts for name, (_, parts) in UNEVEN.items()},
    )  # fmt: skip
    for _ in range(2):
        for name, (shape, _) in UNEVEN.items():
            parameters[name].grad = cut(torch.randn(shape, generator=generator).bfloat16())
        optimizer.step()
    state = {f"{name}/{key}": t for name, p in parameters.items() for key, t in optimizer.state[p].items()}
    return {**{name: p.detach() for name, p in parameters.items()}, **state}


def cut_through_blocks() -> str:
    """Share 130 rows of 64 out to two ranks, 65 each, where a block is 4; return what is said."""
    mesh = init_device_mesh("cpu", (2,))
    weight = torch.nn.Parameter(distribute_tensor(torch.zeros(130, 64), mesh, [Shard(0)]))
    try:
        MuonAdamW([{"params": [weight]}], OptimConfig(moments="fp8"), names={weight: "model.word_embeddings.weight"})
    except ConfigError as error:
        return str(error)
    return f"rank {dist.get_rank()} was not refused"


def clip_by_tensor(layout: str, changes: dict[str, Any]) -> tuple[list[str], float]:
    """Update with a sudden gradient; return what is on other ranks in other bits, and the largest relative error."""
    optim = OptimConfig(clipping="update", **changes)
    world_size, sizes = LAYOUTS[layout]
    ranks = Ranks(plan_layout(ParallelConfig(**sizes), tiny_config(num_nextn_predict_layers=1), world_size, 16))
    model = parallelize(model_in(optim.weights), ranks, policy_of("bfloat16"))
    whole, free = model_in(optim.weights), model_in(optim.weights)
    kinds = [(model, optim), (whole, optim), (free, replace(optim, clipping="global"))]
    for m, told in kinds:
        optimizer = build_optimizer(m, told)
        for i in range(3):
            for p, gradient in zip(m.parameters(), gradients_of(whole, i), strict=True):
                part = part_of(gradient * (1 if i < 2 else 30), p.detach())
                p.grad = shared_like(p, part) if isinstance(p, DTensor) else part
            if i == 1:
                optimizer.gather_(list(m.parameters()), 0)
            else:
                optimizer.step()
    error, held_back = 0.0, 0.0
    for p, one, loose in zip(model.parameters(), whole.parameters(), free.parameters(), strict=True):
        expected, unclipped = (part_of(t.detach(), p.detach()) for t in (one, loose))
        moved = (unclipped - expected).abs().max() if expected.numel() else torch.tensor(0.0)
        held_back = max(held_back, float(moved))
        error = max(error, float((local(p.detach()) - expected).abs().max()) if expected.numel() else 0.0)
    assert held_back > 1e-3, held_back
    return [name for name, p in model.named_parameters() if not alike_on_copies(p)], error / held_back


def alike_on_copies(parameter: Tensor) -> bool:
    """Whether ranks that hold the same part hold the same bits."""
    assert isinstance(parameter, DTensor)
    mine = local(parameter.detach()).float()
    for axis, placement in enumerate(parameter.placements):
        if placement.is_replicate():
            first = mine.clone()
            group = parameter.device_mesh.get_group(axis)
            dist.broadcast(first, dist.get_global_rank(group, 0), group=group)
            if not torch.equal(first, mine):
                return False
    return True
