"""What a file is, told from its bytes: each accident and each trap is named for what it is, and nothing is kept."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptry.errors import InvalidFileError
from conceptry.formats.containers import CONTAINERS, SNIFFED_BYTES, recognise_container
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, declare_base
from conceptry.formats.importing import import_file
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.names import ConceptName, parse_placeholder, parse_version
from tests.formats.hostile import archive, dictionary, legacy, program, tensor, text


def make_tar(member: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        file.addfile(tarfile.TarInfo(member))
    return buffer.getvalue()


def make_zip(member: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(member, "x")
    return buffer.getvalue()


def make_safetensors() -> bytes:
    head = json.dumps({"emb_params": {"dtype": "F32", "shape": [1, 768], "data_offsets": [0, 3072]}}).encode()
    return len(head).to_bytes(8, "little") + head + np.linspace(-1, 1, 768, dtype="<f4").tobytes()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 5\n" % (b"0" * 64)
FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "empty": (lambda: b"", "empty", "an empty file"),
    "Git LFS pointer": (lambda: LFS, "lfs_pointer", "Git LFS pointer"),
    "HTML page": (lambda: b"\xef\xbb\xbf <!DOCTYPE HTML><title>403</title>", "html", "HTML page"),
    "XML answer of a bucket": (lambda: b"<?xml version='1.0'?><Error/>", "html", "HTML page"),
    "GGUF": (lambda: b"GGUF\3\0\0\0" + bytes(64), "gguf", "GGUF"),
    "zip": (lambda: make_zip("lora.safetensors"), "zip", "zip archive"),
    "empty zip": (lambda: b"PK\5\6" + bytes(18), "zip", "zip archive"),
    "7-Zip": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(64), "7z", "7-Zip"),
    "RAR": (lambda: b"Rar!\x1a\x07\x01\0" + bytes(64), "rar", "RAR"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(64), "gzip", "gzip"),
    "xz": (lambda: b"\xfd7zXZ\0" + bytes(64), "xz", "xz file"),
    "Zstandard": (lambda: b"\x28\xb5\x2f\xfd" + bytes(64), "zstd", "Zstandard"),
    "bzip2": (lambda: b"BZh9" + b"\xff" * 64, "bzip2", "bzip2"),
    "tar": (lambda: make_tar("lora.safetensors"), "tar", "tar archive"),
    "tar of an early PyTorch": (lambda: make_tar("sys_info"), "torch_tar", "tar archive of pickles"),
    "text": (lambda: "my word is <imp> – ü\n".encode() * 40, "text", "text file"),
    "JSON": (lambda: b'{"trigger": "imp"}', "json", "JSON document"),
    "JPEG": (lambda: b"\xff\xd8\xff\xe0" + bytes(64), "jpeg", "JPEG"),
    "WebP": (lambda: b"RIFF\x40\0\0\0WEBPVP8L" + bytes(64), "webp", "WebP"),
    "GIF": (lambda: b"GIF89a" + bytes(64), "gif", "GIF"),
    "PDF": (lambda: b"%PDF-1.7\n\xff" + bytes(64), "pdf", "PDF"),
    "NumPy": (lambda: b"\x93NUMPY\x01\0" + bytes(64), "numpy", "NumPy"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "hdf5", "HDF5"),
    "noise": (lambda: bytes(range(128, 256)) * 8, "unknown", "no format that is known"),
    "zeros": (lambda: bytes(1000), "unknown", "no format that is known"),
    "plain pickle": (lambda: program(text("x")), "pickle", "plain Python pickle"),
    "pickle of protocol 0": (lambda: b"cos\nsystem\n(S'x'\ntR.", "pickle_text", "oldest form"),
    "PyTorch file that is cut off": (lambda: archive()[:-40], "torch_zip", "cut off"),
    "older PyTorch file that is cut off": (lambda: legacy(tensor())[:-4], "torch_legacy", "cut off"),
    "safetensors that is cut off": (lambda: make_safetensors()[:-100], "safetensors", "cut off"),
    "safetensors without its data": (lambda: make_safetensors()[:60], "safetensors", "cut off"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "png", "PNG|picture"),
}


@pytest.mark.parametrize("extension", ["safetensors", "pt", "png"])
@pytest.mark.parametrize(("make", "container", "named"), FILES.values(), ids=FILES.keys())
def test_container_is_told_by_content_and_never_by_extension(
    make: Callable[[], bytes], container: str, named: str, extension: str, tmp_path: Path
) -> None:
    path = tmp_path / f"file.{extension}"
    path.write_bytes(make())
    assert recognise_container(path.read_bytes()[:SNIFFED_BYTES]).id == container
    if extension == "pt" or container not in ("zip", "pickle", "png", "torch_zip", "torch_legacy"):
        with pytest.raises(InvalidFileError, match=named) as caught:
            identify(path)
        assert caught.value.exit_code == 4


SETTINGS = ImportSettings(
    name=ConceptName.parse("me/imp"),
    version=parse_version("1.0.0"),
    base=declare_base("sd1"),
    license="CC0-1.0",
    placeholder=parse_placeholder("<imp>"),
)


@pytest.mark.parametrize(
    "name", ["empty", "Git LFS pointer", "HTML page", "GGUF", "zip", "text", "safetensors that is cut off"]
)
def test_nothing_is_written_of_what_is_no_concept(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(FILES[name][0]())
    with pytest.raises(InvalidFileError, match=FILES[name][2]):
        import_file(path, tmp_path / "package", SETTINGS)
    assert list(tmp_path.iterdir()) == [path]


def test_sound_files_are_read_whatever_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(make_safetensors())
    vectors = tensor(shape=(1, 768), strides=(768, 1), elements=768)
    body = program(dictionary({"emb_params": vectors}))
    (tmp_path / "b.safetensors").write_bytes(archive(body, {"0": make_safetensors()[-3072:]}))
    packages = []
    for name in ("a.pt", "b.safetensors"):
        assert identify(tmp_path / name).dialect == "kohya_emb_params"
        manifest = import_file(tmp_path / name, tmp_path / f"package of {name}", SETTINGS)
        packages.append(manifest.builds[0].parts[0].files)
    assert packages[0] == packages[1]


def test_value_that_is_not_finite_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    data = bytearray(make_safetensors())
    data[-4:] = np.float32("nan").tobytes()
    path.write_bytes(data)
    with pytest.raises(InvalidFileError, match="NaN or infinite"):
        import_file(path, tmp_path / "package", SETTINGS)
    assert list(tmp_path.iterdir()) == [path]


def test_rows_are_distinct_and_have_titles() -> None:
    assert len({row.id for row in CONTAINERS}) == len(CONTAINERS)
    assert all(row.title for row in CONTAINERS)


@given(st.binary(max_size=SNIFFED_BYTES))
def test_any_bytes_are_named(start: bytes) -> None:
    assert recognise_container(start).title


def test_own_files_are_safetensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", {"a": RawTensor.from_numpy(np.ones(3, np.float32))})
    assert recognise_container((tmp_path / "x").read_bytes()[:SNIFFED_BYTES]).id == "safetensors"
