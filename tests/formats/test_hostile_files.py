"""Files made to do harm: each ends in one sentence and exit code 4, and nothing of it is ever run."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from conceptry.errors import ConceptryError, InvalidFileError
from conceptry.formats import worker
from conceptry.formats.conversion import convert_file, read_foreign_header
from conceptry.formats.identify import identify
from conceptry.formats.torch_files import read_torch_file
from tests.formats.hostile import (
    GOOD,
    NUMBERS,
    archive,
    call,
    dictionary,
    legacy,
    name,
    number,
    program,
    storage,
    tensor,
    text,
)

TOUCH = "touch canary"


def stacked(module: str, function: str, *arguments: bytes) -> bytes:
    return text(module) + text(function) + b"\x93(" + b"".join(arguments) + b"tR"


CALLS: dict[str, bytes] = {
    "os.system": call("os", "system", text(TOUCH)),
    "posix.system": call("posix", "system", text(TOUCH)),
    "os.system by its name on the stack": stacked("os", "system", text(TOUCH)),
    "a name in other letters": stacked("\uff4f\uff53", "system", text(TOUCH)),
    "a dotted name": stacked("os", "path.os.system", text(TOUCH)),
    "a name with a line break": stacked("torch\nos", "system", text(TOUCH)),
    "a torch name with a tail": stacked("torch._utils", "_rebuild_tensor_v2.__globals__", text(TOUCH)),
    "eval": call("builtins", "eval", text("__import__('os').system('touch canary')")),
    "exec of Python 2": call("__builtin__", "exec", text("open('canary','w')")),
    "open": call("builtins", "open", text("canary"), text("w")),
    "getattr": call("builtins", "getattr", name("os", "environ"), text("copy")),
    "a chain of getattr": call(
        "builtins", "getattr", call("builtins", "__import__", text("os")), text("system")
    )
    + b"("
    + text(TOUCH)
    + b"tR",
    "operator.attrgetter": call("operator", "attrgetter", text("system")),
    "importlib": call("importlib", "import_module", text("os")),
    "runpy": call("runpy", "run_path", text("canary.py")),
    "subprocess": call("subprocess", "Popen", text(TOUCH)),
    "torch.hub": call("torch.hub", "load", text("someone/model"), text("main")),
    "torch.load": call("torch", "load", text("canary.pt")),
    "torch.storage from bytes": call("torch.storage", "_load_from_bytes", text("x")),
    "pkgutil.resolve_name": call("pkgutil", "resolve_name", text("os:system")),
    "a torch function": call("torch", "eye", number(3)),
    "functools.partial": call("functools", "partial", name("os", "system"), text(TOUCH)),
    "numpy's own reader": call("numpy", "load", text("canary.npy")),
    "code objects": call("types", "CodeType"),
    "copyreg": call("copyreg", "_reconstructor", name("subprocess", "Popen"), name("builtins", "object")),
}
STRUCTURES: dict[str, bytes] = {
    "a ParameterDict with arguments": name("torch.nn.modules.container", "ParameterDict")
    + b"("
    + text("x")
    + b"t\x81",
    "a ParameterDict whose state is a call": name("torch.nn.modules.container", "ParameterDict")
    + b")\x81"
    + call("os", "system", text(TOUCH))
    + b"b",
    "a ParameterDict without parameters": name("torch.nn.modules.container", "ParameterDict") + b")\x81}b",
    "a tensor from a type that calls": call(
        "torch._tensor", "_rebuild_from_type_v2", name("os", "system"), name("torch", "Tensor"), b")", b"}"
    ),
    "a tensor from a type that is a dictionary": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        name("collections", "OrderedDict"),
        name("torch", "Tensor"),
        b")",
        b"}",
    ),
    "a call of a string": text("os.system") + b"(" + text(TOUCH) + b"tR",
    "a call of a storage class": name("torch", "FloatStorage") + b"(" + text(TOUCH) + b"tR",
    "a call without a tuple": name("collections", "OrderedDict") + b"}R",
    "the text form of a call": b"(ios\nsystem\n" + text(TOUCH) + b"R",
    "an extension code": b"\x82\x01",
    "an instance by OBJ": b"(" + name("os", "system") + b"o",
    "a state for a tensor": tensor() + b"}b",
    "a persistent id that is text": text("storage") + b"Q",
    "a storage of a function": b"("
    + text("storage")
    + name("torch.nn.parameter", "Parameter")
    + text("0")
    + text("cpu")
    + number(4)
    + b"tQ",
    "a key that is a tuple": b"}(" + b")" + number(1) + b"u",
    "keys that collide": b"}(" + number((1 << 61) - 1) + number(1) + b"u",
    "a number of 255 bytes": b"\x8a\xff" + b"\x7f" * 255,
    "a number of 2 GB": b"\x8b" + struct.pack("<i", (1 << 31) - 1),
    "a string of 4 GB": b"X" + struct.pack("<I", (1 << 32) - 1),
    "a string of 2^63 bytes": b"\x8d" + struct.pack("<Q", 1 << 63),
    "bytes of 2^64": b"\x8e" + struct.pack("<Q", (1 << 64) - 1),
    "a frame of 2^63 bytes": b"\x95" + struct.pack("<Q", 1 << 63),
    "half a surrogate pair": b"X\x03\x00\x00\x00\xed\xa0\x80",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "tuples in tuples": b")" + b"\x85" * 100_000,
    "a list that holds itself": b"]q\x00h\x00a",
    "a dictionary that holds itself": b"}q\x00" + text("a") + b"h\x00s",
    "a billion laughs": b"]"
    + b"".join(b"q" + bytes([n]) + b"](" + (b"h" + bytes([n])) * 10 + b"e" for n in range(30)),
    "recalled but never kept": b"j\xff\xff\xff\x7f",
    "a group that is never closed": b"((((",
    "an empty stack": b"aaaa",
    "a mark that is kept": b"(q\x00",
    "no tensor": dictionary({"a": number(1)}),
    "nothing": b"",
}
SIZES: dict[str, bytes] = {
    "a tensor beyond its storage": tensor(shape=(5,), elements=4),
    "a storage beyond its bytes": tensor(shape=(4,), elements=1 << 30),
    "an offset beyond the storage": tensor(shape=(1,), offset=1 << 39),
    "a stride that leaves the storage": tensor(shape=(2, 2), strides=(1 << 30, 1)),
    "a negative stride": tensor(shape=(2,), strides=(-1,)),
    "a negative size": tensor(shape=(-2,)),
    "a size of 2^62": tensor(shape=(1 << 62,), strides=(0,)),
    "a product of 2^72": tensor(shape=(1 << 36, 1 << 36), strides=(0, 0)),
    "one value that fills a terabyte": tensor(shape=(1 << 38,), strides=(0,)),
    "many views of one value": dictionary(
        {f"t{n}": tensor(shape=(1 << 20,), strides=(0,)) for n in range(64)}
    ),
    "nine dimensions": tensor(shape=(1,) * 9, strides=(1,) * 9),
    "strides of another length": tensor(shape=(2, 2), strides=(1,)),
    "a storage that is missing": tensor(key="7"),
    "a storage with a path for a name": tensor(key="../0"),
    "a negative storage": call(
        "torch._utils", "_rebuild_tensor_v2", storage("0", -4), number(0), b")", b")", b"\x89", b"}"
    ),
    "a name with NUL": dictionary({"a\0b": tensor()}),
    "a name that climbs": dictionary({"../a": tensor()}),
    "a name of a megabyte": dictionary({"a" * (1 << 20): tensor()}),
    "two tensors of one name": dictionary({"a": dictionary({"b": tensor()}), "a.b": tensor()}),
    "the metadata's name": dictionary({"__metadata__": tensor()}),
    "a value that is NaN": tensor(key="nan", shape=(1,), elements=1),
}


def convert_here(data: bytes, folder: Path) -> None:
    """Converts as the other process does, but in this one, which starts sooner and can be watched."""
    path = folder / "file.pt"
    path.write_bytes(data)
    with path.open("rb") as source, (folder / "output").open("wb") as output:
        worker.read_foreign(source, output, path.name, convert=True)


@pytest.mark.parametrize("body", (CALLS | STRUCTURES).values(), ids=(CALLS | STRUCTURES).keys())
def test_hostile_pickle_ends_in_one_sentence(
    body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for data in (archive(program(body)), legacy(body), program(body)):
        with pytest.raises(InvalidFileError) as caught:
            read_torch_file(io.BytesIO(data))
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("body", SIZES.values(), ids=SIZES.keys())
def test_lying_size_is_refused_before_anything_of_that_size_is_made(body: bytes, tmp_path: Path) -> None:
    for data in (archive(program(body), {"nan": struct.pack("<f", float("nan"))}), legacy(body)):
        tracemalloc.start()
        with pytest.raises(InvalidFileError):
            convert_here(data, tmp_path)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 16 << 20


@pytest.mark.parametrize(
    "body", [CALLS["os.system"], STRUCTURES["a billion laughs"], SIZES["a value that is NaN"]]
)
def test_refused_file_leaves_nothing_behind(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(archive(program(body), {"nan": struct.pack("<f", float("nan"))}))
    with pytest.raises(InvalidFileError):
        convert_file(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_pickle_that_runs_in_pythons_own_reader_runs_nothing_here(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(program(call("os", "system", text(TOUCH))))
    opened = [sys.executable, "-c", "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", str(path)]
    subprocess.run(opened, cwd=tmp_path, check=True)
    canary = tmp_path / "canary"
    assert canary.exists(), "the sample does no harm, so the test would prove nothing"
    canary.unlink()
    path.write_bytes(archive(program(call("os", "system", text(TOUCH)))))
    for read in (identify, lambda path: convert_file(path, tmp_path)):
        with pytest.raises(InvalidFileError, match=r"names 'os\.system'.*nothing of it was run"):
            read(path)
    assert not canary.exists()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a zip in the zip": lambda: archive(more={"archive/inner.zip": archive()}),
    "a member that climbs": lambda: archive(more={"archive/../../canary": b"x"}),
    "a member of another folder": lambda: archive(more={"other/data/1": b"x"}),
    "an absolute member": lambda: archive(more={"/etc/passwd": b"x"}),
    "TorchScript": lambda: archive(more={"archive/code/model.py": b"x"}),
    "constants of TorchScript": lambda: archive(more={"archive/constants.pkl": b"x"}),
    "a zip bomb": lambda: archive(storages={"0": bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED),
    "big-endian numbers": lambda: archive(more={"archive/byteorder": b"big"}),
    "no pickle": lambda: archive().replace(b"data.pkl", b"data.pkm"),
    "a damaged storage": lambda: archive().replace(NUMBERS, NUMBERS[::-1]),
    "a damaged pickle": lambda: archive().replace(b"<imp>", b"<omp>"),
    "a truncated download": lambda: archive()[:-30],
    "a header that names another member": lambda: archive().replace(b"archive/data/0", b"archive/data/9", 1),
    "7-Zip": lambda: b"7z\xbc\xaf\x27\x1c" + bytes(100),
    "a pickle in its text form": lambda: b"cos\nsystem\n(S'touch canary'\ntR.",
    "a tar of PyTorch": lambda: b"sys_info".ljust(257, b"\0") + b"ustar" + bytes(300),
    "storages that are cut off": lambda: legacy(tensor())[:-4],
    "bytes after the storages": lambda: legacy(tensor()) + b"x",
    "a storage of 2^60 values": lambda: legacy(tensor()).replace(
        struct.pack("<q", 4) + NUMBERS, struct.pack("<q", 1 << 60) + NUMBERS
    ),
}


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_hostile_archive_is_refused(make: Callable[[], bytes], tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError) as caught:
        convert_here(make(), tmp_path)
    assert caught.value.exit_code == 4


def test_archive_of_very_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conceptry.formats.torch_files.MAX_MEMBERS", 100)
    with pytest.raises(InvalidFileError, match="103 members, more than 100"):
        convert_here(archive(more={f"archive/data/m{n}": b"" for n in range(100)}), tmp_path)


def test_file_that_the_hostile_ones_differ_from_is_read(tmp_path: Path) -> None:
    for data in (archive(), legacy(dictionary({"<imp>": tensor()}))):
        (tmp_path / "file.pt").write_bytes(data)
        assert list(read_foreign_header(tmp_path / "file.pt").tensors) == ["<imp>"]
    assert GOOD in archive()


# --- the process itself -----------------------------------------------------------------------------------------------

FORBIDDEN: dict[str, str] = {
    "open a file": "open('canary', 'w')",
    "read a file": "open('/etc/passwd')",
    "start a shell": "os.system('touch canary')",
    "start a process": "import subprocess; subprocess.run(['touch', 'canary'])",
    "fork": "os.fork()",
    "connect": "socket.socket()",
    "import": "import wave",
    "call C": "ctypes.CDLL(None)",
    "run code": "exec('1')",
    "list a folder": "os.listdir('/')",
    "delete": "os.unlink('file')",
}


def run_locked(code: str, folder: Path, output: BinaryIO | None = None) -> subprocess.CompletedProcess[bytes]:
    limits = {"memory_bytes": 1 << 30, "cpu_seconds": 1, "output_bytes": 1 << 20}
    program = (
        "import ctypes, os, socket, sys; from conceptry.formats import worker\n"
        f"worker.load_lazy_modules(); worker.lock_down({json.dumps(limits)})\n{code}\nos._exit(0)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, stdout=output, stderr=subprocess.PIPE, check=False
    )


@pytest.mark.parametrize("code", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_reading_process_ends_at_the_first_thing_it_may_not_do(code: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run_locked(code, tmp_path).returncode == worker.FORBIDDEN_EVENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_reading_process_has_limits_on_memory_time_and_output(tmp_path: Path) -> None:
    grab = "try:\n bytearray({})\nexcept MemoryError:\n os._exit(77)"
    assert run_locked(grab.format(1 << 20), tmp_path).returncode == 0
    assert run_locked(grab.format(2 << 30), tmp_path).returncode == 77
    assert run_locked("while True: pass", tmp_path).returncode < 0
    with (tmp_path / "output").open("wb") as output:
        assert run_locked("os.write(1, bytes(2 << 20)); os.write(1, b'x')", tmp_path, output).returncode
    assert (tmp_path / "output").stat().st_size == 1 << 20


def test_process_that_dies_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(archive())
    monkeypatch.setattr("conceptry.formats.isolation._START", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(InvalidFileError, match="by signal 9"):
        convert_file(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_environment_and_open_files_do_not_reach_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(archive())
    monkeypatch.setenv("SECRET", "token")
    monkeypatch.setattr(
        "conceptry.formats.isolation._START",
        "import os; os.write(2, repr((dict(os.environ), sorted(map(int, os.listdir('/proc/self/fd')))[:-1])).encode())",
    )
    reports: list[bytes] = []

    def keep(data: bytes, code: int, name: str) -> dict[str, str]:
        reports.append(data)
        return {}

    monkeypatch.setattr("conceptry.formats.isolation._check_report", keep)
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        with pytest.raises(ConceptryError):
            read_foreign_header(path)
    environment, files = eval(reports[0])  # noqa: S307 - our own text, from our own process
    assert environment.keys() <= {"LC_CTYPE"}
    assert files == [0, 1, 2]


def test_hostile_file_needs_little_memory_here(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(archive(program(SIZES["a product of 2^72"])))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidFileError):
        identify(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
