"""The lint against names newer than torch 2.11: what it refuses, what it lets pass, how its list is made."""

import importlib.util
import sys
import zipfile
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("torch_names", ROOT / "tools" / "torch_names.py")
assert SPEC is not None
assert SPEC.loader is not None
torch_names = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = torch_names  # dataclasses look their module up there
SPEC.loader.exec_module(torch_names)


@pytest.fixture
def refused(tmp_path, capsys):
    """Return a function from source text to the refused (line, name) pairs."""

    def check(source: str) -> list[tuple[int, str]]:
        path = tmp_path / "snippet.py"
        path.write_text(dedent(source).lstrip("\n"), encoding="utf-8")
        code = torch_names.main(["check", str(path)])
        out = capsys.readouterr().out
        found = [line.removeprefix(f"{path}:") for line in out.splitlines() if line.startswith(f"{path}:")]
        assert code == (1 if found else 0), out
        return [(int(line.split(":")[0]), line.split(": ")[1].split(" exists only")[0]) for line in found]

    return check


NEWER_USES = {
    "an attribute chain": (
        "import torch\nloss = torch.nn.functional.linear_cross_entropy(x, w, t)",
        [(2, "torch.nn.functional.linear_cross_entropy")],
    ),
    "a module under another name": (
        "import torch.nn.functional as F\n\nloss = F.linear_cross_entropy(x, w, t)",
        [(3, "torch.nn.functional.linear_cross_entropy")],
    ),
    "a module imported from its package": (
        "from torch import distributed as dist\ndist.all_gather_single(a)\ndist.reduce_scatter_single(a)",
        [(2, "torch.distributed.all_gather_single"), (3, "torch.distributed.reduce_scatter_single")],
    ),
    "a plain alias": (
        "import torch\nF = torch.nn.functional\nF.linear_cross_entropy(x, w, t)",
        [(3, "torch.nn.functional.linear_cross_entropy")],
    ),
    "an import inside a function": (
        "def f():\n    import torch.distributed as dist\n    return dist.all_gather_single",
        [(3, "torch.distributed.all_gather_single")],
    ),
    "a re-exported class in a long import": (
        "from torch.distributed.fsdp import (\n    FSDPModule,\n    DataParallelMeshDims as Dims,\n)",
        [(3, "torch.distributed.fsdp.DataParallelMeshDims")],
    ),
    "a new module": ("import torch.backends.python_native as native", [(1, "torch.backends.python_native")]),
    "a name below a new module": (
        "from torch.backends.python_native import anything",
        [(1, "torch.backends.python_native")],
    ),
    "a module imported by a string": (
        "import importlib\nimportlib.import_module('torch.accelerator.graphs')",
        [(2, "torch.accelerator.graphs")],
    ),
    "a keyword of a function": (
        "from torch.distributed.fsdp import fully_shard\nfully_shard(\n    model,\n    dp_mesh_dims=dims,\n)",
        [(4, "torch.distributed.fsdp.fully_shard(dp_mesh_dims=)")],
    ),
    "a keyword of a constructor": (
        "from torch import nn\nnorm = nn.GroupNorm(4, 8, bias=False)",
        [(2, "torch.nn.GroupNorm(bias=)")],
    ),
    "a keyword of a decorator": (
        "import torch\n@torch.compile(recompile_limit=3)\ndef f(x): ...",
        [(2, "torch.compile(recompile_limit=)")],
    ),
    "a keyword bound by partial": (
        "import torch\nfrom functools import partial\nwrap = partial(torch.compile, name='step')",
        [(3, "torch.compile(name=)")],
    ),
    "a keyword of a method of anything": (
        "def f(DTensor, x):\n    return DTensor.from_local(x, grad_placements=[])",
        [(2, "torch.distributed.tensor.DTensor.from_local(grad_placements=)")],
    ),
    "a method of anything": (
        "def f(model):\n    model.set_separate_reduce_scatter_group(g)\n    model.set_symm_mem_for_comm()",
        [
            (2, "torch.distributed.fsdp.FSDPModule.set_separate_reduce_scatter_group"),
            (3, "torch.distributed.fsdp.FSDPModule.set_symm_mem_for_comm"),
        ],
    ),
    "a method of Tensor": ("p = x.const_data_ptr()", [(1, "torch.Tensor.const_data_ptr")]),
    "a config value that is set": (
        "import torch._inductor.config as config\nconfig.batch_invariant = True",
        [(2, "torch._inductor.config.batch_invariant")],
    ),
    "getattr without a default": (
        "import torch.distributed as dist\ngather = getattr(dist, 'all_gather_single')",
        [(2, "torch.distributed.all_gather_single")],
    ),
    "an exemption without a reason": (
        "import torch.distributed as dist\ndist.all_gather_single(a, b)  # torch-names: ok",
        [(2, "torch.distributed.all_gather_single")],
    ),
}

