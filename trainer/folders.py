"""Where runs and what belongs to bases are kept, when the caller names no folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_data_path

from conceptry.errors import StoreError


def locate_home() -> Path:
    """Returns the user's store: what CONCEPTRY_HOME says, else the platform's folder for user data."""
    told = os.environ.get("CONCEPTRY_HOME")
    return Path(told).expanduser() if told else user_data_path("conceptry")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes sure, before hours of work, that ``folder`` can be written; it is gone again if nothing came to lie in it.

    Raises:
        StoreError: if a file cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        message = f"nothing can be written to {str(folder)!r}: {error.strerror or error}"
        raise StoreError(message, hint="name another folder with --workdir") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
