"""Several modules of this package as one file: the definitions that are used, in order, with their comments.

A definition is kept if one that is kept names it; a method of a class is kept if something kept names it, or if
Python or torch calls it by themselves. Text is cut out of the sources as it stands, so the result reads as they do.
Back ends of ops are left out: what remains of an op is its reference.
"""

import ast
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

PACKAGE = "ling"
_CHOOSERS = ("op", "coarse_op")
"""Decorators that choose a back end."""
_CALLED_BY_OTHERS = ("forward", "reset_parameters", "_apply")


@dataclass
class _Method:
    name: str
    lines: tuple[int, int]
    """Half-open range of line indices, decorators and the comments above included."""
    names: set[str]


@dataclass
class _Definition:
    """A statement at the top of a module, with the string below it if that documents it."""

    module: str
    defines: tuple[str, ...]
    lines: tuple[int, int]
    names: set[str]
    """Those it uses; without `methods`."""
    methods: list[_Method] = field(default_factory=list)
    """Those that are kept only when something names them."""


@dataclass
class Inlined:
    """The text of some modules' used definitions, and what it imports from elsewhere."""

    imports: list[str]
    body: str
    missing: set[str]
    """Names of this package that the text uses and does not define."""
    names: set[str]
    """All that the text names, methods of those among it."""
    defined: set[str]


def inline(
    modules: Sequence[str], roots: Iterable[str], *, whole: Iterable[str] = (), called: Iterable[str] = ()
) -> Inlined:
    """Put what `roots` need of `modules` into one text.

    modules  dotted names, each after those it imports
    roots    names that are wanted
    whole    modules whose classes keep all their methods
    called   names of methods that are called from outside
    """
    sources = {name: _source(name) for name in modules}
    trees = {name: ast.parse(text) for name, text in sources.items()}
    definitions = [
        d for name in modules for d in _definitions(name, trees[name], sources[name], name not in set(whole))
    ]
    _check_unique(definitions)
    used = _used(definitions, set(roots), set(called))
    parts = []
    for name in modules:
        kept = [
            _cut(d, sources[name], used | {*called}) for d in definitions if d.module == name and used & {*d.defines}
        ]
        if kept:
            parts.append(_spaced([_banner(name, trees[name]), *kept]))
    external, own = _imports(trees.values(), used)
    defined = {name for d in definitions for name in d.defines}
    return Inlined(external, "\n\n\n".join(parts), own - defined, used, defined)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def _definitions(module: str, tree: ast.Module, source: str, prune: bool) -> list[_Definition]:
    found: list[_Definition] = []
    lines = source.splitlines()
    for index, node in enumerate(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Expr):  # a docstring: the module's, or of the assignment above
            if index and found:
                found[-1].lines = (found[-1].lines[0], _end(node))
            continue
        methods = _prunable(node, lines) if prune and isinstance(node, ast.ClassDef) else []
        apart = {id(n) for m in methods for n in ast.walk(_method(node, m.name))}
        names = _names(n for n in ast.walk(node) if id(n) not in apart)
        if isinstance(node, ast.FunctionDef):  # the decorator that chooses a back end stays behind
            names -= {n for d in node.decorator_list if _is_op(d) for n in _names(ast.walk(d))}
        found.append(_Definition(module, _defined(node), (_start(node, lines), _end(node)), names, methods))
    return found


def _prunable(node: ast.ClassDef, lines: list[str]) -> list[_Method]:
    return [
        _Method(m.name, (_start(m, lines), _end(m)), _names(ast.walk(m)))
        for m in node.body
        if isinstance(m, ast.FunctionDef) and not m.name.startswith("__") and m.name not in _CALLED_BY_OTHERS
    ]


def _method(node: ast.stmt, name: str) -> ast.FunctionDef:
    assert isinstance(node, ast.ClassDef)
    return next(m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == name)


def _used(definitions: list[_Definition], roots: set[str], called: set[str]) -> set[str]:
    used: set[str] = set()
    new = roots
    while new:
        used |= new
        kept = [d for d in definitions if used & {*d.defines}]
        named = {n for d in kept for n in d.names}
        named |= {n for d in kept for m in d.methods if m.name in used | called for n in m.names}
        new = named - used
    return used


def _cut(definition: _Definition, source: str, used: set[str]) -> str:
    lines = source.splitlines()
    dropped: set[int] = set()
    for method in definition.methods:
        if method.name not in used:
            start, end = method.lines
            while not lines[start - 1].strip():
                start -= 1
            dropped |= {*range(start, end)}
    start, end = definition.lines
    kept = [lines[i] for i in range(start, end) if i not in dropped]
    return "\n".join(line for line in kept if not line.startswith(tuple(f"@{name}(" for name in _CHOOSERS)))


def _spaced(texts: list[str]) -> str:
    """Join a banner and definitions: functions and classes stand apart, assignments in a row do not."""
    text = texts[0]
    for before, here in pairwise(texts):
        apart = 3 if _is_block(before) or _is_block(here) else 2 if before.startswith("# ----") else 1
        text += "\n" * apart + here
    return text


def _is_block(text: str) -> bool:
    return any(line.startswith(("def ", "class ")) for line in text.splitlines())


def _imports(trees: Iterable[ast.Module], used: set[str]) -> tuple[list[str], set[str]]:
    """Return import lines for the used names of other packages, and the used names of this one."""
    plain: set[str] = set()
    by_module: dict[str, set[str]] = {}
    own: set[str] = set()
    for node in (node for tree in trees for node in tree.body):
        if isinstance(node, ast.Import):
            plain |= {f"import {a.name}" for a in node.names if a.name.split(".")[0] in used}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, ast.dump(node)
            assert not any(a.asname for a in node.names), ast.dump(node)
            names = {a.name for a in node.names} & used
            if node.module.split(".")[0] == PACKAGE:
                own |= names
            else:
                by_module.setdefault(node.module, set()).update(names)
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in by_module.items() if names]
    return [*sorted(plain), *sorted(lines)], own


def _banner(module: str, tree: ast.Module) -> str:
    text = ast.get_docstring(tree) or ""
    rule = f"# ---- {module} ".ljust(100, "-")
    return "\n".join([rule, *(f"# {line}".rstrip() for line in text.splitlines())])


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)  # an annotation in quotes
    return names


def _defined(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    assert targets, f"line {node.lineno}: only definitions and assignments can be put together"
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


def _is_op(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id in _CHOOSERS


def _start(node: ast.stmt, lines: list[str]) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    start = min([node.lineno, *(d.lineno for d in decorators)]) - 1
    while start and lines[start - 1].lstrip().startswith("#") and "----" not in lines[start - 1]:
        start -= 1
    return start


def _end(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno


def _check_unique(definitions: list[_Definition]) -> None:
    homes: dict[str, str] = {}
    for definition in definitions:
        for name in definition.defines:
            assert name not in homes, f"{name} is defined in {homes[name]} and {definition.module}; rename one"
            homes[name] = definition.module
