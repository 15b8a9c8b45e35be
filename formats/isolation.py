"""Runs ``worker`` on one file: a process with three open files, no environment, and limits that fit the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Final

from conceptry.errors import InvalidFileError, StoreError

MAX_REPORT_BYTES: Final = 64 << 10
BASE_MEMORY_BYTES: Final = 1 << 30
BASE_SECONDS: Final = 20
BYTES_A_SECOND: Final = 20 << 20
_START: Final = """\
import json, sys
sys.path[:] = json.loads(sys.argv.pop())
from conceptry.formats.worker import main
main()
"""


def run_worker(mode: str, source: BinaryIO, output: BinaryIO, name: str) -> dict[str, Any]:
    """Returns the report of a ``worker`` that read ``source`` and wrote ``output``.

    Raises:
        InvalidFileError: if it refused the file, or was ended by a limit.
        StoreError: if the disk is full, or no process can be started.
    """
    size_bytes = os.fstat(source.fileno()).st_size
    seconds = BASE_SECONDS + size_bytes // BYTES_A_SECOND
    limits = {
        "memory_bytes": BASE_MEMORY_BYTES + 2 * size_bytes,
        "cpu_seconds": seconds,
        "output_bytes": 3 * size_bytes + (128 << 20),
    }
    paths = [path for path in sys.path if Path(path).is_absolute()]
    command = [sys.executable, "-I", "-B", "-c", _START, mode, name, json.dumps(limits), json.dumps(paths)]
    source.seek(0)
    with tempfile.TemporaryFile() as report:
        try:
            # The wall clock is generous: a busy machine is not the file's fault, and the processor time is limited.
            done = subprocess.run(
                command,
                stdin=source,
                stdout=output,
                stderr=report,
                env={},
                cwd="/",
                timeout=10 * seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InvalidFileError(f"{name!r} was not read in {10 * seconds} seconds") from error
        except OSError as error:
            raise StoreError(f"no process can be started: {error.strerror}") from error
        report.seek(0)
        return _check_report(report.read(MAX_REPORT_BYTES), done.returncode, name)


def _check_report(data: bytes, code: int, name: str) -> dict[str, Any]:
    try:
        report = json.loads(data)
    except ValueError:
        report = None
    if code or not isinstance(report, dict):
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise InvalidFileError(f"{name!r} ended the process that read it {how}; nothing of it is kept")
    if "stopped" in report:
        raise StoreError(f"cannot convert {name!r}: {report['stopped']}")
    if "error" in report:
        raise InvalidFileError(
            f"{name!r} is refused: {report['error']}", where=report.get("where"), hint=report.get("hint")
        )
    return report
