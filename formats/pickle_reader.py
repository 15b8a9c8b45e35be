"""Pickles read as data: a small machine for the opcodes that tensor files use, which can build nothing that acts.

It knows numbers, strings, lists, tuples, dictionaries, and whatever its caller makes of names and calls. It imports
nothing, calls nothing that the file names, and keeps every count within a limit; an opcode that is not in the table
ends the reading (docs/adr/0007).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from conceptry.errors import InvalidFileError

MAX_PICKLE_BYTES: Final = 32 << 20
MAX_STEPS: Final = 4_000_000
MAX_INTEGER_BYTES: Final = 16
MAX_KEY: Final = 1 << 31
MAX_NAME_BYTES: Final = 256


class Builder(Protocol):
    """What the caller makes of the four opcodes that would run code in Python's own reader."""

    def find(self, module: str, name: str) -> Any:
        """Returns the inert mark that stands for a name. Raises InvalidFileError for any that is not known."""

    def call(self, mark: Any, arguments: tuple[Any, ...]) -> Any:
        """Returns the description of what a call of that name would have made. Raises InvalidFileError."""

    def build(self, value: Any, state: Any) -> Any:
        """Returns ``value`` with the state that belongs to it. Raises InvalidFileError."""

    def load(self, reference: Any) -> Any:
        """Returns what a persistent id refers to. Raises InvalidFileError."""


_MARK: Final = object()


