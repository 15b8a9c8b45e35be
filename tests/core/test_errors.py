"""Errors say what, where and what next, and carry the exit code of their cause."""

from __future__ import annotations

import inspect

import pytest

from conceptry import errors
from conceptry.errors import ConceptryError, IntegrityError, InvalidFileError, suggest_nearest

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, ConceptryError) and value.__module__ == "conceptry.errors"
]
EXIT_CODES = {
    "ConceptryError": 1,
    "StoreError": 1,
    "TrainingError": 1,
    "UsageError": 2,
    "InvalidNameError": 2,
    "MissingExtraError": 2,
    "NotFoundError": 3,
    "IntegrityError": 4,
    "InvalidDigestError": 4,
    "InvalidManifestError": 4,
    "InvalidFileError": 4,
    "RemoteError": 5,
    "IncompatibleError": 6,
    "LockStaleError": 7,
    "ConflictError": 8,
    "IdentityChangedError": 9,
    "InterruptedByUserError": 130,
}


@pytest.mark.parametrize("name", EXIT_CODES)
def test_exit_code_is_that_of_the_cause(name: str) -> None:
    assert getattr(errors, name).exit_code == EXIT_CODES[name]


def test_every_error_has_a_word_of_its_own_for_programs() -> None:
    words = [error.code for error in CLASSES]
    assert len(set(words)) == len(words)
    assert all(word.isidentifier() and word.islower() for word in words)


def test_message_has_its_place_in_front() -> None:
    assert str(IntegrityError("3 bytes, not 5", where="files[2].size")) == "files[2].size: 3 bytes, not 5"
    assert str(IntegrityError("3 bytes, not 5")) == "3 bytes, not 5"


@pytest.mark.parametrize(
    ("inner", "outer", "place"),
    [
        (None, "builds[0]", "builds[0]"),
        ("size", "files[2]", "files[2].size"),
        ("[2].size", "files", "files[2].size"),
    ],
)
def test_place_grows_from_the_inside_out(inner: str | None, outer: str, place: str) -> None:
    error = InvalidFileError("wrong", where=inner)
    assert error.inside(outer) is error
    assert error.where == place


def test_hint_is_kept_apart_from_the_message() -> None:
    error = IntegrityError("wrong", hint="concepts verify")
    assert (error.message, error.hint, str(error)) == ("wrong", "concepts verify", "wrong")


def test_nearest_name_is_suggested_only_when_it_is_near() -> None:
    assert suggest_nearest("ukyio", ["imp", "ukiyo"]) == "did you mean 'ukiyo'?"
    assert suggest_nearest("zebra", ["imp", "ukiyo"]) is None
    assert suggest_nearest("x", []) is None
