"""What PyTorch's pickles describe: tensors by storage, place, shape and strides; plain values; nothing else.

A name in a pickle becomes an inert mark by the table MARKS; a call of a mark is answered by our own function, which
makes a description. Nothing of PyTorch is imported and nothing that a file names is ever looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from conceptry.errors import InvalidFileError
from conceptry.formats.header import DTYPE_BYTES, MAX_DIMENSIONS
from conceptry.formats.pickle_reader import check_key

MAX_ELEMENTS: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage that a pickle refers to: the name of its bytes, what they hold, and how many values."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a view of a storage; ``offset`` and ``strides`` count elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """What its values take when they lie side by side."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def span(self) -> int:
        """How many elements lie between its first and its last value, both counted."""
        if not math.prod(self.shape):
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether its values lie side by side in row-major order."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and step != expected:
                return not math.prod(self.shape)
            expected *= size
        return True


@dataclass(frozen=True, slots=True)
class Mark:
    """The inert thing that stands for a name in a pickle."""

    name: str
    call: Callable[[tuple[Any, ...]], Any] | None = None
    dtype: str | None = None
    """For a storage class or a dtype: what it holds."""


@dataclass(frozen=True, slots=True)
class Inert:
    """An object that is known to be harmless and of no use here; its name alone is kept."""

    name: str


@dataclass(slots=True)
class Parameters:
    """A ``ParameterDict``: its state arrives after it was made."""

    items: dict[str | int, Any] = field(default_factory=dict)


# --- calls ---------------------------------------------------------------------------------------------------------


def _refuse_call(name: str) -> InvalidFileError:
    return InvalidFileError(f"its pickle calls {name} in a way that PyTorch does not")


def _make_dict(arguments: tuple[Any, ...]) -> dict[str | int, Any]:
    if not arguments:
        return {}
    pairs = arguments[0]
    if len(arguments) > 1 or type(pairs) is not list:
        raise _refuse_call("OrderedDict")
    found: dict[str | int, Any] = {}
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise _refuse_call("OrderedDict")
        found[check_key(pair[0])] = pair[1]
    return found


