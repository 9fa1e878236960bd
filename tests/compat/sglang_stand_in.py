"""SGLang's own BailingMoeV2 classes with stand-ins for everything below them that needs a GPU.

    python -m tests.compat.sglang_stand_in PACKAGES DIRECTORY

Model files, weight loading, the table of expert names and the rules of what FP8 leaves alone are the code in PACKAGES.
Layers are replaced by modules that hold parameters of the same names and whole shapes, one device, and compute nothing.
Prints JSON: for the target and the draft, the tensors taken, those passed over, the parameters left unfilled, what was
left unquantised, and how the rotation was asked for.
"""

import ast
import contextlib
import importlib.util
import json
import logging
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from ling.checkpoint.source import TensorSource
from ling.compat.plugin import register

BLOCK = 128


class Anything(types.ModuleType):
    """A module of the package that has every name, each an inert class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder:
    """Answers every import below `sglang` that is not a model file."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.partition(".")[0] != "sglang":
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> types.ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        for name, value in STAND_INS.get(module.__name__.removeprefix("sglang.srt."), {}).items():
            setattr(module, name, value)


# ---- pieces of the package that run as they are ----


def functions(file: Path, names: set[str], **known: Any) -> SimpleNamespace:
    """Run the definitions called `names` in `file`, methods included, without importing the file."""
    found: list[ast.stmt] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            found.append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id in names for target in targets):
                found.append(node)
    from collections.abc import Mapping

    scope = {"List": list, "Dict": dict, "Tuple": tuple, "Any": Any, "Mapping": Mapping, **known}
    scope |= {"MappingProxyType": types.MappingProxyType, "logger": logging.getLogger()}
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(future + found, type_ignores=[]), str(file), "exec"), scope)
    assert names <= scope.keys(), names - scope.keys()
    return SimpleNamespace(**{name: scope[name] for name in names})


class Fp8:
    """The rules of `Fp8Config`: which linear layers hold codes."""

    def __init__(
        self, ignored_layers: list[str] | None, packed_modules_mapping: dict[str, list[str]], **_: Any
    ) -> None:
        self.ignored, self.mapping = ignored_layers or [], packed_modules_mapping
        self.skipped: list[str] = []

    @staticmethod
    def get_from_keys_or(config: dict[str, Any], keys: list[str], default: Any) -> Any:
        return next((config[key] for key in keys if key in config), default)

    @classmethod
    def get_from_keys(cls, config: dict[str, Any], keys: list[str]) -> Any:
        return cls.get_from_keys_or(config, keys, None)

    def get_name(self) -> str:
        return "fp8"

    def quantizes(self, prefix: str) -> bool:
        if RULES.is_layer_skipped(prefix, self.ignored, fused_mapping=self.mapping):
            self.skipped.append(prefix)
            return False
        return True


RULES: SimpleNamespace
STAND_INS: dict[str, dict[str, Any]] = {}
TAKEN: list[int] = [0]
ROTATIONS: list[dict[str, Any]] = []


# ---- stand-ins ----


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, torch.nan, dtype=torch.float32).to(dtype), requires_grad=False)


def put(place: Tensor, values: Tensor) -> None:
    assert place.shape == values.shape, (place.shape, values.shape)
    place.copy_(values.to(place.dtype))
    TAKEN[0] += 1


