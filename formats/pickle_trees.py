"""What a pickle described, laid out flat: tensors by their joined path, plain values as JSON has them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from conceptry.errors import InvalidFileError
from conceptry.formats.header import MAX_NAME_BYTES, MAX_TENSORS, find_name_fault
from conceptry.formats.torch_pickles import Parameters, TensorRef

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 1_000_000
MAX_TEXT: Final = 1000
MAX_TOTAL_TEXT: Final = 1 << 18
BARE_NAME: Final = "tensor"


@dataclass(slots=True)
class Tree:
    """What a file holds: tensors by their joined path, and the plain values beside them as JSON has them."""

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    values: Any = None
    count: int = 0
    text: int = 0
    """How many characters the names and the values have so far."""


def flatten(value: Any) -> Tree:
    """Returns the tensors and the plain values of what a pickle described.

    The name of a tensor is its path joined by dots; a bare tensor is called ``tensor``. Texts that are longer than any
    name or note are left out, and numbers that are not finite.

    Raises:
        InvalidFileError: if it is nested too deeply or too large, or two tensors would share a name.
    """
    tree = Tree()
    tree.values = _walk(tree, value, ())
    return tree


def _walk(tree: Tree, value: Any, path: tuple[str, ...]) -> Any:
    tree.count += 1
    # One list that stands in another many times over, at many levels, is counted each time.
    if len(path) > MAX_DEPTH or tree.count > MAX_VALUES:
        raise InvalidFileError(
            f"its pickle is nested deeper than {MAX_DEPTH} or has over {MAX_VALUES} values"
        )
    if type(value) is TensorRef:
        return _add_tensor(tree, path, value)
    if type(value) is Parameters:
        value = value.items
    if type(value) is dict:
        items = {str(key): _walk(tree, item, (*path, str(key))) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not None and _fits(tree, key)} or None
    if type(value) in (list, tuple):
        found = [_walk(tree, item, (*path, str(index))) for index, item in enumerate(value)]
        return found if any(item is not None for item in found) else None
    if type(value) is float:
        return value if math.isfinite(value) else None
    if type(value) is str:
        return value if _fits(tree, value) else None
    return value if type(value) in (int, bool) else None


def _fits(tree: Tree, text: str) -> bool:
    if len(text) > MAX_TEXT or tree.text + len(text) > MAX_TOTAL_TEXT:
        return False
    tree.text += len(text)
    return True


def _add_tensor(tree: Tree, path: tuple[str, ...], tensor: TensorRef) -> None:
    fault = "it is too long" if sum(map(len, path)) > MAX_NAME_BYTES else None
    name = ".".join(path) if path and not fault else BARE_NAME
    fault = fault or find_name_fault(name)
    if fault:
        raise InvalidFileError(f"a tensor of its pickle cannot keep its name: {fault}")
    if name in tree.tensors:
        raise InvalidFileError(f"two of its tensors would be called {name[:80]!r}")
    if len(tree.tensors) >= MAX_TENSORS:
        raise InvalidFileError(f"it has more than {MAX_TENSORS} tensors")
    tree.tensors[name] = tensor
