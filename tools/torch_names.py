"""Refuse names that only the newer of our two torch versions has.

The code is developed on torch 2.13 and must run on torch 2.11, which is rarely at hand. So the difference
between the two is computed once, from their Python sources alone, and kept as a list beside this file:

    python tools/torch_names.py build OLD_WHEEL_OR_DIR NEW_DIR > tools/torch_2_13_only.txt
    python tools/torch_names.py check [PATHS...]

`build` imports nothing. It parses every .py and .pyi of both versions into a table of modules (`Torch`),
follows re-exports (`from x import y`, `from x import *`, `a = b.c`) in each, and walks the public surface
of the new one. It takes two minutes. A line of the list is one of

    torch.x.f               a module, function, class, constant or member of a class
    torch.x.f(param=)       a keyword that 2.11's `f` refuses; for a class, one its constructor refuses
    ... by name             a method, or a keyword of one, that is refused on any object

`by name` is for methods, of Tensor as of any class, since the type of an object is unknown here. The name
has an underscore inside (`close` or `split` may be anybody's) and appears nowhere in 2.11's sources as an
attribute, function or class; a keyword appears nowhere there together with its method.

`check` reads only the list. It resolves imports, plain aliases (`F = torch.nn.functional`) and attribute
chains within a file, whatever their scope. It does not see a new parameter passed by position or through
`**kwargs`, names built at run time, `torch.ops`, or a change of behaviour behind an old name.

`getattr(torch.x, "name", default)` is the way to use a newer name where it exists. Any other use that is
safe on 2.11 carries `# torch-names: ok REASON` at the end of its line.
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

OLD, NEW = "2.11", "2.13"
LIST = Path(__file__).with_name("torch_2_13_only.txt")
DEFAULT_PATHS = ("src", "tests", "benchmarks", "tools")
BUILD = "python tools/torch_names.py build OLD_WHEEL_OR_DIR NEW_DIR > tools/torch_2_13_only.txt"
USAGE = f"usage: {BUILD}\n       python tools/torch_names.py check [PATHS...]"
HEADER = f"""\
# Names that torch {NEW} has and torch {OLD} lacks, read from the .py and .pyi sources of both. Do not edit.
# Made by: {BUILD}
"""

# Private modules that people write anyway; other paths with a leading underscore are left out.
WRITTEN_ANYWAY = (
    "torch._dynamo",
    "torch._dynamo.config",
    "torch._functorch.config",
    "torch._higher_order_ops",
    "torch._inductor.config",
    "torch._library",
    "torch.distributed._functional_collectives",
    "torch.distributed._symmetric_memory",
    "torch.distributed.fsdp._fully_shard",
    "torch.distributed.tensor._utils",
)
# What stubs get wrong, found by comparing `dir()` of 2.13 with the strings in 2.11's libtorch_python.so:
# new in C++ and in no stub, and old in C++ with a stub that only 2.13 has.
WITHOUT_STUB = {"torch.Tensor.const_data_ptr by name", "torch._from_blob"}
STUB_CAME_LATER = {
    "torch.DispatchKey.AutocastXPU",
    "torch.PyTorchFileReader.get_storage_from_record",
    "torch.cuda.Event.event_id",
}


class InputError(Exception):
    """Say what the person at the terminal has to change."""


def main(argv: list[str]) -> int:
    """Run one of the two commands; return 0 done, 1 newer names found, 2 wrong input."""
    try:
        match argv:
            case ["build", old, new]:
                return build(Path(old), Path(new))
            case ["check", *paths]:
                return check(paths)
        raise InputError(USAGE)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


# ---- check ----------------------------------------------------------------------------------------------


def check(paths: list[str]) -> int:
    """Report every use of a listed name in the Python files under `paths`."""
    newer = NewerNames.read(LIST)
    files = python_files(paths)
    found = [(path, line, name) for path in files for line, name in newer_uses(path, newer)]
    for path, line, name in found:
        see = f"the code must run on {OLD} (see tools/{LIST.name})"
        print(f"{path}:{line}: {name} exists only in torch {NEW}; {see}")
    if not found:
        print(f"torch names: {len(files)} files, none newer than {OLD}")
    return 1 if found else 0


@dataclass
class NewerNames:
    """The list, ready for look-up."""

    names: set[str]
    by_name: dict[str, str]
    """Method, or `method(keyword=)`, to the full name."""

    @classmethod
    def read(cls, path: Path) -> NewerNames:
        """Read the list that `build` printed."""
        if not path.is_file():
            raise InputError(f"no list at {path}; make it with: {BUILD}")
        newer = cls(set(), {})
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, note = line.partition(" ")
            if name and name != "#":
                newer.names.add(name)
                if note == "by name":
                    newer.by_name.setdefault(name.rpartition(".")[2], name)
        return newer

    def reach(self, dotted: str) -> str | None:
        """Return the listed name that importing `dotted` would touch first."""
        parts = dotted.split(".")
        prefixes = (".".join(parts[: n + 1]) for n in range(len(parts)))
        return next((p for p in prefixes if p in self.names), None)


def python_files(paths: list[str]) -> list[Path]:
    """List the files to check; a path that is asked for and missing is an error."""
    if missing := [p for p in paths if not Path(p).exists()]:
        raise InputError(f"no such file or folder: {', '.join(missing)}")
    files: list[Path] = []
    for top in map(Path, paths or DEFAULT_PATHS):
        files += [top] if top.is_file() else sorted(top.rglob("*.py"))
    if not files:
        tops = ", ".join(paths or DEFAULT_PATHS)
        raise InputError(f"no Python file under {tops}; run from the top of the tree")
    return files


def newer_uses(path: Path, newer: NewerNames) -> list[tuple[int, str]]:
    """List line and name of each use in one file that its line does not excuse."""
    text = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: cannot be parsed: {error.msg}") from error
    lines = text.split("\n")
    uses = {(line, name) for line, name in UseFinder(tree, newer).find() if not is_excused(lines[line - 1])}
    return sorted(uses)


def is_excused(line: str) -> bool:
    """Tell whether a line ends in an exemption that gives its reason."""
    return re.search(r"# torch-names: ok \S.*$", line) is not None


def is_torch(dotted: str) -> bool:
    """Tell whether a full name lies in torch."""
    return dotted.split(".")[0] == "torch"


class UseFinder:
    """Find the listed names that one file uses."""

    def __init__(self, tree: ast.Module, newer: NewerNames) -> None:
        """Collect what every imported name, and every plain alias of one, stands for."""
        self.newer = newer
        self.nodes = sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0))
        self.bound: dict[str, set[str]] = {}
        for node in self.nodes:
            match node:
                case ast.Import():
                    for a in node.names:
                        top = a.name.split(".")[0]
                        self._bind(a.asname or top, a.name if a.asname else top)
                case ast.ImportFrom(level=0, module=str(module)):
                    for a in node.names:
                        self._bind(a.asname or a.name, f"{module}.{a.name}")
                case ast.Assign(targets=[ast.Name(id=name)]):
                    for dotted in filter(is_torch, self._resolve(node.value)):
                        self._bind(name, dotted)

    def find(self) -> Iterator[tuple[int, str]]:
        """Yield line and listed name of every use."""
        for node in self.nodes:
            match node:
                case ast.Import():
                    yield from ((a.lineno, hit) for a in node.names if (hit := self.newer.reach(a.name)))
                case ast.ImportFrom(level=0, module=str(module)):
                    paths = ((a.lineno, f"{module}.{a.name}") for a in node.names)
                    yield from ((line, hit) for line, path in paths if (hit := self.newer.reach(path)))
                case ast.Attribute():
                    line = node.end_lineno or node.lineno
                    yield from ((line, hit) for hit in self._attribute(node.value, node.attr))
                case ast.Call():
                    yield from self._call(node)

    def _call(self, node: ast.Call) -> Iterator[tuple[int, str]]:
        match node.func, node.args:
            case ast.Name(id="getattr"), [receiver, ast.Constant(value=str(name))]:  # no default given
                yield from ((node.lineno, hit) for hit in self._attribute(receiver, name))
            case _, [ast.Constant(value=str(name))] if "importlib.import_module" in self._resolve(node.func):
                yield from ((node.lineno, hit) for hit in [self.newer.reach(name)] if hit)
        called = node.func
        if node.args and "functools.partial" in self._resolve(called):
            called = node.args[0]
        for keyword in node.keywords:
            ending = f"({keyword.arg}=)"
            if hits := [d + ending for d in self._resolve(called) if d + ending in self.newer.names]:
                yield keyword.lineno, hits[0]
            elif isinstance(called, ast.Attribute):
                by_name = self._by_name(called.value, called.attr + ending)
                yield from ((keyword.lineno, hit) for hit in by_name)

    def _attribute(self, receiver: ast.expr, name: str) -> Iterator[str]:
        hits = [f"{d}.{name}" for d in self._resolve(receiver) if f"{d}.{name}" in self.newer.names]
        yield from hits[:1] or self._by_name(receiver, name)

    def _by_name(self, receiver: ast.expr, name: str) -> Iterator[str]:
        # What is imported from elsewhere, such as a module of ours, may well have that name itself.
        if all(map(is_torch, self._resolve(receiver))) and name in self.newer.by_name:
            yield self.newer.by_name[name]

    def _bind(self, name: str, dotted: str) -> None:
        self.bound.setdefault(name, set()).add(dotted)

    def _resolve(self, node: ast.expr) -> list[str]:
        """Return the full names an expression may stand for: none unless its head was imported."""
        head, dot, rest = (spell(node) or "").partition(".")
        return sorted(f"{dotted}{dot}{rest}" for dotted in self.bound.get(head, ()))


# ---- build: what a version of torch offers --------------------------------------------------------------


@dataclass
class Function:
    params: set[str]
    """Every parameter that can be passed by keyword, over all overloads."""
    takes_any: bool = False
    """Has `**kwargs`, so a keyword missing from `params` proves nothing."""


@dataclass
class Class:
    bases: list[Alias]
    members: dict[str, Entry]
    stored: set[str]
    """Attributes that methods set on `self`: present, but not part of the surface."""
    fields: set[str]
    """Annotated fields: parameters of the constructor if `is_record`."""
    is_record: bool
    """A dataclass or NamedTuple."""


@dataclass
class Alias:
    module: str
    path: str
    """Attributes below `module`; empty for the module itself."""


@dataclass
class Value:
    """Anything else that has a name."""


Entry = Function | Class | Alias | Value


@dataclass
class Module:
    name: str
    is_package: bool
    names: dict[str, Entry] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    exported: set[str] = field(default_factory=set)
    """What `__all__` lists, as far as it is written out."""


class Torch:
    """One version of torch, as its Python sources describe it."""

    def __init__(self, sources: Iterable[tuple[str, str]]) -> None:
        """Parse `sources`, pairs of a path such as torch/nn/init.py and its text."""
        self.modules: dict[str, Module] = {}
        self.words: set[str] = set()
        """Every attribute, function, class and class-level name written anywhere."""
        self.keywords: set[tuple[str, str]] = set()
        """Every (function, parameter) pair defined or called anywhere."""
        self.version = "unknown"
        for path, text in sources:
            try:
                tree = ast.parse(text, path)
            except SyntaxError as error:  # torch ships a test of Python 3.12's syntax
                print(f"torch_names: skipped {path}:{error.lineno}: {error.msg}", file=sys.stderr)
                continue
            if path == "torch/version.py":
                self.version = str(re.findall(r"__version__ = ['\"]([^'\"+]+)", text)[0])
            self._add_words(tree)
            self._add_module(path, tree)
        if "torch" in self.modules:  # torch/__init__.py copies this one's names in a loop, private ones too
            self.modules["torch"].stars.append("torch._C._VariableFunctions")

    def look_up(self, module: str, name: str) -> Entry | None:
        """Return what `name` is bound to in `module`, without following it."""
        home = self.modules[module]
        below = f"{module}.{name}"
        entry = home.names.get(name)
        if entry is not None and entry != Alias(module, name):
            return entry
        if below in self.modules:
            return Alias(below, "")
        for star in home.stars:
            if star in self.modules and star != module and self._star_gives(module, star, name):
                return Alias(star, name)
        return None

    def follow(self, entry: Entry | None, depth: int = 0) -> Function | Class | Module | Value | None:
        """Return what an entry stands for after all re-exports, or None where the sources do not tell."""
        if not isinstance(entry, Alias):
            return entry
        if entry.module not in self.modules or depth > 20:
            return None
        here: Function | Class | Module | Value | None = self.modules[entry.module]
        for part in filter(None, entry.path.split(".")):
            if isinstance(here, Module):
                here = self.follow(self.look_up(here.name, part), depth + 1)
            elif isinstance(here, Class):
                here = self.follow(self.members(here).get(part), depth + 1)
            else:
                return None
        return here

    def is_foreign(self, entry: Entry | None) -> bool:
        """Tell whether an entry was imported from outside torch, through however many re-exports."""
        for _ in range(20):
            if not isinstance(entry, Alias) or (entry.module in self.modules and not entry.path):
                return False
            if entry.module not in self.modules:
                return entry.module.split(".")[0] != "torch"
            entry = self.look_up(entry.module, entry.path.split(".")[0])
        return False

    def bases(self, cls: Class) -> list[Class]:
        """List `cls` and the classes it inherits from, nearest first, as far as they are torch's own."""
        found, queue = [cls], list(cls.bases)
        while queue:
            base = self.follow(queue.pop(0))
            if isinstance(base, Class) and not any(base is c for c in found):
                found.append(base)
                queue += base.bases
        return found

    def members(self, cls: Class) -> dict[str, Entry]:
        """Return the members of a class, inherited ones included."""
        return {name: entry for c in reversed(self.bases(cls)) for name, entry in c.members.items()}

    def constructor(self, cls: Class) -> Function | None:
        """Return the parameters that calling `cls` accepts."""
        for c in self.bases(cls):
            for name in ("__init__", "__new__"):
                if isinstance(method := c.members.get(name), Function):
                    return method
            if c.is_record:
                return Function(set[str]().union(*(b.fields for b in self.bases(c))))
        return None

    def _star_gives(self, module: str, star: str, name: str) -> bool:
        if self.look_up(star, name) is None:
            return False
        copied_whole = module == "torch" and star == "torch._C._VariableFunctions"
        return copied_whole or name in self.modules[star].exported or not name.startswith("_")

    def _add_module(self, path: str, tree: ast.Module) -> None:
        parts = path.rsplit(".", 1)[0].split("/")
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        module = Module(name, is_package)
        SourceReader(module).read(tree.body, module.names)
        known = self.modules.setdefault(name, module)
        if known is module:
            return
        known.stars += module.stars
        known.exported |= module.exported
        for key, entry in module.names.items():
            known.names[key] = agree(known.names.get(key), entry)

    def _add_words(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            match node:
                case ast.Attribute():
                    self.words.add(node.attr)
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self.words.add(node.name)
                    self.keywords |= {(node.name, p) for p in read_params(node).params}
                case ast.ClassDef():
                    self.words.add(node.name)
                    self.words |= {t.id for s in node.body for t in assigned(s) if isinstance(t, ast.Name)}
                case ast.Call():
                    if called := (spell(node.func) or "").rpartition(".")[2]:
                        self.keywords |= {(called, k.arg) for k in node.keywords if k.arg}


def agree(py: Entry | None, other: Entry) -> Entry:
    """Join what a .py and a .pyi, or two branches of one file, say of the same name."""
    match py, other:
        case Function(), Function():
            return Function(py.params | other.params, py.takes_any and other.takes_any)
        case Class(), Class():
            py.members = {**other.members, **py.members}
            py.stored |= other.stored
            py.fields |= other.fields
            py.is_record |= other.is_record
            py.bases += other.bases
            return py
        case (None | Value(), _) | (Alias(), Function() | Class()):
            return other
    assert py is not None
    return py


@dataclass
class SourceReader:
    """Turn the statements of one module into entries."""

    module: Module

    def read(self, body: list[ast.stmt], names: dict[str, Entry]) -> None:
        """Add what `body` binds, in every branch that can run, to `names`."""
        for node in body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self._add_function(node, names)
                case ast.ClassDef():
                    names[node.name] = agree(names.get(node.name), self._read_class(node))
                case ast.Import():
                    for a in node.names:
                        top = a.name if a.asname else a.name.split(".")[0]
                        names[a.asname or top] = Alias(top, "")
                case ast.ImportFrom():
                    self._add_from(node, names)
                case ast.If() if "TYPE_CHECKING" in ast.dump(node.test):
                    lazy = any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in body)
                    self.read(node.body if lazy else [], names)
                    self.read(node.orelse, names)
                case ast.Try():
                    handlers = [s for h in node.handlers for s in h.body]
                    self.read(node.body + handlers + node.orelse + node.finalbody, names)
                case ast.If() | ast.For() | ast.While() | ast.With():
                    self.read(node.body + getattr(node, "orelse", []), names)
                case _:
                    self._add_assigned(node, names)

    def _add_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, names: dict[str, Entry]) -> None:
        marks = {spell(d) or "" for d in node.decorator_list}
        if any(m.endswith(("property", ".setter", ".deleter")) for m in marks):
            names.setdefault(node.name, Value())
            return
        new, known = read_params(node), names.get(node.name)
        if isinstance(known, Function):  # overloads, or branches: one of them takes it
            new = Function(known.params | new.params, known.takes_any or new.takes_any)
        names[node.name] = new

    def _read_class(self, node: ast.ClassDef) -> Class:
        cls = Class([], {}, set(), set(), False)
        self.read(node.body, cls.members)
        for base in node.bases:
            if path := spell(base.value if isinstance(base, ast.Subscript) else base):
                cls.bases.append(Alias(self.module.name, path))
        marks = [spell(d.func if isinstance(d, ast.Call) else d) or "" for d in node.decorator_list]
        tuples = [a.path for a in cls.bases]
        cls.is_record = any(m.endswith(("dataclass", "NamedTuple")) for m in marks + tuples)
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                cls.fields.add(statement.target.id)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                cls.stored.add(inner.attr)
        return cls

    def _add_from(self, node: ast.ImportFrom, names: dict[str, Entry]) -> None:
        source = node.module or ""
        if node.level:
            parts = self.module.name.split(".")
            keep = len(parts) - node.level + (1 if self.module.is_package else 0)
            source = ".".join([*parts[:keep], *filter(None, [source])])
        for a in node.names:
            if a.name == "*":
                self.module.stars.append(source)
            else:
                names[a.asname or a.name] = Alias(source, a.name)

    def _add_assigned(self, node: ast.stmt, names: dict[str, Entry]) -> None:
        value = getattr(node, "value", None)
        for target in assigned(node):
            if not isinstance(target, ast.Name):
                continue
            if target.id == "__all__":
                self._add_exported(value)
            path = spell(value) if isinstance(node, ast.Assign) else None
            entry = Alias(self.module.name, path) if path and path != target.id else Value()
            names[target.id] = agree(names.get(target.id), entry)
        if isinstance(value, ast.Call) and spell(value.func) in ("__all__.extend", "__all__.append"):
            self._add_exported(value)

    def _add_exported(self, value: ast.expr | None) -> None:
        for node in ast.walk(value or ast.Pass()):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.module.exported.add(node.value)