SAFE_USES = {
    "names of 2.11": """
        import torch
        import torch.distributed as dist
        import torch.nn.functional as F
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
        from torch.distributed.tensor import DTensor, Shard
        a = torch._scaled_mm(x, y, scale_a=s, scale_b=s, out_dtype=torch.bfloat16)
        b = torch._grouped_mm(x, y, offs=offs)
        c = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).to(torch.float8_e4m3fn)
        dist.all_gather_into_tensor(out, x, group=group, async_op=True)
        fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
        model.set_requires_gradient_sync(False)
        d = DTensor.from_local(x, mesh, [Shard(0)], run_check=False)
        torch.compile(model, fullgraph=True, dynamic=False)
        """,
    "getattr with a default": """
        import torch.distributed as dist
        gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
        """,
    "an exemption with its reason": """
        import torch.nn.functional as F
        y = F.linear_cross_entropy(x)  # torch-names: ok guarded by has_linear_cross_entropy above
        """,
    "our own module with such a name": """
        from ling.distributed import collectives
        collectives.all_gather_single(x)
        """,
    "the keyword on another function": """
        import torch
        torch.nn.Linear(2, 3, bias=False)
        build(name="x", recompile_limit=3)
        """,
    "common words that are new members": "saved.unpack()\ntag.inplace()\ngroup.all_to_all_single(x)",
    "strings and comments": "text = 'torch.distributed.all_gather_single'  # F.linear_cross_entropy",
}


@pytest.mark.parametrize("kind", NEWER_USES)
def test_check_refuses(kind, refused):
    source, expected = NEWER_USES[kind]
    assert refused(source) == expected


@pytest.mark.parametrize("kind", SAFE_USES)
def test_check_lets_pass(kind, refused):
    assert refused(SAFE_USES[kind]) == []


def test_a_report_says_where_what_and_why(tmp_path, capsys):
    path = tmp_path / "a.py"
    path.write_text("import torch\ntorch.nn.functional.linear_cross_entropy(x)\n", encoding="utf-8")
    assert torch_names.main(["check", str(tmp_path)]) == 1
    assert capsys.readouterr().out == (
        f"{path}:2: torch.nn.functional.linear_cross_entropy exists only in torch 2.13; "
        "the code must run on 2.11 (see tools/torch_2_13_only.txt)\n"
    )


