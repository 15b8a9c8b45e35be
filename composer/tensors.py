"""Raw tensors of a file to torch tensors and back, bit for bit."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from conceptry.errors import InvalidFileError
from conceptry.formats.tensors import RawTensor

_TORCH_BY_NAME: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
_NAME_BY_TORCH: Final = {dtype: name for name, dtype in _TORCH_BY_NAME.items()}


def to_torch(
    raw: RawTensor, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Tensor:
    """Returns a tensor of its own memory with the values of ``raw``, moved and converted where asked.

    Raises:
        InvalidFileError: if torch has no such dtype.
    """
    found = _TORCH_BY_NAME.get(raw.dtype)
    if found is None:
        raise InvalidFileError(f"torch holds no {raw.dtype}")
    if not raw.size_bytes:
        return torch.empty(raw.shape, dtype=dtype or found, device=device)
    # Into memory of torch's own alignment: kernels round differently on other addresses.
    own = torch.empty(raw.shape, dtype=dtype or found)
    own.copy_(torch.frombuffer(bytearray(raw.data), dtype=found).reshape(raw.shape))
    return own.to(device=device)


def from_torch(tensor: Tensor) -> RawTensor:
    """Returns the dtype, shape and little-endian bytes of ``tensor``.

    Raises:
        InvalidFileError: if safetensors has no such dtype.
    """
    borrowed = borrow_torch(tensor)
    return RawTensor(borrowed.dtype, borrowed.shape, bytes(borrowed.data))


def borrow_torch(tensor: Tensor) -> RawTensor:
    """Returns ``from_torch`` without a copy where the tensor lies in the processor's memory: it must not be written to.

    Raises:
        InvalidFileError: if safetensors has no such dtype.
    """
    name = _NAME_BY_TORCH.get(tensor.dtype)
    if name is None:
        raise InvalidFileError(f"safetensors holds no {tensor.dtype}")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return RawTensor(name, tuple(tensor.shape), data)