@dataclass(slots=True)
class _Machine:
    data: bytes
    position: int
    builder: Builder
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    done: bool = False

    def take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise InvalidFileError(f"its pickle is cut off: {count} bytes are wanted after {self.position}")
        found = self.data[self.position : end]
        self.position = end
        return found

    def take_line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_NAME_BYTES + 1)
        if end < 0:
            raise InvalidFileError(f"its pickle has a name longer than {MAX_NAME_BYTES} bytes")
        return _decode(self.take(end + 1 - self.position)[:-1])

    def unpack(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise InvalidFileError("its pickle takes a value that was never given")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise InvalidFileError("its pickle takes a value that was never given")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise InvalidFileError("its pickle closes a group that was never opened")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found


def read_pickle(data: bytes, builder: Builder, start: int = 0) -> tuple[Any, int]:
    """Returns the value of the pickle that begins at ``start``, and the position after it; nothing is run.

    Raises:
        InvalidFileError: if it is cut off, uses an opcode or a name that no tensor file needs, or passes a limit.
    """
    machine = _Machine(data, start, builder)
    for _ in range(MAX_STEPS):
        code = machine.take(1)[0]
        step = _OPCODES.get(code)
        if step is None:
            raise InvalidFileError(
                f"its pickle has the opcode {code:#04x} at byte {machine.position - 1}, which no tensor file uses"
            )
        step(machine)
        if machine.done:
            value = machine.pop()
            if machine.stack:
                raise InvalidFileError("its pickle leaves values over")
            return value, machine.position
    raise InvalidFileError(f"its pickle has more than {MAX_STEPS} steps")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError("its pickle has a string that is no UTF-8") from error


# --- numbers and strings -------------------------------------------------------------------------------------------


def _push_number(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.unpack(form))


def _push_constant(value: bool | None) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _push_string(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(_decode(machine.take(machine.unpack(form))))


def _push_bytes(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.unpack(form)))


def _push_integer(machine: _Machine) -> None:
    count = machine.unpack("<B")
    if count > MAX_INTEGER_BYTES:
        raise InvalidFileError(f"its pickle has a whole number of {count} bytes")
    machine.stack.append(int.from_bytes(machine.take(count), "little", signed=True))


# --- containers ----------------------------------------------------------------------------------------------------


def _push_empty(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make())


def _push_mark(machine: _Machine) -> None:
    machine.stack.append(_MARK)


def _make_tuple(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return step


def _make_marked_tuple(machine: _Machine) -> None:
    machine.stack.append(tuple(machine.pop_to_mark()))


def _append(machine: _Machine) -> None:
    value = machine.pop()
    _extend(machine, [value])


def _appends(machine: _Machine) -> None:
    _extend(machine, machine.pop_to_mark())


def _extend(machine: _Machine, values: list[Any]) -> None:
    target = machine.top()
    if type(target) is not list:
        raise InvalidFileError("its pickle appends to what is no list")
    target.extend(values)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _update(machine, [key, value])


def _set_items(machine: _Machine) -> None:
    _update(machine, machine.pop_to_mark())


def _update(machine: _Machine, pairs: list[Any]) -> None:
    target = machine.top()
    if type(target) is not dict or len(pairs) % 2:
        raise InvalidFileError("its pickle sets items of what is no dictionary")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        target[check_key(key)] = value


def check_key(key: Any) -> str | int:
    """Returns the key of a dictionary. Raises InvalidFileError unless it is text or a small whole number."""
    # Greater numbers can be chosen so that they all collide in a dictionary.
    if type(key) is str or (type(key) is int and -MAX_KEY <= key < MAX_KEY):
        return key
    raise InvalidFileError(
        f"its pickle has a key that is neither text nor a small number: {type(key).__name__}"
    )


# --- the memo ------------------------------------------------------------------------------------------------------


def _put(form: str) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        value = machine.top()
        if value is _MARK:
            raise InvalidFileError("its pickle keeps the opening of a group")
        machine.memo[machine.unpack(form)] = value

    return step


def _get(form: str) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        index = machine.unpack(form)
        if index not in machine.memo:
            raise InvalidFileError(f"its pickle recalls entry {index}, which was never kept")
        machine.stack.append(machine.memo[index])

    return step


def _memoize(machine: _Machine) -> None:
    if machine.top() is _MARK:
        raise InvalidFileError("its pickle keeps the opening of a group")
    machine.memo[len(machine.memo)] = machine.top()


# --- what would run code: handed to the builder, which runs none -----------------------------------------------------


def _global(machine: _Machine) -> None:
    module = machine.take_line()
    machine.stack.append(machine.builder.find(module, machine.take_line()))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str or len(name) + len(module) > MAX_NAME_BYTES:
        raise InvalidFileError("its pickle names something by what is no name")
    machine.stack.append(machine.builder.find(module, name))


def _reduce(machine: _Machine) -> None:
    arguments, mark = machine.pop(), machine.pop()
    if type(arguments) is not tuple:
        raise InvalidFileError("its pickle calls with what is no tuple")
    machine.stack.append(machine.builder.call(mark, arguments))


def _build(machine: _Machine) -> None:
    state, value = machine.pop(), machine.pop()
    machine.stack.append(machine.builder.build(value, state))


def _persistent(machine: _Machine) -> None:
    machine.stack.append(machine.builder.load(machine.pop()))


# --- framing -------------------------------------------------------------------------------------------------------


def _protocol(machine: _Machine) -> None:
    if machine.unpack("<B") > 5:
        raise InvalidFileError("its pickle is of a protocol later than 5")


def _frame(machine: _Machine) -> None:
    if machine.unpack("<Q") > len(machine.data) - machine.position:
        raise InvalidFileError("its pickle is cut off inside a frame")


def _stop(machine: _Machine) -> None:
    machine.done = True


# Left out on purpose: protocol 0 text, INST, OBJ, extension codes, NEWOBJ_EX, sets, out-of-band buffers, DUP and POP.
_OPCODES: Final[Mapping[int, Callable[[_Machine], None]]] = {
    0x80: _protocol,
    0x95: _frame,
    ord("."): _stop,
    ord("N"): _push_constant(None),
    0x88: _push_constant(True),
    0x89: _push_constant(False),
    ord("J"): _push_number("<i"),
    ord("K"): _push_number("<B"),
    ord("M"): _push_number("<H"),
    ord("G"): _push_number(">d"),
    0x8A: _push_integer,
    ord("T"): _push_string("<I"),
    ord("U"): _push_string("<B"),
    ord("X"): _push_string("<I"),
    0x8C: _push_string("<B"),
    0x8D: _push_string("<Q"),
    ord("B"): _push_bytes("<I"),
    ord("C"): _push_bytes("<B"),
    0x8E: _push_bytes("<Q"),
    ord("]"): _push_empty(list),
    ord("}"): _push_empty(dict),
    ord(")"): _push_empty(tuple),
    ord("("): _push_mark,
    ord("t"): _make_marked_tuple,
    0x85: _make_tuple(1),
    0x86: _make_tuple(2),
    0x87: _make_tuple(3),
    ord("a"): _append,
    ord("e"): _appends,
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("q"): _put("<B"),
    ord("r"): _put("<I"),
    0x94: _memoize,
    ord("h"): _get("<B"),
    ord("j"): _get("<I"),
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _reduce,
    ord("b"): _build,
    ord("Q"): _persistent,
}