class Linear(nn.Module):
    """A weight of some parts of rows, with FP8's scales where the rules say so."""

    def __init__(self, columns: int, parts: list[int], bias: bool, quant_config: Fp8 | None, prefix: str) -> None:
        super().__init__()
        coded = quant_config is not None and quant_config.quantizes(prefix)
        self.weight = self._parameter(parts, columns, torch.float8_e4m3fn if coded else torch.float32)
        if coded:
            self.weight_scale_inv = self._parameter(
                [-(-n // BLOCK) for n in parts], -(-columns // BLOCK), torch.float32
            )
        if bias:
            self.bias = self._parameter(parts, None, torch.float32)

    def _parameter(self, parts: list[int], columns: int | None, dtype: torch.dtype) -> nn.Parameter:
        parameter = empty(sum(parts), *([] if columns is None else [columns]), dtype=dtype)

        def load(place: Tensor, values: Tensor, part: int | None = None) -> None:
            first = sum(parts[:part]) if part else 0
            put(place if part is None else place[first : first + parts[part]], values)

        parameter.weight_loader = load  # type: ignore[attr-defined]
        return parameter


class QKV(Linear):
    def __init__(self, hidden: int, D: int, A: int, K: int, *, bias: bool, quant_config: Any, prefix: str, **_: Any):
        super().__init__(hidden, [(A + 2 * K) * D], bias, quant_config, prefix)


class Merged(Linear):
    def __init__(self, columns: int, parts: list[int], *, bias: bool, quant_config: Any, prefix: str, **_: Any):
        super().__init__(columns, parts, bias, quant_config, prefix)


class Plain(Linear):
    def __init__(self, columns: int, rows: int, *, bias: bool, quant_config: Any, prefix: str, **_: Any):
        super().__init__(columns, [rows], bias, quant_config, prefix)


class Weight(nn.Module):
    """Norms, embeddings, heads."""

    def __init__(self, *shape: int, **_: Any) -> None:
        super().__init__()
        self.weight = empty(*shape)


class Experts(nn.Module):
    def __init__(
        self, num_experts: int, hidden_size: int, intermediate_size: int, quant_config: Any, prefix: str, **_: Any
    ):
        super().__init__()
        E, H, F = num_experts, hidden_size, intermediate_size
        coded = quant_config is not None and quant_config.quantizes(prefix)
        dtype = torch.float8_e4m3fn if coded else torch.float32
        shapes = {"w13_weight": (E, 2 * F, H), "w2_weight": (E, H, F)}
        if coded:
            blocks = [-(-n // BLOCK) for n in (F, H)]
            shapes |= {"w13_weight_scale_inv": (E, 2 * blocks[0], blocks[1]), "w2_weight_scale_inv": (E, *blocks[::-1])}
        for name, shape in shapes.items():
            parameter = empty(*shape, dtype=dtype if name.endswith("weight") else torch.float32)
            parameter.weight_loader = self.load  # type: ignore[attr-defined]
            self.register_parameter(name, parameter)
        self.should_fuse_routed_scaling_factor_in_topk = False
        self.runner_backend = self.routing_method_type = None
        self.num_local_experts = num_experts

    @staticmethod
    def load(place: Tensor, values: Tensor, name: str, shard_id: str, expert_id: int) -> None:
        own = place[expert_id]
        half = own.shape[0] // 2
        put({"w1": own[:half], "w3": own[half:], "w2": own}[shard_id], values)


class TopK(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.topk_config = SimpleNamespace()

    def bind_runner_backend(self, *_: Any, **__: Any) -> None: ...


class Nothing(nn.Module):
    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def rotation(*_: Any, **options: Any) -> Any:
    ROTATIONS.append(options)
    return SimpleNamespace(rotary_dim=options["rotary_dim"])


def layers(count: int, make: Callable[..., nn.Module], prefix: str, **_: Any) -> tuple[nn.ModuleList, int, int]:
    return nn.ModuleList([make(idx=i, prefix=f"{prefix}.{i}") for i in range(count)]), 0, count


def install(packages: Path) -> None:
    """Fill in the stand-ins and let imports below `sglang` find them."""
    global RULES
    source = packages / "sglang/srt"
    names = {"_module_path_match", "is_layer_skipped", "_FALLBACK_FUSED_SHARDS"}
    RULES = functions(source / "layers/quantization/utils.py", names)
    table = functions(source / "layers/moe/fused_moe_triton/layer.py", {"make_expert_params_mapping"})
    experts = {"make_expert_params_mapping": classmethod(table.make_expert_params_mapping)}
    one = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    whole = SimpleNamespace(tp_size=1, attn_tp_size=1, pp_group=one, enable_dp_lm_head=False)
    no_exchange = SimpleNamespace(is_deepep=lambda: False)
    STAND_INS.update(
        {
            "layers.linear": {
                "QKVParallelLinear": QKV, "MergedColumnParallelLinear": Merged, "RowParallelLinear": Plain,
                "ReplicatedLinear": Plain,
            },
            "layers.layernorm": {"RMSNorm": Weight},
            "layers.vocab_parallel_embedding": {"VocabParallelEmbedding": Weight, "ParallelLMHead": Weight},
            "layers.moe.fused_moe_triton.layer": {
                "FusedMoE": type("FusedMoE", (), experts)
            },
            "layers.moe.ep_moe.layer": {"get_moe_impl_class": lambda _: Experts},
            "layers.moe": {"get_moe_a2a_backend": lambda: no_exchange},
            "layers.moe.topk": {"TopK": TopK},
            "layers.moe.utils": {
                "filter_moe_weight_param_global_expert": lambda *_: True, "get_num_fused_shared_experts": lambda: 0,
                "RoutingMethodType": SimpleNamespace(DeepSeekV3=0, RenormalizeNaive=1),
            },
            "layers.activation": {"SiluAndMul": Nothing},
            "layers.radix_attention": {"RadixAttention": Nothing},
            "layers.logits_processor": {"LogitsProcessor": Nothing},
            "layers.rotary_embedding": {"get_rope": rotation},
            "layers.utils": {"PPMissingLayer": Nothing},
            "layers.dp_attention": {"is_dp_attention_enabled": lambda: False},
            "layers.layer_boundary": {
                "declare_attn": SimpleNamespace, "declare_ffn": SimpleNamespace, "append_stages": lambda *both: both,
                "is_dense_ffn_fully_dp": lambda: False, "layer_stack": contextlib.nullcontext,
            },
            "models.utils": {"WeightsMapper": Nothing},
            "model_loader.weight_utils": {"default_weight_loader": put},
            "runtime_context": {
                "get_exec": lambda: SimpleNamespace(moe=SimpleNamespace(ep_num_redundant_experts=0)),
                "get_parallel": lambda: whole, "get_stream": lambda _: None,
            },
            "utils": {
                "is_cuda": lambda: False, "make_pp_layers": layers, "is_non_idle_and_non_empty": lambda *_: True,
                "add_prefix": lambda name, prefix: f"{prefix}.{name}" if prefix else name,
            },
        }
    )  # fmt: skip
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]


def model_file(packages: Path, name: str) -> types.ModuleType:
    """Import one of the package's model files as it is."""
    full = f"sglang.srt.models.{name}"
    spec = importlib.util.spec_from_file_location(full, packages / f"sglang/srt/models/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def load(
    build: Callable[[Any, Fp8 | None], nn.Module], directory: Path, from_config: Callable[..., Fp8]
) -> dict[str, Any]:
    """Build a model from the directory's configuration, give it every tensor, and see what it did with each."""
    config = AutoConfig.from_pretrained(directory)
    fp8 = getattr(config, "quantization_config", None)
    quantization = None if fp8 is None else from_config(Fp8, fp8)
    ROTATIONS.clear()
    model = build(config, quantization)
    taken, passed = [], []
    source = TensorSource(directory)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in source.read(list(source.tensors)):
            before = TAKEN[0]
            yield key, tensor
            (taken if TAKEN[0] > before else passed).append(key)

    model.load_weights(tensors())  # type: ignore[operator]
    unfilled = [name for name, p in model.named_parameters() if bool(p.float().isnan().any())]
    return {
        "taken": taken,
        "passed": passed,
        "unfilled": unfilled,
        "unquantised": [] if quantization is None else quantization.skipped,
        "rotations": ROTATIONS[:1],
        "routing": next((m.options | {"correction_bias": None} for m in model.modules() if isinstance(m, TopK)), None),
    }


def main(packages: str, directory: str) -> None:
    root = Path(packages)
    install(root)
    register()
    quantization = functions(root / "sglang/srt/layers/quantization/fp8.py", {"from_config"})
    target = model_file(root, "bailing_moe")
    draft = model_file(root, "bailing_moe_nextn")
    build_draft = lambda config, fp8: draft.BailingMoeForCausalLMNextN(config, fp8)  # noqa: E731
    build_target = lambda config, fp8: target.BailingMoeV2ForCausalLM(config, fp8)  # noqa: E731
    results = {
        "target": load(build_target, Path(directory), quantization.from_config),
        "draft": load(build_draft, Path(directory), quantization.from_config),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