def assigned(node: ast.stmt) -> list[ast.expr]:
    """List the targets that a statement assigns to, tuples taken apart."""
    match node:
        case ast.Assign():
            targets = node.targets
        case ast.AnnAssign() | ast.AugAssign():
            targets = [node.target]
        case _:
            return []
    return [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple | ast.List) else [t])]


def read_params(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    """Return the keywords a definition accepts; private ones and `self` are left out."""
    named = {a.arg for a in node.args.args + node.args.kwonlyargs if not a.arg.startswith("_")}
    return Function(named - {"self", "cls"}, node.args.kwarg is not None)


def spell(node: ast.expr | None) -> str | None:
    """Write an attribute chain as `a.b.c`; None if the expression is anything else."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{head}.{node.attr}" if (head := spell(node.value)) else None
    return None


# ---- build: the difference ------------------------------------------------------------------------------


def build(old_root: Path, new_root: Path) -> int:
    """Print the list of what only the new version has."""
    old, new = Torch(read_sources(old_root)), Torch(read_sources(new_root))
    for torch, wanted, root in ((old, OLD, old_root), (new, NEW, new_root)):
        if not f"{torch.version}.".startswith(f"{wanted}."):
            raise InputError(f"{root} holds torch {torch.version}; give torch {wanted} in its place")
    print(HEADER, end="")
    print("\n".join(sorted({*newer_names(old, new), *WITHOUT_STUB} - STUB_CAME_LATER)))
    return 0


def read_sources(root: Path) -> Iterator[tuple[str, str]]:
    """Yield path and text of every Python source of torch in a wheel, a site-packages or a torch folder."""
    if root.is_file():
        with zipfile.ZipFile(root) as wheel:
            for name in sorted(wheel.namelist()):
                if name.startswith("torch/") and name.endswith((".py", ".pyi")):
                    yield name, wheel.read(name).decode()
        return
    top = root / "torch" if (root / "torch").is_dir() else root
    if not (top / "version.py").is_file():
        raise InputError(f"no torch in {root}; give a wheel, a site-packages folder or the torch folder")
    for path in sorted(top.rglob("*.py*")):
        if path.suffix in (".py", ".pyi"):
            yield f"torch/{path.relative_to(top).as_posix()}", path.read_text(encoding="utf-8")


def newer_names(old: Torch, new: Torch) -> Iterator[str]:
    """Yield the lines of the list, in no order."""
    homes: dict[int, tuple[str, Class, Class]] = {}  # each class shared by both, under its shortest path
    for module in sorted(filter(is_ours, new.modules)):
        parent, _, last = module.rpartition(".")
        if module not in old.modules:
            if not parent or (parent in old.modules and old.look_up(parent, last) is None):
                yield module
            continue
        for name in public_names(new, new.modules[module]):
            path = f"{module}.{name}"
            if old.look_up(module, name) is None:
                yield path
                continue
            was, now = old.follow(Alias(module, name)), new.follow(Alias(module, name))
            if isinstance(was, Class) and isinstance(now, Class):
                homes[id(now)] = min(homes.get(id(now), (path, was, now)), (path, was, now), key=home_order)
                yield from new_keywords(old.constructor(was), new.constructor(now), path)
            else:
                yield from new_keywords(was, now, path)
    for path, was, now in homes.values():
        yield from newer_members(old, new, path, was, now)


def newer_members(old: Torch, new: Torch, path: str, was: Class, now: Class) -> Iterator[str]:
    """Yield what a class has gained, `by name` where the name alone is proof enough."""
    before = old.members(was)
    stored = set[str]().union(*(c.stored for c in old.bases(was)))
    for name, entry in new.members(now).items():
        if name.startswith("_"):
            continue
        if name not in before and name not in stored:
            by_name = isinstance(entry, Function) and "_" in name.strip("_") and name not in old.words
            yield f"{path}.{name}{' by name' * by_name}"
            continue
        for line in new_keywords(old.follow(before.get(name)), new.follow(entry), f"{path}.{name}"):
            keyword = line.rpartition("(")[2].rstrip("=)")
            by_name = "_" in name.strip("_") and (name, keyword) not in old.keywords
            yield f"{line}{' by name' * by_name}"


def new_keywords(was: object, now: object, path: str) -> Iterator[str]:
    """Yield the keywords a function has gained."""
    if isinstance(was, Function) and isinstance(now, Function) and not was.takes_any:
        yield from (f"{path}({p}=)" for p in now.params - was.params)


def home_order(home: tuple[str, Class, Class]) -> tuple[bool, int, str]:
    """Put `torch.Tensor` before `torch.TensorBase`, then short paths before long ones."""
    return (home[0] != "torch.Tensor", home[0].count("."), home[0])


def is_ours(module: str) -> bool:
    """Tell whether names of a module belong on the list."""
    return module in WRITTEN_ANYWAY or "._" not in module


def public_names(torch: Torch, module: Module) -> set[str]:
    """List the names of a module that a user might write."""
    names = set(module.names) | module.exported
    for star in module.stars:
        if source := torch.modules.get(star):
            names |= {n for n in {*source.names, *source.exported} if torch.look_up(module.name, n)}
    return {n for n in names if is_public(torch, module, n)}


def is_public(torch: Torch, module: Module, name: str) -> bool:
    """Tell whether a module offers a name, rather than having it for its own use."""
    entry = torch.look_up(module.name, name)
    if name.startswith("_"):  # such as torch._scaled_mm
        functions = torch.modules.get("torch._C._VariableFunctions", module).names
        return module.name == "torch" and isinstance(functions.get(name), Function)
    if entry is None or name in ("log", "logger") or len(name) == 1 or torch.is_foreign(entry):
        return False
    # An import is a re-export in a package's __init__; elsewhere it is how the module is written.
    return not isinstance(entry, Alias) or module.is_package or name in module.exported


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
