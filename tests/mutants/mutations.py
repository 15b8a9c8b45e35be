"""Small wrong changes of a module, one at a time: what the tests of a careful project must notice."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


@dataclass(frozen=True, slots=True)
class Mutation:
    """One wrong change: which node, counted in the order of the walk, and what is done to it."""

    place: int
    line: int
    function: str
    what: str

    @property
    def key(self) -> str:
        """What tells it from all others of its module while that stays as it is."""
        return f"{self.place}:{self.what}"


def list_mutations(source: str) -> list[Mutation]:
    """Return every mutation of a module, in the order of its text.

    Left alone, since no test should mind: annotations, docstrings, the words of errors, imports for types alone,
    decorators, and the caches and slots of classes.
    """
    tree = ast.parse(source)
    skipped = _list_skipped(tree)
    functions = _name_functions(tree)
    found = []
    for place, node in enumerate(ast.walk(tree)):
        if id(node) not in skipped:
            line = getattr(node, "lineno", 0)
            function = functions.get(id(node), "")
            found += [Mutation(place, line, function, what) for what in _choose(node)]
    return sorted(found, key=lambda one: (one.line, one.place, one.what))


def apply_mutation(source: str, mutation: Mutation) -> ast.Module:
    """Return the module with one wrong change."""
    tree = ast.parse(source)
    node = next(node for place, node in enumerate(ast.walk(tree)) if place == mutation.place)
    changed = _change(node, mutation.what)
    _Replace(node, changed).visit(tree)
    return ast.fix_missing_locations(tree)


def describe_change(source: str, mutation: Mutation) -> tuple[str, str]:
    """Return the node before and after, as text."""
    node = next(node for place, node in enumerate(ast.walk(ast.parse(source))) if place == mutation.place)
    before = ast.unparse(node)
    return before[:120], ast.unparse(ast.fix_missing_locations(_change(node, mutation.what)))[:120]


def _choose(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        yield "compare"
    elif isinstance(node, ast.BoolOp):
        yield "and-or"
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _is_type(node):
        yield "arithmetic"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "drop-not"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flip"
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield "plus-one"
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "negate-condition"
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "return-none"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "drop-call"
    elif isinstance(node, ast.Break | ast.Continue):
        yield "break-continue"
    elif isinstance(node, ast.Raise) and node.exc is not None:
        yield "drop-raise"


def _change(node: ast.AST, what: str) -> ast.AST:
    new = copy.deepcopy(node)
    if isinstance(new, ast.Compare):
        new.ops[0] = _COMPARISONS[type(new.ops[0])]()
    elif isinstance(new, ast.BoolOp):
        new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
    elif isinstance(new, ast.BinOp):
        new.op = _ARITHMETIC[type(new.op)]()
    elif isinstance(new, ast.UnaryOp):
        return new.operand
    elif isinstance(new, ast.Constant):
        new.value = not new.value if isinstance(new.value, bool) else int(str(new.value)) + 1
    elif isinstance(new, ast.If | ast.IfExp | ast.While):
        new.test = ast.UnaryOp(op=ast.Not(), operand=new.test)
    elif isinstance(new, ast.Return):
        new.value = ast.Constant(value=None)
    elif isinstance(new, ast.Break):
        return ast.copy_location(ast.Continue(), new)
    elif isinstance(new, ast.Continue):
        return ast.copy_location(ast.Break(), new)
    elif isinstance(new, ast.Expr | ast.Raise):
        return ast.copy_location(ast.Pass(), new)
    return new


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_type(node: ast.BinOp) -> bool:
    """Whether it joins types: of names with capitals, a union."""
    return isinstance(node.op, ast.BitOr) and all(
        ast.unparse(side).rpartition(".")[2][:1].isupper() or isinstance(side, ast.BinOp)
        for side in (node.left, node.right)
    )


def _list_skipped(tree: ast.Module) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        for part in _list_unminded(node):
            found |= {id(inner) for inner in ast.walk(part)}
    return found


def _list_unminded(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
        yield node.annotation
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield from node.decorator_list
        yield from [] if isinstance(node, ast.ClassDef) or node.returns is None else [node.returns]
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        yield node
    if isinstance(node, ast.JoinedStr):
        yield node
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield from node.exc.args
        yield from node.exc.keywords


def _name_functions(tree: ast.Module) -> dict[int, str]:
    names: dict[int, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for inner in ast.walk(node):
                names[id(inner)] = node.name if isinstance(node, ast.ClassDef) else f"{node.name}()"
    return names
