"""What the operating system refuses, as an error with the path and the next step."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conceptry.errors import StoreError

_HINTS: Final[dict[int, str]] = {
    errno.ENOSPC: "free some space on that disk, then run the same command again",
    errno.EDQUOT: "your quota is used up: free some space, then run the same command again",
    errno.EFBIG: "files of this size are not allowed there: raise the limit (ulimit -f) or use another disk",
    errno.EACCES: "give yourself permission, or use another folder (CONCEPTRY_HOME names the store)",
    errno.EPERM: "give yourself permission, or use another folder (CONCEPTRY_HOME names the store)",
    errno.EROFS: "it can be read but not changed: use another folder (CONCEPTRY_HOME names the store)",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.EIO: "the disk reports an error: check it, then run concepts verify",
}


@contextmanager
def explain_os_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a StoreError with the path and the next step."""
    try:
        yield
    except OSError as error:
        raise explain_os_error(doing, path, error) from error


def explain_os_error(doing: str, path: Path | str, error: OSError) -> StoreError:
    """Returns the error that says what could not be done to ``path``, why, and the next step."""
    reason = (error.strerror or str(error)).lower()
    hint = _HINTS.get(error.errno or 0, "check the folder, then run the same command again")
    return StoreError(f"cannot {doing} {str(path)!r}: {reason}", hint=hint)
