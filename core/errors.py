"""Every error that a user can meet.

Grouped by cause; each class carries its exit code. A message is one sentence with the value in it, ``where`` is the
place in the document or the picture folder, ``hint`` the next command. Only ``cli`` turns them into words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class ConceptryError(Exception):
    """Base of all errors that are shown to a user; anything else is a bug."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failure"

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def inside(self, place: str) -> ConceptryError:
        """Returns this error with ``place`` put before its context path (``builds[0]`` + ``files[2].sha256``)."""
        if self.where is None:
            self.where = place
        else:
            joint = "" if self.where.startswith("[") else "."
            self.where = f"{place}{joint}{self.where}"
        return self

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


# --- the caller asked for something impossible -------------------------------------------------------------------


class UsageError(ConceptryError):
    """Raised when a command, a job or an argument cannot be carried out as written."""

    exit_code = 2
    code = "usage"


class InvalidNameError(UsageError):
    """Raised when text is no valid name, version, tag or reference."""

    code = "invalid_name"


class InvalidImagesError(UsageError):
    """Raised when a folder of training pictures holds nothing that can be trained on."""

    code = "invalid_images"


class InvalidProjectError(UsageError):
    """Raised when a ``concepts.toml`` is malformed, or says what cannot be."""

    code = "invalid_project"


class InvalidPlaceholderError(UsageError):
    """Raised when a placeholder is already a word of the base's vocabulary, or a superclass is several tokens."""

    code = "invalid_placeholder"


class MissingAnswerError(UsageError):
    """Raised when only the caller can know something and has not said it; ``option`` is where it is said."""

    code = "missing_answer"

    def __init__(
        self, message: str, *, option: str, hint: str | None = None, where: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, where=where)
        self.option = option


class MissingExtraError(UsageError):
    """Raised when a command needs an optional dependency that is not installed."""

    code = "missing_extra"


# --- it is not there ---------------------------------------------------------------------------------------------


class NotFoundError(ConceptryError):
    """Raised when a concept, version, remote, base or file does not exist."""

    exit_code = 3
    code = "not_found"


# --- bytes are not what they should be ---------------------------------------------------------------------------


class IntegrityError(ConceptryError):
    """Raised when bytes differ from their digest, or a document or file is malformed."""

    exit_code = 4
    code = "integrity"


class InvalidDigestError(IntegrityError):
    """Raised when text is no ``sha256:`` digest in lower-case hexadecimal."""

    code = "invalid_digest"


class InvalidManifestError(IntegrityError):
    """Raised when a ``concept.json`` breaks the schema or its limits."""

    code = "invalid_manifest"


class InvalidFileError(IntegrityError):
    """Raised when an adapter file is truncated, malformed or not what it claims to be."""

    code = "invalid_file"


class InvalidLockError(IntegrityError):
    """Raised when a ``concepts.lock`` is malformed, was edited by hand, or was written by a newer version."""

    code = "invalid_lock"


class StoreError(ConceptryError):
    """Raised when the store cannot be read or written: a full disk, no permission, a newer layout."""

    code = "store"


# --- the other side ----------------------------------------------------------------------------------------------


class RemoteError(ConceptryError):
    """Raised when a remote does not answer, or answers wrongly."""

    exit_code = 5
    code = "network"


# --- it does not fit ---------------------------------------------------------------------------------------------


class IncompatibleError(ConceptryError):
    """Raised when a concept does not fit a base, or concepts do not fit each other."""

    exit_code = 6
    code = "incompatible"


class LockStaleError(ConceptryError):
    """Raised when the lockfile no longer answers the requirements."""

    exit_code = 7
    code = "lock_stale"


class ConflictError(ConceptryError):
    """Raised when a version exists already with other contents, or a moving tag was moved by somebody else."""

    exit_code = 8
    code = "conflict"


class IdentityChangedError(ConceptryError):
    """Raised when a remote name now belongs to another repository or publisher."""

    exit_code = 9
    code = "identity_changed"


class InterruptedByUserError(ConceptryError):
    """Raised when Ctrl-C ended an operation that can be continued."""

    exit_code = 130
    code = "interrupted"


class TrainingError(ConceptryError):
    """Raised when training ends without a usable concept: a loss that is not finite, a file that changes nothing."""

    code = "training"


def suggest_nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns ``did you mean 'x'?`` for the nearest known name, or None when nothing is near."""
    from difflib import get_close_matches  # failures alone need it, and a listing starts in milliseconds

    matches = get_close_matches(name, list(known), n=1)
    return f"did you mean '{matches[0]}'?" if matches else None
