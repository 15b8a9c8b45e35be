"""Objects under the keys of one bucket, through fsspec: read, listed, made where nobody has them, sent in pieces.

Logins are explicit (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``), no metadata service is
ever asked, and only the user's own ``AWS_ENDPOINT_URL`` decides where they go; without one, what is public can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from conceptry.digests import Digest, new_hasher
from conceptry.errors import ConceptryError, IntegrityError, MissingExtraError, RemoteError, UsageError
from conceptry.registry.file_reading import open_regular
from conceptry.registry.http import is_offline
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import KEYS

if TYPE_CHECKING:
    from conceptry.manifest import File
    from conceptry.registry.blobs import CountBytes

_LOOK_BYTES: Final = 1024
_PIECE_BYTES: Final = 8 << 20
_PAGE: Final = re.compile(rb"\s*(?:<!doctype html|<html)", re.IGNORECASE)
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._-]*[A-Za-z0-9_-])*/?", re.ASCII)
_PATIENCE: Final = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"max_attempts": 4, "mode": "standard"},
}


def check_bucket(uri: str) -> str:
    """Returns ``bucket/prefix`` of an address. Raises UsageError if it is none."""
    parts = urlsplit(uri)
    if (
        not _BUCKET.fullmatch(parts.netloc)
        or not _PREFIX.fullmatch(parts.path)
        or parts.query
        or parts.fragment
    ):
        raise UsageError(
            f"not a bucket's address: {uri[:200].rpartition('@')[2]!r}",
            hint="write s3://bucket/prefix; keys and endpoints come from the AWS_ variables, never from an address",
        )
    return f"{parts.netloc}{parts.path}".rstrip("/")


def open_s3() -> Any:
    """Returns the S3 that the user's own environment names, with nothing but its explicit keys.

    Raises:
        MissingExtraError: if s3fs is not installed.
    """
    try:
        import s3fs
    except ImportError as error:
        raise MissingExtraError(
            "buckets need a further library", hint="pip install 'conceptry[s3]'"
        ) from error
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return s3fs.S3FileSystem(
        anon=not (key and secret),
        key=key or None,
        secret=secret or None,
        token=os.environ.get("AWS_SESSION_TOKEN") or None,
        endpoint_url=endpoint,
        config_kwargs=_PATIENCE,
        use_listings_cache=False,
        skip_instance_cache=True,
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """Keys below one prefix of an fsspec file system."""

    uri: str
    root: str
    files: Any = field(repr=False)

    def read(self, path: Path, limit_bytes: int) -> bytes | None:
        """Returns the bytes under a key, at most one more than the limit, None if there is none. Raises RemoteError."""
        with self._explain():
            try:
                return bytes(self.files.cat_file(self.locate(path), start=0, end=limit_bytes + 1))
            except FileNotFoundError:
                return None

    def read_document(self, path: Path, limit_bytes: int) -> bytes | None:
        """Returns what ``read`` does of a document of ours, none of which begins as a web page. Raises RemoteError."""
        data = self.read(path, limit_bytes)
        if data is not None and _PAGE.match(data):
            raise RemoteError(
                f"{self.uri} answers with a web page",
                hint="is AWS_ENDPOINT_URL right, and no sign-in page of this network in between?",
            )
        return data

    def names(self, path: Path) -> list[str]:
        """Returns the names below a key, in order. Raises RemoteError."""
        with self._explain():
            try:
                found = self.files.ls(self.locate(path), detail=False, refresh=True)
            except FileNotFoundError:
                found = []
        if not found:
            self.read_document(path, _LOOK_BYTES)  # a web page lists nothing, and says so when it is read
        return sorted({str(name).rstrip("/").rpartition("/")[2] for name in found})

    def size(self, path: Path) -> int | None:
        """Returns the size in bytes of what is under a key, None if nothing is. Raises RemoteError."""
        with self._explain():
            try:
                return int(self.files.info(self.locate(path), refresh=True)["size"])
            except FileNotFoundError:
                return None

    def create(self, path: Path, data: bytes) -> bool:
        """Returns True if the key was made, False if somebody has it. Raises RemoteError."""
        with self._explain():
            try:
                self.files.pipe_file(self.locate(path), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if not _is_taken(error):
                    raise
                return False
        return True

    def replace(self, path: Path, data: bytes) -> None:
        """Puts bytes under a key, over what was there. Raises RemoteError."""
        with self._explain():
            self.files.pipe_file(self.locate(path), data)

    def remove(self, path: Path) -> None:
        """Takes a key away. Raises RemoteError."""
        with self._explain():
            self.files.rm_file(self.locate(path))

    def iter_pieces(self, path: Path, size_bytes: int, offset_bytes: int) -> Iterator[bytes]:
        """Yields the bytes under a key from an offset on, in requests of 8 MiB. Raises RemoteError."""
        for start in range(offset_bytes, size_bytes, _PIECE_BYTES):
            with self._explain():
                piece = self.files.cat_file(
                    self.locate(path), start=start, end=min(start + _PIECE_BYTES, size_bytes)
                )
            yield bytes(piece)

    def upload(self, path: Path, source: Path, file: File, on_bytes: CountBytes) -> None:
        """Sends a file, which appears when all of it is there and right. Raises IntegrityError, RemoteError."""
        hasher, count_bytes = new_hasher(), 0
        with explain_os_errors("read", source), open_regular(source) as opened, self._explain():
            target = self.files.open(self.locate(path), "wb", block_size=_PIECE_BYTES, autocommit=False)
            try:
                for chunk in opened.iter_chunks():
                    hasher.update(chunk)
                    count_bytes += len(chunk)
                    target.write(chunk)
                    on_bytes(len(chunk))
                target.close()
                if (Digest(hasher.hexdigest()), count_bytes) != (file.sha256, file.size):
                    raise IntegrityError(f"the file to be sent does not have digest {file.sha256}")
            except BaseException:
                target.discard()
                raise
            target.commit()

    def locate(self, path: Path) -> str:
        """Returns the whole key."""
        return f"{self.root}/{KEYS.describe(path)}"

    @contextmanager
    def _explain(self) -> Iterator[None]:
        if is_offline():
            raise RemoteError(
                f"{self.uri} was not asked: the network is forbidden",
                hint="leave out --offline, or unset HF_HUB_OFFLINE",
            )
        try:
            yield
        except (ConceptryError, FileNotFoundError, FileExistsError):
            raise
        except PermissionError as error:
            raise RemoteError(
                f"{self.uri} refuses access",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of who may",
            ) from error
        except Exception as error:  # fsspec lets errors of any library below it come out
            reason = " ".join(str(error).split())[:200]
            raise RemoteError(
                f"{self.uri} cannot be used: {reason or type(error).__name__}",
                hint="is the network up, and AWS_ENDPOINT_URL right? run the same command again",
            ) from error


def _is_taken(error: OSError) -> bool:
    """What S3 says to a key that exists, or that another writer is making right now."""
    text = f"{error} {error.__cause__}"
    return "PreconditionFailed" in text or "ConditionalRequestConflict" in text
