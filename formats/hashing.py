"""SHA-256 computed beside other work: hashing is the slowest part of writing a file, and needs no interpreter lock."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from conceptry.digests import Digest, new_hasher
from conceptry.errors import StoreError

# At most this much waits to be hashed, so that a file is never held in memory.
_WAITING_CHUNKS: Final = 16


class BackgroundHash:
    """A digest that a thread computes from chunks; used as a block, at the end of which the thread has ended."""

    def __init__(self) -> None:
        self._hasher = new_hasher()
        self._chunks: queue.Queue[bytes | memoryview | None] = queue.Queue(_WAITING_CHUNKS)
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chunks.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._hasher.update(chunk)

    def update(self, chunk: bytes | memoryview) -> None:
        """Takes the next bytes; they must not change afterwards."""
        self._chunks.put(chunk)

    def digest(self) -> Digest:
        """Returns the digest of all chunks; to be asked after the block."""
        return Digest(self._hasher.hexdigest())


class PendingDigest:
    """A digest that a thread has been computing since this object was made."""

    def __init__(self, compute: Callable[[], Digest]) -> None:
        self._compute = compute
        self._found: Digest | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="sha256 of a source", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._compute()
        except OSError as error:
            self._error = error

    def result(self) -> Digest:
        """Returns the digest as soon as it is there. Raises StoreError if what it is of could not be read."""
        self._thread.join()
        if self._found is None:
            reason = self._error.strerror if self._error else "its reading ended early"
            raise StoreError(f"cannot read the file to the end: {reason}")
        return self._found
