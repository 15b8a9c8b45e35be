"""The process that reads what is not safetensors: it is given three open files, and can open, start or reach nothing.

File 0 is read, file 1 takes the safetensors file or its header, file 2 a JSON report. Before more than the first bytes
are looked at, all modules are loaded, limits are set that cannot be raised again, and every later event of Python's
audit hooks (opening a file, importing, connecting, starting a process, calling C) ends the process at once.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from conceptry.errors import ConceptryError, InvalidFileError
from conceptry.formats.containers import SNIFFED_BYTES, recognise_container
from conceptry.formats.conversion import CONVERTED, LEFT_OUT_KEY, SOURCE_KEY, VALUES_KEY
from conceptry.formats.pictures import read_picture
from conceptry.formats.tensors import format_header, order_tensors, stream_tensors
from conceptry.formats.torch_files import check_storages, list_tensors, read_torch_file

FORBIDDEN_EVENT: Final = 66
_OPEN_FILES: Final = 4  # the three, and one copy of the first


def main() -> None:
    """Does what its arguments say: ``describe`` or ``convert``, the file's name, and the limits as JSON."""
    mode, name, limits = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    source, output = os.fdopen(0, "rb", closefd=False), os.fdopen(1, "wb+", closefd=False)
    container = recognise_container(source.read(SNIFFED_BYTES))
    load_lazy_modules(arrays=mode == "convert" or container.id == "png")
    lock_down(limits)
    try:
        report = read_foreign(source, output, name, convert=mode == "convert")
    except ConceptryError as error:
        report = {"error": error.message, "hint": error.hint, "where": error.where}
    except (MemoryError, RecursionError):
        report = {"error": "reading it needs more memory than any such file does"}
    except OSError as error:
        report = {"stopped": error.strerror}
    os.write(2, json.dumps(report).encode("utf-8"))
    os._exit(0)


def load_lazy_modules(*, arrays: bool = True) -> None:
    """Loads what would else be imported at first use, when importing is no longer allowed."""
    import atexit  # weakref.finalize registers with it
    import encodings.cp437  # zipfile decodes member names with it
    import encodings.idna
    import encodings.latin_1
    import encodings.utf_8

    del atexit, encodings
    if not arrays:
        return
    # Each thread of its linear algebra, of which none is used, would reserve address space on a large machine.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    import numpy as np

    np.lib.stride_tricks.as_strided(np.zeros(4, "u2"), (2, 2), (2, 2)).tobytes()


def lock_down(limits: Mapping[str, int]) -> None:
    """Sets the limits of the process for good and ends it at the first forbidden event."""
    os.closerange(3, 1024)
    wanted = {
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_FSIZE: limits["output_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        os._exit(FORBIDDEN_EVENT)

    sys.addaudithook(refuse)


def read_foreign(source: BinaryIO, output: BinaryIO, name: str, *, convert: bool) -> dict[str, Any]:
    """Returns the report on an open file, of which the safetensors file, or only its header, went to ``output``.

    Raises:
        InvalidFileError: if it is of no form that is read here, or breaks a rule of its form.
        OSError: if ``output`` cannot be written.
    """
    source.seek(0)
    container = recognise_container(source.read(SNIFFED_BYTES))
    left_out: tuple[str, ...] = ()
    if container.id == "png":
        values, tensors = read_picture(source)
        found = "png"
    elif container.id in CONVERTED:
        described = read_torch_file(source)
        if convert:
            check_storages(source, described)
        tensors = list_tensors(source, name, described)
        found, values, left_out = described.container, described.tree.values, described.dropped
    else:
        raise InvalidFileError(f"it is {container.title}", hint=container.hint)
    metadata = _make_metadata(found, values, left_out)
    if convert:
        stream_tensors(output, tensors, metadata)
        os.fsync(output.fileno())
    else:
        output.write(format_header(order_tensors(tensors), metadata))
    output.flush()
    return {"container": found}


def _make_metadata(container: str, values: Any, left_out: tuple[str, ...]) -> dict[str, str]:
    metadata = {SOURCE_KEY: container}
    if values is not None:
        metadata[VALUES_KEY] = json.dumps(values, ensure_ascii=False)
    if left_out:
        metadata[LEFT_OUT_KEY] = json.dumps(left_out)
    return metadata
