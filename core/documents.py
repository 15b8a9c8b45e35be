"""JSON from strangers: parsed with limits, before any model sees it."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from conceptry.errors import InvalidManifestError

MAX_DOCUMENT_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
MAX_STRING_CHARS: Final = 4096
MAX_INTEGER: Final = (1 << 53) - 1


def load_strict_json(data: bytes) -> Any:
    """Returns the JSON value in ``data``, with duplicate keys, NaN, a BOM, deep nesting and great numbers refused.

    Raises:
        InvalidManifestError: naming the first rule that is broken.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidManifestError(
            f"the document has {len(data)} bytes, at most {MAX_DOCUMENT_BYTES} are allowed"
        )
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise InvalidManifestError(f"not valid JSON: {error}") from error
    _check_value(value, 0)
    return value


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidManifestError(f"the key {twice[:80]!r} occurs twice")
    return seen


def _refuse_constant(name: str) -> Any:
    raise InvalidManifestError(f"{name} is no number in JSON")


def _check_value(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidManifestError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_value(key, depth)
            _check_value(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, depth + 1)
    elif isinstance(value, str):
        _check_string(value)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
        raise InvalidManifestError(f"the integer {str(value)[:40]} is not between -2^53 and 2^53")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidManifestError("a number is too great for any computer")


def _check_string(text: str) -> None:
    if len(text) > MAX_STRING_CHARS:
        raise InvalidManifestError(
            f"a string has {len(text)} characters, at most {MAX_STRING_CHARS} are allowed"
        )
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidManifestError("a string holds a lone surrogate")