def _make_tensor(arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_tensor(storage, offset, size, stride)`` and ``_v2``, which adds three settings of training."""
    if not 4 <= len(arguments) <= 7 or type(arguments[0]) is not StorageRef:
        raise _refuse_call("_rebuild_tensor")
    storage = arguments[0]
    return _check_view(TensorRef(storage, storage.dtype, *_check_place(arguments[1:4])))


def _make_tensor_v3(arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_tensor_v3(untyped storage, offset, size, stride, requires_grad, hooks, dtype, metadata)``."""
    if not 7 <= len(arguments) <= 8 or type(arguments[0]) is not StorageRef or type(arguments[6]) is not Mark:
        raise _refuse_call("_rebuild_tensor_v3")
    storage, dtype = arguments[0], arguments[6].dtype
    if storage.dtype != "U8" or dtype is None:
        raise _refuse_call("_rebuild_tensor_v3")
    return _check_view(TensorRef(storage, dtype, *_check_place(arguments[1:4])))


def _check_place(values: tuple[Any, ...]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    offset, shape, strides = values
    numbers = (offset, *shape, *strides) if type(shape) is tuple and type(strides) is tuple else (None,)
    if not all(type(number) is int and 0 <= number < MAX_ELEMENTS for number in numbers):
        raise InvalidFileError("its pickle has a tensor of no possible shape")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise InvalidFileError(
            f"its pickle has a tensor of {len(shape)} dimensions and {len(strides)} strides"
        )
    return offset, shape, strides


def _check_view(tensor: TensorRef) -> TensorRef:
    item, storage = DTYPE_BYTES[tensor.dtype], tensor.storage
    held = storage.elements * DTYPE_BYTES[storage.dtype]
    if math.prod(tensor.shape) > MAX_ELEMENTS or (tensor.offset + tensor.span) * item > held:
        raise InvalidFileError(
            f"its pickle has a tensor {list(tensor.shape)} of {tensor.dtype} that reaches beyond its {held} bytes"
        )
    return tensor


def _make_parameter(arguments: tuple[Any, ...]) -> TensorRef:
    if not 1 <= len(arguments) <= 4 or type(arguments[0]) is not TensorRef:
        raise _refuse_call("_rebuild_parameter")
    return arguments[0]


def _make_from_type(arguments: tuple[Any, ...]) -> Any:
    """``_rebuild_from_type_v2(function, type, arguments, state)``: a tensor that carries Python attributes."""
    if len(arguments) != 4 or type(arguments[0]) is not Mark or type(arguments[2]) is not tuple:
        raise _refuse_call("_rebuild_from_type_v2")
    call = arguments[0].call
    if call not in (_make_tensor, _make_tensor_v3, _make_parameter):
        raise _refuse_call("_rebuild_from_type_v2")
    return call(arguments[2])


def _make_list(arguments: tuple[Any, ...]) -> list[Any]:
    if len(arguments) != 1 or type(arguments[0]) not in (list, tuple):
        raise _refuse_call("set")
    return list(arguments[0])


def _make_bytes(arguments: tuple[Any, ...]) -> bytes:
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        raise _refuse_call("encode")
    return arguments[0].encode("latin1", "replace")


def _make_device(arguments: tuple[Any, ...]) -> str:
    if not arguments or type(arguments[0]) is not str:
        raise _refuse_call("device")
    return arguments[0]


def _make_parameters(arguments: tuple[Any, ...]) -> Parameters:
    if arguments:
        raise _refuse_call("ParameterDict")
    return Parameters()


# --- names ---------------------------------------------------------------------------------------------------------

_STORAGES: Final = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_DTYPES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_CALLS: Final[Mapping[str, Callable[[tuple[Any, ...]], Any]]] = {
    "collections.OrderedDict": _make_dict,
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_tensor_v3": _make_tensor_v3,
    "torch._utils._rebuild_parameter": _make_parameter,
    "torch._utils._rebuild_parameter_with_state": _make_parameter,
    "torch._tensor._rebuild_from_type_v2": _make_from_type,
    "torch.Size": _make_list,
    "torch.device": _make_device,
    "torch.nn.modules.container.ParameterDict": _make_parameters,
    "builtins.set": _make_list,
    "__builtin__.set": _make_list,
    "_codecs.encode": _make_bytes,
}
_TYPES: Final = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch._tensor.Tensor")
# Leftovers of training that old files carry beside their tensors.
_HARMLESS: Final = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
MARKS: Final[Mapping[str, Mark]] = {
    **{name: Mark(name, call) for name, call in _CALLS.items()},
    **{f"torch.{name}": Mark(f"torch.{name}", dtype=dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": Mark(f"torch.{name}", dtype=dtype) for name, dtype in _DTYPES.items()},
    "torch.storage.UntypedStorage": Mark("torch.storage.UntypedStorage", dtype="U8"),
    **{name: Mark(name) for name in _TYPES},
    **{name: Mark(name, lambda arguments, name=name: Inert(name)) for name in _HARMLESS},  # type: ignore[misc]
}


class TorchBuilder:
    """A Builder of the descriptions above; ``dropped`` names the harmless objects that were left out."""

    def __init__(self) -> None:
        self.dropped: set[str] = set()
        self.storages: set[StorageRef] = set()

    def find(self, module: str, name: str) -> Any:
        """Returns the mark of a name in MARKS. Raises InvalidFileError for every other."""
        mark = MARKS.get(f"{module}.{name}")
        if mark is None:
            raise InvalidFileError(
                f"its pickle names {f'{module}.{name}'[:120]!r}, which no tensor file needs; nothing of it was run",
                hint="do not open this file with other programs",
            )
        return mark

    def call(self, mark: Any, arguments: tuple[Any, ...]) -> Any:
        """Returns the description that our function for ``mark`` makes. Raises InvalidFileError."""
        if type(mark) is not Mark or mark.call is None:
            raise InvalidFileError("its pickle calls something that is no function of PyTorch's files")
        value = mark.call(arguments)
        if type(value) is Inert:
            self.dropped.add(value.name)
        return value

    def build(self, value: Any, state: Any) -> Any:
        """Returns ``value``: state counts for parameters only. Raises InvalidFileError."""
        if type(value) is Parameters:
            items = state.get("_parameters") if type(state) is dict else None
            if type(items) is not dict:
                raise InvalidFileError("its pickle has a ParameterDict without parameters")
            value.items = items
        elif type(value) is not Inert and type(value) is not dict:
            raise InvalidFileError("its pickle gives a state to what has none")
        return value

    def load(self, reference: Any) -> StorageRef:
        """Returns the storage that ``('storage', class, key, device, elements)`` refers to. Raises InvalidFileError."""
        if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
            raise InvalidFileError("its pickle refers to something that is no storage")
        mark, key, _, elements = reference[1:5]
        if len(reference) == 6 and reference[5] is not None:
            raise InvalidFileError("its pickle has a view of a storage, as PyTorch before 0.4 wrote them")
        if type(mark) is not Mark or mark.dtype is None or type(key) is not str or type(elements) is not int:
            raise InvalidFileError("its pickle has a storage of no known class")
        if not 0 <= elements < MAX_ELEMENTS or not 0 < len(key) <= 64:
            raise InvalidFileError(f"its pickle has a storage of {elements} elements called {key[:80]!r}")
        found = StorageRef(key, mark.dtype, elements)
        self.storages.add(found)
        return found
