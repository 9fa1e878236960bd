"""Whether results for a row are the same bits whatever runs beside it: asked of the machine, not believed.

The invariant back end pads rows, experts' rows and keys to fixed multiples. That a library's product then adds up
every row in the same order is true of those we know, for some numbers of threads; the probe runs the model's own
matrices over several numbers of rows and compares bits.

Where every product goes through our own kernels for the CPU there is nothing to pad and nothing to ask: each element
is computed by the same operations in the same order, whatever else is computed.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ling.engine.runner import Runner
from ling.errors import ConfigError
from ling.model.linear import Linear
from ling.model.moe import Experts, Router
from ling.ops.backend import use_backend
from ling.ops.invariant import KEYS, ROWS
from ling.ops.linear import Weight, grouped_linear, linear
from ling.ops.precision import at_least_float32

_ROW_COUNTS = (1, 2, 3, 5, 8, 16, 33, 64)
"""Times `ROWS`."""
_KEY_COUNTS = (1, 2, 3, 8, 17, 64)
"""Times `KEYS`."""


@torch.inference_mode()
def probe(runner: Runner) -> None:
    """Raise ConfigError if some product's rows depend on how many there are, or on where they stand."""
    with use_backend("invariant"):  # what runs beside the back end's own twins is chosen as it will be chosen then
        _probe(runner)


def _probe(runner: Runner) -> None:
    model, device = runner.model, runner.device
    dtype = runner.cache.dtype
    generator = torch.Generator().manual_seed(0)
    seen: set[tuple[int, ...]] = set()
    for module in model.modules():
        if isinstance(module, Linear) and (shape := tuple(module.quantity().shape)) not in seen:
            seen.add(shape)
            x = torch.randn(ROWS, shape[1], generator=generator).to(device, dtype)
            _compare(x, partial(_through, module.quantity()), f"a product with a matrix of {shape}")
        if isinstance(module, Router) and (shape := tuple(module.weight.shape)) not in seen:
            seen.add(shape)
            x = torch.randn(ROWS, shape[1], generator=generator).to(device)
            _compare(x, partial(_through, at_least_float32(module.weight)), f"the router's product with {shape}")
        if isinstance(module, Experts) and (shape := tuple(module.quantities()[0].shape)) not in seen:
            seen.add(shape)
            _probe_experts(module, dtype, generator)
    _probe_attention(runner, dtype, generator)


def _probe_experts(experts: Experts, dtype: torch.dtype, generator: torch.Generator) -> None:
    for weight in experts.quantities():
        x = torch.randn(ROWS, weight.shape[2], generator=generator).to(experts.down_proj.device, dtype)
        ends = torch.zeros(weight.shape[0], dtype=torch.int32, device=x.device)
        _compare(x, partial(_through_first, weight, ends), f"an expert's product with {tuple(weight.shape[1:])}")


def _through(weight: Weight, rows: Tensor) -> Tensor:
    return linear(rows, weight)


def _through_first(weights: Weight, ends: Tensor, rows: Tensor) -> Tensor:
    """Send all rows through the first expert."""
    return grouped_linear(rows, weights, ends.fill_(len(rows)))


def _compare(x: Tensor, apply: Callable[[Tensor], Tensor], what: str) -> None:
    wanted = apply(x)
    for times in _ROW_COUNTS:
        for shift in {0, 3 % ROWS, len(x) * (times - 1)}:
            rows = torch.zeros(len(x) * times, x.shape[1], dtype=x.dtype, device=x.device)
            rows[: len(x)] = x
            got = apply(rows.roll(shift, 0)).roll(-shift, 0)[: len(x)]
            if not torch.equal(got, wanted):
                raise _refusal(what, times * len(x))


def _probe_attention(runner: Runner, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Compare scores, softmax and their product with values over longer and longer padding."""
    model = runner.model.config
    K, D = model.num_key_value_heads, model.head_dim
    rows = model.num_attention_heads // K * ROWS
    q = torch.randn(1, K, rows, D, generator=generator).to(runner.device, dtype)
    k, v = (torch.randn(1, K, KEYS - 5, D, generator=generator).to(runner.device, dtype) for _ in range(2))
    wanted = None
    for times in _KEY_COUNTS:
        for batch, more in ((1, 1), (3, 1), (2, 3)):
            keys, values = (torch.zeros(batch, K, KEYS * times, D, dtype=dtype, device=q.device) for _ in range(2))
            queries = torch.zeros(batch, K, rows * more, D, dtype=dtype, device=q.device)
            keys[-1:, :, : k.shape[2]], values[-1:, :, : k.shape[2]], queries[-1:, :, -rows:] = k, v, q
            scores = (queries @ keys.transpose(2, 3)).float()
            scores[..., k.shape[2] :] = -torch.inf
            got = (scores.softmax(-1).to(dtype) @ values)[-1, :, -rows:]
            wanted = got if wanted is None else wanted
            if not torch.equal(got, wanted):
                raise _refusal("attention", KEYS * times)


def _refusal(what: str, size: int) -> ConfigError:
    return ConfigError(
        f"batch invariance does not hold on this machine with {torch.get_num_threads()} thread(s): {what} changes its "
        f"bits at {size} rows. Use 1 or 2 threads, or leave --batch-invariant out."
    )