def test_a_missing_path_an_empty_folder_and_a_broken_file_are_the_callers_mistakes(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n", encoding="utf-8")
    for name, message in [
        ("nope", "no such file"),
        ("empty", "no Python file"),
        ("broken.py", "broken.py:2: "),
    ]:
        assert torch_names.main(["check", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_our_own_tree_is_clean(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = torch_names.main(["check"])
    captured = capsys.readouterr()
    assert code == 0, captured.out + captured.err
    assert captured.out.startswith("torch names: ")
    assert captured.out.endswith(" files, none newer than 2.11\n")


def test_the_list_is_sorted_short_and_names_no_machine():
    header, lines = [], []
    for line in torch_names.LIST.read_text(encoding="ascii").splitlines():
        (header if line.startswith("#") else lines).append(line)
    assert len(header) == 2
    assert lines == sorted(set(lines))
    assert len(lines) < 3000
    assert all(line.startswith("torch.") for line in lines)
    assert "://" not in "".join(header)
    assert "/tmp" not in "".join(header)


# ---- how the list is made -------------------------------------------------------------------------------

OLD = {
    "version.py": "__version__ = '2.11.0+cu130'",
    "__init__.py": "from torch.functional import *\nfrom torch import nn\nfrom torch._tensor import Tensor",
    "functional.py": "__all__ = ['norm']\ndef norm(x, p): ...\ndef anything(**kwargs): ...",
    "_tensor.py": "from torch._C import TensorBase\nclass Tensor(TensorBase):\n    def old_one(self): ...",
    "_C/__init__.pyi": "class TensorBase:\n    def sum(self, dim): ...",
    "_C/_VariableFunctions.pyi": "def _mm(a): ...",
    "nn/__init__.py": "from .modules import Linear, Policy",
    "nn/modules.py": """
        from dataclasses import dataclass
        class Module:
            def __init__(self):
                self.is_ready = True
        class Linear(Module):
            def forward(self, x): ...
        @dataclass
        class Policy:
            dtype: int = 0
        def helper(x): return x.used_before()
        """,
}
NEW = OLD | {
    "version.py": "__version__ = '2.13.0'",
    "__init__.py": OLD["__init__.py"] + "\nif TYPE_CHECKING:\n    from torch.types import Device",
    "functional.py": "import math\n__all__ = ['norm', 'rms']\ndef norm(x, p, eps): ...\ndef _hidden(): ...\n"
    "def rms(x): ...\ndef anything(added, **kwargs): ...",
    "_C/__init__.pyi": "class TensorBase:\n    def sum(self, dim, exact): ...\n    def brand_new(self): ...",
    "_C/_VariableFunctions.pyi": "def _mm(a): ...\ndef _scaled(a): ...",
    "nn/__init__.py": "from .modules import Linear, Policy, MeshDims\nfrom math import pi",
    "nn/attention/__init__.py": "def varlen(): ...",
    "nn/modules.py": """
        from dataclasses import dataclass
        class Module:
            def __init__(self): ...
            def is_ready(self): ...
        class Linear(Module):
            def __init__(self, bias): ...
            def forward(self, x, mask): ...
            def set_group(self): ...
            def used_before(self): ...
            def close(self): ...
            some_field: int = 0
        @dataclass
        class Policy:
            dtype: int = 0
            cast: int = 0
        class MeshDims: ...
        """,
}
DIFFERENCE = """
    torch.Tensor.brand_new by name
    torch.Tensor.sum(exact=)
    torch._scaled
    torch.functional.norm(eps=)
    torch.functional.rms
    torch.nn.Linear(bias=)
    torch.nn.Linear.close
    torch.nn.Linear.forward(mask=)
    torch.nn.Linear.set_group by name
    torch.nn.Linear.some_field
    torch.nn.Linear.used_before
    torch.nn.MeshDims
    torch.nn.Policy(cast=)
    torch.nn.Policy.cast
    torch.nn.attention
    torch.nn.modules.Linear(bias=)
    torch.nn.modules.MeshDims
    torch.nn.modules.Policy(cast=)
    torch.norm(eps=)
    torch.rms
"""


def write_torch(root: Path, sources: dict[str, str]) -> Path:
    for name, text in sources.items():
        path = root / "torch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    return root


def build(capsys, old: Path, new: Path) -> list[str]:
    assert torch_names.main(["build", str(old), str(new)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if not line.startswith("#") and line not in torch_names.WITHOUT_STUB]


def test_build_lists_what_the_new_sources_add(tmp_path, capsys):
    old, new = write_torch(tmp_path / "old", OLD), write_torch(tmp_path / "new", NEW)
    assert build(capsys, old, new) == dedent(DIFFERENCE).split("\n")[1:-1]
    assert build(capsys, old, new / "torch") == dedent(DIFFERENCE).split("\n")[1:-1]


def test_build_reads_a_wheel_like_a_folder(tmp_path, capsys):
    new = write_torch(tmp_path / "new", NEW)
    with zipfile.ZipFile(tmp_path / "torch.whl", "w") as wheel:
        for name, text in OLD.items():
            wheel.writestr(f"torch/{name}", dedent(text))
    assert build(capsys, tmp_path / "torch.whl", new) == dedent(DIFFERENCE).split("\n")[1:-1]


def test_build_refuses_other_versions_and_folders_without_torch(tmp_path, capsys):
    old, new = write_torch(tmp_path / "old", OLD), write_torch(tmp_path / "new", NEW)
    assert torch_names.main(["build", str(new), str(old)]) == 2
    assert "holds torch 2.13.0; give torch 2.11 in its place" in capsys.readouterr().err
    assert torch_names.main(["build", str(tmp_path), str(new)]) == 2
    assert f"no torch in {tmp_path}" in capsys.readouterr().err
