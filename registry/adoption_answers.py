"""``adopt.toml``: what no file tells, in one document for a person to read and to correct.

Whoever adopts a folder again gets it applied. Nothing that a person wrote is ever changed; new doubts are added at
the end, in order of path, so that the same folder gives the same document.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from conceptry.bases import FAMILY_BY_ID
from conceptry.errors import InvalidNameError, UsageError, suggest_nearest
from conceptry.names import parse_placeholder
from conceptry.registry.adopted_files import AdoptedFile
from conceptry.registry.file_reading import read_small_file
from conceptry.registry.files import write_file
from conceptry.registry.places import CollectionLayout

_LIMIT_BYTES: Final = 64 << 20
_WORDS: Final = ("base", "placeholder", "superclass", "license", "title")
_INTRODUCTION: Final = """\
# What the files of this folder do not tell for sure, and what is taken for it meanwhile.
# Correct a value, or leave it, and run again: concepts adopt .
# An empty value is not known: the file cannot be used before it has one. Further keys: superclass, license, title,
# skip = true (leaves the file alone).
"""


@dataclass(frozen=True, slots=True)
class Answers:
    """What ``adopt.toml`` says: fields by the paths of files, and its text."""

    by_path: Mapping[str, Mapping[str, Any]]
    text: str

    def find(self, file: AdoptedFile) -> Mapping[str, Any]:
        """Returns what was said of a file; if it moved, what was said of it where it lay before counts."""
        return {**self.by_path.get(file.path, {}), **self.by_path.get(file.known_as, {})}


def read_answers(layout: CollectionLayout) -> Answers:
    """Returns what a person wrote, nothing where there is no document.

    Raises:
        UsageError: if it is malformed, or says what cannot be; the place is named.
    """
    data = read_small_file(layout.answers, _LIMIT_BYTES) or b""
    try:
        text = data.decode("utf-8")
        rows = tomllib.loads(text).get("file", [])
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {str(layout.answers)!r}: {error}", hint="correct that line") from error
    by_path: dict[str, dict[str, Any]] = {}
    if not isinstance(rows, list):
        raise UsageError(f"{str(layout.answers)!r}: files are written [[file]]", hint="correct that line")
    for number, row in enumerate(rows):
        path, fields = _check_row(row, f"{layout.answers.name} file[{number}]")
        by_path.setdefault(path, {}).update(fields)
    return Answers(by_path, text)


def add_doubts(layout: CollectionLayout, answers: Answers, files: Iterable[AdoptedFile]) -> int:
    """Returns how many doubts were added to the document, those that it does not speak of yet. Raises StoreError."""
    pieces = []
    for file in sorted(files, key=lambda file: file.path):
        known = answers.find(file)
        new = [doubt for doubt in file.doubts if doubt[0] not in known]
        if new and not known.get("skip"):
            pieces += [_format(file.path, doubt) for doubt in new]
    if pieces:
        head = answers.text.rstrip("\n") + "\n" if answers.text else _INTRODUCTION
        data = "\n".join([head, *pieces]).encode("utf-8")
        write_file(layout.answers, data, temporary=layout.temporary(), replace=True)
    return len(pieces)


def _format(path: str, doubt: tuple[str, str, str]) -> str:
    key, value, reason = doubt
    return f"[[file]]\npath = {_quote(path)}\n{key} = {_quote(value)}\nreason = {_quote(reason)}\n"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_row(row: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise UsageError("a file needs its path", where=where, hint='write path = "folder/imp.safetensors"')
    for key, value in row.items():
        known = key in (*_WORDS, "path", "reason", "skip")
        if not known or not isinstance(value, bool if key == "skip" else str):
            hint = suggest_nearest(key, (*_WORDS, "skip")) or f"known: {', '.join(_WORDS)} (texts), skip"
            raise UsageError(f"{key} = {str(value)[:80]!r} means nothing here", where=where, hint=hint)
    fields = {key: value for key, value in row.items() if key not in ("path", "reason")}
    if fields.get("base") and fields["base"] not in FAMILY_BY_ID:
        hint = suggest_nearest(fields["base"], FAMILY_BY_ID) or f"families: {', '.join(FAMILY_BY_ID)}"
        raise UsageError(f"{fields['base'][:80]!r} is no family", where=f"{where}.base", hint=hint)
    if fields.get("placeholder"):
        try:
            parse_placeholder(fields["placeholder"])
        except InvalidNameError as error:
            raise error.inside(f"{where}.placeholder") from error
    return row["path"], fields
