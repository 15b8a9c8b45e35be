"""Tensors: bit for bit, the same bytes each time, whole or not at all."""

from __future__ import annotations

import signal
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from conceptry.digests import Digest
from conceptry.errors import InvalidFileError, StoreError
from conceptry.formats.header import read_header
from conceptry.formats.tensors import (
    RawTensor,
    digest_tensor_file,
    digest_tensors,
    read_tensors,
    write_tensors,
)

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}


def some(dtype: str, shape: tuple[int, ...] = (3, 5)) -> RawTensor:
    values = np.linspace(-2, 2, int(np.prod(shape))).reshape(shape)
    return RawTensor.from_numpy(values.astype(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_survives_the_file_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensor = some(dtype)
    write_tensors(path, {"a": tensor, "scalar": some(dtype, ())})
    again = read_tensors(path)
    assert again["a"] == tensor
    assert again["scalar"].shape == ()
    assert again["a"].to_numpy().dtype == DTYPES[dtype]
    assert RawTensor.from_numpy(again["a"].to_numpy()) == tensor


def test_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = {"a": some("F16", (3, 1)), "b": some("F32"), "c": some("U8", (7,))}
    write_tensors(path, tensors)
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, tensors[name].to_numpy())


def test_every_tensor_lies_on_a_multiple_of_its_item_size(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": some("U8", (3,)), "b": some("F64"), "c": some("F16", (5,)), "d": some("F32")})
    header = read_header(path)
    assert header.data_start % 8 == 0
    for info in header.tensors.values():
        assert (header.data_start + info.start) % DTYPES[info.dtype].itemsize == 0


def test_same_input_in_any_order_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": some("F32"), "a": some("F16"), "c": some("F32")}
    write_tensors(tmp_path / "1", tensors, {"x": "1", "y": "2"})
    write_tensors(tmp_path / "2", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_tensor_digest_depends_on_names_shapes_types_and_values_only(tmp_path: Path) -> None:
    tensors = {"b": some("F32"), "a": some("F16")}
    digest = digest_tensors(tensors)
    write_tensors(tmp_path / "1", tensors, {"title": "one"})
    save_file({name: tensor.to_numpy() for name, tensor in tensors.items()}, tmp_path / "2", {"title": "two"})
    assert digest_tensor_file(tmp_path / "1") == digest_tensor_file(tmp_path / "2") == digest
    others = [
        {"b": some("F32"), "c": some("F16")},
        {"b": some("F32", (5, 3)), "a": some("F16")},
        {"b": some("F32"), "a": some("BF16")},
        {"b": some("F32"), "a": RawTensor("F16", (3, 5), bytes(30))},
        {"b": some("F32")},
    ]
    assert len({digest, *map(digest_tensors, others)}) == 6


def test_hash_of_modelspec_is_that_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"b": some("F32"), "a": some("F16")}, {"title": "imp"}, data_hash=True)
    header = read_header(path)
    data = path.read_bytes()[header.data_start :]
    assert header.metadata["modelspec.hash_sha256"] == f"0x{Digest.of_bytes(data).hex}"


def test_what_writing_returns_is_what_reading_finds(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    written = write_tensors(path, {"b": some("F32", (512, 1024)), "a": some("F16"), "c": some("F64")})
    assert written.size_bytes == path.stat().st_size
    assert written.sha256 == Digest.of_file(path)
    assert written.tensor_sha256 == digest_tensor_file(path) == digest_tensors(read_tensors(path))


def test_file_that_changes_under_its_tensors_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": some("F32", (512, 1024))})
    tensor = read_tensors(path)["a"]
    with path.open("r+b") as file:
        file.truncate(4096)
    for use in (
        lambda: tensor.data,
        tensor.is_finite,
        lambda: write_tensors(tmp_path / "out", {"a": tensor}),
    ):
        with pytest.raises(InvalidFileError, match="changed while it was read"):
            use()
    assert not (tmp_path / "out").exists()


def test_file_that_is_replaced_stays_readable_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": some("F32", (512, 1024))})
    tensor = read_tensors(path)["a"]
    write_tensors(path, {"a": some("F16")})
    assert tensor == some("F32", (512, 1024))


def test_reading_and_writing_hold_no_tensor_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {f"t{n}": some("F32", (1024, 4096)) for n in range(2)})
    tracemalloc.start()
    tensors = read_tensors(path)
    assert all(tensor.is_finite() for tensor in tensors.values())
    write_tensors(tmp_path / "again", tensors)
    digest_tensors(tensors)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert path.stat().st_size > 32 << 20
    assert peak_bytes < 28 << 20


def test_reshaping_keeps_the_bytes_and_refuses_another_size(tmp_path: Path) -> None:
    tensor = some("F32", (4, 6))
    assert tensor.reshape((2, 12)).data == tensor.data
    with pytest.raises(InvalidFileError):
        tensor.reshape((5, 5))


def test_only_named_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": some("F32"), "b": some("F16")})
    assert list(read_tensors(path, ["b"])) == ["b"]
    with pytest.raises(InvalidFileError, match="'c'"):
        read_tensors(path, ["c"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E5M2"])
def test_value_that_is_not_finite_is_never_written(value: float, dtype: str, tmp_path: Path) -> None:
    array = np.full(7, 0.5).astype(DTYPES[dtype])
    array[5] = value
    with pytest.raises(InvalidFileError, match="NaN or infinite"):
        write_tensors(tmp_path / "file", {"a": RawTensor.from_numpy(array)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_finite_means_what_numpy_says_it_means(dtype: str) -> None:
    unsigned = np.dtype(f"u{DTYPES[dtype].itemsize}")
    patterns = np.arange(0, 1 << (8 * unsigned.itemsize), 7, dtype=np.uint64).astype(unsigned)
    with np.errstate(invalid="ignore"):
        expected = np.isfinite(patterns.view(DTYPES[dtype]))
    assert [RawTensor(dtype, (), value.tobytes()).is_finite() for value in patterns] == expected.tolist()


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no such limits on Windows")
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreError, match="cannot write"):
            write_tensors(path, {"a": some("F32", (4096,))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        write_tensors(tmp_path / "none" / "file", {"a": some("F32")})


def test_name_that_would_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    for name in ("../a", "", "a" * 513, "\ud800"):
        with pytest.raises(InvalidFileError):
            write_tensors(tmp_path / "file", {name: some("F32")})
    assert list(tmp_path.iterdir()) == []


names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)
arrays = st.builds(
    lambda dtype, shape, data: RawTensor(
        dtype, tuple(shape), (data * 400)[: int(np.prod(shape)) * DTYPES[dtype].itemsize]
    ),
    st.sampled_from(["I64", "U8", "BOOL"]),
    st.lists(st.integers(0, 4), max_size=3),
    st.binary(min_size=2, max_size=9).map(lambda data: bytes(byte & 1 for byte in data)),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        names.filter(lambda name: name not in ("..", "__metadata__")), arrays, max_size=5
    ),
    metadata=st.dictionaries(names, names, max_size=4),
)
def test_whatever_is_written_is_read_back(
    tensors: dict[str, RawTensor], metadata: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    tensors = {name: tensor for name, tensor in tensors.items() if ".." not in name.split("/")}
    write_tensors(path, tensors, metadata)
    assert read_tensors(path) == tensors
    assert {key: read_header(path).metadata[key] for key in metadata} == metadata
